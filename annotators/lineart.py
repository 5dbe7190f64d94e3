"""Line art: a picture redrawn as with a pen, bright on black.

Sources: Winnemöller et al. 2012, "XDoG: An eXtended difference-of-Gaussians compendium" (nothing to
download); Chan et al. 2022, "Learning to Generate Line Drawings that Convey Geometry and
Semantics", which ControlNet v1.1 was trained with; and github.com/Mukosame/Anime2Sketch (Xiang et
al. 2021, MIT), which its ControlNet for anime was trained with. Both through controlnet-aux.
"""

from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from annotators._map_checks import line_map_warning
from annotators._pretrained import detector_preprocessor, load_detector, run_detector
from annotators._strokes import line_editor
from annotators.hed import as_map, is_faint, score
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, WebUINames
from core.params import bounded, checked

LINEART = ("LineartDetector", (("sk_model.pth", 17_200_000), ("sk_model2.pth", 17_200_000)))
"""The fine network and the coarse one; controlnet-aux loads both."""
ANIME = ("LineartAnimeDetector", (("netG.pth", 217_700_000),))
LINE_SIGMA = 1.4 / 512
"""Standard deviation of the narrow Gaussian, as a fraction of the short side: half a line width."""
SIGMA_RATIO = 1.6
"""The paper's k, wide to narrow Gaussian: the difference is then closest to a Laplacian."""
SHARPNESS = 40.0
"""The paper's phi: how steeply brightness rises above the threshold."""


@dataclass(frozen=True)
class LineartParams:
    """The threshold of the difference of Gaussians."""

    line_threshold: float = bounded(
        0.01,
        0.0,
        0.1,
        0.002,
        "Line threshold",
        "How strong an edge must be to become a line; raise it for fewer. XDoG only.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw_xdog(image: RGBImage, params: LineartParams) -> ControlMap:
    """Draw a line along the darker side of every edge; the stronger the edge, the brighter.

    The paper's tau is 1, so dark areas are not filled. The largest difference of the three channels
    counts, so that colours of equal brightness are separated.
    """
    sigma = LINE_SIGMA * min(image.shape[:2])
    levels = image.astype(np.float32) / 255
    wide = cv2.GaussianBlur(levels, (0, 0), SIGMA_RATIO * sigma)
    difference = (wide - cv2.GaussianBlur(levels, (0, 0), sigma)).max(axis=2)
    return as_map(np.tanh(SHARPNESS * (difference - params.line_threshold).clip(0)))


def draw_lineart(image: RGBImage, _: LineartParams, coarse: bool) -> ControlMap:
    """Draw the fine or the coarse network's lines."""
    return run_detector(load_detector(*LINEART), image, coarse=coarse)


def draw_anime(image: RGBImage, _: LineartParams) -> ControlMap:
    """Draw the anime network's lines."""
    return run_detector(load_detector(*ANIME), image)


ANNOTATOR = Annotator(
    name="lineart",
    preprocessors=(
        Preprocessor("XDoG", draw_xdog, help="Difference of Gaussians; nothing to download."),
        detector_preprocessor(
            "Lineart",
            partial(draw_lineart, coarse=False),
            LINEART,
            help_text="What ControlNet was trained with.",
        ),
        detector_preprocessor("Lineart coarse", partial(draw_lineart, coarse=True), LINEART),
        detector_preprocessor("Lineart anime", draw_anime, ANIME, help_text="For anime drawings."),
    ),
    params=LineartParams,
    score=score,
    interpolation="linear",
    detect_resolution=512,
    empty_message="No lines found; lower the threshold.",
    is_empty=is_faint,
    map_warning=line_map_warning("lines"),
    webui=WebUINames(
        {
            "lineart_standard (from white bg & black line)": "XDoG",
            "lineart_standard": "XDoG",
            "lineart_realistic": "Lineart",
            "lineart": "Lineart",
            "lineart_coarse": "Lineart coarse",
            "lineart_anime": "Lineart anime",
        },
        ("lineart",),
    ),
    editor=line_editor(2),
)
