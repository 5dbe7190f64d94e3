"""Fills a page from an example, a model's defaults, a saved picture, or another app's result."""

from typing import Any

import gradio as gr

from apps.web.html import results
from apps.web.jobs.mask import edit_of
from apps.web.jobs.request import given_picture, kept_upload, path_in, sent_result, uploaded
from apps.web.pages.layout import Controls, Layout
from apps.web.pages.widgets import plain_errors
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition
from core.images import inner_size, resize
from core.metadata import read_hashes, read_mask
from core.params import restored, settings_of
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL

PROMPTS = ("prompt", "added_prompt", "negative_prompt")
OF_PICTURE = ("edit", "mask", *SETTINGS_OF_ORIGINAL)
"""What is drawn on a picture does not fit another one, nor how much of it may change; a map has no
picture to change at all."""
MASK_SIDE = 768
"""The longer side of the picture that a mask is painted on, in pixels."""
NO_PICTURE = "The picture that it was made from is not in the file: please add it."
EDIT_ALONE = "The edit was drawn on that picture: once it is there, bring the edit back."
MASK_LOST = "It was made with a mask, which could not be restored."


class Prefill:
    """The handlers of the events that fill a page's widgets."""

    def __init__(self, layout: Layout, suite: Suite, controls: Controls):
        self._layout = layout
        self._suite = suite
        self._controls = controls

    @property
    def outputs(self) -> list[Any]:
        """The components that every handler but take_example updates."""
        layout = self._layout
        return [
            layout.restore_note,
            layout.restore_file,
            layout.shown_model,
            layout.header,
            *layout.fields.values(),
        ]

    @property
    def takes_drawings(self) -> bool:
        """Whether the examples are drawings for the canvas."""
        return any(isinstance(value, dict) for value, _ in self._layout.example_values)

    def take_example(self, index: int) -> tuple[Any, str]:
        """Return an example's picture, or its drawing for a canvas, and its prompt."""
        with plain_errors():
            return self._layout.example_values[index]

    def change_model(self, old_model: str, *values: Any) -> list[Any]:
        """Move settings that are at the old model's defaults to the new model's."""
        with plain_errors():
            named = self._layout.values_of(values)
            changes = self._new_defaults(old_model, named["model"], named)
            changes |= self._controls.model_updates(old_model, named)
            return self._updates(changes, named["model"])

    def restore(self, record: object, old_model: str, *values: Any) -> list[Any]:
        """Restore the settings in a PNG, Gradio's file record {"path": ...}.

        Settings that it lacks stay; if it names another model, as in change_model.
        """
        with plain_errors():
            path = path_in(record)
            source = uploaded(path) if path else b""
            settings, notes = self._controls.read_png(source)
            if settings.get("model", self._suite.model) not in self._controls.models():
                settings.pop("model", None)
                notes.append("Its model is not on offer here.")
            if (mask := read_mask(source)) is not None:
                edit = edit_of(mask) if "mask" in self._layout.fields else None
                settings |= {"mask": edit} if edit else {}
                notes += [] if edit else [MASK_LOST]
            if settings:
                notes += self._on_picture(settings, self._layout.values_of(values))
            model, changes = settings.get("model"), settings
            if model:
                prompt = " ".join(str(settings.get(name, "")) for name in PROMPTS[:2])
                notes += filter(
                    None, [self._suite.weights_note(model, prompt, read_hashes(source))]
                )
                changes = self._new_defaults(old_model, model, self._layout.values_of(values))
                changes |= settings
            note = results.restored_note(self._layout.labels(settings), notes)
            return self._updates(changes, model, note)

    def _on_picture(self, settings: dict[str, Any], values: dict[str, Any]) -> list[str]:
        """Return what to say of the picture that restored settings are of, if it is not here."""
        if self.takes_drawings or path_in(self._controls.original(values)):
            return []
        return [NO_PICTURE, *([EDIT_ALONE] if settings.get("edit") else [])]

    def open_mask(self, *values: Any) -> tuple[Any, Any]:
        """Return updates of the panel for a mask and of its canvas: open, over the picture."""
        with plain_errors():
            named = dict(zip(self._layout.fields, values, strict=True))
            picture, _ = given_picture(self._controls.original(named))
            height, width = picture.shape[:2]
            if max(width, height) > MASK_SIDE:
                picture = resize(picture, inner_size(width, height, (MASK_SIDE, MASK_SIDE)))
            scene = {"size": list(picture.shape[1::-1]), "photo": results.inline(picture)}
            return gr.Column(visible=True), gr.update(value=named["mask"] or None, scene=scene)

    def show_mask(self, *values: Any) -> tuple[Any, Any]:
        """Open the panel if there is a mask, as after restoring one, and a picture."""
        named = dict(zip(self._layout.fields, values, strict=True))
        if not named["mask"] or not path_in(self._controls.original(named)):
            return gr.skip(), gr.skip()
        return self.open_mask(*values)

    def take_sent(self, sent: str, control_map: str) -> list[Any]:
        """Start from an app's result: its picture or its control map, and its settings.

        `sent` is the result, `control_map` its map or one without a result; "" for none. The model
        is the result's if it is on offer. A canvas has the picture below, to trace.
        """
        with plain_errors():
            if not sent and not control_map:
                return self._updates({})
            settings: dict[str, Any] = {}
            if sent:
                settings, _ = self._controls.read_png(sent_result(sent))
            settings = {name: value for name, value in settings.items() if name not in OF_PICTURE}
            model = settings.get("model")
            model = model if model in self._controls.models() else self._suite.model
            taken = settings | {"image": sent_result(control_map or sent)}
            if self.takes_drawings:
                taken["edit"] = _to_trace(taken.pop("image"))
            changes = self._controls.defaults(model) | taken | {"model": model}
            if sent:
                changes |= self._controls.sent_updates(sent_result(sent), model)
            if control_map:
                taken["preprocessor"] = changes["preprocessor"] = ALREADY_A_MAP
            told = self._layout.labels(taken.keys() - {"edit"})
            note = results.restored_note(told, [], "Taken over")
            return self._updates(changes, model, note)

    def take_remembered(self, kept: Any, condition: Condition) -> list[Any]:
        """Fill the page with what the visitor's browser has kept of it, the fields' raw values.

        What is no longer possible, such as a picture that is gone, stays as the page has it.
        """
        names = list(self._layout.fields)
        if not isinstance(kept, list) or len(kept) != len(names):
            return self._updates({})  # there is nothing, or it is of another version
        with plain_errors():
            found = dict(zip(names, kept, strict=True))
            known = {**SETTINGS, **settings_of(condition.annotator.params)}
            given = {name: value for name, value in found.items() if name in known}
            changes, _ = restored(known, {n: v for n, v in given.items() if v is not None})
            offered = {one.name for one in condition.annotator.preprocessors} | {ALREADY_A_MAP}
            if changes.get("preprocessor") not in offered:
                changes.pop("preprocessor", None)
            model = changes.get("model")
            if model not in self._controls.models():
                changes.pop("model", None)
                model = None
            if own_upload := kept_upload(path_in(found.get("image"))):
                changes["image"] = own_upload
            return self._updates(changes, model)

    def _new_defaults(self, old_model: str, model: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return a model's defaults for the settings that are at the old model's defaults."""
        old, new = self._controls.defaults(old_model), self._controls.defaults(model)
        return {
            name: new[name]
            for name in self._layout.fields
            if name in new and values[name] == old[name] != new[name]
        }

    def _updates(
        self, changes: dict[str, Any], model: str | None = None, note: str | None = None
    ) -> list[Any]:
        """Return updates of `outputs`, in their order; what is not given stays.

        A note also empties the box for a file.
        """
        return [
            gr.skip() if note is None else note,
            gr.skip() if note is None else None,
            *((model, self._layout.header_of(model)) if model else [gr.skip()] * 2),
            *self._layout.updates(changes),
        ]


def _to_trace(path: str) -> Any:
    """Return the update of a canvas that has a picture below its paper, which is as large."""
    picture, _ = given_picture({"path": path})
    return gr.update(scene={"size": list(picture.shape[1::-1]), "trace": results.inline(picture)})
