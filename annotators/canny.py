"""Canny edges: white lines, one pixel wide, on black.

Sources: Canny 1986, as OpenCV's cv2.Canny has it (3x3 Sobel, L1 norm) on the RGB picture, which is
what ControlNet v1.0 was trained with (annotator/canny/__init__.py), and as kornia.filters.canny has
it (version 0.7.0), which ControlNet++ was scored with.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from annotators._map_checks import unless_few
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.consistency import lines_in, tolerant_f1
from core.images import grey_map
from core.params import bounded, checked

TOLERANCE_PX = 1
"""An edge redrawn one pixel off is the same edge to the eye; the exact figure stands beside it."""

REC_601 = (0.299, 0.587, 0.114)
"""How much red, green and blue add to grey."""
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
"""The slope along x; along y it is the transposed."""
KORNIA_LOW, KORNIA_HIGH = 0.1, 0.2
"""ControlNet++'s thresholds, on Sobel slopes of grey levels in 0..1 after a blur."""
NEVER_ZERO = 1e-6
"""Kornia's, under the root of the squared slopes."""
ACROSS = ((1, 0), (1, 1), (0, 1), (-1, 1))
"""x and y of the neighbour towards which a slope points, by eighths of a turn from x to y; the
other four eighths are the same lines, walked backwards."""


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


def draw_kornia(image: RGBImage, _: CannyParams) -> ControlMap:
    """Draw the edges that kornia finds between ControlNet++'s thresholds."""
    strength, eighths = _slopes(image)
    height, width = strength.shape
    around = np.pad(strength, 1)
    highest = np.zeros(strength.shape, bool)
    for eighth, (dx, dy) in enumerate(ACROSS):
        ahead = around[1 + dy :, 1 + dx :][:height, :width]
        behind = around[1 - dy :, 1 - dx :][:height, :width]
        highest |= (eighths % 4 == eighth) & (strength > ahead) & (strength > behind)
    # Hysteresis: what hangs together is drawn whole if any of it is strong.
    weak = highest & (strength > KORNIA_LOW)
    piece = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)[1]
    edges = weak & np.isin(piece, piece[weak & (strength > KORNIA_HIGH)])
    return grey_map((edges * np.uint8(255)).astype(np.uint8))


def _slopes(image: RGBImage) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return how steep the blurred grey is (H, W), and the direction (H, W) in eighths of a turn.

    With torch and in kornia's order: the two sides of a hard edge are equally steep but for the
    rounding of their last digits, which then decides what is drawn.
    """
    red, green, blue = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    grey = (REC_601[0] * red + REC_601[1] * green + REC_601[2] * blue)[None, None]
    gauss = torch.exp(-torch.arange(-2.0, 3.0, dtype=torch.float32).square() / 2)
    gauss = gauss / gauss.sum()
    grey = functional.conv2d(functional.pad(grey, (2, 2, 0, 0), "reflect"), gauss.view(1, 1, 1, 5))
    grey = functional.conv2d(functional.pad(grey, (0, 0, 2, 2), "reflect"), gauss.view(1, 1, 5, 1))
    sobel = torch.tensor(SOBEL, dtype=torch.float32)
    kernels = torch.stack([sobel, sobel.T])[:, None]
    x, y = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), "replicate"), kernels)[0]
    strength = torch.sqrt(x * x + y * y + NEVER_ZERO)
    eighths = torch.round(torch.atan2(y, x).rad2deg() / 45)
    return strength.numpy(), eighths.long().numpy()


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two edge maps of one size: F1 with one pixel's tolerance, and exact.

    Two maps without any edge agree fully (F1 1); one with and one without, not at all (0).
    """
    first, second = lines_in(wanted), lines_in(found)
    tolerant = tolerant_f1(first, second, TOLERANCE_PX)
    return Score(100 * tolerant, "F1", {"F1": tolerant, "F1 exact": tolerant_f1(first, second, 0)})


ANNOTATOR = Annotator(
    name="canny",
    preprocessors=(
        Preprocessor("Canny", draw),
        Preprocessor(
            "Kornia",
            draw_kornia,
            help="What ControlNet++ is scored with; its own fixed thresholds, not those set here.",
        ),
    ),
    params=CannyParams,
    score=score,
    interpolation="lines",
    empty_message="No edges found; lower the thresholds.",
    map_warning=unless_few("edges", " If it was drawn here, raise the thresholds."),
)
