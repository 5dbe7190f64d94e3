"""The decoder against the files people really have, and sizes, maps and tensors."""

import contextlib
import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.ExifTags import Base as ExifTag
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from core import images
from core.errors import BadInput
from core.images import (
    MOST_DRAWN_PIXELS,
    NOTHING,
    PAPER,
    RESIZE_AND_FILL,
    RESIZE_MODES,
    drawing_size,
    filled,
    fit_size,
    inner_size,
    pixel_perfect_resolution,
    read_image,
    resize,
    resize_map,
    to_images,
    to_tensor,
)

SIDE = 48


@pytest.fixture
def pixels():
    """A smooth picture with a red left, a green top and a blue corner: no two turns look alike."""
    y, x = np.mgrid[0:SIDE, 0 : SIDE + 16].astype(np.float32) / SIDE
    return np.stack([255 * (1 - x.clip(0, 1)), 255 * (1 - y), 255 * (x * y).clip(0, 1)], -1).astype(
        np.uint8
    )


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width, height):
    """A PNG of width x height black 1-bit pixels; its data is never looked at."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND", b"")


# What is read exactly


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {}),
        ("AVIF", {}),
    ],
)
def test_every_format_in_the_list(pixels, kind, options):
    image, notes = read_image(saved(Image.fromarray(pixels), kind, **options))
    assert image.dtype == np.uint8
    assert image.shape == pixels.shape
    worst = {"JPEG": 40, "AVIF": 40}.get(kind, 0)
    assert np.abs(image.astype(int) - pixels).max() <= worst
    assert notes == []


def test_from_a_path_and_from_bytes(pixels, tmp_path):
    path = tmp_path / "a picture ü.png"
    path.write_bytes(saved(Image.fromarray(pixels)))
    assert np.array_equal(read_image(path)[0], pixels)
    assert np.array_equal(read_image(str(path))[0], pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_made_upright(pixels, orientation):
    """A camera stores the turned picture and the number that turns it back."""
    turn_back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(pixels)
    if turn_back is not None:
        stored = stored.transpose(turn_back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, _ = read_image(saved(stored, exif=exif.tobytes()))
    assert np.array_equal(image, pixels)


def exif_block(*entries):
    """EXIF of a picture that lies on its side, with more entries (tag, type, count, data)."""
    rows = sorted([(0x112, 3, 1, struct.pack("<H", 6)), *entries])
    size = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)
    rows = [(tag, kind, count, data[: size[kind] * count]) for tag, kind, count, data in rows]
    block, tail = b"II*\0" + struct.pack("<LH", 8, len(rows)), b""
    for tag, kind, count, data in rows:
        place = 8 + 2 + 12 * len(rows) + 4 + len(tail)
        inline = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<L", place)
        block += struct.pack("<HHL", tag, kind, count) + inline
        tail += data if len(data) > 4 else b""
    return b"Exif\0\0" + block + b"\0\0\0\0" + tail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    tag=st.integers(0x100, 0xFFFF).filter(lambda tag: tag != 0x112),
    data_type=st.integers(1, 12),
    count=st.integers(1, 3),
    data=st.binary(min_size=24, max_size=24),  # three of the widest type
)
@example(tag=0x11A, data_type=2, count=3, data=b"72\0")  # a text for the resolution
@example(tag=0x11A, data_type=10, count=1, data=struct.pack("<ll", -1, 0))
@example(tag=0x103, data_type=4, count=1, data=struct.pack("<L", 99999))
@example(tag=0x10F, data_type=5, count=1, data=struct.pack("<LL", 1, 2))  # a number for a maker
def test_no_entry_of_exif_costs_the_picture_or_its_orientation(kind, tag, data_type, count, data):
    stored = Image.new("RGB", (96, 64), "teal")
    file = saved(stored, kind, exif=exif_block((tag, data_type, count, data)))
    assert read_image(file)[0].shape == (96, 64, 3)


def test_a_photograph_of_200_megapixels_is_read_smaller(monkeypatch):
    """With the limits as many times smaller as the picture."""
    monkeypatch.setattr(images, "MAX_PIXELS", 40_000)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 210_000)
    monkeypatch.setattr(images, "MAX_PROGRESSIVE_PIXELS", 100_000)
    ramp = np.linspace(0, 255, 512).astype(np.uint8)[None].repeat(400, 0)
    photo = Image.fromarray(ramp)
    image, notes = read_image(saved(photo, "JPEG", quality=95, exif=exif_block()))
    assert image.shape == (128, 100, 3) and "1/4 of its size, 128 x 100" in notes[0]
    assert np.abs(image[:, 50, 0].astype(int) - ramp[0, 1::4]).max() <= 4
    with pytest.raises(BadInput, match="save it as a JPEG"):
        read_image(saved(photo, "JPEG", progressive=True))
    with pytest.raises(BadInput, match="save it as a JPEG"):
        read_image(saved(photo, "PNG"))
    with pytest.raises(BadInput, match="save it as a JPEG"):
        read_image(saved(photo.resize((1024, 400)), "JPEG"))


def test_pillows_own_limit_stops_no_large_jpeg(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(saved(Image.new("L", (64, 64)), "JPEG"))[0].shape == (64, 64, 3)


def test_sixteen_bits_are_scaled_not_cut():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    for kind in ("PNG", "TIFF"):
        image, _ = read_image(saved(Image.fromarray(ramp), kind))
        assert image.shape == (8, 64, 3)
        assert np.array_equal(image[0, :, 0], np.round(ramp[0] / 257).astype(np.uint8))


def test_floats_and_wide_integers():
    unit = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(8, 0)
    image, notes = read_image(saved(Image.fromarray(unit), "TIFF"))
    assert image[0, [0, -1], 0].tolist() == [0, 255]
    assert notes == []
    image, notes = read_image(saved(Image.fromarray(unit * 3000 - 100), "TIFF"))
    assert image[0, [0, -1], 0].tolist() == [0, 255]
    assert "stretched" in notes[0]
    broken = unit.copy()
    broken[0, 0] = np.nan
    assert read_image(saved(Image.fromarray(broken), "TIFF"))[0][0, -1, 0] == 255


@pytest.mark.filterwarnings("error")
def test_infinities_become_the_ends_they_point_to():
    depth = np.linspace(2, 12, 11, dtype=np.float32)[None].repeat(8, 0)
    depth[0, :3] = np.inf, -np.inf, np.nan
    image, notes = read_image(saved(Image.fromarray(depth), "TIFF"))
    assert image[0, :3, 0].tolist() == [255, 0, 0]
    assert image[1, [0, 5, 10], 0].tolist() == [0, 128, 255]
    assert "finite" in notes[0]
    assert "2 to 12, were stretched" in notes[1]
    nothing = np.full((8, 8), np.inf, np.float32)
    image, notes = read_image(saved(Image.fromarray(nothing), "TIFF"))
    assert np.unique(image).tolist() == [0]
    assert len(notes) == 1


def test_one_bit():
    image, _ = read_image(saved(Image.fromarray(np.eye(9, dtype=np.uint8) * 255).convert("1")))
    assert np.array_equal(image[:, :, 1], np.eye(9, dtype=np.uint8) * 255)


def test_alpha_is_put_on_white_in_every_encoding():
    """Left half opaque red, right half transparent over hidden green."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (255, 0, 0, 255)
    rgba[:, 4:] = (0, 255, 0, 0)
    wanted = np.full((8, 8, 3), 255, np.uint8)
    wanted[:, :4] = (255, 0, 0)
    picture = Image.fromarray(rgba)
    palette = Image.fromarray(np.where(rgba[:, :, 3] > 0, 0, 1).astype(np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    for data in (
        saved(picture),
        saved(picture, "WEBP", lossless=True, exact=True),
        saved(picture, "TIFF"),
        saved(palette, transparency=1),
        saved(palette, "GIF", transparency=1),
        saved(picture.convert("RGB"), transparency=(0, 255, 0)),
    ):
        image, notes = read_image(data)
        assert np.array_equal(image, wanted)
        assert notes == ["Transparent parts were filled with white."]
    grey = Image.fromarray(np.dstack([rgba[:, :, 0], rgba[:, :, 3]]))
    assert np.array_equal(read_image(saved(grey))[0], np.full((8, 8, 3), 255))


def test_on_a_ready_map_transparent_is_nothing():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:, :, 1], layer[2:4, 2:4] = 255, (200, 0, 0, 255)
    image, notes = read_image(saved(Image.fromarray(layer)), ground=NOTHING)
    assert image[0, 0].tolist() == [0, 0, 0] and image[2, 2].tolist() == [200, 0, 0]
    assert notes == ["Transparent parts were filled with black."]


@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (60, 255), (200, 0), (255, 0)])
def test_lines_on_nothing_get_the_ground_that_shows_them(ink, ground):
    layer = np.zeros((16, 16, 4), np.uint8)
    layer[..., :3] = 255 - ink  # hidden under full transparency
    layer[8] = (ink, ink, ink, 255)
    grey = Image.fromarray(np.where(np.eye(16) > 0, ink * 257, 1000).astype(np.uint16))
    for data, line in (
        (saved(Image.fromarray(layer)), (8, 3)),
        (saved(grey, transparency=1000), (3, 3)),
    ):
        image, _ = read_image(data, ground=None)
        assert image[line].tolist() == [ink] * 3 and image[0, 5].tolist() == [ground] * 3
    nothing, _ = read_image(saved(Image.new("RGBA", (8, 8))), ground=None)
    assert nothing.min() == 255


