"""How well was the control followed? Extract the result's map as the input's, and compare them."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.condition import (
    Annotator,
    ControlMap,
    Preprocessor,
    RGBImage,
    Score,
    of_one_colour,
)
from core.images import drawing_size, resize, resize_map

Mask = NDArray[np.bool_]
"""(H, W), true on the lines."""


@dataclass(frozen=True)
class Extractor:
    """An annotator with fixed settings: draws the map of any picture in the same way."""

    annotator: Annotator
    preprocessor: Preprocessor
    params: Any
    """A record of the annotator's params type."""
    detect_resolution: int | None
    """Short side the map is drawn at; None for the output size, as v1.0 does for canny."""
    pixel_perfect: bool = False
    """Whether generated images' maps are drawn at the output size too."""

    def extract(
        self, image: RGBImage, size: tuple[int, int], resolution: int | None = None
    ) -> ControlMap:
        """Draw the map at its own resolution and return it at size (width, height).

        `resolution` is the short side that was asked for, before it was rounded to `size`.
        """
        if self.annotator.empty_in_doubt and in_doubt(self.preprocessor, image):
            return np.zeros((size[1], size[0], 3), np.uint8)
        return self._drawn(self.preprocessor, image, size, resolution)

    @property
    def reextracting(self) -> Preprocessor:
        """What draws the maps of generated images."""
        return self.annotator.reextract or self.preprocessor

    def _drawn(
        self,
        preprocessor: Preprocessor,
        image: RGBImage,
        size: tuple[int, int],
        resolution: int | None = None,
    ) -> ControlMap:
        drawn = preprocessor.draw(self._looked_at(image, size, resolution), self.params)
        return resize_map(drawn, size, self.annotator.interpolation)

    def _looked_at(
        self, image: RGBImage, size: tuple[int, int], resolution: int | None
    ) -> RGBImage:
        """Return the picture at the size that its map is drawn at."""
        drawn_at = self._drawn_at(image)
        if drawn_at is None:
            return resize(image, size, resolution)
        return resize(image, drawn_at, self.detect_resolution)

    def _drawn_at(self, image: RGBImage) -> tuple[int, int] | None:
        """Return the (width, height) at which a picture's map is drawn; None for the output's."""
        height, width = image.shape[:2]
        if self.detect_resolution is None:
            return None
        return drawing_size(width, height, self.detect_resolution)

    def pixels(self, image: RGBImage) -> int:
        """Return how many pixels a picture has as its map is drawn; 0 for those of the output."""
        width, height = self._drawn_at(image) or (0, 0)
        return width * height

    def begin_edit(
        self, image: RGBImage, size: tuple[int, int], resolution: int | None = None
    ) -> dict[str, Any]:
        """Return the edit that stands for what is found in a picture; {} if the editor has none."""
        begin = self.annotator.editor and self.annotator.editor.begin
        doubtful = self.annotator.empty_in_doubt and in_doubt(self.preprocessor, image)
        if not begin or doubtful:
            return {}
        return begin(self.preprocessor, self._looked_at(image, size, resolution), self.params)

    def reextract_and_score(
        self, image: RGBImage, control_map: ControlMap
    ) -> tuple[ControlMap, Score]:
        """Return the map of a generated image, and its score against the input's map."""
        size = (control_map.shape[1], control_map.shape[0])
        at_size = self.pixel_perfect and self.detect_resolution is not None
        extractor = replace(self, detect_resolution=min(size)) if at_size else self
        found = extractor._drawn(self.reextracting, image, size)
        return found, self.annotator.score(control_map, found)


def in_doubt(preprocessor: Preprocessor, image: RGBImage, most: float = 1.0) -> bool:
    """Return whether a picture is unlike those that a preprocessor was trained on."""
    return preprocessor.doubt is not None and preprocessor.doubt(image) > most


HALF_BRIGHT = 127
"""Brighter is a line: maps that were resized or saved as JPEG have greys."""


def lines_in(control_map: ControlMap) -> Mask:
    """Return where a map of white lines on black has lines; a map of one colour has none."""
    if of_one_colour(control_map):
        return np.zeros(control_map.shape[:2], bool)
    # Five times as fast as max over the last axis.
    brightest = reduce(np.maximum, np.moveaxis(control_map, 2, 0))
    return np.asarray(brightest > HALF_BRIGHT, dtype=bool)


def tolerant_f1(wanted: Mask, found: Mask, tolerance_px: int) -> float:
    """Return the F1 of two line drawings, 0..1; a pixel matches if a line is within the tolerance.

    The distance is the larger of dx and dy (a square). Two empty drawings give 1, one empty drawing
    0. With tolerance 0 this is the exact-pixel F1 of ControlNet++'s evaluation.

    Example:
        >>> line = np.eye(4, dtype=bool)
        >>> tolerant_f1(line, np.roll(line, 1, axis=1), 0)
        0.0
    """
    if not wanted.any() and not found.any():
        return 1.0
    if not wanted.any() or not found.any():
        return 0.0
    precision = float(dilated(wanted, tolerance_px)[found].mean())
    recall = float(dilated(found, tolerance_px)[wanted].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
"""Wang et al. 2004: a Gaussian window of 11 pixels."""
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Wang et al. 2003, finest scale first."""
MS_SSIM_SMALLEST_SIDE = 2 * SSIM_RADIUS * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
"""In pixels: only above it does the window fit at the coarsest scale."""


def ms_ssim(
    first: NDArray[np.float32], second: NDArray[np.float32], mirrored: bool = False
) -> float:
    """Return the multi-scale SSIM of two grey pictures (H, W) in 0..1; 1 is equal.

    Up to a side of MS_SSIM_SMALLEST_SIDE pixels it is single-scale SSIM. Negative structure counts
    as 0. Only windows that lie within the picture count, as in the paper and in piq. With
    `mirrored`, the mean SSIM also has windows over the border, where the picture is mirrored: the
    value of torchmetrics, with which ControlNet++ scores soft edges.
    """
    if min(first.shape) <= MS_SSIM_SMALLEST_SIDE:
        return max(0.0, _ssim(first, second, mirrored)[0])
    result = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        whole, structure = _ssim(first, second, mirrored)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        result *= max(0.0, whole if last else structure) ** weight
        high, wide = (side // 2 * 2 for side in first.shape)
        first, second = (
            grey[:high, :wide].reshape(high // 2, 2, wide // 2, 2).mean((1, 3))
            for grey in (first, second)
        )
    return result


def _ssim(
    first: NDArray[np.float32], second: NDArray[np.float32], mirrored: bool
) -> tuple[float, float]:
    """Return the mean SSIM and its contrast-structure term alone, where the window fits.

    With `mirrored`, the SSIM is the mean over all pixels.
    """

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        side = 2 * SSIM_RADIUS + 1  # OpenCV mirrors at the border
        return np.asarray(cv2.GaussianBlur(values, (side, side), SSIM_SIGMA), np.float64)

    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x**2
    variance_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    inner = (slice(SSIM_RADIUS, -SSIM_RADIUS),) * 2
    whole = structure * luminance
    return float(whole[... if mirrored else inner].mean()), float(structure[inner].mean())


def dilated(mask: Mask, radius_px: int) -> Mask:
    """Return where a mask (H, W) is within a distance, the larger of dx and dy."""
    side = 2 * radius_px + 1
    return np.asarray(
        cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), dtype=bool
    )
