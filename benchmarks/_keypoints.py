"""Mean average precision of poses by object keypoint similarity, as COCO defines it.

Source: Lin et al. 2014, "Microsoft COCO", and cocodataset.org/#keypoints-eval: OKS with the sigmas
of COCO's 17 joints, average precision at 101 recalls, its mean over ten thresholds.
People are read from pose maps, so three things are not COCO's: the neck, which it has not, is left
out; the area of a person is that of the box around the joints, as in CPO's evaluation; and those
found have no confidence, so the share of their joints ranks them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from annotators._diorama import NECK
from annotators.pose import OKS_SIGMAS, people_in
from core.condition import ControlMap

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_FOUND = 20
"""COCO looks at no more of an image, the best ones."""
VARIANCES = np.square(2 * np.delete(OKS_SIGMAS, NECK))
NOBODY = -1.0
"""Score of a row without a person."""

Joints = NDArray[np.float64]
"""(people, 17, 2): x and y in pixels, NaN where there is none; in the order of pose maps."""


def joints_of(control_map: ControlMap) -> Joints:
    """The people in a pose map that have one of COCO's joints."""
    people = [np.delete(person, NECK, axis=0) for person in people_in(control_map)]
    joints = np.array(people, np.float64).reshape(-1, len(VARIANCES), 2)
    return joints[np.isfinite(joints[:, :, 0]).any(1)]


def similarities(found: Joints, wanted: Joints) -> NDArray[np.float64]:
    """OKS of each person found with each wanted, (found, wanted), 0 to 1.

    Only joints that are wanted count; one that was not found scores 0.
    """
    sides = np.nanmax(wanted, 1) - np.nanmin(wanted, 1) if len(wanted) else np.zeros((0, 2))
    areas = sides.prod(1) + np.spacing(1)
    squares = np.square(found[:, None] - wanted[None]).sum(3)
    each = np.exp(-squares / VARIANCES / areas[None, :, None] / 2)
    visible = np.isfinite(wanted[:, :, 0])
    return np.asarray(np.nansum(each, 2) / visible.sum(1), np.float64)


def matches(found: Joints, scores: NDArray[np.float64], wanted: Joints) -> NDArray[np.float64]:
    """What average_precision needs to know of one image, (1 + MOST_FOUND, 1 + thresholds).

    The first row has the number of people wanted, each other the score of a person found, best
    first, or NOBODY, and for each threshold 1 if it is somebody wanted: the most similar whom no
    better one has taken.
    """
    order = np.argsort(-scores, kind="stable")[:MOST_FOUND]
    rows = np.zeros((1 + MOST_FOUND, 1 + len(THRESHOLDS)))
    rows[0, 0], rows[1:, 0] = len(wanted), NOBODY
    rows[1 : 1 + len(order), 0] = scores[order]
    if not len(wanted):
        return rows
    all_similarities = similarities(found[order], wanted)
    for column, threshold in enumerate(THRESHOLDS, 1):
        free = np.ones(len(wanted), bool)
        for row, one in enumerate(all_similarities, 1):
            open_ones = np.where(free, one, -1.0)
            best = len(wanted) - 1 - int(open_ones[::-1].argmax())  # of equal ones COCO's: the last
            if open_ones[best] >= threshold:
                free[best], rows[row, column] = False, 1
    return rows


def average_precision(images: Sequence[NDArray[np.float64]]) -> float:
    """Mean over the thresholds in percent, over all images together; each is of `matches`.

    NaN if nobody is wanted in any.
    """
    wanted = sum(rows[0, 0] for rows in images)
    if not wanted:
        return float("nan")
    found = np.concatenate([rows[1:][rows[1:, 0] != NOBODY] for rows in images])
    found = found[np.argsort(-found[:, 0], kind="stable")]
    hits = found[:, 1:].cumsum(0)
    recall = hits / wanted
    precision = hits / np.arange(1, len(found) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or a higher
    precision = np.concatenate([precision, np.zeros((1, len(THRESHOLDS)))])
    reached = [np.searchsorted(recall[:, k], RECALLS) for k in range(len(THRESHOLDS))]
    return float(100 * np.mean([precision[at, k] for k, at in enumerate(reached)]))


def people_matched(target: ControlMap, extracted: Sequence[ControlMap]) -> NDArray[np.float64]:
    """Of the images of one pose map, (images, 1 + MOST_FOUND, 1 + thresholds)."""
    wanted = joints_of(target)
    result = []
    for control_map in extracted:
        found = joints_of(control_map)
        scores = np.isfinite(found[:, :, 0]).mean(1)
        result.append(matches(found, scores, wanted))
    return np.array(result)


def mean_average_precision(statistics: Sequence[NDArray[np.float64]]) -> float:
    """Mean average precision in percent over all pictures, the mean over a picture's images.

    `statistics` are those of people_matched.
    """
    images = zip(*statistics, strict=True)
    return float(np.mean([average_precision(one) for one in images]))