def test_the_transparent_level_of_sixteen_bit_grey_is_put_on_white():
    """Levels that are the same in 8 bits are told apart."""
    levels = np.array([[0, 1000, 1001, 65535]], np.uint16).repeat(4, 0)
    image, notes = read_image(saved(Image.fromarray(levels), transparency=1000))
    assert image[0, :, 0].tolist() == [0, 255, 4, 255]
    assert notes == ["Transparent parts were filled with white."]
    assert read_image(saved(Image.fromarray(levels), transparency=7))[1] == []


def test_half_transparent_is_blended_and_opaque_alpha_gives_no_note():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 3] = 128
    assert read_image(saved(Image.fromarray(rgba)))[0].max() == 127
    rgba[..., 3] = 255
    assert read_image(saved(Image.fromarray(rgba)))[1] == []


def test_alpha_that_only_carries_a_text_is_opaque(pixels):
    """NovelAI and others hide a picture's settings in alpha's lowest bit."""
    bits = np.random.default_rng(0).integers(254, 256, (*pixels.shape[:2], 1), np.uint8)
    data = saved(Image.fromarray(np.concatenate([pixels, bits], axis=2)))
    for ground in (PAPER, NOTHING):
        read, notes = read_image(data, ground)
        assert np.array_equal(read, pixels) and notes == []
    bits[0, 0] = 253
    assert read_image(saved(Image.fromarray(np.concatenate([pixels, bits], axis=2))))[1]


