"""The page that combines several controls, and its endpoint: a condition's page with slots."""

from dataclasses import asdict
from typing import Any

import gradio as gr

import apps
from apps import _cards
from apps._endpoint import answer, help_of, offer
from apps._job import Job
from apps._page import Page
from apps._slots import OF_A_SLOT, SLOTS, combinable, job_of_several, offered
from apps._suite import Suite
from apps._tool import Tool
from apps._widgets import CACHE, PRIVATE, picture_input, widget
from core.condition import ALREADY_A_MAP, Example
from core.params import controls
from core.png import read_controls, read_settings
from core.request import ControlRequest, GenerationRequest

OWN_PICTURE = "{title} had a picture of its own: please add it again."
OWN_PARAMS = "{title}: its map was drawn with other settings than here, where they are the usual."
GONE = "{title} is not here with this model; its slot is empty now."
TOO_MANY = "It was made with more controls than there are slots here."


def build_page(tool: Tool, suite: Suite) -> gr.Blocks:
    """Build the page, to be launched alone or rendered into a site."""
    with gr.Blocks(
        title=f"{tool.title} · ControlLoop", analytics_enabled=False, delete_cache=CACHE
    ) as page:
        _MultiPage(tool, suite).build(page)
    return page


class _MultiPage(Page):
    """Its fields are a condition's page's, and those of each slot with the slot's number."""

    map_section = "Controls"
    advanced = ("image_resolution", "guess_mode", "steps", "guidance_scale")

    def __init__(self, tool: Tool, suite: Suite):  # the other facts are a condition's
        self.app = tool
        self.suite = suite
        self.send_to = ()
        self.input = "photo"
        prompts = {e.image: e.prompt for one in apps.conditions() for e in one.examples}
        self.given_examples = [Example(name, prompts.get(name, "")) for name in tool.examples]
        self.defaults = self._defaults_of(suite.model)
        self.fields = {}
        self.canvas = None
        self.details: dict[int, gr.Column] = {}

    def _defaults_of(self, model: str) -> dict[str, Any]:
        return self.suite.defaults(model)

    def _models(self) -> list[str]:
        able = [self.suite.models(condition) for condition in combinable().values()]
        return list(dict.fromkeys([self.suite.model, *(name for names in able for name in names)]))

    # The slots

    def _map_controls(self) -> None:
        names = [*offered(self.suite, self.suite.model)][:2]
        for slot, name in zip(SLOTS, [*names, *[""] * len(SLOTS)], strict=False):
            with gr.Column(elem_classes="cl-slot"):
                self._slot(slot, name)

    def _slot(self, slot: int, name: str) -> None:
        model = self.suite.model
        self.fields[f"control_{slot}"] = gr.Dropdown(
            **self._controls(name, model), label=f"Control {slot}", elem_id=f"control_{slot}"
        )
        with gr.Column(visible=bool(name)) as self.details[slot]:
            self.fields[f"preprocessor_{slot}"] = gr.Dropdown(
                **self._ways(name, "", model), label="Preprocessor", elem_id=f"preprocessor_{slot}"
            )
            self._add_to(slot, "strength")
            with gr.Accordion("Own picture, start and end", open=False):
                self.fields[f"image_{slot}"] = picture_input(
                    label="Instead of the shared picture", height=180, elem_id=f"image_{slot}"
                )
                self._add_to(slot, "control_start")
                self._add_to(slot, "control_end")

    def _add_to(self, slot: int, name: str) -> None:
        control, field = controls(ControlRequest)[name], f"{name}_{slot}"
        self.fields[field] = widget(control, control.default, elem_id=field)

    def _controls(self, name: str, model: str) -> dict[str, Any]:
        """Return a slot's choice of controls with one chosen."""
        known = offered(self.suite, model)
        choices = [("No control", ""), *((one.title, key) for key, one in known.items())]
        return {"choices": choices, "value": name if name in known else ""}

    def _ways(self, name: str, preprocessor: str, model: str) -> dict[str, Any]:
        """Return a slot's choice of preprocessors; one that the control lacks gives way."""
        condition = offered(self.suite, model).get(name)
        if condition is None:
            return {"choices": [("The usual", "")], "value": ""}
        usual = self.suite.usual_preprocessor(condition, model)
        names = [one.name for one in condition.annotator.preprocessors]
        choices = [(f"{usual} (the usual)", "")]
        choices += [(one, one) for one in names if one != usual]
        choices.append((f"{ALREADY_A_MAP}: the picture is a control map", ALREADY_A_MAP))
        known = [value for _, value in choices]
        return {"choices": choices, "value": preprocessor if preprocessor in known else ""}

    # What happens when

    def _wire_map(self) -> None:
        for slot in SLOTS:
            inputs = [self.fields[f"{n}_{slot}"] for n in ("control", "preprocessor")]
            self.fields[f"control_{slot}"].change(
                self._choose,
                [*inputs, self.fields["model"]],
                [self.fields[f"preprocessor_{slot}"], self.details[slot]],
                preprocess=False,
                queue=False,
                **PRIVATE,
            )

    def _choose(self, name: str, preprocessor: str, model: str) -> tuple[Any, Any]:
        return (
            gr.Dropdown(**self._ways(name, preprocessor, model)),
            gr.Column(visible=bool(name)),
        )

    def _new_job(self, given: dict[str, Any]) -> Job:
        return job_of_several(self.suite, given)

    def _change_model(self, before: str, *values: Any) -> list[Any]:
        """Move settings as every page does, and offer the controls that the new model has."""
        model, header, *moved = super()._change_model(before, *values)
        given, moving = self._given(values), self._given(moved)
        known = offered(self.suite, model)
        for slot in SLOTS:
            name = given[f"control_{slot}"]
            if name and name not in known:
                gr.Warning(_cards.escape(GONE.format(title=combinable()[name].title)))
            moving |= self._filled(slot, name, given[f"preprocessor_{slot}"], model)
        return [model, header, *moving.values()]

    def _filled(self, slot: int, name: str, preprocessor: str, model: str) -> dict[str, Any]:
        """Return what brings a control into a slot."""
        return {
            f"control_{slot}": gr.Dropdown(**self._controls(name, model)),
            f"preprocessor_{slot}": gr.Dropdown(**self._ways(name, preprocessor, model)),
        }

    def _read(self, source: str | bytes) -> tuple[dict[str, Any], list[str]]:
        settings, notes = read_settings(source)
        found, more = read_controls(source, combinable())
        for name in ("params", *controls(ControlRequest)):  # the first control's, as found has it
            settings.pop(name, None)
        model = settings.get("model")
        model = model if model in self._models() else self.suite.model
        notes += more + ([TOO_MANY] if len(found) > len(SLOTS) else [])
        empty: list[tuple[str, dict[str, Any]]] = [("", {})] * len(SLOTS)
        for slot, (name, asked) in zip(SLOTS, [*found, *empty] if found else [], strict=False):
            settings |= self._filled(slot, name, asked.get("preprocessor", ""), model)
            for part in ("strength", "control_start", "control_end"):
                if part in asked:
                    settings[f"{part}_{slot}"] = asked[part]
            if asked.get("own_picture"):
                notes.append(OWN_PICTURE.format(title=combinable()[name].title))
            if name and asked["params"] != asdict(combinable()[name].annotator.params()):
                notes.append(OWN_PARAMS.format(title=combinable()[name].title))
        return settings, notes

    def _from_sent(self, path: str, model: str) -> dict[str, Any]:
        """Start with the control that the picture was made with, and one that is another."""
        found, _ = read_controls(path, combinable())
        known = offered(self.suite, model)
        names = [name for name, _ in found[:1] if name in known]
        names += [name for name in known if name not in names][: 2 - len(names)]
        filled: dict[str, Any] = {}
        for slot, name in zip(SLOTS, [*names, *[""] * len(SLOTS)], strict=False):
            filled |= self._filled(slot, name, "", model)
        return filled

    # For programs

    def _publish(self) -> None:
        """Offer `/<name>` to gradio_client and MCP."""
        of_slots = [f"{name}_{slot}" for slot in SLOTS for name in OF_A_SLOT]
        others = [name for name in self.fields if name not in ("image", *of_slots)]
        known = controls(GenerationRequest)
        helps = {
            "control": f"The control, one of: {', '.join(combinable())}; empty for none.",
            "image": "The picture its map is drawn from; without one, the shared picture.",
        }
        told = {name: help_of(known.get(name)) for name in others}
        for slot in SLOTS:
            told |= {
                f"{name}_{slot}": f"Control {slot}. {helps.get(name) or help_of(known[name])}"
                for name in OF_A_SLOT
            }
        # A dropdown would tell programs that what it shows first is all there is.
        chosen = [f"{name}_{slot}" for slot in SLOTS for name in ("control", "preprocessor")]
        widgets = self.fields | {
            name: gr.Textbox(self.fields[name].value, label=self.fields[name].label, visible=False)
            for name in chosen
        }
        told["image"] = "The picture to start from, for every control without one of its own."
        offer(
            self.app.name,
            f"{self.app.blurb} Returns the control maps, the generated images, the maps "
            "re-extracted from them (image by image, one for each control), and a report with a "
            "seed and the controls' scores for each image.",
            {name: (widgets[name], told[name]) for name in ["image", *others, *of_slots]},
            gr.File(label="Control maps", file_count="multiple", visible=False),
            answer(self.suite, self._new_job, self.runs.save, lambda maps: maps),
        )
