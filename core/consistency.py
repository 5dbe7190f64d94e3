"""Was the control kept? Draw the map of the result the way the first map was drawn, and compare."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.images import fit_size, resize, resize_map

Mask = NDArray[np.bool_]
"""(H, W), true on the lines."""


def extract(  # noqa: PLR0913 - all six decide the map
    annotator: Annotator,
    preprocessor: Preprocessor,
    params: Any,
    image: RGBImage,
    size: tuple[int, int],
    detect_resolution: int | None,
) -> ControlMap:
    """Draw a picture's control map at its own resolution and return it at size (width, height).

    Without a detect resolution the map is drawn at the output size, as v1.0 does for canny.
    """
    height, width = image.shape[:2]
    drawn_at = size if detect_resolution is None else fit_size(width, height, detect_resolution)
    drawn = preprocessor.draw(resize(image, drawn_at), params)
    return resize_map(drawn, size, annotator.interpolation)


def reextract_and_score(
    annotator: Annotator,
    preprocessor: Preprocessor,
    params: Any,
    image: RGBImage,
    control_map: ControlMap,
    detect_resolution: int | None,
) -> tuple[ControlMap, Score]:
    """Return the map found in a generated image and how well it agrees with the one wanted."""
    size = (control_map.shape[1], control_map.shape[0])
    found = extract(annotator, preprocessor, params, image, size, detect_resolution)
    return found, annotator.score(control_map, found)


def tolerant_f1(wanted: Mask, found: Mask, tolerance_px: int) -> float:
    """Return the F1 of two line drawings, 0..1; a pixel counts if a line lies within the tolerance.

    The distance is the larger of dx and dy (a square). Two empty drawings agree fully: 1. If only
    one is empty: 0. With tolerance 0 this is the exact-pixel F1 of ControlNet++'s evaluation.

    Example:
        >>> line = np.eye(4, dtype=bool)
        >>> tolerant_f1(line, np.roll(line, 1, axis=1), 0)
        0.0
    """
    if not wanted.any() and not found.any():
        return 1.0
    if not wanted.any() or not found.any():
        return 0.0
    precision = float(_widened(wanted, tolerance_px)[found].mean())
    recall = float(_widened(found, tolerance_px)[wanted].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _widened(mask: Mask, radius_px: int) -> Mask:
    side = 2 * radius_px + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), dtype=bool)
