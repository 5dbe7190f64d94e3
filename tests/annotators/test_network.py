"""Diorama's annotator as the others look through it."""

import numpy as np

from annotators._network import see, seen_together
from training.renderer import render
from training.world import make_scene


def test_pictures_seen_together_are_seen_as_alone() -> None:
    pictures = list(render([make_scene(seed) for seed in (1, 2)], 64).image.numpy())
    alone = [see(picture) for picture in pictures]
    with seen_together(pictures):
        together = [see(picture) for picture in pictures]
        assert see(pictures[0]) is together[0], "looked at once"
        copy = see(pictures[0].copy())
    assert np.array_equal(copy["depth"], alone[0]["depth"]), "another array is another picture"
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert np.abs(one["depth"] - other["depth"]).mean() < 0.02
        assert (one["classes"].argmax(2) == other["classes"].argmax(2)).mean() > 0.95
    assert see(pictures[0]) is not together[0], "nothing is kept"
