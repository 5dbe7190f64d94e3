"""The page that draws every control map of one picture, and its endpoint."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from apps.web.files import File, RunFiles, upload_folder
from apps.web.html import results
from apps.web.jobs import map_choices
from apps.web.jobs.map_choices import DrawnMap, MapChoice, chosen_map_choices, draw_maps
from apps.web.jobs.request import given_picture
from apps.web.pages.endpoint import NOTHING_SAVED, paths_of
from apps.web.pages.widgets import (
    FEW_AT_ONCE,
    ONE_AT_A_TIME,
    PRIVATE,
    TEST_IMAGES,
    example_strip,
    picture_input,
    plain_errors,
    retention_note,
    run_and_stop,
    widget,
)
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.errors import SuiteError
from core.params import settings_of
from core.request import GenerationRequest, Progress

NO_DOWNLOADS = "Without downloads"

Files = tuple[File, File] | None
"""A map's file and its preview; None if there is no map."""


def place_page(
    tool: Tool, suite: Suite, send_to: Sequence[Condition | Tool], blocks: gr.Blocks
) -> None:
    """Place the page and its endpoint in the open `blocks`; `send_to` may take its maps."""
    _MapsPage(tool, suite, send_to).build()


class _MapsPage:
    def __init__(self, tool: Tool, suite: Suite, send_to: Sequence[Condition | Tool]):
        self.tool = tool
        self.send_to = send_to
        self.suite = suite
        self.defaults = suite.defaults(suite.model)
        self.choices = map_choices.every_map_choice()
        self.ready = [name for name, one in self.choices.items() if not one.preprocessor.needs]

    # What stands where

    def build(self) -> None:
        gr.HTML(results.head(self.tool, [self.suite.machine]), elem_classes="cl-header")
        with gr.Row(elem_classes="cl-columns"):
            with gr.Column(elem_classes="cl-input"):
                self.image = picture_input()
                files = [TEST_IMAGES / name for name in self.tool.examples]
                self.example_files = [file for file in files if file.is_file()]
                self.examples = example_strip(self.example_files)
                self.run, self.stop = run_and_stop()
            with (
                gr.Column(elem_classes="cl-settings"),
                gr.Accordion("Maps", open=True, elem_classes="cl-section"),
            ):
                self._choices()
            with gr.Column(elem_classes="cl-results-column", elem_id="results-column"):
                self.stage = gr.HTML("", elem_id="stage")
                self.results = gr.HTML(results.EMPTY_MAPS, elem_id="results")
                retention_note(self.suite)
        self._wire()
        self._publish()

    def _choices(self) -> None:
        resolution = "image_resolution"
        self.resolution = widget(
            settings_of(GenerationRequest)[resolution],
            self.defaults[resolution],
            elem_id=resolution,
        )
        with gr.Row():
            shortcuts = [
                gr.Button(text, size="sm", min_width=100) for text in (NO_DOWNLOADS, "All")
            ]
        self.names = gr.CheckboxGroup(
            [(_label(choice), name) for name, choice in self.choices.items()],
            value=self.ready,
            label="Control maps",
            info="Downloads happen on first use.",
            elem_id="names",
            elem_classes="cl-ways",
        )
        for button, names in zip(shortcuts, (self.ready, list(self.choices)), strict=True):
            button.click(lambda names=names: names, None, [self.names], queue=False, **PRIVATE)

    # What happens when

    def _wire(self) -> None:
        fields = [self.image, self.names, self.resolution]
        buttons = [self.run, self.stop, self.stage]
        begun = self.run.click(
            self._begin, fields, buttons, preprocess=False, **FEW_AT_ONCE, **PRIVATE
        )
        ran = begun.success(
            self._draw, fields, [self.stage, self.results], preprocess=False,
            **ONE_AT_A_TIME, **PRIVATE,
        )  # fmt: skip
        for ended in (ran.then, ran.failure):  # Gradio 6 skips `then` after a failure
            ended(self._settle, None, buttons, queue=False, **PRIVATE)
        self.stop.click(self._settle, None, buttons, cancels=[ran], queue=False, **PRIVATE)
        self.examples.click(
            lambda index: str(self.example_files[index]),
            [self.examples],
            [self.image],
            queue=False,
            **PRIVATE,
        )

    def _begin(self, *values: Any) -> tuple[Any, ...]:
        """Check everything before the event queues."""
        with plain_errors():
            self._checked(*values)
        return gr.Button(visible=False), gr.Button(visible=True), results.WAITING_MANY

    def _settle(self) -> tuple[Any, ...]:
        """Reset the buttons after a run that was done, stopped or failed."""
        return gr.Button(visible=True), gr.Button(visible=False), ""

    def _draw(self, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Show each map as soon as it is drawn."""
        with plain_errors():
            requests, notes = self._checked(*values)
            choices = list(requests)
            drawing = results.drawing(choices[0], 0, len(choices))
            yield drawing, gr.skip()
            run = RunFiles(upload_folder())
            for report in self._drawn(requests, run):
                if not isinstance(report, tuple):  # ends here if the tab was closed
                    yield (results.running(report, 1) if report else drawing), gr.skip()
                    continue
                maps, files = report
                done, total = len(maps), len(choices)
                drawing = results.drawing(choices[done], done, total) if done < total else ""
                archive = self._archive(run, maps, files, notes) if done == total else None
                told = [*notes, run.note]
                yield drawing, results.maps(maps, files, total, told, archive, self.send_to)

    def _archive(
        self, run: RunFiles, maps: list[DrawnMap], files: list[Files], notes: Sequence[str]
    ) -> Path | None:
        """Write all maps and the report into one ZIP; None if there is no map, or no room."""
        found = {pair[0].name: pair[0] for pair in files if pair}
        if not found:
            return None
        return run.archive("control-maps.zip", found, {"report.json": _report(maps, notes)})

    def _drawn(
        self, requests: Mapping[MapChoice, GenerationRequest], run: RunFiles
    ) -> Iterator[tuple[list[DrawnMap], list[Files]] | Progress | None]:
        """Yield the maps drawn so far and their files, after each; in between as `draw_maps`."""
        maps: list[DrawnMap] = []
        files: list[Files] = []
        for drawn in draw_maps(self.suite.pipeline, requests):
            if not isinstance(drawn, DrawnMap):
                yield drawn
                continue
            pair = None
            if drawn.control_map is not None:
                stem = drawn.choice.file_name.removesuffix(".png")
                pair = run.save_map(drawn.control_map, drawn.choice.annotator, stem)
            maps.append(drawn)
            files.append(pair)
            yield maps, files

    def _checked(
        self, image: Any, names: Any, image_resolution: Any
    ) -> tuple[dict[MapChoice, GenerationRequest], list[str]]:
        """Return each chosen map's request, from raw values, and notes on the picture.

        Raises:
            SuiteError: something is missing, unreadable or out of bounds.
        """
        choices = chosen_map_choices(names)
        picture, notes = given_picture(image)
        settings = {
            "image_resolution": image_resolution,
            "detect_resolution": self.defaults["detect_resolution"],
        }
        return {choice: choice.request(picture, **settings) for choice in choices}, notes

    # For programs

    def _publish(self) -> None:
        """Publish `/<name>` for gradio_client and MCP."""

        def see(image: Any, names: Any, image_resolution: Any) -> Iterator[tuple[Any, Any]]:
            """Draw control maps of a picture.

            Returns the maps as PNG files and a report: the maps' names in the order of the files,
            one sentence for each that failed, the seconds each took, and warnings.

            Args:
                image: The input picture.
                names: The maps to draw, each "annotator: preprocessor".
                image_resolution: Length of the maps' short side, in pixels.
            """
            with plain_errors(as_html=False):
                requests, notes = self._checked(image, names, image_resolution)
                maps: list[DrawnMap] = []
                files: list[Files] = []
                yield None, _progress([choice.name for choice in requests], 0)
                run = RunFiles(upload_folder())
                for report in self._drawn(requests, run):
                    maps, files = report if isinstance(report, tuple) else (maps, files)
                    if len(maps) < len(requests):
                        # Ends here if the caller has disconnected.
                        yield None, _progress([choice.name for choice in requests], len(maps))
                    else:
                        paths = paths_of(pair[0] for pair in files if pair)
                        if not paths and any(files):
                            raise SuiteError(NOTHING_SAVED)
                        yield paths, _report(maps, [*notes, *filter(None, [run.note])])

        see.__name__ = self.tool.name
        gr.Button(visible=False).click(
            see,
            [self.image, self.names, self.resolution],
            [
                gr.File(label="Maps", file_count="multiple", visible=False),
                gr.JSON(label="Report", visible=False),
            ],
            api_name=self.tool.name,
            preprocess=False,
            **ONE_AT_A_TIME,
        )


def _label(choice: MapChoice) -> str:
    needs = choice.preprocessor.needs
    return f"{choice.title} ({needs})" if needs else choice.title


def _progress(names: Sequence[str], drawn: int) -> dict[str, Any]:
    """Return what is told instead of the report while maps are drawn, and tell Gradio."""
    gr.Progress()((drawn, len(names)), desc=f"Drawing {names[drawn]}", unit="maps")
    return {"stage": "map", "map": names[drawn], "step": drawn, "steps": len(names)}


def _report(maps: Sequence[DrawnMap], notes: Sequence[str]) -> dict[str, Any]:
    drawn = [one for one in maps if one.control_map is not None]
    return {
        "maps": [one.choice.name for one in drawn],
        "errors": {one.choice.name: one.note for one in maps if one.control_map is None},
        "seconds": {one.choice.name: one.seconds for one in maps},
        "warnings": [*notes, *(f"{one.choice.name}: {one.note}" for one in drawn if one.note)],
    }
