"""Canny edges: white lines, one pixel wide, on black.

Source: Canny 1986, as OpenCV's cv2.Canny has it (3x3 Sobel, L1 norm) on the RGB picture, which is
what ControlNet v1.0 was trained with (annotator/canny/__init__.py).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.consistency import lines_in, tolerant_f1
from core.images import grey_map
from core.params import bounded, checked

TOLERANCE_PX = 1
"""An edge redrawn one pixel off is the same edge to the eye; the exact figure stands beside it."""


@dataclass(frozen=True)
class CannyParams:
    """The two thresholds on the gradient; if low is above high they are swapped."""

    low_threshold: int = bounded(
        100,
        1,
        255,
        1,
        "Canny low threshold",
        "A weak edge above this is kept if it meets a strong one.",
    )
    high_threshold: int = bounded(
        200,
        1,
        255,
        1,
        "Canny high threshold",
        "An edge above this is always kept; lower it for more.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw(image: RGBImage, params: CannyParams) -> ControlMap:
    """Draw the edges, 255 on 0 in all three channels, same height and width."""
    low, high = sorted((params.low_threshold, params.high_threshold))
    edges = cv2.Canny(image, low, high)
    return grey_map(np.asarray(edges, dtype=np.uint8))


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two edge maps of one size: F1 with one pixel's tolerance, and exact.

    Two maps without any edge agree fully (F1 1); one with and one without, not at all (0).
    """
    first, second = lines_in(wanted), lines_in(found)
    tolerant = tolerant_f1(first, second, TOLERANCE_PX)
    return Score(100 * tolerant, "F1", {"F1": tolerant, "F1 exact": tolerant_f1(first, second, 0)})


ANNOTATOR = Annotator(
    name="canny",
    preprocessors=(Preprocessor("Canny", draw),),
    params=CannyParams,
    score=score,
    interpolation="lines",
    empty_message="No edges found; lower the thresholds.",
)
