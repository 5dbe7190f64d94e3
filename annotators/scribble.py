"""Scribbles: rough white strokes on black, from a drawing of the user's own.

A drawing becomes a map by a threshold (ControlNet v1.0, gradio_scribble2image.py). Pictures are no
drawings, so theirs are drawn as fake scribbles: soft edges thinned to their ridges and thickened
to strokes (annotator/hed/__init__.py and gradio_fake_scribble2image.py).
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators import hed
from annotators._map_checks import unless_few
from core.condition import (
    Annotator,
    ControlMap,
    Preprocessor,
    RGBImage,
    Score,
    nothing_odd,
)
from core.consistency import HALF_BRIGHT, lines_in, tolerant_f1
from core.images import grey_map
from core.params import checked, choice

BLUR = 3.0 / 512
"""Standard deviation over the short side, before the ridges are found and again to thicken them:
the original's 3 pixels at its 512, and no thicker than the lines of a smaller picture."""
THICK = 4
"""Of 255: what is brighter after the second blur belongs to a stroke."""
TOLERANCE = 0.015
"""Of the short side: a scribble says roughly where a line runs."""

FILLED = 0.25
"""Part of a map that no drawing of strokes covers; a photograph by a threshold often does."""

DETECT, DARK, LIGHT = "detect", "dark lines on light", "light lines on dark"


@dataclass(frozen=True)
class ScribbleParams:
    """How the drawing was made."""

    drawing: str = choice(
        DETECT,
        (DETECT, DARK, LIGHT),
        "Drawing",
        "Which of the two colours the lines have; paper is what covers more.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw(image: RGBImage, params: ScribbleParams) -> ControlMap:
    """Return the lines of a drawing (any colour darker, or lighter, than half), white on black."""
    darkest, brightest = image.min(axis=2), image.max(axis=2)
    dark_lines = params.drawing == DARK
    if params.drawing == DETECT:
        dark_lines = bool(np.median(darkest) >= HALF_BRIGHT)
    lines = darkest < HALF_BRIGHT if dark_lines else brightest > HALF_BRIGHT
    return _as_map(np.asarray(lines, dtype=bool))


@dataclass(frozen=True)
class CanvasParams:
    """Nothing: what a page's canvas gives is black on white."""


def draw_from_canvas(image: RGBImage, _: CanvasParams) -> ControlMap:
    """Return the dark lines of a drawing, even where they cover more than the paper."""
    return draw(image, ScribbleParams(DARK))


def fake_scribble(soft_edges: ControlMap) -> ControlMap:
    """Return strokes along the ridges of a soft edge map.

    A pixel is on a ridge if it is the largest of three in a row in any of the four directions.
    """
    blur = BLUR * min(soft_edges.shape[:2])
    smooth = cv2.GaussianBlur(soft_edges[:, :, 0].astype(np.float32), (0, 0), blur)
    row, diagonal = np.zeros((3, 3), np.uint8), np.eye(3, dtype=np.uint8)
    row[1] = 1
    ridge = np.zeros(smooth.shape, bool)
    for direction in (row, row.T, diagonal, diagonal[::-1].copy()):
        ridge |= cv2.dilate(smooth, direction) == smooth
    thin = ((ridge & (smooth > HALF_BRIGHT)) * np.uint8(255)).astype(np.uint8)
    return _as_map(np.asarray(cv2.GaussianBlur(thin, (0, 0), blur) > THICK, dtype=bool))


def _as_map(lines: NDArray[np.bool_]) -> ControlMap:
    return grey_map((lines * np.uint8(255)).astype(np.uint8))


def draw_fake(image: RGBImage, _: Any) -> ControlMap:
    """Draw the fake scribble of a picture from what Diorama's annotator sees."""
    return scribble_along(hed.draw_diorama(image, hed.HEDParams()))


def scribble_along(thin_edges: ControlMap) -> ControlMap:
    """Return the fake scribble of soft edges such as Diorama's annotator learns and sees.

    The rule was made for HED, whose edges are wide and bright. These are thin, and as bright as the
    annotator is sure, so they are widened, and brightened, to the like.
    """
    width = 2 * round(BLUR * min(thin_edges.shape[:2])) + 1
    wide = cv2.dilate(thin_edges, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return fake_scribble(np.minimum(wide, HALF_BRIGHT) * np.uint8(2))


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two scribbles of one size: F1 of their strokes, 1.5 % of the short side tolerated.

    Ours: no figure for scribbles is published. Two empty scribbles agree fully (F1 1); one with and
    one without strokes, not at all (0).
    """
    tolerance = round(TOLERANCE * min(wanted.shape[:2]))
    f1 = tolerant_f1(lines_in(wanted), lines_in(found), tolerance)
    return Score(100 * f1, "stroke F1", {"stroke F1": f1})


ANNOTATOR = Annotator(
    name="scribble",
    preprocessors=(Preprocessor("Drawing", draw),),
    params=ScribbleParams,
    score=score,
    interpolation="nearest",
    reextract=Preprocessor("Diorama", draw_fake),
    empty_message="No lines found in this drawing; say which colour they have.",
    map_warning=unless_few(
        "strokes", " If the picture is a photograph, use Fake scribbles.", FILLED
    ),
)
CANVAS = replace(
    ANNOTATOR,
    preprocessors=(Preprocessor("Drawing", draw_from_canvas),),
    params=CanvasParams,
    map_warning=nothing_odd,
)
"""For drawings that are made in the page."""
