"""Fills a page from an example, a model's defaults, a PNG, or another app's result."""

from typing import Any

import gradio as gr

from apps.web.html import results
from apps.web.jobs.request import as_layer, sent_result, uploaded
from apps.web.pages.layout import Controls, Layout
from apps.web.pages.widgets import plain_errors
from apps.web.suite import Suite
from core.images import read_image
from core.metadata import read_settings

PROMPTS = ("prompt", "added_prompt", "negative_prompt")


class Prefill:
    """The handlers of the events that fill a page's widgets."""

    def __init__(self, layout: Layout, suite: Suite, controls: Controls):
        self._layout = layout
        self._suite = suite
        self._controls = controls

    def take_example(self, index: int) -> tuple[Any, str]:
        """Return an example's picture, or its drawing for a canvas, and its prompt."""
        path, prompt = self._layout.example_values[index]
        return (path if self._layout.canvas is None else _as_drawn(path)), prompt

    def change_model(self, before: str, *values: Any) -> list[Any]:
        """Move settings that are at the old model's defaults to the new model's."""
        with plain_errors():
            given = self._layout.values_of(values)
            model = given["model"]
            old, new = self._controls.defaults(before), self._controls.defaults(model)
            moved = {
                name: new[name]
                for name in self._layout.fields
                if name in new and given[name] == old[name] != new[name]
            }
            moved |= self._controls.moved(before, given)
            return [model, self._layout.header_of(model), *self._layout.updates(moved)]

    def restore(self, path: str | None) -> list[Any]:
        """Restore the settings in a PNG."""
        with plain_errors():
            settings, notes = self._controls.restored(uploaded(path) if path else b"")
            if settings.get("model", self._suite.model) not in self._controls.models():
                settings.pop("model")
                notes.append("Its model is not on offer here.")
            found = [name for name in self._layout.fields if name in settings]
            model = settings.get("model")
            return [
                results.restored(self._layout.labels(found), notes),
                None,
                *((model, self._layout.header_of(model)) if model else [gr.skip()] * 2),
                *self._layout.updates(settings),
            ]

    def take_sent(self, sent: str) -> list[Any]:
        """Start from another app's result: its picture, prompts, and model if it is on offer."""
        with plain_errors():
            if not sent:
                return [gr.skip()] * (3 + len(self._layout.fields))
            path = sent_result(sent)
            settings, _ = read_settings(path)
            model = settings.get("model")
            model = model if model in self._controls.models() else self._suite.model
            taken = {"image": path} | {n: settings[n] for n in PROMPTS if n in settings}
            defaults, more = self._controls.defaults(model), self._controls.taken_over(path, model)
            return [
                results.restored(self._layout.labels(list(taken)), [], "Taken over"),
                model,
                self._layout.header_of(model),
                *self._layout.updates(defaults | taken | more),
            ]


def _as_drawn(path: str) -> dict[str, Any]:
    """Return a drawing on white as a canvas value that can be edited."""
    drawing = read_image(path)[0]
    paper = drawing * 0 + 255  # without a background the canvas shows a chequerboard
    return {"background": paper, "layers": [as_layer(drawing)], "composite": drawing}
