"""A painted mask: what its strokes cover, and strokes for a mask that a file holds."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.web.jobs.mask import edit_of, mask_of
from core.errors import BadInput


def stroke(*points: tuple[float, float], width: float = 4, **kind: bool) -> dict[str, Any]:
    return {"points": [list(point) for point in points], "width": width, **kind}


def test_a_brush_paints_and_the_eraser_takes_away() -> None:
    strokes = [stroke((4, 8), (28, 8)), stroke((16, 8), width=8, erase=True)]
    mask = mask_of({"size": [32, 16], "strokes": strokes})
    assert mask.shape == (16, 32) and mask.dtype == bool
    assert mask[8, 6] and mask[8, 26] and not mask[8, 16] and not mask[2, 6]


def test_an_area_is_filled() -> None:
    corners = ((4, 4), (28, 4), (28, 12), (4, 12))
    mask = mask_of({"size": [32, 16], "strokes": [stroke(*corners, width=1, fill=True)]})
    assert mask[5:11, 5:27].all() and not mask[:3].any() and not mask[:, 29:].any()


@pytest.mark.parametrize(
    "edit", [{}, {"size": [0, 4]}, {"size": [8, 8], "strokes": [{"points": [["x", 1]]}]}]
)
def test_what_is_no_mask_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"\.$"):
        mask_of(edit)


def test_rings_in_rings_come_back_to_the_pixel() -> None:
    mask = np.zeros((64, 96), np.uint8)
    for radius, inside in ((30, 1), (22, 0), (14, 1), (6, 0)):
        cv2.circle(mask, (40, 32), radius, inside, -1)
    mask[50:, 80:] = 1  # at the picture's border
    edit = edit_of(mask > 0)
    assert edit is not None and len(edit["strokes"]) == 5
    assert np.array_equal(mask_of(edit), mask > 0)


@settings(deadline=None, max_examples=40)
@given(pixels=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
def test_any_mask_comes_back_within_a_pixel_of_its_rim(pixels: int, share: float) -> None:
    """Single pixels that touch at corners are more than strokes can say."""
    mask = (np.random.default_rng(pixels).random((12, 17)) < share).astype(np.uint8)
    edit = edit_of(mask > 0)
    assert edit is not None
    found, near = mask_of(edit), np.ones((3, 3), np.uint8)
    assert (found <= cv2.dilate(mask, near)).all() and (found >= cv2.erode(mask, near)).all()


def test_a_mask_of_noise_has_too_many_strokes() -> None:
    assert edit_of(np.random.default_rng(0).random((512, 512)) < 0.3) is None
