"""Every annotator with each of its preprocessors, by name, and the maps they draw."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from annotators import annotator_names, find_annotator
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import drawn_map
from core.condition import Annotator, Condition, ControlMap, Preprocessor, RGBImage
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
        """The name for people."""
        return self.name.replace("_", " ")

    @property
    def file_name(self) -> str:
        """The name of its PNG."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") + ".png"

    def request(self, image: RGBImage, **settings: Any) -> GenerationRequest:
        """Return the request whose map this choice draws; it names no weights."""
        condition = Condition(self.annotator.name, self.name, "", self.annotator, weights="")
        settings["preprocessor"] = self.preprocessor.name
        return GenerationRequest.single(condition, image, **settings)


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """A choice's map, or why there is none."""

    choice: MapChoice
    control_map: ControlMap | None
    note: str
    """Why there is no map, or a warning about it; "" for neither."""
    seconds: float


def every_map_choice() -> dict[str, MapChoice]:
    """Return the choices by name, in the order of the annotators' names."""
    found = [
        MapChoice(annotator, preprocessor)
        for annotator in map(find_annotator, annotator_names())
        for preprocessor in annotator.preprocessors
    ]
    return {choice.name: choice for choice in found}


def chosen_map_choices(names: object) -> list[MapChoice]:
    """Return the choices of a list of names, each once, in every_map_choice's order.

    Raises:
        BadInput: the list is empty or not a list, or a name in it is unknown.
    """
    known = every_map_choice()
    if not isinstance(names, list) or not names:
        raise BadInput("No map was chosen: please choose at least one.")
    # A list, as a caller's name may be of any type, also one that cannot be hashed.
    unknown = [name for name in names if name not in list(known)]
    if unknown:
        raise BadInput(f"There is no map {unknown[0]!r}; there are: {', '.join(known)}.")
    return [choice for name, choice in known.items() if name in names]


def draw_maps(
    pipeline: Pipeline, requests: Mapping[MapChoice, GenerationRequest]
) -> Iterator[DrawnMap | Progress | None]:
    """Draw the map of each choice's request, one after the other.

    Downloads that one needs come first and report their progress; None is yielded while nothing
    happens. A choice that fails yields a DrawnMap without a map; the others are drawn all the same.
    """
    for choice, request in requests.items():
        began = time.perf_counter()
        control_map, note = None, ""
        try:
            for report in drawn_map(pipeline, request):
                if isinstance(report, np.ndarray):
                    control_map = report
                    continue
                began = time.perf_counter() if report else began  # downloads are not counted
                yield report
            if control_map is not None:
                note = next(iter(map_notes(request.controls[0], control_map)), "")
        except Exception as error:  # noqa: BLE001 - shown in the map's place; a bug is logged
            note = sentence_of(error)
        yield DrawnMap(choice, control_map, note, time.perf_counter() - began)
