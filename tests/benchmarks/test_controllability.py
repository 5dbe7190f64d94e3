"""The measures of the benchmark, on pictures whose answer is known."""

import numpy as np
import pytest

from benchmarks.controllability import colour_hits, named_surfaces, nearest_colour, psnr
from training.dataset import HELD_OUT
from training.renderer import render
from training.world import COLOURS, make_scene


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + np.uint8(1)) == pytest.approx(48.13, abs=0.01)


def test_real_scenes_show_the_colours_they_name():
    hits = []
    for k in range(12):
        scene = make_scene(HELD_OUT + k)
        truth = render([scene], 128)
        hits += colour_hits(scene, truth, 0, truth.image[0].numpy())
    assert len(hits) >= 8 and np.mean(hits) > 0.9


def test_a_wrong_colour_is_no_hit():
    scene = next(
        s for s in map(make_scene, range(100)) if s.things[0].colour == "red" and not s.night
    )
    wrong = np.full((5, 3), 255 * np.array(COLOURS["blue"]), float).astype(np.uint8)
    assert nearest_colour(wrong, scene) == "blue"


def test_a_grey_picture_is_no_colour():
    scene = make_scene(HELD_OUT)
    truth = render([scene], 128)
    names = [name for name, _ in named_surfaces(scene, truth, 0)]
    grey = np.full((128, 128, 3), 110, np.uint8)
    hits = colour_hits(scene, truth, 0, grey)
    assert len(hits) == len(names)
    assert all(name in ("white", "black") for name, hit in zip(names, hits, strict=True) if hit)
