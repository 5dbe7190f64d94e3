"""Grids drawn as one picture: tiles where they belong, and labels that fit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from apps.web.sheet import EMPTY, LABEL_LINES, PAPER, TILE, Tile, _wrapped, drawn_sheet

RED, LIME = (255, 0, 0), (0, 255, 0)


def plain(colour: tuple[int, int, int], wide: int = 64, high: int = 64) -> np.ndarray:
    return np.full((high, wide, 3), colour, np.uint8)


def box_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a colour."""
    ys, xs = np.nonzero((sheet == colour).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_tiles_stand_in_their_columns_and_rows() -> None:
    tiles = {(0, 0): Tile(plain(RED)), (1, 1): Tile(plain(LIME))}
    sheet = drawn_sheet(tiles, (2, 2))
    left, top, right, bottom = box_of(sheet, RED)
    assert (right - left, bottom - top) == (64, 64)
    other = box_of(sheet, LIME)
    assert other[0] > right and other[1] > bottom
    grey = tuple(bytes.fromhex(EMPTY[1:]))
    assert (sheet[top + 5, other[0] + 5] == grey).all(), "a place without a tile"
    assert (sheet[0, 0] == tuple(bytes.fromhex(PAPER[1:]))).all()


def test_a_large_picture_is_shrunk_and_its_shape_kept() -> None:
    sheet = drawn_sheet({(0, 0): Tile(plain(RED, 1024, 512))}, (1, 1))
    left, top, right, bottom = box_of(sheet, RED)
    assert (right - left, bottom - top) == (TILE, TILE // 2)


def test_labels_captions_and_notes_are_written() -> None:
    bare = drawn_sheet({(0, 0): Tile(plain(RED)), (1, 0): Tile(None)}, (2, 1))
    tiles = {(0, 0): Tile(plain(RED), "57 / 100"), (1, 0): Tile(None, note="It failed.")}
    told = drawn_sheet(tiles, (2, 1), "A title", ["a", "b"], ["a row"])
    left, top, _, bottom = box_of(told, RED)
    dark = (told.max(axis=2) < 140) & (told != RED).any(axis=2)
    assert dark[: top - 1].any() and dark[:, : left - 1].any() and dark[bottom + 1 :].any()
    assert dark[top:bottom, left + 64 + 8 :].any(), "the note, in the place of the picture"
    assert told.shape > bare.shape and not (bare.max(axis=2) < 140).any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(max_size=400), width=st.integers(20, 300))
def test_text_never_leaves_its_width(text: str, width: int) -> None:
    font = ImageFont.load_default(18)
    lines = _wrapped(text, font, width, LABEL_LINES)
    assert len(lines) <= LABEL_LINES
    assert all(font.getlength(line) <= width for line in lines)
