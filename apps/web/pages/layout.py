"""What stands where on a condition's page: its widgets and their order.

Settings' labels, bounds and helps come from the records; what is shown, from _cards.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from apps.web.html import results
from apps.web.jobs.compare import rivals
from apps.web.pages.runs import Turn
from apps.web.pages.widgets import (
    PRIVATE,
    TEST_IMAGES,
    example_strip,
    picture_input,
    run_and_stop,
    widget,
)
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import ALREADY_A_MAP, Condition
from core.params import Choice, settings_of
from core.request import GenerationRequest

MAP_LABEL = "Control map"
CANVAS_SIDE = 512
"""Of a new canvas, in pixels, as in v1.0's interactive app."""


class Layout:
    """The widgets of one condition's page; `fields` are those whose values make a request."""

    map_section = "Control map"
    weights: tuple[str, ...] = ()
    advanced = ("image_resolution", "strength", "control_start", "control_end",
                "guess_mode", "steps", "sampler", "mode", "guidance_scale")  # fmt: skip

    def __init__(
        self, condition: Condition, suite: Suite, send_to: Sequence[Condition | Tool] = ()
    ):
        self.app: Condition | Tool = condition
        self.condition = condition
        self.input = condition.input
        self.given_examples = condition.examples
        self.suite = suite
        self.send_to = send_to
        self.weights = (condition.weights,)
        self.annotator = condition.annotator
        self.params = settings_of(condition.annotator.params)
        self.defaults = self._defaults_of(suite.model)
        self.fields: dict[str, gr.components.Component] = {}
        self.canvas: gr.ImageEditor | None = None

    def _defaults_of(self, model: str) -> dict[str, Any]:
        """Return the settings a model starts with; its card, or the annotator, says how to draw."""
        found = self.suite.defaults(model)
        if found["detect_resolution"] is None:
            found["detect_resolution"] = self.annotator.detect_resolution
        found["preprocessor"] = self.suite.usual_preprocessor(self.condition, model)
        return found

    def place(self) -> None:
        """Make the widgets; call it inside the page's Blocks."""
        self.header = gr.HTML(self._header(self.suite.model), elem_classes="cl-header")
        with gr.Row(elem_classes="cl-columns"):
            with gr.Column(elem_classes="cl-input"):
                self._input()
            with gr.Column(elem_classes="cl-settings"):
                self._settings()
            with gr.Column(elem_classes="cl-results-column", elem_id="results-column"):
                self.stage = gr.HTML(results.empty(self.app), elem_id="stage")
                self.results = gr.HTML("", elem_id="results")
        self.turn = gr.State(Turn())
        self.last_seed = gr.State(-1)
        self.shown_model = gr.State(self.suite.model)

    def _input(self) -> None:
        drawn_here, drawing = (self.input == kind for kind in ("canvas", "drawing"))
        if drawn_here:
            self._canvas()
        self.fields["image"] = picture_input("drawing" if drawing else "picture", not drawn_here)
        self._examples()
        self._add("prompt", GenerationRequest, lines=2, elem_id="prompt",
                  placeholder=self._prompt_hint())  # fmt: skip
        self.run, self.stop = run_and_stop()
        button, choice = self._comparison(self.suite.model)
        with gr.Row(elem_classes="cl-against"):
            self.compare = gr.Button(**button, size="md", elem_id="compare")
            self.other = gr.Dropdown(
                **choice, label="Model to compare with", container=False, elem_id="other"
            )

    def _canvas(self) -> None:
        self.canvas = gr.ImageEditor(
            label="Draw here",
            type="numpy",
            image_mode="RGBA",
            format="png",
            sources=(),  # with any, Gradio starts with the tool that asks for a picture
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=8, colors=["#000000"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=24),
            canvas_size=(CANVAS_SIDE, CANVAS_SIDE),
            height=460,
            elem_id="canvas",
            placeholder="Draw with mouse, pen or finger",
        )
        with gr.Accordion("Canvas size", open=False, elem_classes="cl-section"):
            sides = [
                gr.Slider(
                    256, 1024, CANVAS_SIDE, step=1, label=f"Canvas {side}", elem_id=f"canvas_{side}"
                )
                for side in ("width", "height")
            ]
            gr.Button("New canvas", size="sm", elem_id="new-canvas").click(
                lambda wide, high: gr.ImageEditor(value=None, canvas_size=(wide, high)),
                sides,
                [self.canvas],
                queue=False,
                **PRIVATE,
            )

    def _settings(self) -> None:
        with gr.Accordion(self.map_section, open=True, elem_classes="cl-section"):
            self._map_controls()
            self.invert = gr.Checkbox(
                label="Show maps inverted",
                info="Such as black lines on white. Display only: the model gets them as drawn.",
                elem_id="invert",
            )
        with gr.Accordion("Advanced options", open=False, elem_classes="cl-section",
                          elem_id="advanced"):  # fmt: skip
            self._advanced()
        self.restore = gr.File(
            label="Restore settings: drop a PNG saved here",
            file_types=[".png"],
            height=76,
            elem_id="restore",
            elem_classes="cl-restore",
        )
        self.restored = gr.HTML("", elem_id="restored")

    def _examples(self) -> None:
        here = [e for e in self.given_examples if (TEST_IMAGES / e.image).is_file()]
        self.example_values = [(str(TEST_IMAGES / e.image), e.prompt) for e in here]
        self.examples = example_strip([TEST_IMAGES / e.image for e in here])

    def _map_controls(self) -> None:
        ways = self.annotator.preprocessors
        options = [
            (f"{way.name} ({way.needs})" if way.needs else way.name, way.name) for way in ways
        ]
        options.append((f"{ALREADY_A_MAP}: my image is already a control map", ALREADY_A_MAP))
        self.fields["preprocessor"] = gr.Radio(
            options,
            value=self.defaults["preprocessor"],
            label="Preprocessor",
            info=" ".join(f"{way.name}: {way.help}" for way in ways if way.help) or None,
            visible=self.canvas is None,  # what is drawn here is no map yet
            elem_id="preprocessor",
        )
        for name, control in self.params.items():
            self.fields[name] = widget(control, control.default, elem_id=name)
        if self.annotator.detect_resolution is not None:
            self._add("detect_resolution", GenerationRequest)
        self.preview = gr.Button("Preview map", elem_id="preview", size="md")
        self.map = gr.Image(
            label=MAP_LABEL,
            format="png",
            interactive=False,
            visible=False,
            height=260,
            elem_id="map",
            elem_classes="cl-map",
            buttons=["download", "fullscreen"],
        )

    def _advanced(self) -> None:
        models = self._models()
        self.fields["model"] = gr.Dropdown(
            [(self.suite.card(name).title, name) for name in models],
            value=self.suite.model,
            label="Model",
            elem_id="model",
        )
        self._add("num_samples", GenerationRequest)
        self.best_first = gr.Checkbox(
            label="Best first",
            info="Show the results by their score; the seeds and the files stay as made.",
            elem_id="best_first",
        )
        for name in self.advanced:
            control = settings_of(GenerationRequest)[name]
            if not isinstance(control, Choice) or len(control.options) > 1:
                self._add(name, GenerationRequest)
        with gr.Row(elem_classes="cl-seed-row"):
            self._add("seed", GenerationRequest, min_width=140, elem_id="seed")
            with gr.Column(min_width=120, scale=0):
                self.reuse = gr.Button("Reuse last seed", size="sm", elem_id="reuse")
                self.random = gr.Button("Random", size="sm")
        for name in ("eta", "added_prompt", "negative_prompt"):
            self._add(name, GenerationRequest)

    def _models(self) -> list[str]:
        return self.suite.models(self.condition)

    def _add(self, name: str, record: type, **options: Any) -> None:
        control = settings_of(record)[name]
        options.setdefault("elem_id", name)
        self.fields[name] = widget(control, self.defaults[name], **options)

    def _prompt_hint(self) -> str:
        prompts = self.suite.card(self.suite.model).prompts
        return f"For example: {prompts[0]}" if prompts else ""

    def _header(self, model: str) -> str:
        facts = self.suite.facts(model, *self.weights)
        return results.header(self.app, facts, self.suite.card(model))

    def _rivals(self, model: str) -> list[str]:
        return rivals(self.suite, model, self.weights)

    def _comparison(self, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return how the button that compares a model stands, and the choice of the other one."""
        found = [(self.suite.card(name).title, name) for name in self._rivals(model)]
        choose = len(found) > 1
        title = f"Compare with {'' if choose or not found else found[0][0]}".strip()
        value = found[0][1] if found else None
        return (
            {"value": title, "visible": bool(found)},
            {"choices": found, "value": value, "visible": choose},
        )

    def _given(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.fields, values, strict=True))
