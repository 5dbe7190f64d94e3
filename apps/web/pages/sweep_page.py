"""The page of sweeps, a grid over any two settings, and its endpoint."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

import apps
from apps.web.files import File, RunFiles, upload_folder
from apps.web.html import grid, results
from apps.web.jobs.axis import (
    HOW_NUMBERS,
    MOST_CELLS,
    NO_TEXT,
    axis_settings,
    suggested_values,
)
from apps.web.jobs.several import combinable, offered
from apps.web.jobs.sweep import NO_AXIS, Cell, Sweep, means, new_sweep
from apps.web.pages.endpoint import NOTHING_SAVED, PICTURES, help_of, paths_of, publish
from apps.web.pages.runs import CurrentJob
from apps.web.pages.widgets import (
    FEW_AT_ONCE,
    PRIVATE,
    TEST_IMAGES,
    example_strip,
    in_rows,
    picture_input,
    plain_errors,
    retention_note,
    run_and_stop,
    runs_at_once,
    widget,
)
from apps.web.sheet import Tile, drawn_sheet, score_words
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.errors import SuiteError
from core.marking import write_marked
from core.provenance import COMPOSITE
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL, Progress

LEFT_OUT = {
    *("prompt", "num_samples", "preprocessor", "detect_resolution", "pixel_perfect", "edit"),
    *SETTINGS_OF_ORIGINAL,
}
"""Settings without a place among the others: the prompt stands above, and what depends on the
condition can be an axis."""
HOW_VALUES = (
    f"Numbers: {HOW_NUMBERS.removeprefix('write ')}. Prompts: one in each line, {NO_TEXT} for none."
)
THE_PAPERS_CAKE = "delicious cake"
"""The conflicting prompt of the figure in Zhang et al. 2023 (arXiv 2302.05543)."""
SEEDS = "1..3"
RUN_WITH_A_PICTURE = """() => {
  if (document.querySelector("#image img")) document.getElementById("run")?.click();
}"""
"""In the browser, once a preset has filled the axes: one click makes the figure."""
PRESETS = {
    "papers": (
        "Four prompts",
        "The figure of the ControlNet paper: no, an insufficient, a conflicting and a perfect "
        "prompt. Write your own into its lines.",
    ),
    "guidance": (
        "Guidance and score",
        "What the guidance scale does to the score, over three seeds: less of it often keeps the "
        "control better.",
    ),
    "strength": ("Strength and seeds", "How much of the control each strength keeps."),
}
"""Each button's text and what it is for, by name."""

STOPPED = "Stopped: {} of {} pictures are done."
ABOUT = {
    "image": PICTURES["image"],
    "condition": f"The control to sweep with, one of: {', '.join(combinable())}.",
    "x_axis": "The setting that varies from column to column, such as strength, guidance_scale, "
    "steps, seed, guess_mode, prompt, model, preprocessor, or one of the annotator's.",
    "x_values": f"Its values; at most {MOST_CELLS} cells in all. {HOW_VALUES} Of an option or a "
    "switch: names with commas between them, or nothing for all.",
    "y_axis": "The setting that varies from row to row; empty for one row.",
    "y_values": "Its values, as for x_values.",
    "params": 'Map settings, as in the control\'s own app: {"name": value}; missing ones have '
    "their defaults.",
}
"""The help of arguments that are no settings of a request."""

Files = dict[tuple[int, int], File]
"""The pictures of the cells, by (column, row)."""


def place_page(
    tool: Tool, suite: Suite, send_to: Sequence[Condition | Tool], blocks: gr.Blocks
) -> None:
    """Place the page and its endpoint in the open `blocks`; its results are not sent."""
    _SweepPage(tool, suite).build()


