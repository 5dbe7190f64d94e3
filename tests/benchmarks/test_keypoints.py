"""Poses' mean average precision, against COCO's own evaluation."""

import numpy as np
import pytest

from annotators._diorama import NECK
from annotators.pose import OKS_SIGMAS, draw_people
from benchmarks import _keypoints

SIGMAS = np.delete(OKS_SIGMAS, NECK)
FAR = 1e4  # pixels: alike to nothing, but not so far that COCO ignores a person so large


def person(x, y, size=200):
    """A person (18, 2) who stands with arms apart, with all joints, the neck at x, y."""
    places = (
        (0, -0.2), (0, 0), (-0.12, 0), (-0.2, 0.15), (-0.25, 0.3), (0.12, 0), (0.2, 0.15),
        (0.25, 0.3), (-0.08, 0.35), (-0.09, 0.6), (-0.1, 0.85), (0.08, 0.35), (0.09, 0.6),
        (0.1, 0.85), (-0.03, -0.24), (0.03, -0.24), (-0.08, -0.22), (0.08, -0.22),
    )  # fmt: skip
    return np.round(np.array([x, y]) + size * np.array(places))


def some_images(rng):
    """(found, scores, wanted) of images with missing, moved, doubled and unasked people."""
    for _ in range(12):
        wanted = np.array(
            [
                np.delete(person(*rng.uniform(60, 400, 2), rng.uniform(80, 300)), NECK, 0)
                for _ in range(rng.integers(0, 6))
            ]
        ).reshape(-1, 17, 2)
        wanted[rng.random(wanted.shape[:2]) < 0.2] = np.nan
        found = wanted[rng.random(len(wanted)) < 0.8]
        found = np.concatenate([found, found[:1], wanted[::-1][:1] + 300])
        found = found + rng.normal(0, 1, found.shape) * rng.choice([1, 4, 9], (len(found), 1, 1))
        found[rng.random(found.shape[:2]) < 0.1] = np.nan
        yield found, rng.integers(0, 4, len(found)) / 4, wanted  # of which several are equal


def coco_average_precision(images):
    """The figure of pycocotools' COCOeval, in percent."""
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="needs pycocotools")
    people, results = [], []
    for image, (found, scores, wanted) in enumerate(images):
        for joints in wanted:
            seen = np.isfinite(joints[:, 0])
            points = np.column_stack([np.where(seen[:, None], joints, 0), 2 * seen])
            width, height = np.nanmax(joints, 0) - np.nanmin(joints, 0)
            box = [*np.nanmin(joints, 0), width, height]
            people.append(
                {"id": len(people) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
                | {"keypoints": points.ravel().tolist(), "num_keypoints": int(seen.sum())}
                | {"area": width * height, "bbox": box}
            )
        for joints, score in zip(found, scores, strict=True):
            points = np.column_stack([np.nan_to_num(joints, nan=FAR), np.ones(17)])
            results.append(
                {"image_id": image, "category_id": 1, "keypoints": points.ravel().tolist()}
                | {"score": float(score)}
            )
    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": k} for k in range(len(images))],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people,
    }
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "keypoints")
    evaluation.params.kpt_oks_sigmas = SIGMAS  # COCO's, in the order of pose maps
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * evaluation.stats[0]


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_cocoeval(seed):
    images = list(some_images(np.random.default_rng(seed)))
    own = _keypoints.average_precision([_keypoints.matches(*one) for one in images])
    assert 10 < own < 90  # neither all right nor all wrong
    assert own == pytest.approx(coco_average_precision(images), abs=1e-9)


def test_the_sigmas_are_cocos():
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="needs pycocotools")
    theirs = cocoeval.Params("keypoints").kpt_oks_sigmas
    assert sorted(theirs) == pytest.approx(sorted(SIGMAS))


def precision(target, *extracted):
    return _keypoints.mean_average_precision([_keypoints.people_matched(target, extracted)])


def test_people_are_read_from_maps():
    alone = draw_people([person(256, 150)], 512, 512)
    both = draw_people([person(140, 150), person(370, 150)], 512, 512)
    nobody = np.zeros_like(alone)
    assert precision(alone, alone) == pytest.approx(100)
    assert precision(both, both) == pytest.approx(100)
    assert precision(alone, nobody) == 0
    assert precision(alone, alone, nobody) == pytest.approx(50)  # the mean over the images
    moved = draw_people([person(290, 150)], 512, 512)
    assert precision(alone, moved) == 0
    # One of two is found: the precision is 1 up to a recall of a half, and 0 beyond.
    first = draw_people([person(140, 150)], 512, 512)
    assert precision(both, first) == pytest.approx(100 * 51 / 101)


def test_one_found_twice_counts_as_a_mistake():
    wanted = np.delete(person(256, 150), NECK, 0)[None].astype(float)
    twice = np.concatenate([wanted + 1000, wanted])
    rows = _keypoints.matches(twice, np.array([1.0, 0.5]), wanted)
    # The better one is nobody: the precision is a half at every recall.
    assert _keypoints.average_precision([rows]) == pytest.approx(50)


def test_the_neck_is_not_cocos():
    only_neck = np.full((18, 2), np.nan)
    only_neck[NECK] = 256, 150
    assert len(_keypoints.joints_of(draw_people([only_neck], 512, 512))) == 0
