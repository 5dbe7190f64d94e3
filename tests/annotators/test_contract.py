"""What every annotator promises of what draws without a download, on a scene of Diorama's world."""

import numpy as np
import pytest

from annotators import annotator_names, find_annotator
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

LOOKED_AT = 60
"""Scenes: people stand in a fifth of them, and not all are seen."""


@pytest.mark.parametrize("name", annotator_names())
def test_a_scene_is_drawn_purely_and_scored_against_itself_and_nothing(name):
    annotator = find_annotator(name)
    draw, params = annotator.preprocessors[0].draw, annotator.params()
    for seed in range(HELD_OUT, HELD_OUT + LOOKED_AT):
        scene = render([make_scene(seed)], 256).image[0].numpy()[:192]
        before = scene.copy()
        control_map = draw(scene, params)
        if not annotator.is_empty(control_map):
            break
    else:
        pytest.fail(f"In none of {LOOKED_AT} scenes anything is seen.")
    assert control_map.dtype == np.uint8 and control_map.shape == scene.shape
    assert np.array_equal(scene, before)
    assert np.array_equal(control_map, draw(scene, params))
    drawn = control_map.copy()
    assert annotator.score(control_map, control_map).headline == pytest.approx(100)
    blank = np.zeros_like(control_map)
    assert annotator.score(control_map, blank).headline < 15
    assert annotator.score(control_map, np.full_like(control_map, 255)).headline < 15
    assert annotator.score(blank, blank).headline == pytest.approx(100)
    assert np.array_equal(control_map, drawn) and not blank.any()
