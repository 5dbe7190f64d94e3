"""Edits of normal maps: strength, background and painted directions, on a map known by head."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotators.normal import ANNOTATOR, as_map
from core.errors import BadInput

EDITOR = ANNOTATOR.editor
STEEP, SLIGHT, FACING = (0.6, 0.0, 0.8), (0.0, 0.1, 0.995), (0.0, 0.0, 1.0)
THREE = as_map(np.repeat(np.array([[STEEP, SLIGHT, FACING]], np.float32), 20, axis=1).repeat(40, 0))
"""Three columns, 20 pixels wide: one leans to the left, one slightly up, one faces the camera."""


def edited(**values):
    size = [THREE.shape[1], THREE.shape[0]]
    return EDITOR.draw(EDITOR.check({"size": size, **values}), THREE)


def normals(drawn: np.ndarray) -> np.ndarray:
    return drawn[20, [10, 30, 50]] / 127.5 - 1


def test_strength_scales_how_far_surfaces_lean():
    assert normals(edited(strength=0)) == pytest.approx(np.array([FACING] * 3), abs=0.01)
    stronger = normals(edited(strength=2))
    assert stronger[0] == pytest.approx(np.array([1.2, 0, 0.8]) / np.hypot(1.2, 0.8), abs=0.02)
    assert stronger[2] == pytest.approx(FACING, abs=0.02)


def test_what_leans_less_than_the_background_faces_the_camera():
    drawn = edited(background=0.3)
    assert np.array_equal(drawn[:, :20], THREE[:, :20])
    assert normals(drawn)[1] == pytest.approx(FACING, abs=0.01)


def test_a_painted_stroke_has_its_direction_and_the_rest_stays():
    stroke = {"points": [[50, 0], [50, 40]], "width": 8, "direction": [0, 0.5, 0.5]}
    drawn = edited(strokes=[stroke])
    assert normals(drawn)[2] == pytest.approx([0, 0.707, 0.707], abs=0.04)
    assert np.array_equal(drawn[:, :40], THREE[:, :40])


@pytest.mark.parametrize(
    "direction", [None, [1], [0, 0, 0], [0, 0, -1], [2, 0, 0], ["0", 0, 1], [0, 0, 1, 0]]
)
def test_what_is_no_direction_is_refused_in_a_sentence(direction):
    with pytest.raises(BadInput, match=r"direction.*\.$"):
        edited(strokes=[{"points": [[1, 1]], "width": 5, "direction": direction}])


UNIT = st.floats(-1, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0, 3),
    st.floats(0, 1),
    st.lists(st.tuples(UNIT, UNIT, st.floats(0.02, 1), st.floats(0, 60)), max_size=3),
)
def test_what_is_drawn_are_unit_normals_up_to_rounding(strength, background, strokes):
    drawn = edited(
        strength=strength,
        background=background,
        strokes=[
            {"points": [[at, 20], [30, 5]], "width": 12, "direction": [x, y, z]}
            for x, y, z, at in strokes
        ],
    )
    vectors = drawn / 127.5 - 1
    assert np.abs(np.linalg.norm(vectors, axis=2) - 1).max() < 0.02
    assert vectors[:, :, 2].min() > -0.01
