"""Conditions and their annotators, which draw and score control maps. Data only."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RGBImage = NDArray[np.uint8]
"""A picture: uint8 (H, W, 3), RGB, 0..255. The only form in which modules exchange pictures."""
PixelMask = NDArray[np.bool_]
"""A part of a picture: bool (H, W), true inside."""
ControlMap = NDArray[np.uint8]
"""A control map: uint8 (H, W, 3), channels in the order the network expects (not always RGB)."""

ALREADY_A_MAP = "None"
"""The preprocessor name for "my image is already a control map", as in v1.1."""

NO_MODULE = "none"
"""What sd-webui-controlnet calls that."""

Interpolation = Literal["nearest", "linear", "area", "lanczos", "lines"]
"""How a map is resized; "lines" keeps thin white lines unbroken (see core.images)."""
InputKind = Literal["photo", "drawing", "canvas"]
"""A photo's map is drawn by a preprocessor; a drawing is uploaded (its transparent parts contrast
with its lines); a canvas is drawn on in the page."""


@dataclass(frozen=True)
class Score:
    """How well one map agrees with another."""

    headline: float
    """0..100, higher is better."""
    metric: str
    """The key in `metrics` of the paper's metric, such as "F1"."""
    metrics: dict[str, float]
    higher_is_better: bool = True
    """For that metric; an error is better when lower."""


@dataclass(frozen=True)
class Preprocessor:
    """One way to draw a condition's map."""

    name: str
    draw: Callable[[RGBImage, Any], ControlMap]
    """Pure and deterministic: (picture, params) -> map of the same size; never edits its input. A
    map may be rougher where `is_rough`."""
    needs: str = ""
    """What must be downloaded first, in words; "" for nothing."""
    help: str = ""
    fetch: Callable[..., object] | None = None
    """fetch(watch=) downloads that; it calls watch(bytes_here, bytes_total) now and then and raises
    what `watch` raises. None if nothing is needed."""
    detect_resolution: int | None = None
    """Its best short side in pixels, if not the annotator's."""
    doubt: Callable[[RGBImage], float] | None = None
    """How unlike a picture is to those it was trained on, from 0; above 1 its map is not to be
    trusted. None if it takes any picture."""


_ROUGH: ContextVar[bool] = ContextVar("_ROUGH", default=False)


@contextmanager
def rough_maps(allowed: bool) -> Iterator[None]:
    """While the block runs, let preprocessors save time at the cost of their maps, if `allowed`."""
    token = _ROUGH.set(allowed)
    try:
        yield
    finally:
        _ROUGH.reset(token)


def is_rough() -> bool:
    """Return whether maps may be rough, as those of a preview's pictures."""
    return _ROUGH.get()


def shown_as_fed(control_map: ControlMap) -> RGBImage:
    """Show a map exactly as the network gets it."""
    return control_map


def of_one_colour(control_map: ControlMap) -> bool:
    """Return whether a map is one colour everywhere, whichever it is: a flat normal map is blue."""
    return bool((control_map == control_map[:1, :1]).all())


def no_warning(_: ControlMap) -> str:
    """Accept any map."""
    return ""


@dataclass(frozen=True)
class WebUINames:
    """What sd-webui-controlnet calls a kind of map: it and we read each other's pictures.

    Source: the labels in scripts/preprocessor of Mikubill/sd-webui-controlnet, the names before
    version 1.1, and the file names of lllyasviel's ControlNets.
    """

    modules: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The names of its preprocessors, and ours that draws the same or the nearest map. Ours is
    written by its first name, or the first of all if it has none."""
    models: tuple[str, ...] = ()
    """Parts, in lower case, of the file names of the ControlNets for such maps."""
    thresholds: tuple[str, ...] = ()
    """Our params that are its Threshold A and B."""

    def module_of(self, preprocessor: str) -> str:
        """Return its name of a preprocessor of ours; NO_MODULE for a ready map."""
        if preprocessor == ALREADY_A_MAP or not self.modules:
            return NO_MODULE
        own = (name for name, ours in self.modules.items() if ours == preprocessor)
        return next(own, next(iter(self.modules)))


@dataclass(frozen=True)
class Editor:
    """How a person changes a map: by vectors in a JSON object, an edit (apps/README.md, "Edits").

    Every edit has "size": [width, height]; its coordinates are pixels of a picture of that size,
    and `draw` scales them to the map's.
    """

    name: str
    """Of its file in apps/web/html/canvas/, without the suffix."""
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    """check(raw edit) -> the edit with every value checked. Raises BadInput."""
    draw: Callable[[Mapping[str, Any], ControlMap], ControlMap]
    """draw(checked edit, map so far) -> the edited map, of the same size; never edits its input."""
    begin: Callable[[Preprocessor, RGBImage, Any], dict[str, Any]] | None = None
    """begin(preprocessor, picture, params) -> the edit that stands for what is found in the
    picture, such as its skeletons; None if an edit is drawn over the map instead."""
    read: Callable[[ControlMap], dict[str, Any]] | None = None
    """read(ready map) -> the edit that stands for what it shows; {} if nothing can be read."""
    is_whole: Callable[[Mapping[str, Any]], bool] = lambda _: False
    """is_whole(checked edit) -> whether nothing of the detected map can be left, so that none is
    drawn. Where there is `begin` it never can."""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the page's part needs to know, such as names and colours; as JSON."""


@dataclass(frozen=True)
class Annotator:
    """Draws control maps, and says how they are resized, shown and compared."""

    name: str
    preprocessors: tuple[Preprocessor, ...]
    """The first is the default."""
    params: type
    """A frozen dataclass of fields from core.params; may have none."""
    score: Callable[[ControlMap, ControlMap], Score]
    """score(target, extracted), for two maps of one size."""
    interpolation: Interpolation
    detect_resolution: int | None = None
    """Short side the map is drawn at, in pixels; None draws at output size."""
    preview: Callable[[ControlMap], RGBImage] = shown_as_fed
    empty_in_doubt: bool = False
    """Whether the input's map stays empty if its preprocessor is in doubt, such as a pose: nobody
    is found rather than somebody who is not there."""
    reextract: Preprocessor | None = None
    """Draws the maps of generated pictures if the input is a drawing; None uses the preprocessor
    that drew the input's map."""
    measured_as: str = ""
    """The annotator with whose maps it was measured, if the input is a drawing: no benchmark has
    drawings, but the ControlNet and `reextract` are the same; "" for itself."""
    empty_message: str = ""
    """The warning for an empty map; "" if that is not unusual."""
    is_empty: Callable[[ControlMap], bool] = of_one_colour
    """Whether a map shows nothing."""
    fit_map: Callable[[ControlMap, tuple[int, int]], ControlMap] | None = None
    """fit_map(ready map, (width, height)) -> the map at that size, where resizing alone would lose
    what it shows."""
    map_warning: Callable[[ControlMap], str] = no_warning
    """A sentence if the map does not look like one of its kind; "" otherwise."""
    webui: WebUINames = field(default_factory=WebUINames)
    editor: Editor | None = None
    """How its maps are edited in the page; None if they are not."""


@dataclass(frozen=True)
class Example:
    """One example input: a file in test_imgs/ and a prompt for it."""

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
