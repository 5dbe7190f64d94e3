"""Straight lines: white, one pixel wide, on black; rooms, streets and buildings.

Sources: von Gioi et al. 2012, "LSD: a Line Segment Detector" (OpenCV's, nothing to download), and
Gu et al. 2022, "Towards Light-weight and Real-time Line Segment Detection" (M-LSD, through
controlnet-aux), which ControlNet was trained with (annotator/mlsd/__init__.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from annotators._lines_in_map import Segments, lines_of
from annotators._map_checks import line_map_warning
from annotators._pretrained import INFERENCE_LOCK, detector_preprocessor, load_detector
from annotators._strokes import checked_point, checked_size, listed
from core.condition import Annotator, ControlMap, Editor, Preprocessor, RGBImage, Score, WebUINames
from core.consistency import lines_in, tolerant_f1
from core.errors import BadInput
from core.images import resize_map
from core.params import bounded, checked

MLSD = ("MLSDdetector", (("mlsd_large_512_fp32.pth", 6_341_481),))
MAX_LINES = 200
"""As in M-LSD: the strongest are kept."""
TOLERANCE_PX = 2
"""Between two pictures of the same wall, a detector moves a line's ends by a pixel or two."""
NO_LINES = "array is 1-dimensional, but 2 were indexed"
"""numpy's message when M-LSD's decoder indexes an empty list of lines."""
BLUR_PX = 1.2
"""Standard deviation of the blur before LSD, which then works at full size. By itself OpenCV first
shrinks the picture to 0.8, on a grid that is not the mirrored picture's: of 20 pictures of 512 px
and their mirrors it found lines alike to 95 of 100 (the worst 85), so to 99 (97). Noise of sigma 2
costs 4 of 100 by itself, and 3 so."""
CONTRAST_OFFSET_PX = 2
"""Distance to both sides of a line at which its contrast is measured, past the edge's blur."""


@dataclass(frozen=True)
class MLSDParams:
    """The two thresholds of ControlNet v1.0's app."""

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


def draw_lsd(image: RGBImage, params: MLSDParams) -> ControlMap:
    """Draw OpenCV's line segments."""
    return _draw_segments(find_lsd(image, params), image.shape[:2])


def find_lsd(image: RGBImage, params: MLSDParams) -> Segments:
    """Return OpenCV's line segments; a line's value is the contrast across it, 0..1."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    smooth = cv2.GaussianBlur(grey, (0, 0), BLUR_PX)
    detected = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD, 1.0).detect(smooth)[0]
    if detected is None:
        return np.zeros((0, 4))
    segments = np.asarray(detected, np.float64).reshape(-1, 4)
    value = _contrast(np.asarray(grey, np.float64), segments)
    length = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
    kept = (value > params.value_threshold) & (length / 2 > params.distance_threshold)
    strongest = np.argsort(-(value * length)[kept], kind="stable")[:MAX_LINES]
    return segments[kept][strongest]


def _contrast(grey: NDArray[np.float64], segments: Segments) -> NDArray[np.float64]:
    """Return the mean difference (N,) in grey between the two sides of each segment, 0..1."""
    start, end = segments[:, None, :2], segments[:, None, 2:]
    along = np.linspace(0.1, 0.9, 9)[None, :, None]
    points = start + along * (end - start)
    direction = (end - start) / np.maximum(np.linalg.norm(end - start, axis=2, keepdims=True), 1e-9)
    across = CONTRAST_OFFSET_PX * np.stack([-direction[..., 1], direction[..., 0]], -1)

    def grey_at(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.clip(points[..., 0].round().astype(int), 0, grey.shape[1] - 1)
        y = np.clip(points[..., 1].round().astype(int), 0, grey.shape[0] - 1)
        return np.asarray(grey[y, x])

    return np.asarray(np.abs((grey_at(points + across) - grey_at(points - across)).mean(1)) / 255)


def draw_mlsd(image: RGBImage, params: MLSDParams) -> ControlMap:
    """Draw M-LSD's segments, as ControlNet v1.0 does."""
    return _draw_segments(find_mlsd(image, params), image.shape[:2])


def find_mlsd(image: RGBImage, params: MLSDParams) -> Segments:
    """Return M-LSD's segments."""
    return _predict_segments(load_detector(*MLSD).model, image, params)