def test_cmyk_keeps_its_colours():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        red = read_image(saved(cmyk, kind))[0][8, 8]
        assert red[0] > 240
        assert red[1:].max() < 15


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "tiff_lzw"},
        {"save_all": True, "append_images": [Image.new("YCbCr", (9, 9))]},
        {"tiffinfo": {278: 5}},  # strips of 5 rows
    ],
)
def test_ycbcr_tiffs_keep_their_colours(pixels, options):
    image, _ = read_image(saved(Image.fromarray(pixels).convert("YCbCr"), "TIFF", **options))
    assert np.abs(image.astype(int) - pixels).max() <= 3


def test_a_turned_ycbcr_tiff_is_made_upright(pixels):
    turned = Image.fromarray(pixels).convert("YCbCr").transpose(Image.Transpose.ROTATE_90)
    image, _ = read_image(saved(turned, "TIFF", tiffinfo={274: 6}))
    assert np.abs(image.astype(int) - pixels).max() <= 3


def test_a_cut_ycbcr_tiff_is_incomplete(pixels):
    data = saved(Image.fromarray(pixels).convert("YCbCr"), "TIFF")
    assert "incomplete" in refusal(data[: len(data) // 2])


def matrix_profile(red, green, blue):
    """A colour profile of three primaries (XYZ under D50) and sRGB's curve (ICC.1:2022)."""

    def fixed(*numbers):
        return struct.pack(f">{len(numbers)}i", *(round(x * 65536) for x in numbers))

    def words(text):
        encoded = text.encode("utf-16-be")
        return b"mluc" + struct.pack(">III4sII", 0, 1, 12, b"enUS", len(encoded), 28) + encoded

    curve = b"para" + struct.pack(">IHH", 0, 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055)
    curve += fixed(1 / 12.92, 0.04045)
    white = (0.9642, 1.0, 0.8249)
    tags = {b"desc": words("Display P3"), b"cprt": words("none")}
    for name, colour in ((b"wtpt", white), (b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue)):
        tags[name] = b"XYZ \0\0\0\0" + fixed(*colour)
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, bodies = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(bodies), len(tag))
        bodies += tag + b"\0" * (-len(tag) % 4)
    size = start + len(bodies)
    head = struct.pack(">I4sI", size, b"\0" * 4, 0x04300000) + b"mntrRGB XYZ "
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + fixed(*white)
    return head.ljust(128, b"\0") + table + bodies


def test_display_p3_becomes_srgb():
    """Apple's primaries; the wanted values are those of CSS Color 4's matrices."""
    profile = matrix_profile(
        red=(0.51512, 0.24120, -0.00105),
        green=(0.29198, 0.69225, 0.04189),
        blue=(0.15710, 0.06657, 0.78407),
    )
    stored = np.array([[(200, 100, 50), (128, 128, 128), (255, 255, 255), (0, 255, 0)]], np.uint8)
    image, notes = read_image(saved(Image.fromarray(stored), icc_profile=profile))
    wanted = np.array([(215, 93, 31), (128, 128, 128), (255, 255, 255), (0, 255, 0)])
    assert np.abs(image[0].astype(int) - wanted).max() <= 2
    assert notes == []


def test_srgb_s_own_profile_and_a_broken_one_change_nothing():
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.unique(read_image(saved(grey, icc_profile=srgb))[0]).tolist() == [128]
    image, notes = read_image(saved(grey, icc_profile=b"no profile at all"))
    assert np.unique(image).tolist() == [128]
    assert "profile" in notes[0]


def test_first_frame_of_an_animation(pixels):
    first = Image.fromarray(pixels)
    others = [ImageOps.invert(first)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        animated = saved(first, kind, save_all=True, append_images=others, **options)
        image, notes = read_image(animated)
        assert np.array_equal(image, pixels)
        assert notes == ["Only the first frame of the animation is used."]
    image, notes = read_image(saved(first, "GIF", save_all=True, append_images=others))
    assert np.abs(image.astype(int) - pixels).mean() < 12
    assert "first frame" in notes[0]
    image, notes = read_image(saved(first, "TIFF", save_all=True, append_images=others))
    assert np.array_equal(image, pixels)
    assert notes == ["Only the first page is used."]


def test_huge_text_chunks_do_not_matter(pixels):
    """Pillow refuses the whole picture; the picture itself is fine."""
    data = saved(Image.fromarray(pixels))
    bomb = png_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 2_000_000))
    plain = png_chunk(b"tEXt", b"Comment\0" + b"a" * 2_000_000)
    with_text = data[:33] + bomb + plain + data[33:]
    assert np.array_equal(read_image(with_text)[0], pixels)


