"""Canny edges: white lines, one pixel wide, on black.

Sources: Canny 1986, as implemented by OpenCV (3x3 Sobel, L1 norm) on the RGB picture, which
ControlNet v1.0 was trained with (annotator/canny/__init__.py), and by kornia.filters.canny (0.7.0),
which ControlNet++ was scored with.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from annotators._map_checks import line_map_warning
from annotators._strokes import line_editor
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score, WebUINames
from core.consistency import lines_in, tolerant_f1
from core.images import grey_map
from core.params import bounded, checked

TOLERANCE_PX = 1
"""To the eye, an edge one pixel off is the same edge; the exact F1 is reported too."""

REC_601 = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey level."""
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
"""The gradient along x; its transpose is the one along y."""
KORNIA_LOW, KORNIA_HIGH = 0.1, 0.2
"""ControlNet++'s thresholds, on the gradient of blurred grey levels in 0..1."""
EPSILON = 1e-6
"""Added to the squared magnitude of the gradient before its root, as in kornia."""
OCTANT_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1))
"""(dx, dy) to the neighbour in the direction of the gradient, for octants 0 to 3, from x to y; the
other four octants are their opposites."""


@dataclass(frozen=True)
class CannyParams:
    """The two thresholds on the gradient; if low is above high they are swapped."""

    low_threshold: int = bounded(
        default=100,
        low=1,
        high=255,
        step=1,
        label="Canny low threshold",
        help="A weak edge above this is kept if it meets a strong one.",
    )
    high_threshold: int = bounded(
        default=200,
        low=1,
        high=255,
        step=1,
        label="Canny high threshold",
        help="An edge above this is always kept; lower it for more.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw(image: RGBImage, params: CannyParams) -> ControlMap:
    """Draw OpenCV's edges, 255 on 0 in all three channels, at the picture's size."""
    low, high = sorted((params.low_threshold, params.high_threshold))
    edges = cv2.Canny(image, low, high)
    return grey_map(np.asarray(edges, dtype=np.uint8))


def draw_kornia(image: RGBImage, _: CannyParams) -> ControlMap:
    """Draw kornia's edges with ControlNet++'s thresholds."""
    magnitude, octant = _gradient(image)
    height, width = magnitude.shape
    padded = np.pad(magnitude, 1)
    # Non-maximum suppression: kept is what exceeds both neighbours along the gradient.
    maxima = np.zeros(magnitude.shape, bool)
    for k, (dx, dy) in enumerate(OCTANT_STEPS):
        ahead = padded[1 + dy :, 1 + dx :][:height, :width]
        behind = padded[1 - dy :, 1 - dx :][:height, :width]
        maxima |= (octant % 4 == k) & (magnitude > ahead) & (magnitude > behind)
    # Hysteresis: a component of weak edges is kept if any of its pixels is strong.
    weak = maxima & (magnitude > KORNIA_LOW)
    component = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)[1]
    edges = weak & np.isin(component, component[weak & (magnitude > KORNIA_HIGH)])
    return grey_map((edges * np.uint8(255)).astype(np.uint8))


def gradient(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of blurred grey pictures: its magnitude, x and y, each (B, H, W).

    `pictures` (B, 3, H, W) are RGB in 0..1. In torch and in kornia's order of operations: the two
    sides of a hard edge differ only in the last digits, so rounding decides which is drawn.
    """
    red, green, blue = pictures.unbind(1)
    grey = (REC_601[0] * red + REC_601[1] * green + REC_601[2] * blue)[:, None]
    steps = torch.arange(-2.0, 3.0, dtype=torch.float32, device=pictures.device)
    gauss = torch.exp(-steps.square() / 2)
    gauss = gauss / gauss.sum()
    grey = functional.conv2d(functional.pad(grey, (2, 2, 0, 0), "reflect"), gauss.view(1, 1, 1, 5))
    grey = functional.conv2d(functional.pad(grey, (0, 0, 2, 2), "reflect"), gauss.view(1, 1, 5, 1))
    sobel = torch.tensor(SOBEL, dtype=torch.float32, device=pictures.device)
    kernels = torch.stack([sobel, sobel.T])[:, None]
    x, y = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), "replicate"), kernels).unbind(1)
    return torch.sqrt(x * x + y * y + EPSILON), x, y


def _gradient(image: RGBImage) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the magnitude (H, W) and octant (H, W) of a picture's gradient."""
    picture = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    magnitude, x, y = (one[0] for one in gradient(picture[None]))
    octant = torch.round(torch.atan2(y, x).rad2deg() / 45)
    return magnitude.numpy(), octant.long().numpy()


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two edge maps of one size: F1 with one pixel's tolerance, and exact F1.

    Two empty maps score F1 1; an empty and a non-empty one 0.
    """
    wanted, found = lines_in(target), lines_in(extracted)
    f1 = tolerant_f1(wanted, found, TOLERANCE_PX)
    exact = tolerant_f1(wanted, found, 0)
    return Score(headline=100 * f1, metric="F1", metrics={"F1": f1, "F1 exact": exact})


ANNOTATOR = Annotator(
    name="canny",
    preprocessors=(
        Preprocessor("Canny", draw),
        Preprocessor(
            "Kornia",
            draw_kornia,
            help="What ControlNet++ is scored with. Its thresholds are fixed.",
        ),
    ),
    params=CannyParams,
    score=score,
    interpolation="lines",
    empty_message="No edges found; lower the thresholds.",
    map_warning=line_map_warning("edges", " If it was drawn here, raise the thresholds."),
    webui=WebUINames(
        {"canny": "Canny"}, ("canny",), thresholds=("low_threshold", "high_threshold")
    ),
    editor=line_editor(2),
)
