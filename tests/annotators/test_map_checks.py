"""Maps of another kind give a warning, and maps drawn here do not."""

import numpy as np
import pytest

from annotators import annotator_names, find_annotator
from core.images import read_image, resize_map
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

ROOM = "test_imgs/coffee.jpg"


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return render([make_scene(HELD_OUT)], 256).image[0].numpy()


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    picture, _ = read_image(ROOM)
    return resize_map(picture, (256, 384), "linear")


@pytest.mark.parametrize("name", [name for name in annotator_names() if name != "scribble"])
def test_its_own_maps_give_no_warning(name, scene, photograph):
    annotator = find_annotator(name)
    for preprocessor in annotator.preprocessors:
        if not preprocessor.needs:
            drawn = preprocessor.draw(scene, annotator.params())
            assert annotator.map_warning(drawn) == "", preprocessor.name
            if name != "fake_scribble":  # its strokes merge in textures
                assert (
                    annotator.map_warning(preprocessor.draw(photograph, annotator.params())) == ""
                )


@pytest.mark.parametrize("name", annotator_names())
def test_a_photograph_gives_a_warning(name, photograph):
    assert find_annotator(name).map_warning(photograph)


@pytest.mark.parametrize("name", ["canny", "mlsd", "hed", "lineart", "scribble", "fake_scribble"])
def test_black_lines_on_white_give_a_warning(name):
    lines = np.full((64, 64, 3), 255, np.uint8)
    lines[10:12] = 0
    annotator = find_annotator(name)
    assert "white on black" in annotator.map_warning(lines)
    assert annotator.map_warning(255 - lines) == ""


def test_a_photograph_as_a_drawing_is_directed_to_fake_scribbles():
    scribble = find_annotator("scribble")
    drawing, _ = read_image("test_imgs/drawing_1.png")
    assert scribble.map_warning(scribble.preprocessors[0].draw(drawing, scribble.params())) == ""
    halves = np.full((64, 64, 3), 200, np.uint8)
    halves[:, :36] = 30
    assert "Fake" in scribble.map_warning(scribble.preprocessors[0].draw(halves, scribble.params()))


def test_maps_of_other_kinds_give_a_warning(scene):
    maps = {}
    for name in ("canny", "depth", "normal", "pose", "seg"):
        annotator = find_annotator(name)
        maps[name] = annotator.preprocessors[0].draw(scene, annotator.params())
    for kind, others in {
        "canny": ("normal", "seg"),
        "depth": ("normal", "seg"),
        "normal": ("canny", "depth", "seg"),
        "pose": ("normal",),
        "seg": ("depth", "normal"),
    }.items():
        for other in others:
            assert find_annotator(kind).map_warning(maps[other]), (kind, other)
