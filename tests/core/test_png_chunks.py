"""Text chunks survive the round trip, and no hostile file is unpacked beyond the caps."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from core.errors import BadInput
from core.png_chunks import MAX_TEXT_BYTES, chunks, read_bytes, read_texts, without_text, write_png

KEYWORDS = ("parameters", "controlloop")
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def raw_png(*pieces):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", 0)

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in pieces)


def test_what_is_written_is_read_again(tmp_path):
    texts = {"parameters": "plain", "controlloop": "“ünï” 🎈 <b>"}
    write_png(tmp_path / "out.png", PICTURE, texts | {"other": "not asked for"})
    assert read_texts(read_bytes(tmp_path / "out.png"), KEYWORDS) == texts
    with Image.open(tmp_path / "out.png") as saved:
        assert np.array_equal(np.asarray(saved), PICTURE)
    file = io.BytesIO()
    write_png(file, PICTURE, texts)
    assert read_texts(file.getvalue(), KEYWORDS) == texts


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def half_written(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_png(path, PICTURE, {})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a PNG",
        b"\x89PNG\r\n\x1a\n",
        raw_png((b"tEXt", b"parameters")),
        raw_png((b"zTXt", b"parameters\0\0broken")),
        raw_png((b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 50_000_000))),
        raw_png((b"iTXt", b"controlloop\0")),
        raw_png((b"iTXt", b"controlloop\0\1\0\0\0broken")),
        raw_png((b"tEXt", b"controlloop\0" + b"[" * 5_000_000)),
        raw_png((b"tEXt", b"\xff\xfe\0not ASCII")),
        raw_png((b"tEXt", b"parameters\0p\nSteps: 3"))[:-9],
    ],
)
def test_a_broken_or_oversized_chunk_has_no_text(data):
    assert not any(read_texts(data, KEYWORDS).values())


def test_the_cap_is_on_the_unpacked_text():
    for length, read in ((MAX_TEXT_BYTES, True), (MAX_TEXT_BYTES + 1, False)):
        data = raw_png((b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * length)))
        assert bool(read_texts(data, KEYWORDS)["parameters"]) is read


def test_a_bomb_is_not_unpacked():
    data = raw_png((b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 50_000_000)))
    tracemalloc.start()
    try:
        assert read_texts(data, KEYWORDS) == {"parameters": ""}
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TEXT_BYTES
    finally:
        tracemalloc.stop()


def test_compressed_and_international_text_are_read():
    text = b"p\nSteps: 3, Seed: 4"
    for chunk in (
        (b"zTXt", b"parameters\0\0" + zlib.compress(text)),
        (b"iTXt", b"parameters\0\1\0en\0Parameter\0" + zlib.compress(text)),
        (b"iTXt", b"parameters\0\0\0\0\0" + text),
    ):
        assert read_texts(raw_png(chunk), KEYWORDS) == {"parameters": text.decode()}


def test_without_text_only_the_text_is_gone():
    file = io.BytesIO()
    write_png(file, PICTURE, {"parameters": "x" * 1000})
    bare = without_text(file.getvalue())
    assert {kind for kind, _, _ in chunks(bare)} == {b"IHDR", b"IDAT", b"IEND"}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bare))), PICTURE)
    assert without_text(b"\xff\xd8 a JPEG") == b"\xff\xd8 a JPEG"


def test_no_such_file(tmp_path):
    with pytest.raises(BadInput, match="could not be opened"):
        read_bytes(tmp_path / "gone.png")


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_utf8_is_read_whichever_chunk_it_stands_in(kind):
    said = "“ünï” 🎈 ï"
    head = {b"tEXt": b"", b"zTXt": b"\0", b"iTXt": b"\0\0\0\0"}[kind]
    body = zlib.compress(said.encode()) if kind == b"zTXt" else said.encode()
    assert read_texts(raw_png((kind, b"parameters\0" + head + body)), KEYWORDS) == {
        "parameters": said
    }


@pytest.mark.parametrize("said", ["ünï", "Ã©tÃ©", "Â£ 5", "plain"])
def test_latin_1_is_written_so_that_it_is_not_taken_for_utf8(said):
    file = io.BytesIO()
    write_png(file, PICTURE, {"parameters": said})
    assert read_texts(file.getvalue(), KEYWORDS) == {"parameters": said}
    assert Image.open(io.BytesIO(file.getvalue())).text == {"parameters": said}