def _predict_segments(model: Any, image: RGBImage, params: MLSDParams) -> Segments:
    from controlnet_aux.mlsd.utils import pred_lines  # noqa: PLC0415 - see _pretrained

    # controlnet-aux's detector turns every error into a black map; here only "no lines" is one.
    try:
        with INFERENCE_LOCK, torch.no_grad():
            thresholds = params.value_threshold, params.distance_threshold
            lines = pred_lines(image, model, list(image.shape[:2]), *thresholds)
    except IndexError as error:
        if NO_LINES not in str(error):
            raise
        return np.zeros((0, 4))
    return np.asarray(lines, np.float64)


def _draw_segments(segments: Segments, shape: tuple[int, int]) -> ControlMap:
    """Draw segments one pixel wide on a map of shape (height, width)."""
    lines = np.zeros((*shape, 3), np.uint8)
    for x, y, to_x, to_y in segments.astype(int).tolist():
        cv2.line(lines, (x, y), (to_x, to_y), (255, 255, 255), 1)
    return lines


FINDERS: dict[str, Callable[[RGBImage, MLSDParams], Segments]] = {
    "LSD": find_lsd,
    "MLSD": find_mlsd,
}
"""What finds the lines of each preprocessor, by its name."""
MOST_EDITED = 5000
"""Lines of an edit."""


def check_edit(edit: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"size", "lines": [[x0, y0, x1, y1], ...]} with every value checked.

    Raises:
        BadInput: a value is missing, of the wrong type or out of bounds, or there are too many.
    """
    size, lines = checked_size(edit), []
    for line in listed(edit.get("lines"), "lines", MOST_EDITED):
        ends = listed(line, "line", 4)
        if len(ends) != 4:
            raise BadInput("Each line of the edit must be [x0, y0, x1, y1].")
        lines.append([*checked_point(ends[:2], size), *checked_point(ends[2:], size)])
    return {"size": size, "lines": lines}


def draw_edit(edit: Mapping[str, Any], control_map: ControlMap) -> ControlMap:
    """Draw an edit's lines as those that are found: at the edit's size, then resized.

    A line begins and ends in the pixels that its ends lie in.
    """
    width, height = edit["size"]
    lines = np.floor(np.array(edit["lines"], np.float64).reshape(-1, 4))
    size = (control_map.shape[1], control_map.shape[0])
    return resize_map(_draw_segments(lines, (height, width)), size, "lines")


def begin_edit(preprocessor: Preprocessor, image: RGBImage, params: MLSDParams) -> dict[str, Any]:
    """Return the edit of the lines that are found in a picture; it draws the same map."""
    # In whole pixels, as they are drawn: the middle of pixel 0 is at 0.5.
    pixels = FINDERS[preprocessor.name](image, params).astype(int)
    return {"size": [image.shape[1], image.shape[0]], "lines": (pixels + 0.5).tolist()}


def read_edit(control_map: ControlMap) -> dict[str, Any]:
    """Return the edit of the lines in a ready map; {} for none."""
    lines = lines_of(lines_in(control_map))
    size = [control_map.shape[1], control_map.shape[0]]
    return {"size": size, "lines": (lines + 0.5).tolist()} if len(lines) else {}


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two line maps of one size: F1 of their pixels with two pixels' tolerance.

    Our own metric: none is published for lines. Two empty maps score F1 1; an empty and a non-empty
    one 0.
    """
    f1 = tolerant_f1(lines_in(target), lines_in(extracted), TOLERANCE_PX)
    return Score(100 * f1, "line F1", {"line F1": f1})


ANNOTATOR = Annotator(
    name="mlsd",
    preprocessors=(
        Preprocessor("LSD", draw_lsd, help="OpenCV's line segments; nothing to download."),
        detector_preprocessor(
            "MLSD", draw_mlsd, MLSD, help_text="What ControlNet was trained with."
        ),
    ),
    params=MLSDParams,
    score=score,
    interpolation="lines",
    detect_resolution=512,
    empty_message="No straight lines found; lower the thresholds.",
    map_warning=line_map_warning("lines"),
    webui=WebUINames(
        {"mlsd": "MLSD"}, ("mlsd",), thresholds=("value_threshold", "distance_threshold")
    ),
    editor=Editor("lines", check_edit, draw_edit, begin_edit, read_edit),
)
