"""Empty maps: pages warn of them, and training and benchmarks skip them."""

import numpy as np
import pytest

from annotators import annotator_names, find_annotator, normal
from core.condition import Condition
from core.images import grey_map
from core.pipeline import map_notes
from core.request import ControlRequest

NAMES = [name for name in annotator_names() if find_annotator(name).empty_message]


def plain(level: int) -> np.ndarray:
    """A picture of one grey, up to JPEG noise."""
    picture = np.full((64, 96, 3), level, np.uint8)
    picture[20:40, 30:60] += 3
    return picture


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pose"])
@pytest.mark.parametrize("level", [0, 60, 250])
def test_the_map_of_a_plain_picture_is_empty(name, level):
    """Also from networks, which were never trained on one; pose may imagine people."""
    annotator = find_annotator(name)
    for preprocessor in annotator.preprocessors:
        if not preprocessor.needs and name != "scribble":  # a drawing is taken as it is
            drawn = preprocessor.draw(plain(level), annotator.params())
            assert annotator.is_empty(drawn), preprocessor.name


@pytest.mark.parametrize("name", annotator_names())
def test_black_is_empty_and_one_white_pixel_is_not(name):
    annotator = find_annotator(name)
    black = np.zeros((32, 32, 3), np.uint8)
    corner = black.copy()
    corner[-1, -1] = 255
    assert annotator.is_empty(black) and not annotator.is_empty(corner)


def test_normals_that_all_face_the_camera_are_empty():
    """Their channels differ, so the map is not of a single value."""
    facing = normal.as_map(np.zeros((16, 16, 3), np.float32))
    assert facing.min() != facing.max() and normal.ANNOTATOR.is_empty(facing)
    condition = Condition("normal", "", "", normal.ANNOTATOR, "")
    control = ControlRequest(condition, np.full((64, 64, 3), 90, np.uint8), preprocessor="Diorama")
    assert map_notes(control, facing) == [normal.ANNOTATOR.empty_message]
    facing[0, 0] = (127, 255, 127)
    assert map_notes(control, facing) == []
    assert not normal.ANNOTATOR.is_empty(facing)


@pytest.mark.parametrize("name", ["hed", "lineart"])
def test_a_faint_edge_is_empty(name):
    levels = np.zeros((32, 32), np.uint8)
    levels[:, 16] = 13
    assert find_annotator(name).is_empty(grey_map(levels))
    levels[:, 16] = 60
    assert not find_annotator(name).is_empty(grey_map(levels))
