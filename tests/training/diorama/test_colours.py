"""The colours of things in pictures of scenes."""

import numpy as np
import pytest

from training.diorama.colours import colour_hits, named_surfaces, nearest_colour
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import COLOURS, make_scene


@pytest.mark.slow
def test_scenes_have_the_colours_they_name():
    hits = []
    for k in range(12):
        scene = make_scene(HELD_OUT + k)
        truth = render([scene], 128)
        hits += colour_hits(scene, truth, 0, truth.image[0].numpy())
    assert len(hits) >= 8 and np.mean(hits) > 0.9


def test_a_wrong_colour_is_not_a_hit():
    scene = next(
        s for s in map(make_scene, range(100)) if s.things[0].colour == "red" and not s.night
    )
    wrong = np.full((5, 3), 255 * np.array(COLOURS["blue"]), float).astype(np.uint8)
    assert nearest_colour(wrong, scene) == "blue"


def test_a_grey_picture_has_no_hits():
    scene = make_scene(HELD_OUT)
    truth = render([scene], 128)
    names = [name for name, _ in named_surfaces(scene, truth, 0)]
    grey = np.full((128, 128, 3), 110, np.uint8)
    hits = colour_hits(scene, truth, 0, grey)
    assert len(hits) == len(names)
    assert all(name in ("white", "black") for name, hit in zip(names, hits, strict=True) if hit)
