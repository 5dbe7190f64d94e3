"""A sweep: one picture for each pair of values of two settings, one after the other."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.web.jobs.axis import MOST_CELLS, Axis, axis_settings, parsed_axis
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job, Partial
from apps.web.jobs.request import checked_control, checked_whole
from apps.web.jobs.several import combinable
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import BadInput, SuiteError
from core.params import settings_of
from core.pipeline import LARGEST_DRAWN_SEED
from core.request import SETTINGS, GenerationRequest, GenerationResult, Progress

NO_AXIS = ""
"""The name of a second axis that is not wanted."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One finished place of the grid: its picture with score, or why there is none."""

    column: int
    row: int
    result: GenerationResult | None
    error: str = ""

    @property
    def headline(self) -> float | None:
        """The score, 0..100; None if there is no picture, or its map asks for nothing."""
        if self.result is None or self.result.asks_for_nothing:
            return None
        return self.result.headlines[0]


def new_sweep(suite: Suite, given: Mapping[str, Any]) -> "Sweep":
    """Return the sweep of raw values by name.

    They are "condition" (an app's name), "x_axis" and "y_axis" (settings' names; "" for no second
    axis), "x_values" and "y_values" (see parsed_axis), "image", "params" (the annotator's settings
    by name), and the settings of a request that stay the same; missing ones are the model's.

    Raises:
        SuiteError: something is missing, unreadable or out of bounds, there are too many cells, or
            no cell's request can be made.
    """
    condition = _condition(given["condition"])
    known = axis_settings(condition, suite)
    columns = parsed_axis(given["x_axis"], given["x_values"], known)
    rows = None
    if given["y_axis"] not in (NO_AXIS, None):
        rows = parsed_axis(given["y_axis"], given["y_values"], known)
        if rows.name == columns.name:
            raise BadInput(
                f"Both axes are {rows.setting.label}; please choose another setting for one."
            )
    count = len(columns.values) * (len(rows.values) if rows else 1)
    if count > MOST_CELLS:
        raise BadInput(
            f"{len(columns.values)} x {count // len(columns.values)} values make {count} pictures; "
            f"a sweep makes at most {MOST_CELLS}, so please name fewer."
        )
    return Sweep(suite, condition, columns, rows, given)


def _condition(name: object) -> Condition:
    known = combinable()
    if not isinstance(name, str) or name not in known:
        raise BadInput(
            f"There is no condition {str(name)[:40]!r} for a sweep; there are: {', '.join(known)}."
        )
    return known[name]


class Sweep:
    """The cells of a grid, made one after the other; with the interface of a Job."""

    def __init__(
        self,
        suite: Suite,
        condition: Condition,
        columns: Axis,
        rows: Axis | None,
        given: Mapping[str, Any],
    ):
        """Check every cell's request; see new_sweep."""
        self.condition, self.columns, self.rows = condition, columns, rows
        self.notes: list[str] = []
        """About the picture and the settings, each once."""
        self.stopped = False
        self.finished = False
        self._suite = suite
        self._job: Job | None = None
        seed = given["seed"]
        if seed in (None, -1):  # one for every cell, or they could not be compared
            seed = secrets.randbelow(LARGEST_DRAWN_SEED + 1)
        usual = dict.fromkeys(settings_of(GenerationRequest))  # None is the model's default
        fixed = {**usual, **given, "seed": seed, "num_samples": 1}
        self._requests = {place: self._request(fixed, *place) for place in self._places()}
        refused = [one for one in self._requests.values() if isinstance(one, SuiteError)]
        if len(refused) == len(self._requests):
            raise refused[0]
        made = [one for one in self._requests.values() if isinstance(one, GenerationRequest)]
        suite.require_work(*made)

    @property
    def shape(self) -> tuple[int, int]:
        """How many columns and rows there are."""
        return len(self.columns.values), len(self.rows.values) if self.rows else 1

    @property
    def request(self) -> GenerationRequest:
        """The first cell's request that can be made."""
        return next(one for one in self._requests.values() if isinstance(one, GenerationRequest))

    def size_of(self, column: int, row: int) -> tuple[int, int]:
        """Return a cell's (width, height) in pixels; one that is refused has the first one's."""
        found = self._requests[column, row]
        return (found if isinstance(found, GenerationRequest) else self.request).size

    def _places(self) -> list[tuple[int, int]]:
        """Return all (column, row), row by row; but one model's together, to load each once."""
        wide, high = self.shape
        places = [(column, row) for row in range(high) for column in range(wide)]
        return sorted(places) if self.columns.name == "model" else places

    def _values(self, column: int, row: int) -> dict[str, Any]:
        """Return the values that a cell's axes give it, by name."""
        values = {self.columns.name: self.columns.values[column]}
        return values | ({self.rows.name: self.rows.values[row]} if self.rows else {})

    def _request(
        self, fixed: Mapping[str, Any], column: int, row: int
    ) -> GenerationRequest | SuiteError:
        """Return a cell's request, or what is wrong with it."""
        values = self._values(column, row)
        given = {**fixed, **{name: value for name, value in values.items() if name in SETTINGS}}
        of_map = settings_of(self.condition.annotator.params)
        varied = {name: value for name, value in values.items() if name in of_map}
        params = given["params"] or {}
        given["params"] = {**params, **varied} if isinstance(params, dict) else params
        try:
            card = self._suite.card(given["model"])
            control, notes = checked_control(self.condition, self._suite, card.name, given)
            request, notes = checked_whole(card, [control], given, notes)
            self._suite.store.registry.require_control(card, self.condition.weights)
        except SuiteError as error:
            return error
        self.notes += [note for note in notes if note not in self.notes]
        for name, value in values.items():
            made = getattr(request, name, value)
            if name in settings_of(GenerationRequest) and made != value:
                return BadInput(
                    f"The mode {request.mode} decides {SETTINGS[name].label}; please vary another "
                    "setting, or choose the mode exact."
                )
        return request

    def stop(self) -> None:
        """Stop within a step; finished cells are kept. May be called in any thread."""
        self.stopped = True
        if self._job is not None:
            self._job.stop()

    def run(self) -> Iterator[Progress | Cell | None]:
        """Make the cells; yield each when it is done, progress and None as Job.run in between.

        A cell that fails is yielded with the reason, and the next one is made. Closing the iterator
        stops the run.
        """
        try:
            for (column, row), request in self._requests.items():
                if self.stopped:
                    return
                if isinstance(request, SuiteError):
                    yield Cell(column, row, None, sentence_of(request))
                    continue
                yield from self._cell(column, row, request)
        finally:
            self.finished = True

    def _cell(
        self, column: int, row: int, request: GenerationRequest
    ) -> Iterator[Progress | Cell | None]:
        self._job = Job(self._suite.pipeline, request)
        if self.stopped:  # until here stop() found no job, from here this one
            return
        try:
            for report in self._job.run():
                if isinstance(report, GenerationResult):
                    if report.images:
                        yield Cell(column, row, report)
                elif not isinstance(report, Partial):  # a cell is one image
                    yield report
        except Exception as error:  # noqa: BLE001 - shown in the cell's place; a bug is logged
            yield Cell(column, row, None, sentence_of(error))


def means(cells: Sequence[Cell], columns: int) -> list[float | None]:
    """Return each column's mean score; None where it has none."""
    found = []
    for column in range(columns):
        scores = [
            cell.headline for cell in cells if cell.column == column and cell.headline is not None
        ]
        found.append(sum(scores) / len(scores) if scores else None)
    return found