# What is refused, in one sentence


def refusal(data):
    with pytest.raises(BadInput) as caught:
        read_image(data)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_text_and_empty_files():
    assert "not an image we can read" in refusal(b"just some words, named .png")
    assert "empty" in refusal(b"")


def test_missing_file(tmp_path):
    assert "could not be opened" in refusal(tmp_path / "gone.png")
    assert "could not be opened" in refusal("\0")
    assert "could not be opened" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_cut_files_are_incomplete_not_grey(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    assert "incomplete" in refusal(data[: int(len(data) * part)])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_from_the_header():
    assert "million pixels" in refusal(png_bomb(20_000, 20_000))
    assert "million pixels" in refusal(png_bomb(12_000, 10_000))
    assert "million pixels" in refusal(png_bomb(6_400, 6_400))


@pytest.mark.parametrize("size", [(1, 4000), (16, 8192), (4000, 1)])
def test_strips(size):
    assert "strip" in refusal(saved(Image.new("RGB", size)))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<svg xmlns='x'><script>alert(1)</script></svg>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- hi -->\n<svg/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_foreign_formats_are_named(start, name):
    assert refusal(start + b"\0" * 100).startswith(name)


def heic(picture, **options):
    """A picture's HEIC file, as an iPhone writes one."""
    import pillow_heif

    pillow_heif.register_heif_opener()  # for Pillow's save; open_picture does without
    return saved(picture, "HEIF", **options)


def test_heic_is_read_upright():
    columns, rows = np.meshgrid(np.arange(96), np.arange(64))
    gradient = np.dstack([columns * 2, rows * 3, np.full_like(rows, 90)]).astype(np.uint8)
    pixels, notes = read_image(heic(Image.fromarray(gradient), quality=100))
    assert notes == [] and pixels.shape == (64, 96, 3)
    assert np.abs(pixels.astype(int) - gradient).mean() < 3
    turned = Image.fromarray(gradient)
    exif = turned.getexif()
    exif[ExifTag.Orientation] = 6
    pixels, _ = read_image(heic(turned, quality=100, exif=exif.tobytes()))
    assert pixels.shape == (96, 64, 3)
    assert np.abs(pixels.astype(int) - np.rot90(gradient, -1)).mean() < 3


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_damaged_heic_is_one_sentence(part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    data = heic(Image.fromarray(noise))
    assert "incomplete or damaged" in refusal(data[: int(len(data) * part)])


@given(at=st.integers(0, 2000), bits=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_heic_with_a_wrong_byte_is_a_picture_or_one_sentence(at, bits):
    data = bytearray(heic(Image.new("RGB", (96, 64), "teal")))
    data[at % len(data)] ^= bits
    with contextlib.suppress(BadInput):
        assert read_image(bytes(data))[0].ndim == 3


def test_a_heic_of_too_many_pixels_is_refused_from_its_header(monkeypatch):
    data = heic(Image.new("RGB", (96, 64)))
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 64 - 1)
    assert "million pixels" in refusal(data)


def tiff(**tags):
    """A TIFF of 96 x 64 with more tags, (number, value, TIFF's type)."""
    info = ImageFileDirectory_v2()
    for number, value, kind in tags.values():
        info[number], info.tagtype[number] = value, kind
    return saved(Image.new("RGB", (96, 64), "teal"), "TIFF", tiffinfo=info)


@pytest.mark.parametrize(
    "data",
    [
        tiff(version=(50706, b"\1\4\0\0", 1)),
        tiff(reduced=(254, 1, 4), others=(330, 8, 4)),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(64),
        b"\0\0\0\x18ftypcrx " + bytes(64),
        b"FUJIFILMCCD-RAW 0201" + bytes(64),
    ],
    ids=["DNG", "NEF", "CR2", "CR3", "RAF"],
)
def test_a_raw_file_is_not_its_small_preview(data):
    assert refusal(data).startswith("Camera raw files cannot be read here. Please save it as")


@pytest.mark.parametrize("tags", [{"reduced": (254, 1, 4)}, {"others": (330, 8, 4)}])
def test_a_tiff_with_one_of_these_tags_is_a_picture(tags):
    assert read_image(tiff(**tags))[0].shape == (64, 96, 3)


def test_damaged_inside():
    data = bytearray(saved(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "PNG"))
    position = data.index(b"IDAT") + 6
    data[position : position + 8] = b"\xff" * 8
    assert "damaged" in refusal(bytes(data))


# Sizes


@pytest.mark.parametrize(
    ("width", "height", "resolution", "size"),
    [
        (512, 512, 512, (512, 512)),
        (640, 480, 512, (704, 512)),  # 682.7 rounds to 11 cells of 64
        (480, 640, 512, (512, 704)),
        (1, 1, 256, (256, 256)),
        (100, 100, 300, (320, 320)),
        (800, 100, 256, (2048, 256)),
        (100, 96, 96, (128, 128)),  # 1.5 cells round to the even number, as in v1.0
    ],
)
def test_fit_size(width, height, resolution, size):
    assert fit_size(width, height, resolution) == size


def test_fit_size_refuses_strips():
    with pytest.raises(BadInput, match="8:1"):
        fit_size(801, 100, 256)


def test_resize_of_a_flat_picture_stays_flat():
    flat = np.full((40, 40, 3), 77, np.uint8)
    for size in ((64, 64), (20, 30), (1, 1)):
        resized = resize(flat, size)
        assert resized.shape == (size[1], size[0], 3)
        assert np.unique(resized).tolist() == [77]


@settings(max_examples=60, deadline=None)
@given(short=st.integers(180, 420), longer=st.integers(0, 90), resolution=st.integers(256, 400))
def test_a_picture_is_fitted_as_v10_does(short, longer, resolution):
    """Also where its short side lies between the resolution and the multiple of 64 near it."""
    image = np.random.default_rng(short).integers(0, 256, (short, short + longer, 3), np.uint8)
    # The rule of ControlNet v1.0, annotator/util.py: HWC3 and resize_image.
    k = resolution / short
    size = tuple(int(np.round(side * k / 64)) * 64 for side in (short + longer, short))
    filter_of_v10 = cv2.INTER_LANCZOS4 if k > 1 else cv2.INTER_AREA
    fitted = fit_size(short + longer, short, resolution)
    assert fitted == size
    wanted = cv2.resize(image, size, interpolation=filter_of_v10)
    assert np.array_equal(resize(image, fitted, resolution), wanted)


def test_shrinking_takes_means():
    checks = np.indices((8, 8)).sum(0) % 2 * 200
    image = np.repeat(checks[:, :, None], 3, 2).astype(np.uint8)
    assert np.unique(resize(image, (4, 4))).tolist() == [100]


@pytest.mark.parametrize("size", [(24, 24), (100, 100), (20, 70)])
@pytest.mark.parametrize("interpolation", ["nearest", "lines"])
def test_maps_of_classes_and_lines_get_no_new_values(size, interpolation):
    classes = np.random.default_rng(0).choice([0, 90, 255], (48, 48, 1)).astype(np.uint8)
    resized = resize_map(classes.repeat(3, 2), size, interpolation)
    assert resized.shape == (size[1], size[0], 3)
    assert set(np.unique(resized)) <= {0, 90, 255}


@pytest.mark.parametrize("interpolation", ["linear", "area", "lanczos"])
def test_smooth_maps_are_blended(interpolation):
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 200
    blended = resize_map(step, (9, 9), interpolation)
    assert len(np.unique(blended)) > 2


# Tensors


def test_maps_become_tensors_and_pictures_come_back():
    image = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 8, 16)
    assert tensor.dtype == torch.float32
    assert float(tensor[0, 2, 5, 7]) == pytest.approx(image[5, 7, 2] / 255)
    (back,) = to_images(tensor * 2 - 1)
    assert np.array_equal(back, image)
    assert to_images(torch.tensor([[[[-9.0]], [[0.0]], [[9.0]]]]))[0].tolist() == [[[0, 128, 255]]]


# Resize modes, as detectmap_proc and pixel_perfect_resolution of Mikubill/sd-webui-controlnet


@pytest.mark.parametrize(
    ("shape", "outer", "inner"),
    [
        ((512, 512), (512, 512), (512, 512)),
        ((1000, 500), (512, 512), (512, 256)),
        ((500, 1000), (512, 768), (384, 768)),
        ((300, 200), (512, 512), (512, 341)),
        ((8000, 1000), (64, 64), (64, 8)),
        ((2000, 1), (512, 512), (512, 1)),
    ],
)
def test_the_largest_size_of_a_shape_within_another(shape, outer, inner):
    assert inner_size(*shape, outer) == inner


def test_margins_have_the_median_colour_of_the_border():
    control_map = np.full((4, 8, 3), 50, np.uint8)
    control_map[0], control_map[:, 0] = 90, 10  # 8 and 4 of the border's 24; the corner is 10
    canvas = filled(control_map, (8, 10), exact=False)
    border = [*[50] * 8, *[90] * 7, 10, *[10] * 4, *[90], *[50] * 3]
    assert canvas.shape == (10, 8, 3)
    assert (canvas[:3] == int(np.median(border))).all() and (canvas[7:] == canvas[0, 0]).all()
    assert np.array_equal(canvas[3:7], control_map)


def test_margins_of_exact_colours_invent_none():
    control_map = np.zeros((6, 6, 3), np.uint8)
    control_map[:, :3] = 200  # the median of as many 0 as 200 is 100
    assert (filled(control_map, (12, 6), exact=False)[:, 0] == 100).all()
    assert set(np.unique(filled(control_map, (12, 6), exact=True))) == {0, 200}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    margin=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    exact=st.booleans(),
)
def test_a_filled_map_is_whole_and_in_the_middle(side, margin, exact):
    (width, height), (wide, high) = side, margin
    control_map = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    canvas = filled(control_map, (width + wide, height + high), exact)
    left, top = wide // 2, high // 2
    assert canvas.shape == (height + high, width + wide, 3)
    assert np.array_equal(canvas[top : top + height, left : left + width], control_map)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize(
    ("width", "height", "size", "crop", "fill"),
    [
        (1024, 1024, (512, 512), 512, 512),
        (2000, 1000, (512, 512), 512, 256),
        (1000, 1500, (512, 768), 512, 512),
        (300, 100, (768, 512), 512, 256),
    ],
)
def test_pixel_perfect_is_the_rule_of_sd_webui_controlnet(mode, width, height, size, crop, fill):
    """The smaller scale if the rest is filled, else the larger, times the picture's short side."""
    wanted = fill if mode == RESIZE_AND_FILL else crop
    assert pixel_perfect_resolution(width, height, size, mode) == wanted


