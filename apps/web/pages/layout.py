"""The layout of a page that generates images: its widgets and their order.

Settings' labels, bounds and help come from the records, the HTML from apps.web.html.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from apps.batch.uploads import MOST_PICTURES
from apps.web.html import results
from apps.web.jobs.compare import rivals
from apps.web.jobs.job import Job
from apps.web.jobs.live import Live
from apps.web.jobs.mask import EDITOR as MASK_EDITOR
from apps.web.pages.canvas import Canvas, back_button
from apps.web.pages.endpoint import Endpoint
from apps.web.pages.prompt import place_help, place_style
from apps.web.pages.runs import CurrentJob
from apps.web.pages.widgets import (
    TEST_IMAGES,
    example_strip,
    in_rows,
    picture_input,
    retention_note,
    run_and_stop,
    widget,
)
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition, Example
from core.images import SUFFIXES
from core.picture_folder import CAPTION_SUFFIXES
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL

CANVAS_SIDE = 512
"""Width and height of a new canvas, in pixels, as in ControlNet v1.0's interactive app."""

Fields = dict[str, gr.components.Component]
"""The widgets whose values make a request, by field name, in page order."""


class Controls(Protocol):
    """The part of a page that depends on its controls: one condition, or slots for several."""

    section: str
    """The title of the controls' section."""
    advanced: Collection[str]
    """Names of the settings under "Advanced options", among them "model", "num_samples" and "seed",
    which bring buttons that the page needs. Sorted by each setting's Order (core.params), not by
    this collection."""
    weights: Sequence[str]
    """Names of the ControlNets that a run may use."""
    required: Sequence[str]
    """Names of those that every run uses."""
    examples: Sequence[Example]

    def models(self) -> list[str]:
        """Return the names of the models on offer, the initial one first."""

    def defaults(self, model: str) -> dict[str, Any]:
        """Return a model's initial settings by field name, for every model the same names."""

    def place(self, fields: Fields) -> None:
        """Make the widgets of the controls' section; add those that make a request to `fields`."""

    def place_buttons(self) -> None:
        """Make the buttons that show the map or edit it, below the picture."""

    def place_editor(self, fields: Fields) -> None:
        """Make the editor of the map, if there is one, above the results."""

    def wire(self, fields: Fields, examples: gr.Dataset) -> None:
        """Connect their events; a click on one of `examples` brings another picture."""

    def reopen_editor(self, fields: Fields, *events: Callable[..., Any]) -> None:
        """Open the editor after each event that may have brought an edit, if it has."""

    def original(self, values: dict[str, Any]) -> object:
        """Return Gradio's record of the picture that a mask is of, from the fields' values."""

    def job_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Turn the widgets' values, by field name, into the raw values that `job` takes."""

    def job(self, values: dict[str, Any]) -> Job:
        """Check the raw values of job_values, or of a caller of the endpoint, and build a Job."""

    def model_updates(self, old_model: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return updates by field name for a new model, values["model"], beyond its defaults.

        `values` are those of job_values.
        """

    def read_png(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        """Return the settings in a PNG, a path or its bytes, by field name, and notes on them."""

    def sent_updates(self, path: str, model: str) -> dict[str, Any]:
        """Return updates by field name from another app's result, a PNG, beyond its prompts."""

    def endpoint(self, fields: Fields) -> Endpoint:
        """Return the endpoint; call it inside the page's Blocks."""


class Layout:
    """A page's widgets; build it inside the page's Blocks."""

    def __init__(self, app: Condition | Tool, suite: Suite, controls: Controls):
        self._app = app
        self._suite = suite
        self._controls = controls
        self._defaults = controls.defaults(suite.model)
        self.fields: Fields = {}
        self.many: tuple[gr.File, gr.Button] | None = None
        self.header = gr.HTML(self.header_of(suite.model), elem_classes="cl-header")
        with gr.Row(elem_classes="cl-columns"):
            with gr.Column(elem_classes="cl-input"):
                self._input()
            with gr.Column(elem_classes="cl-settings"):
                self._settings()
            with gr.Column(elem_classes="cl-results-column", elem_id="results-column"):
                self._controls.place_editor(self.fields)
                if self._app.input == "photo":
                    self._mask()
                self.stage = gr.HTML(results.empty(app), elem_id="stage")
                self.result_cards = gr.HTML("", elem_id="results")
                gr.HTML("<div data-history></div>", elem_id="history")  # history.js fills it
                retention_note(self._suite)
        self.current = gr.State(CurrentJob())
        self.live = gr.State(Live())
        self.last_seed = gr.State(-1)
        # For "Reuse" on a card: the seed's own box is not in the page until its section is opened.
        self.picked_seed = gr.Number(visible="hidden", precision=0, elem_id="picked_seed")
        self.shown_model = gr.State(suite.model)

    def header_of(self, model: str, own_speed: str = "") -> str:
        """Return the header's HTML for a model; `own_speed` as for Suite.facts."""
        facts = self._suite.facts(model, *self._controls.required, own_speed=own_speed)
        return results.header(self._app, facts, self._suite.card(model))

    def comparison(self, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the properties of the compare button and of the choice of rivals."""
        names = rivals(self._suite, model, self._controls.weights)
        found = [(self._suite.card(name).title, name) for name in names]
        choose = len(found) > 1
        title = f"Compare with {'' if choose or not found else found[0][0]}".strip()
        value = found[0][1] if found else None
        return (
            {"value": title, "visible": bool(found)},
            {"choices": found, "value": value, "visible": choose},
        )

    def values_of(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the raw values that Controls.job takes, from the fields' values in their order."""
        return self._controls.job_values(dict(zip(self.fields, values, strict=True)))

    def updates(self, changes: Mapping[str, Any]) -> list[Any]:
        """Return one update per field, in their order; fields without a change are skipped."""
        return [changes.get(name, gr.skip()) for name in self.fields]

    def labels(self, names: Collection[str]) -> list[str]:
        """Return the labels of the fields among `names`, each once, in page order."""
        fields = [(name, field) for name, field in self.fields.items() if name in names]
        return list(dict.fromkeys(getattr(field, "label", name) for name, field in fields))

    def _input(self) -> None:
        drawn_here = self._app.input == "canvas"
        if drawn_here:
            self.fields["edit"] = self._canvas()
        kind = "drawing" if self._app.input == "drawing" else "picture"
        self.fields["image"] = picture_input(kind, not drawn_here)
        if not drawn_here:
            self._controls.place_buttons()
        self.mask_button = gr.Button(
            "Change only a part of it",
            size="sm",
            visible=self._app.input == "photo",  # else there is no picture to change
            elem_id="paint-mask",
        )
        self.back_button = back_button("mask")
        if drawn_here:  # a canvas and the examples would push the prompt out of sight
            self.run_button, self.stop_button = run_and_stop(self._prompt)
            self._examples()
        else:
            self._examples()
            self._prompt()
        self.style = place_style(self._suite)
        if not drawn_here:
            self.run_button, self.stop_button = run_and_stop()
        button, choice = self.comparison(self._suite.model)
        with gr.Row(elem_classes="cl-against"):
            self.compare_button = gr.Button(**button, size="md", elem_id="compare")
            self.other_model = gr.Dropdown(
                **choice, label="Model to compare with", container=False, elem_id="other"
            )
        if isinstance(self._app, Condition) and not drawn_here:
            self.many = _many_pictures()

    def _examples(self) -> None:
        found = [e for e in self._controls.examples if (TEST_IMAGES / e.image).is_file()]
        read = _drawing if self._app.input == "canvas" else str
        self.example_values = [(read(TEST_IMAGES / e.image), e.prompt) for e in found]
        self.examples = example_strip(
            [TEST_IMAGES / e.image for e in found], [e.prompt for e in found]
        )

    def _prompt(self) -> None:
        """Place the prompt, and what helps with its words."""
        prompts = self._suite.card(self._suite.model).prompts
        hint = f"For example: {prompts[0]}" if prompts else ""
        lines = {"lines": 1, "max_lines": 4} if self._app.input == "canvas" else {"lines": 2}
        self._add("prompt", placeholder=hint, **lines)
        place_help(self._suite)

    def _canvas(self) -> Canvas:
        """Place the canvas of an app whose input is drawn in the page."""
        assert isinstance(self._app, Condition) and self._app.annotator.editor
        return Canvas(
            self._app.annotator.editor,
            "Drawing",
            can_follow=True,
            scene={"size": [CANVAS_SIDE] * 2},
            elem_id="canvas",
        )

    def _mask(self) -> None:
        """Place the panel in which a mask is painted over the picture; it is opened by a button."""
        with gr.Column(visible=False, elem_id="mask-panel") as self.mask_panel:
            self.fields["mask"] = Canvas(MASK_EDITOR, "Mask", label="Mask", elem_id="mask")
            self.unmask_button = gr.Button(
                "Change the whole picture again", size="sm", elem_id="unmask"
            )

    def _settings(self) -> None:
        with gr.Accordion(self._controls.section, open=True, elem_classes="cl-section"):
            if self._app.input == "canvas":  # there the prompt stands below the canvas
                self._controls.place_buttons()
            self._controls.place(self.fields)
            self.invert_box = gr.Checkbox(
                label="Show maps inverted",
                info="Lines become black on white, colours their complements. Display only: the "
                "model gets the map as drawn.",
                elem_id="invert",
            )
        with gr.Accordion(
            "Advanced options", open=False, elem_classes="cl-section", elem_id="advanced"
        ):
            self._advanced()
        self.restore_file = gr.File(
            label="Restore settings from a picture",
            file_types=[".png", ".jpg", ".jpeg", ".webp", ".avif"],
            height=76,
            elem_id="restore",
            elem_classes="cl-restore",
        )
        self.restore_note = gr.HTML("", elem_id="restored")

    def _advanced(self) -> None:
        special = {"model": self._model, "num_samples": self._num_samples, "seed": self._seed}
        for name in in_rows(self._controls.advanced):
            if name in special:
                special[name]()
            elif name in SETTINGS_OF_ORIGINAL:
                self._add(name, visible=self._app.input == "photo")
            else:
                self._add(name)

    def _model(self) -> None:
        self.fields["model"] = gr.Dropdown(
            [(self._suite.card(name).title, name) for name in self._controls.models()],
            value=self._suite.model,
            label="Model",
            elem_id="model",
        )

    def _num_samples(self) -> None:
        self._add("num_samples")
        self.best_first_box = gr.Checkbox(
            label="Best first",
            info="Sort results by score. Display only: seeds and files keep their order.",
            elem_id="best_first",
        )

    def _seed(self) -> None:
        with gr.Row(elem_classes="cl-seed-row"):
            self._add("seed", min_width=140)
            with gr.Column(min_width=120, scale=0):
                self.reuse_button = gr.Button("Reuse last seed", size="sm", elem_id="reuse")
                self.random_button = gr.Button("Random", size="sm")

    def _add(self, name: str, **options: Any) -> None:
        self.fields[name] = widget(SETTINGS[name], self._defaults[name], elem_id=name, **options)


def _drawing(picture: Path) -> dict[str, Any]:
    """Return the strokes of an example's drawing, which stand beside its picture."""
    edit: dict[str, Any] = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
    return edit


def _many_pictures() -> tuple[gr.File, gr.Button]:
    """Place the section that runs the page's settings on many pictures."""
    with gr.Accordion(
        "Many pictures at once", open=False, elem_classes="cl-section", elem_id="many"
    ):
        gr.HTML(
            '<p class="cl-told">Every picture is made with the settings of this page. A text '
            "file of its name (cat.jpg, cat.txt) is its prompt in place of the one above.</p>",
            padding=False,
        )
        files = gr.File(
            label=f"Pictures or ZIPs, up to {MOST_PICTURES} pictures",
            file_count="multiple",
            file_types=[*SUFFIXES, ".zip", *CAPTION_SUFFIXES, ".jsonl", ".csv"],
            height=140,
            elem_id="many-files",
        )
        button = gr.Button("Run all of them", elem_id="run-many")
    return files, button
