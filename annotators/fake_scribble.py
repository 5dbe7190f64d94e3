"""Fake scribbles: a photograph's soft edges, redrawn as rough strokes, white on black.

For people who do not draw; the same weights as `annotators.scribble`, whose rule and score it has.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from annotators import hed
from annotators._diorama import HELP
from annotators._map_checks import unless_few
from annotators._pretrained import by_detector
from annotators.scribble import draw_fake, fake_scribble, score
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage


@dataclass(frozen=True)
class FakeScribbleParams:
    """Fake scribbles have no settings."""


def draw_from(soft: Any, image: RGBImage, _: FakeScribbleParams) -> ControlMap:
    """Draw the strokes of what `soft` (a drawing function of annotators.hed) sees."""
    return fake_scribble(soft(image, hed.HEDParams(), safe=False))


ANNOTATOR = Annotator(
    name="fake_scribble",
    preprocessors=(
        Preprocessor("Diorama", draw_fake, help=HELP),
        by_detector("HED", partial(draw_from, hed.draw_hed), hed.HED),
        by_detector(
            "PiDiNet", partial(draw_from, hed.draw_pidinet), hed.PIDINET, hed.PIDINET_TERMS
        ),
    ),
    params=FakeScribbleParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    empty_message="No edges found in this picture.",
    map_warning=unless_few("strokes", " In a picture full of edges they run together."),
)
