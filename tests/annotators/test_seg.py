"""Class maps that lost their exact colours: JPEG, WebP, soft rims."""

import io
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import apps
from annotators._lossy_classes import MOST_PIXELS, nearest
from annotators.seg import as_classes, as_map, fit_map, map_colours, palette, score
from core.condition import ALREADY_A_MAP, ControlMap
from core.images import read_image
from core.pipeline import Pipeline, map_notes
from core.request import ControlRequest, GenerationRequest

PHOTOS = Path(__file__).resolve().parents[2] / "test_imgs"
ROAD, SKYSCRAPER = 6, 48


def distinct_classes(rng: np.random.Generator, count: int) -> list[int]:
    """Return classes whose colours are 40 levels apart: JPEG may swap rims of more alike ones."""
    colours, chosen = palette()[1].astype(int), list[int]()
    for k in rng.permutation(150).tolist():
        if all(np.linalg.norm(colours[k] - colours[other]) > 40 for other in chosen):
            chosen.append(k)
    return [ROAD if k == SKYSCRAPER else k for k in chosen[:count]]


def class_map(seed: int, classes: int, size: tuple[int, int] = (256, 384)) -> ControlMap:
    """Return a map (H, W) of a sky, a ground and discs and boxes of other classes."""
    rng = np.random.default_rng(seed)
    height, width = size
    names = distinct_classes(rng, classes)
    drawn = np.full(size, names[0], np.uint8)
    drawn[height // 2 :] = names[1]
    for k in names[2:]:
        x, y = int(rng.integers(width)), int(rng.integers(height))
        radius = int(rng.integers(24, 64))
        if rng.random() < 0.5:
            cv2.circle(drawn, (x, y), radius, k, -1)
        else:
            cv2.rectangle(drawn, (x - radius, y - radius // 2), (x + radius, y + radius), k, -1)
    return as_map(drawn)


def encoded(control_map: ControlMap, kind: str, **options: Any) -> ControlMap:
    file = io.BytesIO()
    Image.fromarray(control_map).save(file, kind, **options)
    return read_image(file.getvalue())[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 85}),
        ("JPEG", {"quality": 85, "subsampling": 0}),
        ("JPEG", {"quality": 95}),
        ("WEBP", {"quality": 85}),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(4))
def test_a_lossy_class_map_is_read_as_it_was(kind: str, options: Any, seed: int) -> None:
    control_map = class_map(seed, 6)
    lossy = encoded(control_map, kind, **options)
    assert score(control_map, lossy).metrics["mIoU"] < 0.9
    assert score(control_map, fit_map(lossy, (384, 256))).metrics["mIoU"] >= 0.98


@pytest.mark.slow
def test_soft_rims_are_no_classes_of_their_own() -> None:
    control_map = class_map(5, 6, (512, 768))
    soft = cv2.resize(control_map, (384, 256), interpolation=cv2.INTER_AREA)
    sharp = cv2.resize(control_map, (384, 256), interpolation=cv2.INTER_NEAREST)
    soft = np.asarray(cv2.GaussianBlur(soft, (0, 0), 0.7), np.uint8)
    found = fit_map(soft, (384, 256))
    assert np.array_equal(np.unique(as_classes(found)), np.unique(as_classes(sharp)))
    # A pixel between two classes may be either's.
    assert score(sharp, found).metrics["mIoU"] >= 0.96


@pytest.mark.slow
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 9),
    quality=st.integers(80, 98),
    subsampling=st.sampled_from([0, 1, 2]),
    odd=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_any_lossy_class_map_gets_better(
    seed: int, classes: int, quality: int, subsampling: int, odd: bool
) -> None:
    size = (191, 257) if odd else (192, 256)
    control_map = class_map(seed, classes, size)
    lossy = encoded(control_map, "JPEG", quality=quality, subsampling=subsampling)
    found = fit_map(lossy, size[::-1])
    assert found.shape == control_map.shape
    before, after = (score(control_map, one).metrics["mIoU"] for one in (lossy, found))
    assert after >= before
    assert (as_classes(found) == as_classes(control_map)).mean() > 0.97


