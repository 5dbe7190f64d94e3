"""The page that shows one picture as every annotator sees it, and its endpoint."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from apps.web.files import new_folder, save_map, upload_folder
from apps.web.html import results
from apps.web.jobs import map_choices
from apps.web.jobs.map_choices import DrawnMap, MapChoice, chosen_map_choices, draw_maps
from apps.web.jobs.request import given_picture
from apps.web.pages.widgets import (
    CACHE,
    FEW_AT_ONCE,
    ONE_AT_A_TIME,
    PRIVATE,
    TEST_IMAGES,
    example_strip,
    picture_input,
    plain_errors,
    run_and_stop,
    widget,
)
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.params import settings_of
from core.request import GenerationRequest, Progress

NO_DOWNLOADS = "Without downloads"

Paths = tuple[Path, Path] | None
"""A map's file and the one to show; None where there is no map."""


def build_page(tool: Tool, suite: Suite, send_to: Sequence[Condition | Tool] = ()) -> gr.Blocks:
    """Build the page, to be launched alone or rendered into a site; it makes nothing to send."""
    with gr.Blocks(
        title=f"{tool.title} · ControlLoop", analytics_enabled=False, delete_cache=CACHE
    ) as page:
        _MapsPage(tool, suite).build()
    return page


class _MapsPage:
    def __init__(self, tool: Tool, suite: Suite):
        self.tool = tool
        self.suite = suite
        self.defaults = suite.defaults(suite.model)
        self.ways = map_choices.every_map_choice()
        self.ready = [name for name, way in self.ways.items() if not way.preprocessor.needs]

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
            [(_label(way), name) for name, way in self.ways.items()],
            value=self.ready,
            label="Ways to see",
            info="What must be downloaded is fetched when it is first used.",
            elem_id="names",
            elem_classes="cl-ways",
        )
        for button, names in zip(shortcuts, (self.ready, list(self.ways)), strict=True):
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
        for ended in (ran.then, ran.failure):  # Gradio 6 has `then` left out after a failure
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
        """Check everything before a place in the queue is taken."""
        with plain_errors():
            self._checked(*values)
        return gr.Button(visible=False), gr.Button(visible=True), results.WAITING

    def _settle(self) -> tuple[Any, ...]:
        """Bring the buttons back, whatever happened: done, stopped or failed."""
        return gr.Button(visible=True), gr.Button(visible=False), ""

    def _draw(self, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Show each map as soon as it is drawn."""
        with plain_errors():
            request, ways, _ = self._checked(*values)
            drawing = results.drawing(ways[0], 0, len(ways))
            yield drawing, gr.skip()
            for report in self._looked(request, ways):
                if not isinstance(report, tuple):  # a page whose visitor has left ends here
                    yield (results.running(report, 1, None) if report else drawing), gr.skip()
                    continue
                drawn_maps, files = report
                done = len(drawn_maps)
                drawing = results.drawing(ways[done], done, len(ways)) if done < len(ways) else ""
                yield drawing, results.maps(drawn_maps, files, len(ways))

    def _looked(
        self, request: GenerationRequest, ways: Sequence[MapChoice]
    ) -> Iterator[tuple[list[DrawnMap], list[Paths]] | Progress | None]:
        """Yield the maps drawn so far and their files, after each; in between as `draw_maps`."""
        folder = new_folder(upload_folder())
        drawn_maps: list[DrawnMap] = []
        files: list[Paths] = []
        for drawn in draw_maps(self.suite.pipeline, request, ways):
            if not isinstance(drawn, DrawnMap):
                yield drawn
                continue
            paths = None
            if drawn.control_map is not None:
                path = folder / drawn.way.file_name
                paths = save_map(drawn.control_map, drawn.way.annotator, path)
                self.results.temp_files |= {str(path) for path in paths}  # for delete_cache
            drawn_maps.append(drawn)
            files.append(paths)
            yield drawn_maps, files

    def _checked(
        self, image: Any, names: Any, image_resolution: Any
    ) -> tuple[GenerationRequest, list[MapChoice], list[str]]:
        """Return the request and the ways that raw values ask for, and notes on the picture.

        Raises:
            SuiteError: something is missing, unreadable or out of its bounds.
        """
        ways = chosen_map_choices(names)
        picture, notes = given_picture(image)
        request = GenerationRequest(
            image=picture,
            image_resolution=image_resolution,
            detect_resolution=self.defaults["detect_resolution"],
        )
        return request, ways, notes

    # For programs

    def _publish(self) -> None:
        """Offer `/<name>` to gradio_client and MCP."""

        def see(image: Any, names: Any, image_resolution: Any) -> Iterator[tuple[Any, Any]]:
            """Draw a picture's control maps in every chosen way.

            Returns the maps as PNG files and a report: the maps' names in the order of the files,
            one sentence for each way that failed, the seconds each took, and what else to know.

            Args:
                image: The picture to look at.
                names: The ways to see it, each "annotator: preprocessor".
                image_resolution: Length of the maps' short side, in pixels.
            """
            with plain_errors():
                request, ways, notes = self._checked(image, names, image_resolution)
                for report in self._looked(request, ways):
                    drawn_maps, files = report if isinstance(report, tuple) else ([], [])
                    if len(drawn_maps) < len(ways):
                        yield None, None  # a call whose caller has left ends here
                    else:
                        yield (
                            [str(paths[0]) for paths in files if paths],
                            _report(drawn_maps, notes),
                        )

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


def _label(way: MapChoice) -> str:
    needs = way.preprocessor.needs
    return f"{way.title} ({needs})" if needs else way.title


def _report(drawn_maps: Sequence[DrawnMap], notes: Sequence[str]) -> dict[str, Any]:
    drawn = [drawn for drawn in drawn_maps if drawn.control_map is not None]
    return {
        "maps": [drawn.way.name for drawn in drawn],
        "errors": {s.way.name: s.note for s in drawn_maps if s.control_map is None},
        "seconds": {drawn.way.name: drawn.seconds for drawn in drawn_maps},
        "warnings": [*notes, *(f"{s.way.name}: {s.note}" for s in drawn if s.note)],
    }
