"""What a page is filled with from elsewhere: an example, a model's defaults, a file, an app."""

from typing import Any

import gradio as gr

from apps.web.html import results
from apps.web.jobs.request import as_layer, sent_result, uploaded
from apps.web.pages.layout import Layout
from apps.web.pages.widgets import plain_errors
from core.images import read_image
from core.metadata import read_settings

PROMPTS = ("prompt", "added_prompt", "negative_prompt")


class Incoming(Layout):
    """A page's widgets, and the events' answers that fill them."""

    def _take_example(self, index: int) -> tuple[Any, str]:
        path, prompt = self.example_values[index]
        return (path if self.canvas is None else _as_drawn(path)), prompt

    def _change_model(self, before: str, *values: Any) -> list[Any]:
        """Move settings that still stand at the old model's defaults to the new one's."""
        with plain_errors():
            given = self._given(values)
            model = given["model"]
            old, new = self._defaults_of(before), self._defaults_of(model)
            moved = [
                new[name] if name in new and given[name] == old[name] != new[name] else gr.skip()
                for name in self.fields
            ]
            return [model, self._header(model), *moved]

    def _restore(self, path: str | None) -> list[Any]:
        with plain_errors():
            settings, notes = self._read(uploaded(path) if path else b"")
            if settings.get("model", self.suite.model) not in self._models():
                settings.pop("model")
                notes.append("The model that made it is not on offer here.")
            found = [name for name in self.fields if name in settings]
            labels = [getattr(self.fields[name], "label", name) for name in found]
            values = [settings.get(name, gr.skip()) for name in self.fields]
            model = settings.get("model")
            return [
                results.restored(list(dict.fromkeys(labels)), notes),
                None,
                *((model, self._header(model)) if model else [gr.skip()] * 2),
                *values,
            ]

    def _read(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        """Return the settings in a PNG by field name, and notes on them."""
        settings, notes = read_settings(source, self.condition)
        settings |= settings.pop("params", {})
        if self.canvas is not None:
            settings.pop("preprocessor", None)
        elif not settings.get("preprocessor", "-"):
            settings["preprocessor"] = self.annotator.preprocessors[0].name
        return settings, notes

    def _take_sent(self, sent: str) -> list[Any]:
        """Start from another app's result: its picture, its prompts, its model if it is here."""
        with plain_errors():
            if not sent:
                return [gr.skip()] * (3 + len(self.fields))
            path = sent_result(sent)
            settings, _ = read_settings(path)
            model = settings.get("model")
            model = model if model in self._models() else self.suite.model
            taken = {"image": path} | {n: settings[n] for n in PROMPTS if n in settings}
            values = self._defaults_of(model) | taken | self._from_sent(path, model)
            labels = [getattr(self.fields[name], "label", name) for name in taken]
            return [
                results.restored(labels, [], "Taken over"),
                model,
                self._header(model),
                *(values.get(name, gr.skip()) for name in self.fields),
            ]

    def _from_sent(self, path: str, model: str) -> dict[str, Any]:
        """Return what else this page takes of a result."""
        return {}


def _as_drawn(path: str) -> dict[str, Any]:
    """Return a drawing on white as what a canvas holds, so that it can be drawn on further."""
    drawing = read_image(path)[0]
    paper = drawing * 0 + 255  # without it, a chequerboard would show through
    return {"background": paper, "layers": [as_layer(drawing)], "composite": drawing}
