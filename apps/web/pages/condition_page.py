"""The page of one condition: its control's settings and the preview of its map."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

from apps.web.html import results
from apps.web.jobs.job import Job, drawn_map
from apps.web.jobs.request import checked_request, new_job
from apps.web.pages.endpoint import Endpoint, endpoint_of
from apps.web.pages.layout import Fields
from apps.web.pages.page import Page
from apps.web.pages.widgets import PRIVATE, plain_errors, widget
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import ALREADY_A_MAP, Condition
from core.metadata import read_settings
from core.params import settings_of
from core.pipeline import map_notes
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL

MAP_LABEL = "Control map"
NO_ORIGINAL = (
    "It was made by changing a picture (denoising strength {:g}); here there is none to change."
)


def place_page(
    condition: Condition, suite: Suite, send_to: Sequence[Condition | Tool], blocks: gr.Blocks
) -> None:
    """Place one condition's page and its endpoints in the open `blocks`.

    `send_to` are the other apps of the site that take a result.
    """
    Page(blocks, condition, suite, SingleControl(condition, suite), send_to)


class SingleControl:
    """Controls with one condition; its fields are SETTINGS and the annotator's params."""

    section = "Control map"
    advanced = SETTINGS.keys() - {"prompt", "preprocessor", "detect_resolution", "pixel_perfect"}

    def __init__(self, condition: Condition, suite: Suite):
        self.condition = condition
        self.suite = suite
        self.weights = self.required = (condition.weights,)
        self.examples = condition.examples
        self.annotator = condition.annotator
        self.params = settings_of(condition.annotator.params)

    def models(self) -> list[str]:
        """See Controls."""
        return self.suite.models(self.condition)

    def defaults(self, model: str) -> dict[str, Any]:
        """See Controls; the model's card or else the annotator sets preprocessor and resolution."""
        found = self.suite.defaults(model)
        if found["detect_resolution"] is None:
            found["detect_resolution"] = self.annotator.detect_resolution
        found["preprocessor"] = self.suite.usual_preprocessor(self.condition, model)
        return found

    def place(self, fields: Fields) -> None:
        """See Controls."""
        preprocessors = self.annotator.preprocessors
        options = [
            (f"{one.name} ({one.needs})" if one.needs else one.name, one.name)
            for one in preprocessors
        ]
        options.append((f"{ALREADY_A_MAP}: my image is already a control map", ALREADY_A_MAP))
        defaults = self.defaults(self.suite.model)
        fields["preprocessor"] = gr.Radio(
            options,
            value=defaults["preprocessor"],
            label="Preprocessor",
            info=" ".join(f"{one.name}: {one.help}" for one in preprocessors if one.help) or None,
            visible=self.condition.input != "canvas",  # a drawing is not a map yet
            elem_id="preprocessor",
        )
        for name, setting in self.params.items():
            fields[name] = widget(setting, setting.default, elem_id=name)
        if self.annotator.detect_resolution is not None:
            for name in ("detect_resolution", "pixel_perfect"):
                fields[name] = widget(SETTINGS[name], defaults[name], elem_id=name)
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

    def wire(self, fields: Fields, with_picture: Callable[[Any], Any]) -> None:
        """Draw the map when its button is clicked or its settings move."""

        def draw(*values: Any) -> Iterator[Any]:
            yield from self._draw_map(dict(zip(fields, values, strict=True)))

        def redraw(*values: Any) -> Iterator[Any]:
            """Redraw while a slider moves, if there is a picture."""
            given = dict(zip(fields, values, strict=True))
            if given["image"]:
                yield from self._draw_map(given)
            else:
                yield gr.skip()

        event = {
            "inputs": list(fields.values()),
            "outputs": [self.map],
            "preprocess": False,
            "concurrency_id": "map",
            "concurrency_limit": 2,
            "trigger_mode": "always_last",
            **PRIVATE,
        }
        with_picture(self.preview.click)(draw, **event)
        for name in ("preprocessor", *self.params):
            fields[name].input(redraw, **event)
        fields["image"].change(
            lambda: gr.Image(value=None, visible=False), None, [self.map], queue=False, **PRIVATE
        )

    def _draw_map(self, given: dict[str, Any]) -> Iterator[Any]:
        """Draw the map; its label shows the progress of downloads."""
        with plain_errors():
            request, _ = checked_request(self.condition, self.suite, given)
            try:
                for report in drawn_map(self.suite.pipeline, request):
                    if isinstance(report, np.ndarray):
                        # In the label, because a pop-up disappears.
                        notes = map_notes(request.controls[0], report)
                        label = ": ".join([MAP_LABEL, *notes])
                        shown = self.annotator.preview(report)
                        yield gr.Image(value=shown, label=label, visible=True)
                    elif report:
                        yield gr.Image(label=results.download_words(report), visible=True)
                    else:
                        yield gr.skip()  # ends here if the tab was closed
            except Exception:
                # The previous map would be taken for this one.
                yield gr.Image(value=None, label=MAP_LABEL, visible=False)
                raise

    def job_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """See Controls."""
        return values

    def job(self, values: dict[str, Any]) -> Job:
        """See Controls."""
        return new_job(self.condition, self.suite, values)

    def model_updates(self, old_model: str, values: dict[str, Any]) -> dict[str, Any]:
        """See Controls; there are none."""
        return {}

    def read_png(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        """See Controls."""
        settings, notes = read_settings(source, self.condition)
        settings |= settings.pop("params", {})
        if self.condition.input != "photo":
            taken = [settings.pop(name, 1.0) for name in SETTINGS_OF_ORIGINAL]
            if taken[0] < 1:
                notes.append(NO_ORIGINAL.format(taken[0]))
        if self.condition.input == "canvas":
            settings.pop("preprocessor", None)
        elif not settings.get("preprocessor", "-"):
            settings["preprocessor"] = self.annotator.preprocessors[0].name
        return settings, notes

    def sent_updates(self, path: str, model: str) -> dict[str, Any]:
        """See Controls; there are none."""
        return {}

    def endpoint(self, fields: Fields) -> Endpoint:
        """See Controls."""
        return endpoint_of(self.condition, fields)
