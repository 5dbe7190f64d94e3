"""Scribbles: rough white strokes on black, from the user's own drawing.

A drawing becomes a map by a threshold (ControlNet v1.0, gradio_scribble2image.py). A picture
becomes one as a fake scribble: soft edges, thinned to their ridges and thickened to strokes
(annotator/hed/__init__.py and gradio_fake_scribble2image.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators import hed
from annotators._diorama import doubt
from annotators._map_checks import line_map_warning
from annotators._strokes import check_strokes_edit, draw_strokes
from core.condition import (
    Annotator,
    ControlMap,
    Editor,
    Preprocessor,
    RGBImage,
    Score,
    WebUINames,
    no_warning,
)
from core.consistency import HALF_BRIGHT, lines_in, tolerant_f1
from core.images import grey_map
from core.params import checked, choice

BLUR = 3.0 / 512
"""Standard deviation of both blurs, before and after thinning, as a fraction of the short side:
ControlNet's 3 pixels at its 512."""
STROKE_LEVEL = 4
"""Of 255: brighter pixels after the second blur belong to a stroke."""
TOLERANCE = 0.015
"""As a fraction of the short side: a scribble says only roughly where a line runs."""

MAX_STROKES = 0.25
"""Largest share of a drawing that strokes cover; a thresholded photograph often exceeds it."""

DETECT, DARK, LIGHT = "detect", "dark lines on light", "light lines on dark"


@dataclass(frozen=True)
class ScribbleParams:
    """How the drawing was made."""

    drawing: str = choice(
        DETECT,
        (DETECT, DARK, LIGHT),
        "Drawing",
        "Which of the two colours the lines have; detect takes the rarer one.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw(image: RGBImage, params: ScribbleParams) -> ControlMap:
    """Return a drawing's lines, darker or lighter than half brightness, white on black."""
    darkest, brightest = image.min(axis=2), image.max(axis=2)
    dark_lines = params.drawing == DARK
    if params.drawing == DETECT:
        dark_lines = bool(np.median(darkest) >= HALF_BRIGHT)
    lines = darkest < HALF_BRIGHT if dark_lines else brightest > HALF_BRIGHT
    return _as_map(np.asarray(lines, dtype=bool))


@dataclass(frozen=True)
class CanvasParams:
    """No settings: the page's canvas gives black on white."""


def draw_from_canvas(image: RGBImage, _: CanvasParams) -> ControlMap:
    """Return the dark lines of a drawing, even if they cover most of it."""
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
    return _as_map(np.asarray(cv2.GaussianBlur(thin, (0, 0), blur) > STROKE_LEVEL, dtype=bool))


def _as_map(lines: NDArray[np.bool_]) -> ControlMap:
    return grey_map((lines * np.uint8(255)).astype(np.uint8))


def draw_fake(image: RGBImage, _: Any) -> ControlMap:
    """Draw the fake scribble of a picture from Diorama's soft edges."""
    return scribble_from_thin_edges(hed.draw_diorama(image, hed.HEDParams()))


def scribble_from_thin_edges(thin_edges: ControlMap) -> ControlMap:
    """Return the fake scribble of soft edges as Diorama's annotator draws them.

    `fake_scribble` expects HED's wide, bright edges. Diorama's are thin, and as bright as the
    network is certain: they are widened and brightened first.
    """
    width = 2 * round(BLUR * min(thin_edges.shape[:2])) + 1
    wide = cv2.dilate(thin_edges, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
    return fake_scribble(np.minimum(wide, HALF_BRIGHT) * np.uint8(2))


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two scribbles of one size: F1 of their strokes, tolerance 1.5 % of the short side.

    Our own metric: none is published for scribbles. Two empty maps score F1 1; an empty and a
    non-empty one 0.
    """
    tolerance = round(TOLERANCE * min(target.shape[:2]))
    f1 = tolerant_f1(lines_in(target), lines_in(extracted), tolerance)
    return Score(100 * f1, "stroke F1", {"stroke F1": f1})


def draw_edit(edit: Mapping[str, Any], control_map: ControlMap) -> ControlMap:
    """Draw an edit's strokes over a map, white, or black where they erase."""
    return _as_map(lines_in(draw_strokes(edit, control_map)))


ANNOTATOR = Annotator(
    name="scribble",
    preprocessors=(Preprocessor("Drawing", draw),),
    params=ScribbleParams,
    score=score,
    interpolation="nearest",
    reextract=Preprocessor("Diorama", draw_fake, doubt=doubt),
    measured_as="fake_scribble",
    empty_message="No lines found in this drawing; choose which colour they have.",
    map_warning=line_map_warning(
        "strokes", " If the picture is a photograph, use Fake scribbles.", MAX_STROKES
    ),
    editor=Editor("strokes", check_strokes_edit, draw_edit, facts={"over": True, "width": 6}),
    webui=WebUINames(
        {
            "invert (from white bg & black line)": "Drawing",
            "invert": "Drawing",
            "scribble": "Drawing",
        },
        ("scribble",),
    ),
)
CANVAS = replace(
    ANNOTATOR,
    preprocessors=(Preprocessor("Drawing", draw_from_canvas),),
    params=CanvasParams,
    map_warning=no_warning,
    editor=Editor("strokes", check_strokes_edit, draw_edit),
)
"""For drawings made on the page's canvas."""
