"""What a condition is: an annotator (draws and scores maps) and the facts around it. Data only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RGBImage = NDArray[np.uint8]
"""A picture: uint8 (H, W, 3), RGB, 0..255. The only picture form between modules."""
ControlMap = NDArray[np.uint8]
"""A control map: uint8 (H, W, 3), channels as the network wants them (so not always RGB)."""

ALREADY_A_MAP = "None"
"""The preprocessor name that means "my image is already a control map" (v1.1's word for it)."""

Interpolation = Literal["nearest", "linear", "area", "lanczos", "lines"]
"""How a map is resized; "lines" keeps thin white lines whole and unblended (see core.images)."""
InputKind = Literal["photo", "drawing", "canvas"]


@dataclass(frozen=True)
class Score:
    """How well one map agrees with another."""

    headline: float
    """0..100, higher is better."""
    metric: str
    """The name, in `metrics`, of the paper's figure behind the headline, such as "F1"."""
    metrics: dict[str, float]
    higher_is_better: bool = True
    """Whether that figure is; one that measures an error is better when it is lower."""


@dataclass(frozen=True)
class Preprocessor:
    """One way to draw a condition's map."""

    name: str
    draw: Callable[[RGBImage, Any], ControlMap]
    """Pure: never edits its input; the same picture and params give the same map, same size."""
    needs: str = ""
    """What must be downloaded first, in words; "" for nothing."""
    help: str = ""
    fetch: Callable[..., object] | None = None
    """Brings that here; fetch(watch=) has `watch` called now and then with the bytes that are here
    and those that there will be, and passes on what it raises. None where nothing is needed."""
    detect_resolution: int | None = None
    """Short side it draws at best, in pixels, where the annotator's own is not it."""


def shown_as_fed(control_map: ControlMap) -> RGBImage:
    """Show a map exactly as the network gets it."""
    return control_map


def of_one_colour(control_map: ControlMap) -> bool:
    """Return whether a map is one colour everywhere, whichever: a flat normal map is blue."""
    return bool((control_map == control_map[:1, :1]).all())


def nothing_odd(_: ControlMap) -> str:
    """Take any map for one of its kind."""
    return ""


@dataclass(frozen=True)
class Annotator:
    """Draws control maps, and says how they are resized, shown and compared."""

    name: str
    preprocessors: tuple[Preprocessor, ...]
    """The first is the default."""
    params: type
    """A frozen dataclass of fields from core.params; may have none."""
    score: Callable[[ControlMap, ControlMap], Score]
    """score(wanted, found), two maps of one size."""
    interpolation: Interpolation
    detect_resolution: int | None = None
    """Short side the map is drawn at, in pixels; None draws at the size of the output."""
    preview: Callable[[ControlMap], RGBImage] = shown_as_fed
    reextract: Preprocessor | None = None
    """Draws the maps of generated pictures where the input is a drawing, not a picture; None: what
    drew the input's map."""
    empty_message: str = ""
    """Said when the map is empty; "" where that is nothing unusual."""
    is_empty: Callable[[ControlMap], bool] = of_one_colour
    """Whether a map shows nothing."""
    map_warning: Callable[[ControlMap], str] = nothing_odd
    """What is odd about a map for its kind, in a sentence; mostly ""."""


@dataclass(frozen=True)
class Example:
    """One ready-made input: a file in test_imgs/ and a prompt that goes with it."""

    image: str
    prompt: str


@dataclass(frozen=True)
class Condition:
    """One app's facts."""

    name: str
    title: str
    blurb: str
    annotator: Annotator
    weights: str
    """The control's name in every model card, such as "canny"."""
    input: InputKind = "photo"
    examples: tuple[Example, ...] = field(default=())
