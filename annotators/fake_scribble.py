"""Fake scribbles: a photograph's soft edges, redrawn as rough strokes, white on black.

For people who do not draw. ControlNet, thinning and score are those of `annotators.scribble`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from annotators import hed
from annotators._diorama import HELP, doubt
from annotators._map_checks import line_map_warning
from annotators._pretrained import detector_preprocessor
from annotators._strokes import line_editor
from annotators.scribble import draw_fake, fake_scribble, score
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, WebUINames


@dataclass(frozen=True)
class FakeScribbleParams:
    """Fake scribbles have no settings."""


def draw_from(draw_edges: Any, image: RGBImage, _: FakeScribbleParams) -> ControlMap:
    """Draw strokes along the soft edges that `draw_edges` (of annotators.hed) draws."""
    return fake_scribble(draw_edges(image, hed.HEDParams(), safe=False))


ANNOTATOR = Annotator(
    name="fake_scribble",
    preprocessors=(
        Preprocessor("Diorama", draw_fake, help=HELP, doubt=doubt),
        detector_preprocessor("HED", partial(draw_from, hed.draw_hed), hed.HED),
        detector_preprocessor(
            "PiDiNet", partial(draw_from, hed.draw_pidinet), hed.PIDINET, hed.PIDINET_TERMS
        ),
    ),
    params=FakeScribbleParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    empty_message="No edges found in this picture.",
    map_warning=line_map_warning("strokes", " Where a picture is full of edges, they merge."),
    webui=WebUINames(
        {
            "scribble_hed": "HED",
            "fake_scribble": "HED",
            "scribble_pidinet": "PiDiNet",
            "pidinet_scribble": "PiDiNet",
        },
        ("scribble",),
    ),
    editor=line_editor(6),
)