def test_exact_maps_and_pictures_stay_as_they_are() -> None:
    exact = class_map(1, 8)
    assert np.array_equal(fit_map(exact, (384, 256)), exact)
    photograph = read_image(PHOTOS / "coffee.jpg")[0]
    height, width = photograph.shape[:2]
    assert np.array_equal(fit_map(photograph, (width, height)), photograph)
    other = np.full((64, 64, 3), (255, 128, 128), np.uint8)
    other[:32] = (10, 70, 10)
    assert np.array_equal(fit_map(other, (64, 64)), other), "another palette is told, not changed"


def test_classes_by_exact_colour_else_by_the_nearest() -> None:
    assert np.array_equal(palette()[1][ROAD], palette()[1][SKYSCRAPER])
    every = map_colours()[None]
    assert as_classes(every)[0].tolist() == list(range(150))
    near = palette()[1][None, [2, SKYSCRAPER]].copy()
    near[0, 0, 0] += 3
    near[0, 1, 0] += 1
    assert as_classes(near)[0].tolist() == [2, ROAD]


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1, 3, 40, 256]))
@settings(max_examples=25, deadline=None)
def test_the_nearest_colour_is_found_exactly(seed: int, spread: int) -> None:
    """As by every distance in whole numbers; of equally near ones it is the first."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, spread, (7, 5, 3), np.uint8)
    colours = rng.integers(0, spread, (9, 3), np.uint8)
    squares = np.square(picture[:, :, None].astype(int) - colours.astype(int)).sum(3)
    classes, distance = nearest(picture, colours)
    assert np.array_equal(classes, squares.argmin(2))
    assert np.array_equal(distance, np.sqrt(squares.min(2).astype(np.float32)))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_score_is_the_mean_over_the_classes_in_either_map(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, (2, 8, 8)) * 29
    found = score(as_map(first.astype(np.uint8)), as_map(second.astype(np.uint8))).metrics
    overlaps = [
        ((first == k) & (second == k)).sum() / ((first == k) | (second == k)).sum()
        for k in {*first.flat, *second.flat}
    ]
    assert found["mIoU"] == pytest.approx(np.mean(overlaps))
    assert found["pixel accuracy"] == pytest.approx((first == second).mean())


@pytest.mark.slow
def test_a_map_of_a_million_colours_is_scored_in_time() -> None:
    """A photograph given as a map: seconds for each image, if every colour were compared alone."""
    noise = np.random.default_rng(0).integers(0, 256, (768, 1536, 3), np.uint8)
    began = time.perf_counter()
    assert score(noise, as_map(np.zeros((768, 1536), np.uint8))).headline < 5
    assert time.perf_counter() - began < 8


@pytest.mark.slow
def test_a_huge_lossy_map_is_restored_within_bounds() -> None:
    """At a fraction of its size; every class of the palette stays apart."""
    huge = as_map(np.arange(150, dtype=np.uint8).reshape(10, 15).repeat(224, 0).repeat(224, 1))
    lossy = encoded(huge, "JPEG", quality=90)
    assert lossy.shape[0] * lossy.shape[1] > MOST_PIXELS
    found = fit_map(lossy, (960, 640))
    wanted = cv2.resize(huge, (960, 640), interpolation=cv2.INTER_NEAREST)
    assert score(wanted, found).metrics["pixel accuracy"] > 0.95


@pytest.mark.slow
def test_a_jpeg_of_a_class_map_is_fed_exact_and_without_a_warning() -> None:
    seg = apps.find("seg2image")
    lossy = encoded(class_map(2, 6, (256, 256)), "JPEG", quality=85)
    control = ControlRequest(seg, lossy, preprocessor=ALREADY_A_MAP)
    request = GenerationRequest((control,), image_resolution=256)
    fed = Pipeline(lambda *_, **__: None).draw_map(request)
    assert np.isin(fed.reshape(-1, 3) @ [65536, 256, 1], map_colours() @ [65536, 256, 1]).all()
    assert map_notes(control, fed) == []
