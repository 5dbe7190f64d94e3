"""Straight lines: white, one pixel wide, on black; rooms, streets and buildings.

Sources: von Gioi et al. 2012, "LSD: a Line Segment Detector" (OpenCV's, nothing to download), and
Gu et al. 2022, "Towards Light-weight and Real-time Line Segment Detection" (M-LSD, through
controlnet-aux), which ControlNet was trained with (annotator/mlsd/__init__.py).
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from annotators._map_checks import unless_few
from annotators._pretrained import IN_TURN, by_detector, load_detector
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.consistency import lines_in, tolerant_f1
from core.params import bounded, checked

MLSD = ("MLSDdetector", (("mlsd_large_512_fp32.pth", 6_341_481),))
MOST_LINES = 200
"""As M-LSD: the strongest are kept."""
TOLERANCE_PX = 2
"""A detector moves the ends of a line by a pixel or two between two pictures of the same wall."""
NO_LINES = "array is 1-dimensional, but 2 were indexed"
"""numpy's words where M-LSD's decoder takes the columns of an empty list."""
BESIDE_PX = 2
"""How far to both sides of a line its contrast is measured, beyond the blur of an edge."""


@dataclass(frozen=True)
class MLSDParams:
    """The two thresholds of v1.0's app."""

    value_threshold: float = bounded(
        0.1,
        0.01,
        2.0,
        0.01,
        "Hough value threshold (MLSD)",
        "How clear a line must be; raise it for fewer lines.",
    )
    distance_threshold: float = bounded(
        0.1,
        0.01,
        20.0,
        0.01,
        "Hough distance threshold (MLSD)",
        "How long a line must be, in pixels at half the map's resolution; raise it for fewer.",
    )

    def __post_init__(self) -> None:
        checked(self)


Segments = NDArray[np.float64]
"""(N, 4): x and y of one end, x and y of the other, in pixels."""


def draw_lsd(image: RGBImage, params: MLSDParams) -> ControlMap:
    """Draw OpenCV's line segments; a line's value is the contrast across it, 0..1."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD).detect(grey)[0]
    if found is None:
        return np.zeros_like(image)
    segments = np.asarray(found, np.float64).reshape(-1, 4)
    value = _contrast(np.asarray(grey, np.float64), segments)
    length = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
    kept = (value > params.value_threshold) & (length / 2 > params.distance_threshold)
    strongest = np.argsort(-(value * length)[kept], kind="stable")[:MOST_LINES]
    return _drawn(image, segments[kept][strongest])


def _contrast(grey: NDArray[np.float64], segments: Segments) -> NDArray[np.float64]:
    """Return the mean difference (N,) between both sides of each segment, 0..1."""
    start, end = segments[:, None, :2], segments[:, None, 2:]
    along = np.linspace(0.1, 0.9, 9)[None, :, None]
    points = start + along * (end - start)
    direction = (end - start) / np.maximum(np.linalg.norm(end - start, axis=2, keepdims=True), 1e-9)
    across = BESIDE_PX * np.stack([-direction[..., 1], direction[..., 0]], -1)

    def at(places: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.clip(places[..., 0].round().astype(int), 0, grey.shape[1] - 1)
        y = np.clip(places[..., 1].round().astype(int), 0, grey.shape[0] - 1)
        return np.asarray(grey[y, x])

    return np.asarray(np.abs((at(points + across) - at(points - across)).mean(1)) / 255)


def draw_mlsd(image: RGBImage, params: MLSDParams) -> ControlMap:
    """Draw M-LSD's segments, as ControlNet v1.0 does."""
    detector = load_detector(*MLSD)
    return _drawn(image, _predicted(detector.model, image, params))


def _predicted(model: Any, image: RGBImage, params: MLSDParams) -> Segments:
    from controlnet_aux.mlsd.utils import pred_lines  # noqa: PLC0415 - see _detectors

    # controlnet-aux's own detector turns every error into a black map; only "no line" is one here.
    try:
        with IN_TURN, torch.no_grad():
            thresholds = params.value_threshold, params.distance_threshold
            lines = pred_lines(image, model, list(image.shape[:2]), *thresholds)
    except IndexError as error:
        if NO_LINES not in str(error):
            raise
        return np.zeros((0, 4))
    return np.asarray(lines, np.float64)


def _drawn(image: RGBImage, segments: Segments) -> ControlMap:
    lines = np.zeros(image.shape, np.uint8)
    for x, y, to_x, to_y in segments.astype(int).tolist():
        cv2.line(lines, (x, y), (to_x, to_y), (255, 255, 255), 1)
    return lines


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two line drawings of one size: F1 of their pixels with two pixels' tolerance.

    Ours: no figure for lines is published. Two maps without any line agree fully (F1 1); one with
    and one without, not at all (0).
    """
    f1 = tolerant_f1(lines_in(wanted), lines_in(found), TOLERANCE_PX)
    return Score(100 * f1, "line F1", {"line F1": f1})


ANNOTATOR = Annotator(
    name="mlsd",
    preprocessors=(
        Preprocessor("LSD", draw_lsd, help="OpenCV's line segments; nothing to download."),
        by_detector("MLSD", draw_mlsd, MLSD, told="What ControlNet was trained with."),
    ),
    params=MLSDParams,
    score=score,
    interpolation="lines",
    detect_resolution=512,
    empty_message="No straight lines found; lower the thresholds.",
    map_warning=unless_few("lines"),
)