def test_only_long_strips_are_drawn_smaller():
    """Up to 4:1 every detect resolution is kept; beyond, the area is."""
    for width, height in ((100, 100), (400, 100), (100, 399)):
        for resolution in (128, 512, 1024):
            assert drawing_size(width, height, resolution) == fit_size(width, height, resolution)
    for width, height in ((800, 100), (100, 500)):
        wide, high = drawing_size(width, height, 1024)
        assert MOST_DRAWN_PIXELS / 2 < wide * high <= MOST_DRAWN_PIXELS
        assert max(wide, high) / min(wide, high) == pytest.approx(max(width, height) / 100, rel=0.1)


def test_pictures_are_decoded_one_after_the_other_where_they_are_large(tmp_path, monkeypatch):
    """Not more pixels at once than DECODING allows, whoever asks."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path)
    now, most, lock = [0], [0], threading.Lock()
    decode = images._decode

    def counted(*given):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        found = decode(*given)
        with lock:
            now[0] -= 1
        return found

    monkeypatch.setattr(images, "_decode", counted)
    for pixels, together in ((2 * 64 * 64, 2), (64 * 64 - 1, 1)):
        monkeypatch.setattr(images.DECODING, "amount", pixels)
        most[0] = 0
        with ThreadPoolExecutor(6) as threads:
            assert len(list(threads.map(lambda _: read_image(path), range(6)))) == 6
        assert most[0] == together
