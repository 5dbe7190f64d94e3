"""Settings in the EXIF of JPEG, WebP, AVIF and PNG, whichever encoding their writer took."""

import io
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.exif_texts import read_exif_texts, user_comment
from core.metadata import read_settings
from core.png_chunks import MAX_TEXT_BYTES
from tests.core.test_png_chunks import raw_png

TEXT = "a red ball, “ünï” 🎈 雪\nNegative prompt: grey\nSteps: 25, CFG scale: 7, Seed: 11"
FORMATS = ("JPEG", "WEBP", "PNG", "AVIF")
ASCII, UNICODE, UNDEFINED = b"ASCII\0\0\0", b"UNICODE\0", bytes(8)
MAKE, MODEL, EXIF_IFD, USER_COMMENT = 0x10F, 0x110, 0x8769, 0x9286


def exif(comment=b"", order="<", **texts):
    """Return an EXIF block by the specification: Make and Model, and an IFD with a UserComment."""

    def ifd(start, entries):
        """Return a directory; longer values lie after it."""
        head = struct.pack(order + "H", len(entries))
        beyond, at = b"", start + 2 + 12 * len(entries) + 4
        for tag, kind, value in entries:
            if isinstance(value, int):
                head += struct.pack(order + "HHLL", tag, kind, 1, value)
            else:
                head += struct.pack(order + "HHLL", tag, kind, len(value), at + len(beyond))
                beyond += value + b"\0" * (len(value) % 2)
        return head + bytes(4) + beyond

    ascii_tags = [(MAKE, texts.get("make")), (MODEL, texts.get("model"))]
    entries = [(tag, 2, text.encode() + b"\0") for tag, text in ascii_tags if text]
    first = ifd(8, [*entries, (EXIF_IFD, 4, 0)])
    first = ifd(8, [*entries, (EXIF_IFD, 4, 8 + len(first))])
    second = ifd(8 + len(first), [(USER_COMMENT, 7, comment)])
    sign = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + sign + struct.pack(order + "L", 8) + first + second


def picture(block, kind="JPEG"):
    file = io.BytesIO()
    block = block.removeprefix(b"Exif\0\0") if kind == "AVIF" else block
    Image.new("RGB", (16, 16), "teal").save(file, kind, exif=block)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("code", "encoding"),
    [
        (UNICODE, "utf-16-be"),
        (UNICODE, "utf-16-le"),
        (UNICODE, "utf-16"),
        (UNICODE, "utf-8"),
        (ASCII, "utf-8"),
        (UNDEFINED, "utf-8"),
        (UNDEFINED, "utf-16-be"),
        (b"", "utf-8"),
    ],
)
def test_a_user_comment_gives_the_settings(kind, order, code, encoding):
    comment = code + TEXT.encode(encoding)
    fields, notes = read_settings(picture(exif(comment, order), kind))
    assert fields == {
        "prompt": "a red ball, “ünï” 🎈 雪",
        "added_prompt": "",
        "negative_prompt": "grey",
        "steps": 25,
        "guidance_scale": 7.0,
        "seed": 11,
    }
    assert notes == []


@pytest.mark.parametrize("kind", FORMATS)
def test_fooocus_writes_json_into_it(kind):
    stored = {"prompt": "a red ball", "negative_prompt": "", "seed": "5", "steps": 30}
    fields, _ = read_settings(picture(exif(ASCII + json.dumps(stored).encode()), kind))
    assert (fields["prompt"], fields["seed"], fields["steps"]) == ("a red ball", 5, 30)


def test_comfyui_writes_its_graph_into_make_and_model():
    from tests.core.test_other_tools import graph

    block = exif(make='workflow:{"nodes": []}', model="prompt:" + json.dumps(graph()))
    fields, notes = read_settings(picture(block, "WEBP"))
    assert (fields["prompt"], fields["seed"]) == ("a red ball", 42)
    assert "ComfyUI" in notes[0]


def test_chunks_come_before_the_exif():
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", "p\nSteps: 3")
    block = exif(UNICODE + TEXT.encode("utf-16-be"))
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info, exif=block)
    assert read_settings(file.getvalue())[0]["steps"] == 3


@pytest.mark.parametrize("comment", [b"", ASCII + b"holiday, the third day", UNICODE, b"\xff" * 9])
def test_a_cameras_comment_holds_no_settings(comment):
    block = exif(comment, make="A camera", model="prompt")
    assert read_settings(picture(block)) == ({}, ["This picture holds no settings."])


def test_a_comment_that_is_too_long_is_told():
    long = ASCII + b"p\nSteps: 3, " + b"x" * MAX_TEXT_BYTES
    assert "too long" in read_settings(picture(exif(long), "WEBP"))[1][0]


def test_a_text_for_which_both_orders_are_likely_takes_that_of_the_file():
    assert user_comment(UNICODE + "雪山".encode("utf-16-le"), True) == "雪山"
    assert user_comment(UNICODE + "雪山".encode("utf-16-be"), False) == "雪山"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    words=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
    order=st.sampled_from("<>"),
    encoding=st.sampled_from(["utf-16-be", "utf-16-le", "utf-16", "utf-8"]),
    kind=st.sampled_from(FORMATS[:3]),
)
def test_any_text_comes_back_in_any_encoding(words, order, encoding, kind):
    said = f"{words}\nSteps: 25"
    block = exif(UNICODE + said.encode(encoding), order)
    assert read_exif_texts(picture(block, kind)) == {"parameters": said}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it tells what is damaged
@settings(max_examples=150, deadline=None, derandomize=True)
@given(at=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 200))
def test_damaged_exif_does_no_harm(at, byte, cut):
    block = bytearray(exif(UNICODE + TEXT.encode("utf-16-be"), make="prompt:{}"))
    block[at % len(block)] = byte
    for data in (picture(bytes(block)), picture(exif(UNICODE + TEXT.encode("utf-16-be")))[:cut]):
        read_settings(data)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_order_quotes_and_encoding_of_an_infotext_cost_no_setting(data):
    """Pairs in any order, quoted or not, parted by commas or bars, in any chunk or in EXIF."""
    words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)
    others = {"Model": "x", "Note": '"a, b: c | \\"d\\""', "Version": "v1.10.1"}
    pairs = {"Seed": "11", "CFG scale": "7", "Size": "512x768", "Sampler": "DDIM"} | others
    order = data.draw(st.permutations(list(pairs)))
    quotes = data.draw(st.sampled_from(["{}", '"{}"']))
    shown = {n: v if v.startswith('"') else quotes.format(v) for n, v in pairs.items()}
    between = data.draw(st.sampled_from([", ", " | "]))
    line = between.join(["Steps: 25", *(f"{name}: {shown[name]}" for name in order)])
    prompt, negative = data.draw(words), data.draw(words)
    said = f"{prompt}\nNegative prompt: {negative}\n{line}"
    tail = data.draw(st.sampled_from(["", "\nTemplate: a {b|c}", "\n"]))
    encoded = data.draw(st.sampled_from(["tEXt", "utf-16-be", "utf-16-le", "utf-8"]))
    if encoded == "tEXt":
        file = raw_png((b"tEXt", b"parameters\0" + (said + tail).encode()))
    else:
        file = picture(exif(b"UNICODE\0" + (said + tail).encode(encoded)))
    found, _ = read_settings(file)
    assert (found.pop("prompt"), found.pop("negative_prompt")) == (prompt, negative)
    assert found == {
        "added_prompt": "",
        "steps": 25,
        "seed": 11,
        "guidance_scale": 7.0,
        "image_resolution": 512,
    }
