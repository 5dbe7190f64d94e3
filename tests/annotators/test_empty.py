"""When a map shows nothing: then a page says so, and nothing is trained or measured with it."""

from types import SimpleNamespace

import numpy as np
import pytest

from annotators import annotator_names, find_annotator, normal
from core.images import grey_map
from core.pipeline import map_notes

NAMES = [name for name in annotator_names() if find_annotator(name).empty_message]


def plain(level: int) -> np.ndarray:
    """A sheet of nearly one grey, as a JPEG of it is."""
    picture = np.full((64, 96, 3), level, np.uint8)
    picture[20:40, 30:60] += 3
    return picture


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pose"])
@pytest.mark.parametrize("level", [0, 60, 250])
def test_the_map_of_a_plain_sheet_is_empty(name, level):
    """Also where a network draws it, that has never seen one; of people it sees none or some."""
    annotator = find_annotator(name)
    for preprocessor in annotator.preprocessors:
        if not preprocessor.needs and name != "scribble":  # whose drawings are for us to trust
            drawn = preprocessor.draw(plain(level), annotator.params())
            assert annotator.is_empty(drawn), preprocessor.name


@pytest.mark.parametrize("name", annotator_names())
def test_black_is_empty_and_a_corner_is_not(name):
    annotator = find_annotator(name)
    black = np.zeros((32, 32, 3), np.uint8)
    corner = black.copy()
    corner[-1, -1] = 255
    assert annotator.is_empty(black) and not annotator.is_empty(corner)


def test_normals_that_all_face_the_camera_are_empty():
    """Their three channels differ, so no single value fills the map."""
    facing = normal.as_map(np.zeros((16, 16, 3), np.float32))
    assert facing.min() != facing.max() and normal.ANNOTATOR.is_empty(facing)
    asked = SimpleNamespace(preprocessor="Diorama")
    assert map_notes(normal.ANNOTATOR, asked, facing) == [normal.ANNOTATOR.empty_message]
    facing[0, 0] = (127, 255, 127)
    assert map_notes(normal.ANNOTATOR, asked, facing) == []
    assert not normal.ANNOTATOR.is_empty(facing)


@pytest.mark.parametrize("name", ["hed", "lineart"])
def test_a_trace_of_an_edge_shows_nothing(name):
    levels = np.zeros((32, 32), np.uint8)
    levels[:, 16] = 13
    assert find_annotator(name).is_empty(grey_map(levels))
    levels[:, 16] = 60
    assert not find_annotator(name).is_empty(grey_map(levels))
