"""The watermark is found after what usually happens to a picture, and not where there is none."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core import watermark
from core.errors import BadInput
from core.images import read_image
from core.marking import Marks, mark_with, write_marked
from core.provenance import COMPOSITE, GENERATED, main
from core.watermark import ENOUGH, VARIABLE, bits_right, is_asked_for, watermarked

WHY = "pip install --no-deps -r requirements-watermark.txt"
needs_library = pytest.mark.skipif(not watermark.is_here(), reason=WHY)


@pytest.fixture
def picture():
    """A scene of soft shapes, 256 x 320."""
    seeds = np.random.default_rng(4).integers(30, 220, (6, 8, 3)).astype(np.uint8)
    return np.array(Image.fromarray(seeds).resize((320, 256), Image.Resampling.BICUBIC))


def as_jpeg(image):
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "JPEG", quality=75)
    return read_image(memory.getvalue())[0]


def halved(image):
    small = Image.fromarray(image)
    return np.array(small.resize((image.shape[1] // 2, image.shape[0] // 2), Image.Resampling.BOX))


@pytest.mark.slow
@needs_library
def test_it_outlives_jpeg_and_halving_and_is_not_seen_where_it_is_not(picture):
    marked = watermarked(picture)
    assert marked.shape == picture.shape and marked.dtype == np.uint8
    error = np.square(marked.astype(float) - picture).mean()
    assert 33 < 10 * np.log10(255**2 / error) < 60
    for image in (marked, as_jpeg(marked), halved(marked)):
        assert bits_right(image) >= ENOUGH
    for image in (picture, as_jpeg(picture), halved(picture)):
        assert bits_right(image) < ENOUGH


@pytest.mark.slow
@needs_library
def test_pictures_get_it_and_sheets_do_not(picture, tmp_path, capsys):
    mark_with(Marks.read({VARIABLE: "on"}))
    try:
        write_marked(tmp_path / "made.png", picture, GENERATED)
        write_marked(tmp_path / "sheet.png", picture, COMPOSITE)
    finally:
        mark_with(Marks())
    assert np.array_equal(read_image(tmp_path / "sheet.png")[0], picture)
    assert np.array_equal(read_image(tmp_path / "made.png")[0], watermarked(picture))
    with pytest.raises(SystemExit):
        main(["--watermark", str(tmp_path / "made.png"), str(tmp_path / "sheet.png")])
    said = capsys.readouterr().out
    assert said.index("It carries ControlLoop's watermark: 32 of 32") < said.index("sheet.png")
    assert said.index("sheet.png") < said.index("It does not carry ControlLoop's watermark")


@pytest.mark.slow
@needs_library
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), high=st.integers(8, 12).map(lambda n: n * 8),
    wide=st.integers(8, 12).map(lambda n: n * 8),
)  # fmt: skip
def test_no_picture_of_noise_has_it_by_chance(seed, high, wide):
    noise = np.random.default_rng(seed).integers(0, 256, (high, wide, 3)).astype(np.uint8)
    assert bits_right(noise) < ENOUGH <= bits_right(watermarked(noise))


def test_it_is_off_unless_asked_for(monkeypatch):
    assert not is_asked_for({}) and not is_asked_for({VARIABLE: "off"})
    with pytest.raises(BadInput, match="must be on or off"):
        is_asked_for({VARIABLE: "yes"})
    monkeypatch.setattr(watermark, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match="run `pip install --no-deps"):
        is_asked_for({VARIABLE: "on"})
    with pytest.raises(SystemExit):
        main(["--watermark", "x.png"])
