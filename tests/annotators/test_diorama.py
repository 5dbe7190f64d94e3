"""Diorama's annotator: batched prediction and loading."""

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


def test_batched_predictions_equal_single_ones() -> None:
    pictures = list(render([make_scene(seed) for seed in (1, 2)], 64).image.numpy())
    single = [predict(picture) for picture in pictures]
    with batched_prediction(pictures):
        batched = [predict(picture) for picture in pictures]
        assert predict(pictures[0]) is batched[0], "predicted once"
        copy = predict(pictures[0].copy())
    assert np.array_equal(copy["depth"], single[0]["depth"]), "another array is another picture"
    for first, second in zip(single, batched, strict=True):
        assert first.keys() == second.keys()
        assert np.abs(first["depth"] - second["depth"]).mean() < 0.02
        assert (first["classes"].argmax(2) == second["classes"].argmax(2)).mean() > 0.95
    assert predict(pictures[0]) is not batched[0], "nothing is cached"


def test_concurrent_requests_load_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, barrier = [], threading.Barrier(2)

    def slow(*_: object, **__: object) -> SceneAnnotator:
        time.sleep(0.1)
        loaded.append(SceneAnnotator((0, 1), widths=(8, 8)))
        return loaded[-1]

    monkeypatch.setattr(loading, "load_network", slow)
    monkeypatch.setattr(_diorama, "FOLDER", tmp_path)
    (tmp_path / "config.json").touch()

    def request() -> SceneAnnotator:
        barrier.wait(10)
        return load_network()

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(request) for _ in range(2))
    assert first.result() is second.result() is loaded[0] and len(loaded) == 1
