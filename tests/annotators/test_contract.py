"""The contract of every annotator's default preprocessor, on one of Diorama's scenes."""

import numpy as np
import pytest

from annotators import annotator_names, find_annotator
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

MAX_TRIES = 60
"""Scenes: a fifth have people, and not all are detected."""


@pytest.mark.parametrize("name", annotator_names())
def test_draw_is_pure_and_the_score_separates_equal_from_blank_maps(name):
    annotator = find_annotator(name)
    draw, params = annotator.preprocessors[0].draw, annotator.params()
    for seed in range(HELD_OUT, HELD_OUT + MAX_TRIES):
        scene = render([make_scene(seed)], 256).image[0].numpy()[:192]
        before = scene.copy()
        control_map = draw(scene, params)
        if not annotator.is_empty(control_map):
            break
    else:
        pytest.fail(f"All maps of {MAX_TRIES} scenes are empty.")
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
