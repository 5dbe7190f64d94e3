"""Line art: a picture redrawn as with a pen, bright on black.

Sources: Winnemöller et al. 2012, "XDoG: An eXtended difference-of-Gaussians compendium" (nothing to
download), and Chan et al. 2022, "Learning to Generate Line Drawings that Convey Geometry and
Semantics", through controlnet-aux, which ControlNet v1.1 was trained with, as was its ControlNet
for anime with that of github.com/Mukosame/Anime2Sketch (Xiang et al. 2021, MIT).
"""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from annotators._map_checks import unless_few
from annotators._pretrained import by_detector, load_detector, run_detector
from annotators.hed import as_map, score, too_faint
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage
from core.params import bounded, checked

LINEART = ("LineartDetector", (("sk_model.pth", 17_200_000), ("sk_model2.pth", 17_200_000)))
"""The fine network and the coarse one; controlnet-aux loads both."""
ANIME = ("LineartAnimeDetector", (("netG.pth", 217_700_000),))
PEN = 1.4 / 512
"""Standard deviation of the narrow Gaussian over the short side: half a line's width."""
WIDER = 1.6
"""The paper's ratio of the two Gaussians, by which they are nearest to a Laplacian."""
SHARPNESS = 40.0
"""The paper's phi: how soon above the threshold a line is white."""


@dataclass(frozen=True)
class LineartParams:
    """The threshold of the difference of Gaussians."""

    line_threshold: float = bounded(
        0.01,
        0.0,
        0.1,
        0.002,
        "Line threshold",
        "How strong an edge must be to get a line; raise it for fewer. Only for XDoG.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw_xdog(image: RGBImage, params: LineartParams) -> ControlMap:
    """Draw a line along the darker side of every edge, the brighter the stronger the edge is.

    The difference is taken alone (the paper's tau is 1), so that dark areas are not filled, and in
    the channel where it is largest, so that colours of one brightness are told apart.
    """
    pen = PEN * min(image.shape[:2])
    levels = image.astype(np.float32) / 255
    around = cv2.GaussianBlur(levels, (0, 0), WIDER * pen)
    darker = (around - cv2.GaussianBlur(levels, (0, 0), pen)).max(axis=2)
    return as_map(np.tanh(SHARPNESS * (darker - params.line_threshold).clip(0)))


def draw_lineart(image: RGBImage, _: LineartParams, coarse: bool) -> ControlMap:
    """Draw the lines that the fine or the coarse network sees."""
    return run_detector(load_detector(*LINEART), image, coarse=coarse)


def draw_anime(image: RGBImage, _: LineartParams) -> ControlMap:
    """Draw the lines that the network for anime sees."""
    return run_detector(load_detector(*ANIME), image)


ANNOTATOR = Annotator(
    name="lineart",
    preprocessors=(
        Preprocessor("XDoG", draw_xdog, help="Differences of Gaussians; nothing to download."),
        by_detector(
            "Lineart",
            partial(draw_lineart, coarse=False),
            LINEART,
            told="What ControlNet was trained with.",
        ),
        by_detector("Lineart coarse", partial(draw_lineart, coarse=True), LINEART),
        by_detector("Lineart anime", draw_anime, ANIME, told="For drawings as in anime."),
    ),
    params=LineartParams,
    score=score,
    interpolation="linear",
    detect_resolution=512,
    empty_message="No lines found; lower the threshold.",
    is_empty=too_faint,
    map_warning=unless_few("lines"),
)
