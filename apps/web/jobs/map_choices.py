"""Every annotator's every way to see a picture, each with a name. Knows no widgets."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from annotators import annotator_names, find_annotator
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import drawn_map
from core.condition import Annotator, Condition, ControlMap, Preprocessor
from core.errors import BadInput
from core.pipeline import Pipeline, map_notes
from core.request import GenerationRequest, Progress


@dataclass(frozen=True)
class MapChoice:
    """An annotator and one of its preprocessors."""

    annotator: Annotator
    preprocessor: Preprocessor

    @property
    def name(self) -> str:
        """Such as "hed: PiDiNet safe"."""
        return f"{self.annotator.name}: {self.preprocessor.name}"

    @property
    def title(self) -> str:
        """The name as people read it."""
        return self.name.replace("_", " ")

    @property
    def file_name(self) -> str:
        """The name as that of a PNG."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") + ".png"


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """What one way saw, or why it saw nothing."""

    way: MapChoice
    control_map: ControlMap | None
    note: str
    """Why there is no map, or that there is nothing on it; "" for neither."""
    seconds: float


def every_map_choice() -> dict[str, MapChoice]:
    """Return the ways by name, in the order of the annotators' names."""
    found = [
        MapChoice(annotator, preprocessor)
        for annotator in map(find_annotator, annotator_names())
        for preprocessor in annotator.preprocessors
    ]
    return {way.name: way for way in found}


def chosen_map_choices(names: object) -> list[MapChoice]:
    """Return the ways of a list of names, each once, in every_map_choice's order.

    Raises:
        BadInput: the list is empty or no list, or a name in it is unknown.
    """
    ways = every_map_choice()
    if not isinstance(names, list) or not names:
        raise BadInput("No map was chosen: please choose at least one.")
    unknown = [name for name in names if name not in list(ways)]
    if unknown:
        raise BadInput(f"There is no map {unknown[0]!r}; there are: {', '.join(ways)}.")
    return [way for name, way in ways.items() if name in names]


def draw_maps(
    pipeline: Pipeline, request: GenerationRequest, ways: Sequence[MapChoice]
) -> Iterator[DrawnMap | Progress | None]:
    """Draw each way's map of a request's picture, at its resolutions and with the usual settings.

    What is to be downloaded for one comes first, with its progress; None is yielded in silence. A
    way that fails is a DrawnMap without a map; the others are drawn all the same.
    """
    for way in ways:
        condition = Condition(way.annotator.name, way.name, "", way.annotator, weights="")
        began = time.perf_counter()
        control_map, note = None, ""
        asked = replace(request, preprocessor=way.preprocessor.name)
        try:
            for report in drawn_map(pipeline, condition, asked):
                if isinstance(report, np.ndarray):
                    control_map = report
                    continue
                began = time.perf_counter() if report else began  # a download is no drawing
                yield report
            if control_map is not None:
                note = next(iter(map_notes(way.annotator, asked, control_map)), "")
        except Exception as error:  # noqa: BLE001 - told in the map's place; a bug is logged
            note = sentence_of(error)
        yield DrawnMap(way, control_map, note, time.perf_counter() - began)