class _SweepPage:
    def __init__(self, tool: Tool, suite: Suite):
        self.tool = tool
        self.suite = suite
        self.defaults = suite.defaults(suite.model)
        self.prompts = {e.image: e.prompt for one in apps.conditions() for e in one.examples}
        self.fields: dict[str, gr.components.Component] = {}

    # What stands where

    def build(self) -> None:
        model = self.suite.card(self.suite.model).title
        head = results.head(self.tool, [model, self.suite.machine])
        gr.HTML(head, elem_classes="cl-header")
        with gr.Row(elem_classes="cl-columns"):
            with gr.Column(elem_classes="cl-input"):
                self.fields["image"] = picture_input(height=200)
                files = [TEST_IMAGES / name for name in self.tool.examples]
                self.example_files = [file for file in files if file.is_file()]
                self.examples = example_strip(self.example_files)
                self._axes()
                self.run, self.stop = run_and_stop()
            with (
                gr.Column(elem_classes="cl-settings"),
                gr.Accordion(
                    "What stays the same", open=False, elem_classes="cl-section", elem_id="fixed"
                ),
            ):
                for name in in_rows(SETTINGS.keys() - LEFT_OUT):
                    self._add(name)
            with gr.Column(elem_classes="cl-results-column", elem_id="results-column"):
                self.stage = gr.HTML("", elem_id="stage")
                self.results = gr.HTML(grid.EMPTY, elem_id="results")
                retention_note(self.suite)
        self.current = gr.State(CurrentJob())
        self._wire()
        self._publish()

    def _axes(self) -> None:
        conditions = offered(self.suite, self.suite.model) or combinable()
        first = next(iter(conditions))
        known = self._known(first)
        self.fields["condition"] = gr.Dropdown(
            [(one.title, name) for name, one in conditions.items()],
            value=first,
            label="Control",
            elem_id="condition",
        )
        self._add("prompt", lines=2)
        with gr.Row(elem_classes="cl-presets"):
            self.presets = {
                name: gr.Button(text, size="sm", min_width=90, elem_id=f"preset-{name}")
                for name, (text, _) in PRESETS.items()
            }
        self.told = gr.HTML("", elem_id="told", elem_classes="cl-hint")
        for axis, label, name in (("x", "Across", "strength"), ("y", "Down", NO_AXIS)):
            choices = _choices(known)
            with gr.Group():
                self.fields[f"{axis}_axis"] = gr.Dropdown(
                    choices if axis == "x" else [("Nothing: one row", NO_AXIS), *choices],
                    value=name,
                    label=label,
                    elem_id=f"{axis}_axis",
                )
                self.fields[f"{axis}_values"] = gr.Textbox(
                    self._suggested(first, name),
                    label=f"Values {label.lower()}",
                    info=HOW_VALUES if axis == "x" else None,
                    lines=1,
                    max_lines=9,
                    elem_id=f"{axis}_values",
                    visible=name != NO_AXIS,
                )

    def _add(self, name: str, **options: Any) -> None:
        self.fields[name] = (
            gr.Dropdown(
                [(card.title, card.name) for card in self.suite.cards()],
                value=self.suite.model,
                label="Model",
                elem_id="model",
            )
            if name == "model"
            else widget(SETTINGS[name], self.defaults[name], elem_id=name, **options)
        )

    def _known(self, condition: str) -> dict[str, Any]:
        return axis_settings(combinable()[condition], self.suite)

    def _suggested(self, condition: str, axis: str) -> str:
        known = self._known(condition)
        prompts = self.suite.card(self.suite.model).prompts
        return suggested_values(axis, known[axis], prompts) if axis in known else ""

    # What happens when

    def _wire(self) -> None:
        fields = list(self.fields.values())
        buttons = [self.run, self.stop, self.stage]
        begun = self.run.click(
            self._begin,
            [self.current, *fields],
            buttons,
            preprocess=False,
            **FEW_AT_ONCE,
            **PRIVATE,
        )
        ran = begun.success(
            self._generate,
            [self.current],
            [self.stage, self.results],
            **runs_at_once(self.suite.runs),
            **PRIVATE,
        )
        for ended in (ran.then, ran.failure):  # Gradio 6 skips `then` after a failure
            ended(self._settle, [self.current], buttons, queue=False, **PRIVATE)
        self.stop.click(self._halt, [self.current], [self.stop], queue=False, **PRIVATE)
        self.examples.click(
            self._take_example,
            [self.examples],
            [self.fields["image"], self.fields["prompt"]],
            queue=False,
            **PRIVATE,
        )
        axes = [self.fields[name] for name in ("x_axis", "x_values", "y_axis", "y_values")]
        self.fields["condition"].select(
            self._change_condition,
            [self.fields["condition"], self.fields["x_axis"], self.fields["y_axis"]],
            axes,
            queue=False,
            **PRIVATE,
        )
        for axis in "xy":
            # Not input: closing the list without a choice would put typed values back.
            self.fields[f"{axis}_axis"].select(
                self._change_axis,
                [self.fields["condition"], self.fields[f"{axis}_axis"]],
                [self.fields[f"{axis}_values"]],
                queue=False,
                **PRIVATE,
            )
        fixed = [self.fields[name] for name in ("added_prompt", "guess_mode")]
        for name, button in self.presets.items():
            button.click(
                lambda condition, prompt, model, name=name: self._preset(
                    name, condition, prompt, model
                ),
                [self.fields[name] for name in ("condition", "prompt", "model")],
                [*axes, *fixed, self.told],
                queue=False,
                **PRIVATE,
            ).success(None, None, None, js=RUN_WITH_A_PICTURE, **PRIVATE)

    def _take_example(self, index: int) -> tuple[str, str]:
        file = self.example_files[index]
        return str(file), self.prompts.get(file.name, "")

    def _change_condition(self, condition: str, x_axis: str, y_axis: str) -> list[Any]:
        """Offer what can be varied with a condition; values of its own are suggested anew."""
        known = self._known(condition)
        updates: list[Any] = []
        for axis, nothing in ((x_axis, []), (y_axis, [("Nothing: one row", NO_AXIS)])):
            kept = axis in known or (axis == NO_AXIS and bool(nothing))
            chosen = axis if kept else (NO_AXIS if nothing else "strength")
            updates.append(gr.Dropdown([*nothing, *_choices(known)], value=chosen))
            same = kept and axis in SETTINGS and axis != "preprocessor"
            updates.append(gr.skip() if same else self._change_axis(condition, chosen))
        return updates

    def _change_axis(self, condition: str, axis: str) -> gr.Textbox:
        return gr.Textbox(self._suggested(condition, axis), visible=axis != NO_AXIS)

    def _preset(self, name: str, condition: str, prompt: str, model: str) -> list[Any]:
        """Return updates of both axes, of the settings that the preset fixes, and what it is."""
        known = self._known(condition)
        rows = ("seed", SEEDS)
        columns = {
            "papers": ("prompt", "\n".join(self._four_prompts(prompt, model))),
            "guidance": ("guidance_scale", self._suggested(condition, "guidance_scale")),
            "strength": ("strength", self._suggested(condition, "strength")),
        }[name]
        if name == "papers":
            rows = (NO_AXIS, "")
        plain = name == "papers"  # a prompt of "none" must be none
        return [
            gr.Dropdown(_choices(known), value=columns[0]),
            gr.Textbox(columns[1]),
            gr.Dropdown([("Nothing: one row", NO_AXIS), *_choices(known)], value=rows[0]),
            gr.Textbox(rows[1], visible=rows[0] != NO_AXIS),
            "" if plain else gr.skip(),
            False if plain else gr.skip(),
            f'<p class="cl-told">{results.escape(PRESETS[name][1])}</p>',
        ]

    def _four_prompts(self, prompt: str, model: str) -> list[str]:
        """Return no prompt, one that leaves out the things, one that conflicts, and `prompt`."""
        prompts = self.suite.card(model).prompts
        perfect = " ".join(prompt.split()) or next(iter(prompts), "a house")
        place = re.search(r".*(?:\b(?:on|in)\s+|,\s*)(.+)", perfect)
        insufficient = place[1] if place else "a picture"
        others = [one for one in prompts if one != perfect]
        return [NO_TEXT, insufficient, others[-1] if others else THE_PAPERS_CAKE, perfect]

    def _begin(self, current: CurrentJob, *values: Any) -> tuple[Any, ...]:
        """Check everything before the event queues."""
        given = dict(zip(self.fields, values, strict=True))
        with plain_errors():
            current.begin(lambda: new_sweep(self.suite, _whole(given)))
        return gr.Button(visible=False), gr.Button(visible=True), results.WAITING_MANY

    def _generate(self, current: CurrentJob) -> Iterator[tuple[Any, ...]]:
        """Show each cell as soon as it is made, and at the end the grid as one picture."""
        sweep = current.job
        if sweep is None:
            return
        with plain_errors():
            cells: list[Cell] = []
            files: Files = {}
            wide, high = sweep.shape
            yield grid.under_way(0, wide * high, results.STAGES["wait"]), grid.grid(sweep, [], {})
            for report in self._made(sweep, cells, files):
                if isinstance(report, Cell):
                    words = results.STAGES["sample"]
                    shown = grid.grid(sweep, cells, files, notes=sweep.notes)
                    yield grid.under_way(len(cells), wide * high, words), shown
                elif report:
                    words = results.progress_words(report)
                    yield grid.under_way(len(cells), wide * high, words), gr.skip()
                else:
                    yield gr.skip(), gr.skip()  # ends here if the tab was closed
            sheet = self._sheet(sweep, cells) if cells else None
            notes = [
                *sweep.notes,
                *([STOPPED.format(len(files), wide * high)] if sweep.stopped else []),
            ]
            yield "", grid.grid(sweep, cells, files, sheet, notes)

    def _made(
        self, sweep: Sweep, cells: list[Cell], files: Files
    ) -> Iterator[Progress | Cell | None]:
        """Run a sweep; put each finished cell, and the file of its picture, into the lists."""
        for report in sweep.run():
            if isinstance(report, Cell):
                cells.append(report)
                if report.result is not None:
                    saved = RunFiles(upload_folder(), self.suite.keep).save(report.result)
                    self._note(sweep, saved.note)
                    files[report.column, report.row] = saved.images[0]
            yield report

    def _sheet(self, sweep: Sweep, cells: Sequence[Cell]) -> File:
        """Draw the grid, and return the file of its PNG."""
        run, memory = RunFiles(upload_folder()), io.BytesIO()
        self._note(sweep, write_marked(memory, sheet_of(sweep, cells), COMPOSITE))
        file = run.picture("sweep.png", "the grid", memory.getvalue)
        self._note(sweep, run.note)
        return file

    def _note(self, sweep: Sweep, note: str) -> None:
        if note and note not in sweep.notes:
            sweep.notes.append(note)

    def _settle(self, current: CurrentJob) -> tuple[Any, ...]:
        """Reset the buttons after a run that was done, stopped or failed."""
        current.job = None
        return gr.Button(visible=True), gr.Button(visible=False, value="Stop"), ""

    def _halt(self, current: CurrentJob) -> Any:
        if current.job is not None:
            current.job.stop()
        return gr.Button(value="Stopping …")

    # For programs

    def _publish(self) -> None:
        """Publish `/<name>` for gradio_client and MCP."""

        def respond(given: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
            with plain_errors(as_html=False):
                sweep = new_sweep(self.suite, given)
                cells: list[Cell] = []
                files: Files = {}
                wide, high = sweep.shape
                for report in self._made(sweep, cells, files):
                    gr.Progress()((len(cells), wide * high), desc="Generating", unit="pictures")
                    stage = report.stage if isinstance(report, Progress) else "sample"
                    # Ends here if the caller has disconnected.
                    yield (
                        None,
                        None,
                        {"stage": stage, "cell": len(cells), "cells": wide * high},
                    )
                sheet = paths_of([self._sheet(sweep, cells)])
                pictures = paths_of(files[place] for place in sorted(files, key=_by_row))
                if not sheet and not pictures:
                    raise SuiteError(NOTHING_SAVED)
                yield (sheet or [None])[0], pictures, report_of(sweep, cells)

        # In the API, a dropdown would allow only its initial choices.
        widgets = dict(self.fields)
        for name in ("condition", "x_axis", "y_axis"):
            shown = self.fields[name]
            widgets[name] = gr.Textbox(shown.value, label=shown.label, visible=False)
        widgets["preprocessor"] = gr.Textbox("", label="Preprocessor", visible=False)
        params = gr.JSON(label="Map settings", visible=False)
        # Gradio's own description is no JSON Schema, and MCP refuses the tool.
        params.api_info = lambda: {"type": "object"}
        widgets["params"] = params
        first = ("image", "condition", "x_axis", "x_values", "y_axis", "y_values", "prompt")
        order = [*first, *(name for name in widgets if name not in first)]
        arguments = {name: (widgets[name], ABOUT.get(name) or _help(name)) for name in order}
        publish(
            self.tool.name,
            f"{self.tool.blurb} Returns the grid as one PNG, the pictures row by row, and a report "
            "with the axes, each cell's score or the reason why it failed, and the columns' means.",
            arguments,
            [
                gr.Image(label="Grid", type="filepath", format="png", visible=False),
                gr.File(label="Images", file_count="multiple", visible=False),
                gr.JSON(label="Report", visible=False),
            ],
            respond,
            self.suite.runs,
        )


def _help(name: str) -> str:
    return help_of(SETTINGS.get(name))


def _by_row(place: tuple[int, int]) -> tuple[int, int]:
    return place[1], place[0]


def _choices(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(setting.label, name) for name, setting in known.items()]


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    """Return the page's values with those that it has no widgets for."""
    return {**given, "preprocessor": "", "params": {}}


def sheet_of(sweep: Sweep, cells: Sequence[Cell]) -> Any:
    """Return the grid as a picture, with its axes, scores and reasons."""
    wide, high = sweep.shape
    columns = [sweep.columns.label(index) for index in range(wide)]
    if high > 1:
        columns = [
            f"{label} (mean {mean:.0f})" if mean is not None else label
            for label, mean in zip(columns, means(cells, wide), strict=True)
        ]
    rows = [sweep.rows.label(index) for index in range(high)] if sweep.rows else []
    tiles = {
        (cell.column, cell.row): Tile(
            cell.result.images[0] if cell.result else None,
            "" if cell.headline is None else score_words(cell.headline),
            cell.error,
        )
        for cell in cells
    }
    return drawn_sheet(tiles, sweep.shape, _title(sweep), columns, rows)


def _title(sweep: Sweep) -> str:
    varied = {sweep.columns.name, sweep.rows.name if sweep.rows else ""}
    facts = [sweep.condition.title, grid.axes(sweep)]
    request = sweep.request
    facts += [
        f"{SETTINGS[name].label} {value}"
        for name, value in (
            ("model", request.model),
            ("seed", request.seed),
            ("prompt", request.full_prompt),
        )
        if name not in varied and value != ""
    ]
    return " · ".join(facts)


def report_of(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the report of a sweep as JSON, its cells row by row."""
    wide, _ = sweep.shape
    ordered = sorted(cells, key=lambda cell: (cell.row, cell.column))
    return {
        "condition": sweep.condition.name,
        "x": {"setting": sweep.columns.name, "values": list(sweep.columns.values)},
        "y": (
            {"setting": sweep.rows.name, "values": list(sweep.rows.values)} if sweep.rows else None
        ),
        "means": means(cells, wide),
        "cells": [
            {
                "column": cell.column,
                "row": cell.row,
                "headline": cell.headline,
                "error": cell.error,
                "seed": cell.result.seeds[0] if cell.result else None,
                "warnings": list(cell.result.warnings) if cell.result else [],
            }
            for cell in ordered
        ],
        "seconds": sum(sum(cell.result.seconds.values()) for cell in cells if cell.result),
        "warnings": sweep.notes,
    }
