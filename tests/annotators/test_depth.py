"""Edits of depth maps: levels, contrast, tilt and strokes, on a map that one can check by head."""

import numpy as np
import pytest

from annotators.depth import ANNOTATOR
from core.errors import BadInput

LEVELS = np.array([0, 50, 100, 150, 200, 255], np.uint8)
STEPS = np.repeat(np.tile(np.repeat(LEVELS, 10), (40, 1))[:, :, None], 3, axis=2)
"""Six columns of grey, 10 pixels wide."""


def edited(before: np.ndarray, **values):
    size = [before.shape[1], before.shape[0]]
    return ANNOTATOR.editor.draw(ANNOTATOR.editor.check({"size": size, **values}), before)


def levels(drawn: np.ndarray) -> list[int]:
    assert (drawn == drawn[:1, :, :1]).all()
    return drawn[0, 5::10, 0].tolist()


def test_what_lies_beyond_near_and_far_is_clipped_and_the_rest_stretched():
    assert levels(edited(STEPS, far=50, near=150)) == [0, 0, 128, 255, 255, 255]


def test_near_below_far_turns_near_and_far_round():
    assert levels(edited(STEPS, far=255, near=0)) == [255, 205, 155, 105, 55, 0]


def test_near_at_far_leaves_black_and_white():
    assert levels(edited(STEPS, far=150, near=150)) == [0, 0, 0, 255, 255, 255]


def test_contrast_is_a_power_of_the_nearness():
    assert levels(edited(STEPS, contrast=2)) == [0, 10, 39, 88, 157, 255]


def test_a_tilt_brings_one_rim_nearer_and_the_other_farther():
    plain = np.full((41, 61, 3), 100, np.uint8)
    right = edited(plain, tilt_right=0.5)[:, :, 0]
    assert (right == right[:1]).all() and right[0, [0, 30, 60]].tolist() == [36, 100, 164]
    down = edited(plain, tilt_down=-0.5)[:, :, 0]
    assert down[[0, 20, 40], 0].tolist() == [164, 100, 36]


def test_strokes_bring_nearer_and_farther_where_they_lie():
    plain = np.full((100, 100, 3), 100, np.uint8)
    across = {"points": [[0, 30], [100, 30]], "width": 10, "by": 40}
    back = {"points": [[0, 70], [100, 70]], "width": 10, "by": -40}
    drawn = edited(plain, strokes=[across, across, back])[:, 50, 0]
    assert drawn[[10, 50, 90]].tolist() == [100] * 3
    assert drawn[30] == pytest.approx(180, abs=3) and drawn[70] == pytest.approx(60, abs=2)


def test_a_stroke_cannot_add_more_than_a_quarter_of_the_range():
    with pytest.raises(BadInput, match=r"The edit's by must be a number from -64 to 64\."):
        edited(STEPS, strokes=[{"points": [[1, 1]], "width": 5, "by": 65}])
