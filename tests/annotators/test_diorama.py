"""Diorama's annotator as the others look through it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from annotators import _diorama
from annotators._diorama import SceneAnnotator, batched_prediction, load_network, predict
from models.checkpoints import loading
from training.diorama.renderer import render
from training.diorama.world import make_scene


def test_pictures_seen_together_are_seen_as_alone() -> None:
    pictures = list(render([make_scene(seed) for seed in (1, 2)], 64).image.numpy())
    alone = [predict(picture) for picture in pictures]
    with batched_prediction(pictures):
        together = [predict(picture) for picture in pictures]
        assert predict(pictures[0]) is together[0], "looked at once"
        copy = predict(pictures[0].copy())
    assert np.array_equal(copy["depth"], alone[0]["depth"]), "another array is another picture"
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert np.abs(one["depth"] - other["depth"]).mean() < 0.02
        assert (one["classes"].argmax(2) == other["classes"].argmax(2)).mean() > 0.95
    assert predict(pictures[0]) is not together[0], "nothing is kept"


def test_two_at_once_load_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, both_ask = [], threading.Barrier(2)

    def slow(*_: object, **__: object) -> SceneAnnotator:
        time.sleep(0.1)
        loaded.append(SceneAnnotator((0, 1), widths=(8, 8)))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_network", slow)
    monkeypatch.setattr(_diorama, "FOLDER", tmp_path)
    (tmp_path / "config.json").touch()

    def ask() -> SceneAnnotator:
        both_ask.wait(10)
        return load_network()

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(ask) for _ in range(2))
    assert first.result() is second.result() is loaded[0] and len(loaded) == 1
