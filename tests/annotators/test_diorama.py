"""Diorama's annotator: batched prediction and loading."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from annotators import _diorama, find_annotator
from annotators._diorama import (
    GRID,
    MIRRORED_JOINTS,
    batched_prediction,
    doubt,
    load_network,
    predict,
)
from annotators._scene_annotator import SceneAnnotator
from core.condition import Condition, RGBImage, rough_maps
from core.consistency import Extractor
from core.images import read_image, resize
from core.pipeline import map_notes
from core.request import ControlRequest
from models.checkpoints import loading
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

PHOTOS = Path(__file__).resolve().parents[2] / "test_imgs"


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
    assert predict(pictures[0]) is not batched[0], "the batch is forgotten"


def test_a_rough_prediction_is_near_and_costs_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = render([make_scene(3)], 128).image.numpy()[0]
    views: list[int] = []
    forward = SceneAnnotator.forward

    def counted(network: SceneAnnotator, pixels: Tensor) -> _diorama.Prediction:
        views.append(len(pixels))
        return forward(network, pixels)

    monkeypatch.setattr(SceneAnnotator, "forward", counted)
    steady = predict(picture)
    with rough_maps(True):
        rough = predict(picture)
    assert views == [4, 4, 1, 1]
    assert np.abs(rough["depth"] - steady["depth"]).mean() < 0.03
    assert (rough["classes"].argmax(2) == steady["classes"].argmax(2)).mean() > 0.9
    assert predict(picture) is steady, "rough maps are kept apart"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
def test_a_mirrored_picture_has_the_mirrored_prediction(seed: int, high: int, wide: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = resize(noise, (wide * GRID, high * GRID))
    with pytest.MonkeyPatch.context() as patch:
        # In bfloat16 each sum is rounded, and a mirrored picture's has another order.
        patch.setattr(_diorama, "cpu_has_bfloat16", lambda: False)
        mirrored = predict(np.ascontiguousarray(picture[:, ::-1]))
        straight = predict(picture)
    for name, expected in straight.items():
        found = mirrored[name][:, ::-1].copy()
        if name in ("normal", "offset"):
            found[..., 0] *= -1  # x
        if name == "joints":
            found = found[..., MIRRORED_JOINTS]
        assert np.abs(found - expected).max() < 1e-3, name


def test_the_maps_and_the_doubt_of_a_picture_cost_one_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predicted = []

    def watched(
        network: SceneAnnotator, images: list[RGBImage], is_rough: bool
    ) -> list[dict[str, Any]]:
        predicted.append(images)
        return once(network, images, is_rough)

    once = _diorama._predict
    monkeypatch.setattr(_diorama, "_predict", watched)
    picture = render([make_scene(1)], 256).image[0].numpy().copy()
    picture[0, 0] = 1, 2, 3  # predicted by no other test
    for name in ("depth", "normal", "seg", "pose"):
        annotator = find_annotator(name)
        annotator.preprocessors[0].draw(picture, annotator.params())
    doubt(picture)
    assert len(predicted) == 1
    before = predict(picture)["depth"].copy()
    picture[:128] = 0
    assert not np.array_equal(predict(picture)["depth"], before), "another picture in the array"


def pictures_of_other_worlds() -> Iterator[tuple[str, RGBImage]]:
    for path in sorted(PHOTOS.glob("*.jpg")):
        yield path.stem, read_image(path)[0]
    rng = np.random.default_rng(0)
    for size in ((256, 256), (200, 500)):
        yield "noise", rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    for photograph in (skimage.data.camera(), skimage.data.rocket(), skimage.data.coins()):
        grey = photograph if photograph.ndim == 3 else np.repeat(photograph[..., None], 3, axis=2)
        yield "skimage", np.ascontiguousarray(grey)


@pytest.mark.slow
def test_it_doubts_pictures_that_are_no_scenes() -> None:
    for name, picture in pictures_of_other_worlds():
        assert doubt(picture) > 1, name


@pytest.mark.slow
def test_it_knows_its_scenes_at_any_size() -> None:
    seeds = range(HELD_OUT, HELD_OUT + 24)
    for size in (128, 256, 400):
        scenes = [render([make_scene(seed)], size).image[0].numpy() for seed in seeds]
        assert sum(doubt(scene) <= 1 for scene in scenes) >= 23
    assert doubt(np.full((256, 256, 3), 90, np.uint8)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pose", "seg", "depth", "normal", "hed", "fake_scribble"])
def test_a_map_of_a_photograph_is_told_and_nobody_is_found(name: str) -> None:
    annotator = find_annotator(name)
    photograph = read_image(PHOTOS / "astronaut.jpg")[0]
    condition = Condition(name, name, "", annotator, "")
    control = ControlRequest(condition, photograph, preprocessor="Diorama")
    extractor = Extractor(annotator, annotator.preprocessors[0], annotator.params(), 256)
    control_map = extractor.extract(photograph, (256, 256))
    (told,) = map_notes(control, control_map)
    assert "The preprocessor Diorama was trained on other kinds of pictures" in told
    if name == "pose":
        assert told.startswith("No person found in this picture.")
    assert control_map.any() != (name == "pose")


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
