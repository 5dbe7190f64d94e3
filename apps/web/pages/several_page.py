"""The page for several controls, each in a slot."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np

import apps
from apps.web.files import RunFiles, upload_folder
from apps.web.html import results
from apps.web.jobs.job import Job, drawn_map
from apps.web.jobs.several import (
    SLOT_FIELDS,
    SLOTS,
    checked_several,
    combinable,
    new_several_job,
    offered,
)
from apps.web.pages.endpoint import PICTURES, Endpoint, help_of, mask_argument
from apps.web.pages.layout import Fields
from apps.web.pages.page import Page
from apps.web.pages.widgets import PRIVATE, in_rows, picture_input, plain_errors, widget
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import ALREADY_A_MAP, Condition, Example
from core.metadata import read_controls, read_settings
from core.params import settings_of
from core.pipeline import map_notes
from core.request import DEFAULTS, SETTINGS, ControlRequest, GenerationRequest

OWN_PICTURE = "{title} had its own picture; please add it again."
GONE = "This model has no control {title}; its slot is now empty."
ANY_RESOLUTION = DEFAULTS["image_resolution"]
"""The value of the hidden slider if a control has no detect resolution."""
OF_CONTROL = settings_of(ControlRequest)
PLACED = {"preprocessor", "detect_resolution"}
"""Those of them whose widgets depend on the slot's control."""
TOO_MANY = "It was made with more controls than there are slots."


def place_page(
    tool: Tool, suite: Suite, send_to: Sequence[Condition | Tool], blocks: gr.Blocks
) -> None:
    """Place the page and its endpoints in the open `blocks`; see Tool.page."""
    Page(blocks, tool, suite, ControlSlots(tool, suite), send_to)


