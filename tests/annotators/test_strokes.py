"""Strokes of an edit: what is refused, and where they lie on a map."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotators._strokes import check_strokes_edit, draw_strokes, stroke_mask
from core.errors import BadInput

BLACK = np.zeros((64, 96, 3), np.uint8)


def edit(*strokes, size=(96, 64)):
    return check_strokes_edit({"size": list(size), "strokes": list(strokes)})


def test_a_stroke_lies_where_it_was_drawn_and_is_as_wide():
    drawn = draw_strokes(edit({"points": [[10, 32], [80, 32]], "width": 8}), BLACK)
    rows = np.flatnonzero(drawn[:, 40, 0] > 127)
    assert (rows.min(), rows.max()) == (28, 35)
    columns = np.flatnonzero(drawn[32, :, 0] > 127)
    assert abs(columns.min() - 6) <= 1 and abs(columns.max() - 84) <= 1  # round ends


def test_a_map_of_another_size_gets_the_strokes_at_its_scale():
    stroke = {"points": [[10, 10], [80, 50]], "width": 6}
    small = draw_strokes(edit(stroke), BLACK)[:, :, 0] / 255
    large = draw_strokes(edit(stroke), np.zeros((128, 192, 3), np.uint8))[:, :, 0] / 255
    assert large.sum() == pytest.approx(4 * small.sum(), rel=0.06)
    averaged = large.reshape(64, 2, 96, 2).mean(axis=(1, 3))
    assert np.abs(averaged - small).mean() < 0.01


def test_erasing_takes_away_and_a_later_stroke_draws_again():
    line = {"points": [[0, 32], [96, 32]], "width": 8}
    hole = {"points": [[48, 20], [48, 44]], "width": 20, "erase": True}
    drawn = draw_strokes(edit(line, hole), BLACK)
    assert drawn[32, 48].tolist() == [0, 0, 0] and drawn[32, 10].tolist() == [255] * 3
    assert draw_strokes(edit(line, hole, line), BLACK)[32, 48].tolist() == [255] * 3


def test_the_pens_pressure_scales_the_width():
    stroke = {"points": [[10, 32, 0.25], [80, 32, 0.25]], "width": 16}
    light = stroke_mask(stroke, [96, 64], (64, 96))
    assert (light[:, 40] > 127).sum() == 4


def test_the_map_that_is_edited_stays_as_it_is():
    before = BLACK.copy()
    draw_strokes(edit({"points": [[1, 1], [9, 9]], "width": 3}), before)
    assert (before == BLACK).all()


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"size": [64]},
        {"size": [0, 64]},
        {"size": [64, 1e9]},
        {"size": ["64", 64]},
        {"size": [64, 64], "strokes": {}},
        {"size": [64, 64], "strokes": [7]},
        {"size": [64, 64], "strokes": [{"points": [[1]]}]},
        {"size": [64, 64], "strokes": [{"points": [[1, math.nan]]}]},
        {"size": [64, 64], "strokes": [{"points": [[1, 1e7]]}]},
        {"size": [64, 64], "strokes": [{"points": [[1, 1, 2]]}]},
        {"size": [64, 64], "strokes": [{"points": [[1, 1]], "width": True}]},
        {"size": [64, 64], "strokes": [{"points": [[1, 1]] * 100_001}]},
        {"size": [64, 64], "strokes": [{"points": [[1, 1]]}] * 5001},
    ],
)
def test_what_is_no_edit_is_refused_in_a_sentence(raw):
    with pytest.raises(BadInput, match=r"^(The|Each) .*edit.*\.$"):
        check_strokes_edit(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["size", "strokes", "points", "width", "erase"]), inner)
    ),
    max_leaves=12,
)
NUMBER = st.floats(-200, 300) | st.integers(-200, 300)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["size", "strokes"]), JSON))
def test_any_json_is_checked_or_refused(raw):
    try:
        checked = check_strokes_edit(raw)
    except BadInput:
        return
    assert check_strokes_edit(checked) == checked


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "points": st.lists(st.tuples(NUMBER, NUMBER).map(list), min_size=1, max_size=4),
                "width": st.floats(0.1, 96),
            },
            optional={"erase": st.booleans()},
        ),
        max_size=4,
    )
)
def test_every_edit_draws_a_map_of_the_same_size(strokes):
    drawn = draw_strokes(edit(*strokes), BLACK)
    assert drawn.shape == BLACK.shape and drawn.dtype == np.uint8
