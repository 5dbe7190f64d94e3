"""Was the control kept? Draw the map of the result the way the first map was drawn, and compare."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.images import fit_size, resize, resize_map

Mask = NDArray[np.bool_]
"""(H, W), true on the lines."""


@dataclass(frozen=True)
class Extractor:
    """An annotator with its settings chosen: draws a picture's map, the same way each time."""

    annotator: Annotator
    preprocessor: Preprocessor
    params: Any
    """A record of the annotator's params type."""
    detect_resolution: int | None
    """Short side the map is drawn at; None for the output size, as v1.0 does for canny."""

    def extract(self, image: RGBImage, size: tuple[int, int]) -> ControlMap:
        """Draw the map at its own resolution and return it at size (width, height)."""
        height, width = image.shape[:2]
        drawn_at = size
        if self.detect_resolution is not None:
            drawn_at = fit_size(width, height, self.detect_resolution)
        drawn = self.preprocessor.draw(resize(image, drawn_at), self.params)
        return resize_map(drawn, size, self.annotator.interpolation)

    def reextract_and_score(
        self, image: RGBImage, control_map: ControlMap
    ) -> tuple[ControlMap, Score]:
        """Return the map found in a generated image and how well it agrees with the one wanted."""
        found = self.extract(image, (control_map.shape[1], control_map.shape[0]))
        return found, self.annotator.score(control_map, found)


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
    return np.asarray(
        cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), dtype=bool
    )