class ControlSlots:
    """Controls in numbered slots; a slot's fields end in its number."""

    section = "Controls"
    advanced = settings_of(GenerationRequest).keys() - {"prompt"}
    required = ()

    def __init__(self, tool: Tool, suite: Suite):
        self.tool = tool
        self.suite = suite
        self.weights = tuple({one.weights for one in combinable().values()})
        prompts = {e.image: e.prompt for one in apps.conditions() for e in one.examples}
        self.examples = [Example(name, prompts.get(name, "")) for name in tool.examples]
        self.details: dict[int, gr.Column] = {}
        self.map_sections: dict[int, gr.Accordion] = {}
        self.maps: dict[int, dict[str, gr.Column]] = {}
        self.of_maps: dict[str, tuple[str, str, int]] = {}
        """The fields of map settings: each one's control, setting and slot."""

    def models(self) -> list[str]:
        """See Controls."""
        able = [self.suite.models(condition) for condition in combinable().values()]
        return list(dict.fromkeys([self.suite.model, *(name for names in able for name in names)]))

    def defaults(self, model: str) -> dict[str, Any]:
        """See Controls."""
        return self.suite.defaults(model)

    # The slots

    def place(self, fields: Fields) -> None:
        """See Controls."""
        self.previews = gr.HTML("", elem_id="previews")
        names = [*offered(self.suite, self.suite.model)][:2]
        for slot, name in zip(SLOTS, [*names, *[""] * len(SLOTS)], strict=False):
            with gr.Column(elem_classes="cl-slot"):
                self._place_slot(fields, slot, name)

    def place_buttons(self) -> None:
        """See Controls."""
        self.preview = gr.Button("Preview maps", size="sm", elem_id="preview")

    def place_editor(self, fields: Fields) -> None:
        """See Controls; there is none."""

    def _place_slot(self, fields: Fields, slot: int, name: str) -> None:
        model = self.suite.model
        fields[f"control_{slot}"] = gr.Dropdown(
            **self._controls(name, model), label=f"Control {slot}", elem_id=f"control_{slot}"
        )
        with gr.Column(visible=bool(name)) as self.details[slot]:
            fields[f"preprocessor_{slot}"] = gr.Dropdown(
                **self._preprocessors(name, "", model),
                label="Preprocessor",
                elem_id=f"preprocessor_{slot}",
            )
            _add_to(fields, slot, "strength")
            section = gr.Accordion("Map settings", open=False, visible=_has_settings(name))
            with section:
                self._map_settings(fields, slot, name)
            self.map_sections[slot] = section
            with gr.Accordion("Own picture, start and end, modes", open=False):
                fields[f"image_{slot}"] = picture_input(
                    label="Instead of the shared picture", height=180, elem_id=f"image_{slot}"
                )
                for other in in_rows(OF_CONTROL.keys() - {*PLACED, "strength"}):
                    _add_to(fields, slot, other)

    def _map_settings(self, fields: Fields, slot: int, name: str) -> None:
        """Make every control's map settings; only the chosen control's are visible."""
        self.maps[slot] = {}
        for key, condition in combinable().items():
            settings = settings_of(condition.annotator.params)
            if not settings:
                continue
            with gr.Column(visible=key == name) as self.maps[slot][key]:
                for param, setting in settings.items():
                    field = f"{key}.{param}_{slot}"
                    self.of_maps[field] = (key, param, slot)
                    fields[field] = widget(
                        setting, setting.default, elem_id=f"{key}-{param}_{slot}"
                    )
        usual = _usual_resolution(self.suite, self.suite.model, name)
        _add_to(fields, slot, "detect_resolution", usual or ANY_RESOLUTION, visible=bool(usual))

    def _controls(self, name: str, model: str) -> dict[str, Any]:
        """Return the properties of a slot's control dropdown."""
        known = offered(self.suite, model)
        choices = [("No control", ""), *((one.title, key) for key, one in known.items())]
        return {"choices": choices, "value": name if name in known else ""}

    def _preprocessors(self, name: str, preprocessor: str, model: str) -> dict[str, Any]:
        """Return the properties of a slot's preprocessor dropdown; an unknown value is reset."""
        condition = offered(self.suite, model).get(name)
        if condition is None:
            return {"choices": [("Default", "")], "value": ""}
        usual = self.suite.usual_preprocessor(condition, model)
        names = [one.name for one in condition.annotator.preprocessors]
        choices = [(f"{usual} (default)", "")]
        choices += [(one, one) for one in names if one != usual]
        choices.append((f"{ALREADY_A_MAP}: the picture is a control map", ALREADY_A_MAP))
        known = [value for _, value in choices]
        return {"choices": choices, "value": preprocessor if preprocessor in known else ""}

    # What happens when

    def reopen_editor(self, fields: Fields, *events: Callable[..., Any]) -> None:
        """See Controls; there is none."""

    def wire(self, fields: Fields, examples: gr.Dataset) -> None:
        """See Controls."""
        for slot in SLOTS:
            inputs = [fields[f"{n}_{slot}"] for n in ("control", "preprocessor")]
            fields[f"control_{slot}"].change(
                self._choose,
                [*inputs, fields["model"]],
                [
                    fields[f"preprocessor_{slot}"],
                    self.details[slot],
                    self.map_sections[slot],
                    *self.maps[slot].values(),
                ],
                preprocess=False,
                queue=False,
                **PRIVATE,
            )
            fields[f"control_{slot}"].input(
                self._choose_resolution,
                [fields[f"control_{slot}"], fields["model"]],
                [fields[f"detect_resolution_{slot}"]],
                preprocess=False,
                queue=False,
                **PRIVATE,
            )
        self._wire_preview(fields)

    def _wire_preview(self, fields: Fields) -> None:
        """Draw the maps when their button is clicked; while they are shown, also on a change."""
        names = list(fields)

        def draw(*values: Any) -> Iterator[Any]:
            try:
                yield from self._previews(dict(zip(names, values, strict=True)))
            except Exception:
                yield ""  # the previous maps would be taken for these
                raise

        def redraw(shown: str, *values: Any) -> Iterator[Any]:
            if shown and values[names.index("image")]:
                yield from draw(*values)
            else:
                yield ""

        event = {
            "outputs": [self.previews],
            "preprocess": False,
            "concurrency_id": "map",
            "concurrency_limit": 2,
            "trigger_mode": "always_last",
            **PRIVATE,
        }
        inputs = list(fields.values())
        self.preview.click(draw, inputs, **event)
        moved = ("preprocessor", "detect_resolution", "pixel_perfect", "resize_mode")
        settings = {f"{name}_{slot}" for name in moved for slot in SLOTS}
        settings |= {"image_resolution", *self.of_maps}
        sources = {"image", *(f"{name}_{slot}" for name in ("image", "control") for slot in SLOTS)}
        gr.on(
            [fields[name].input for name in fields if name in settings]
            + [fields[name].change for name in fields if name in sources],
            redraw,
            [self.previews, *inputs],
            **event,
        )

    def _previews(self, given: dict[str, Any]) -> Iterator[str]:
        """Draw the maps one after the other; yield those that are done as HTML."""
        with plain_errors():
            request, _ = checked_several(self.suite, self.job_values(given))
            run, tiles = RunFiles(upload_folder()), list[str]()
            for index, control in enumerate(request.controls):
                for report in drawn_map(self.suite.pipeline, request, index):
                    if not isinstance(report, np.ndarray):
                        words = results.download_words(report) if report else ""
                        yield results.previews(tiles, words)  # ends here if the tab was closed
                        continue
                    notes = map_notes(control, report)
                    stem = f"control-map-{len(tiles) + 1}"
                    files = run.save_map(report, control.condition.annotator, stem)
                    tiles.append(results.preview(control.condition, files, request.size, notes))
            yield results.previews(tiles)

    def _choose(self, name: str, preprocessor: str, model: str) -> tuple[Any, ...]:
        return (
            gr.Dropdown(**self._preprocessors(name, preprocessor, model)),
            gr.Column(visible=bool(name)),
            gr.Accordion(visible=_has_settings(name)),
            *(gr.Column(visible=name == key) for key in self.maps[SLOTS[0]]),
        )

    def _choose_resolution(self, name: str, model: str, resolution: int | None = None) -> gr.Slider:
        """Return a slot's resolution slider at `resolution`, or else at the control's usual one."""
        usual = _usual_resolution(self.suite, model, name)
        return gr.Slider(value=resolution or usual or ANY_RESOLUTION, visible=bool(usual))

    def original(self, values: dict[str, Any]) -> object:
        """See Controls; it is the first control's."""
        first = next((slot for slot in SLOTS if values[f"control_{slot}"]), SLOTS[0])
        return values[f"image_{first}"] or values["image"]

    def job_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """See Controls; the chosen control's map settings become the slot's params."""
        given = dict(values)
        settings: dict[int, dict[str, Any]] = {slot: {} for slot in SLOTS}
        for field, (key, param, slot) in self.of_maps.items():
            value = given.pop(field)
            if given[f"control_{slot}"] == key:
                settings[slot][param] = value
        for slot in SLOTS:
            given[f"params_{slot}"] = settings[slot]
            if not _usual_resolution(self.suite, self.suite.model, given[f"control_{slot}"]):
                given[f"detect_resolution_{slot}"] = None
        return given

    def job(self, values: dict[str, Any]) -> Job:
        """See Controls."""
        return new_several_job(self.suite, values)

    def model_updates(self, old_model: str, values: dict[str, Any]) -> dict[str, Any]:
        """See Controls; slots offer what the new model has."""
        model, updates = values["model"], {}
        known = offered(self.suite, model)
        for slot in SLOTS:
            name = values[f"control_{slot}"]
            if name and name not in known:
                gr.Warning(results.escape(GONE.format(title=combinable()[name].title)))
            resolution = values[f"detect_resolution_{slot}"]
            if resolution == _usual_resolution(self.suite, old_model, name):
                resolution = None
            updates |= self._filled(slot, name, values[f"preprocessor_{slot}"], model, resolution)
        return updates

    def _filled(
        self, slot: int, name: str, preprocessor: str, model: str, resolution: int | None = None
    ) -> dict[str, Any]:
        """Return the updates that put a control into a slot."""
        return {
            f"control_{slot}": gr.Dropdown(**self._controls(name, model)),
            f"preprocessor_{slot}": gr.Dropdown(**self._preprocessors(name, preprocessor, model)),
            f"detect_resolution_{slot}": self._choose_resolution(name, model, resolution),
        }

    def read_png(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        """See Controls."""
        settings, notes = read_settings(source)
        found, more = read_controls(source, combinable())
        for name in ("params", *OF_CONTROL):  # the first control's; read_controls has them too
            settings.pop(name, None)
        model = settings.get("model")
        model = model if model in self.models() else self.suite.model
        notes += more + ([TOO_MANY] if len(found) > len(SLOTS) else [])
        empty: list[tuple[str, dict[str, Any]]] = [("", {})] * len(SLOTS)
        for slot, (name, control) in zip(SLOTS, [*found, *empty] if found else [], strict=False):
            preprocessor = control.get("preprocessor", "")
            resolution = control.get("detect_resolution")
            settings |= self._filled(slot, name, preprocessor, model, resolution)
            for other in OF_CONTROL.keys() - PLACED & control.keys():
                settings[f"{other}_{slot}"] = control[other]
            for setting, value in control.get("params", {}).items():
                settings[f"{name}.{setting}_{slot}"] = value
            if control.get("own_picture"):
                notes.append(OWN_PICTURE.format(title=combinable()[name].title))
        return settings, notes

    def sent_updates(self, path: str, model: str) -> dict[str, Any]:
        """See Controls; the result's first control and another one."""
        found, _ = read_controls(path, combinable())
        if len(found) > 1:
            return {}  # it was made here: read_png has its controls
        known = offered(self.suite, model)
        names = [name for name, _ in found[:1] if name in known]
        names += [name for name in known if name not in names][: 2 - len(names)]
        filled: dict[str, Any] = {}
        for slot, name in zip(SLOTS, [*names, *[""] * len(SLOTS)], strict=False):
            filled |= self._filled(slot, name, "", model)
        return filled

    # For programs

    def endpoint(self, fields: Fields) -> Endpoint:
        """See Controls."""
        of_slots = [f"{name}_{slot}" for slot in SLOTS for name in SLOT_FIELDS]
        own = ("image", *of_slots, *self.of_maps)
        others = [name for name in fields if name not in own]
        helps = {
            "control": f"The control, one of: {', '.join(combinable())}; empty for none.",
            "image": "The picture its map is drawn from; by default the shared picture.",
            "params": 'Its map settings, as in its own app: {"name": value}; missing ones have '
            "their defaults.",
        }
        about = {name: PICTURES.get(name) or help_of(SETTINGS[name]) for name in others}
        for slot in SLOTS:
            about |= {
                f"{name}_{slot}": f"Control {slot}. {helps.get(name) or help_of(SETTINGS[name])}"
                for name in SLOT_FIELDS
            }
        # In the API, a dropdown would allow only its initial choices, and a slider would give every
        # control the first one's resolution.
        widgets = dict(fields)
        for slot in SLOTS:
            for name in ("control", "preprocessor"):
                shown = fields[f"{name}_{slot}"]
                widgets[f"{name}_{slot}"] = gr.Textbox(
                    shown.value, label=shown.label, visible=False
                )
            settings = gr.JSON(label="Map settings", visible=False)
            # Gradio's own description is no JSON Schema, and MCP refuses the tool.
            settings.api_info = lambda: {"type": "object"}
            widgets[f"params_{slot}"] = settings
            widgets[f"detect_resolution_{slot}"] = gr.Number(
                None, label=SETTINGS["detect_resolution"].label, visible=False
            )
        widgets["mask"] = mask_argument()
        about["image"] = "The picture, for every control without its own."
        return Endpoint(
            f"{self.tool.blurb} Returns the control maps, the generated images, the maps "
            "re-extracted from them (image by image, one for each control), and a report with a "
            "seed and the controls' scores for each image.",
            {name: (widgets[name], about[name]) for name in ["image", *others, *of_slots]},
            gr.File(label="Control maps", file_count="multiple", visible=False),
            lambda maps: maps,
        )


def _add_to(fields: Fields, slot: int, name: str, value: Any = None, **options: Any) -> None:
    setting, field = SETTINGS[name], f"{name}_{slot}"
    value = setting.default if value is None else value
    fields[field] = widget(setting, value, elem_id=field, **options)


def _usual_resolution(suite: Suite, model: str, name: object) -> int | None:
    """Return the resolution a control's map is drawn at; None if it is drawn at output size."""
    condition = combinable().get(name) if isinstance(name, str) else None
    if condition is None or condition.annotator.detect_resolution is None:
        return None
    preferred: int | None = suite.defaults(model)["detect_resolution"]
    return preferred or condition.annotator.detect_resolution


def _has_settings(name: str) -> bool:
    condition = combinable().get(name)
    if condition is None:
        return False
    annotator = condition.annotator
    return bool(settings_of(annotator.params)) or annotator.detect_resolution is not None
