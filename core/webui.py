"""AUTOMATIC1111's text in pictures, with sd-webui-controlnet's units: written, and read back.

Layout of the text: core/infotext.py. A unit's fields: internal_controlnet/args.py of
Mikubill/sd-webui-controlnet, which drops a whole unit for one value that it does not know.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from core import infotext as infotexts
from core.condition import ALREADY_A_MAP, NO_MODULE, Condition
from core.guidance import BALANCED, MORE_CONTROL, MORE_PROMPT
from core.images import CROP_AND_RESIZE, JUST_RESIZE, RESIZE_AND_FILL
from core.params import restored, settings_of
from core.request import SETTINGS, ControlRequest, GenerationRequest, GenerationResult
from core.restoring import Restored, left_out, number, of_sampler, without_shut_window

UNITS_READ = 9
"""More than we ever write; a hostile file may list thousands."""
NAMES = {
    "Steps": "steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Eta": "eta",
    "Size": "image_resolution",
    "Mode": "mode",
    "Denoising strength": "denoising_strength",
    "Mask blur": "mask_blur",
}
"""AUTOMATIC1111's names of settings with the same meaning here."""
HIRES = "Hires"
"""How the names of AUTOMATIC1111's second pass begin, which enlarges a picture made from noise."""
OF_UNIT = {
    "Weight": "strength",
    "Guidance Start": "control_start",
    "Guidance End": "control_end",
}
"""The same of a unit, whatever its control."""
THRESHOLDS = ("Threshold A", "Threshold B")
CONTROL_MODE_NAMES = {
    "Balanced": BALANCED,
    "My prompt is more important": MORE_PROMPT,
    "ControlNet is more important": MORE_CONTROL,
}
"""Its control modes, and ours with the same meaning (core/guidance.py)."""
RESIZE_MODE_NAMES = {
    "Crop and Resize": CROP_AND_RESIZE,
    "Resize and Fill": RESIZE_AND_FILL,
    "Just Resize": JUST_RESIZE,
    "Inner Fit (Scale to Fit)": CROP_AND_RESIZE,
    "Scale to Fit (Inner Fit)": CROP_AND_RESIZE,
    "Outer Fit (Shrink to Fit)": RESIZE_AND_FILL,
    "Envelope (Outer Fit)": RESIZE_AND_FILL,
}
"""The same of its resize modes; the last four are old versions'."""
OPTIONS = {
    "Control Mode": ("control_mode", CONTROL_MODE_NAMES),
    "Resize Mode": ("resize_mode", RESIZE_MODE_NAMES),
}
"""A unit's pairs that are one of several names, with our setting."""


def text_of(result: GenerationResult, index: int) -> str:
    """Return the settings of image `index`: prompt, negative prompt, one line of pairs."""
    request = result.request
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler.upper(),
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": result.seeds[index],
        "Size": f"{result.width}x{result.height}",
        "Eta": f"{request.eta:g}",
    }
    if request.mode != "exact":
        pairs["Mode"] = request.mode
    if request.changes_picture:
        pairs["Denoising strength"] = f"{request.denoising_strength:g}"
    if request.mask is not None:
        pairs["Mask blur"] = request.mask_blur
    for position, control in enumerate(request.controls):
        unit = _unit(control, request, result.model)
        values = ", ".join(f"{name}: {value}" for name, value in unit.items())
        pairs[f"ControlNet {position}"] = f'"{values}"'
    # Behind the units: readers that know no quotes take the last Model for the picture's.
    pairs["Model"] = _plain(result.model)
    line = ", ".join(f"{name}: {value}" for name, value in pairs.items())
    prompt, negative = (
        # Or other readers would part the text here.
        said.replace(infotexts.NEGATIVE, "Negative prompt :")
        for said in (request.full_prompt, request.negative_prompt)
    )
    text = f"{prompt}\n{infotexts.NEGATIVE} {negative}\n{line}"
    return text.replace("\0", "")  # other readers end the text at a NUL


def _unit(control: ControlRequest, request: GenerationRequest, model: str) -> dict[str, Any]:
    """Return a control's pairs; no value may hold a comma or a colon."""
    condition, names = control.condition, control.condition.annotator.webui
    at_output_size = condition.annotator.detect_resolution is None
    module = names.module_of(control.preprocessor)
    thresholds = zip(THRESHOLDS, names.thresholds if module != NO_MODULE else (), strict=False)
    return {
        "Module": module,
        "Model": _plain(f"{model}_{condition.weights}"),
        "Weight": f"{control.strength:g}",
        "Resize Mode": _name_of(control.resize_mode, RESIZE_MODE_NAMES),
        **({} if at_output_size else {"Processor Res": control.detect_resolution}),
        **{name: f"{getattr(control.params, ours):g}" for name, ours in thresholds},
        "Guidance Start": f"{control.control_start:g}",
        "Guidance End": f"{control.control_end:g}",
        "Pixel Perfect": at_output_size or control.pixel_perfect,
        "Control Mode": _name_of(
            MORE_CONTROL if request.guess_mode else control.control_mode, CONTROL_MODE_NAMES
        ),
    }


def _name_of(ours: str, names: Mapping[str, str]) -> str:
    """Return the first of its names for an option of ours."""
    return next(name for name, option in names.items() if option == ours)


def _plain(name: str) -> str:
    return re.sub(r"[,:\s\"]+", " ", name)


def settings_from(text: str, condition: Condition | None) -> Restored:
    """Read settings; the whole prompt becomes "prompt", and the added prompt empty.

    The control is that of the condition's unit; without a condition, of the first one.
    """
    infotext = infotexts.parse(text)
    if infotext is None:
        return {}, ["The picture's settings could not be read: no line begins with Steps."]
    pairs = infotext.pairs
    found: dict[str, object] = {
        "prompt": infotext.prompt,
        "added_prompt": "",
        "negative_prompt": infotext.negative_prompt,
    }
    known = {*NAMES, "Sampler"}
    if any(name.startswith(HIRES) for name in pairs):
        known.remove("Denoising strength")  # of the second pass
    for name in [one for one in NAMES if one in known and one in pairs]:
        found[NAMES[name]] = number(pairs[name])
    settings, notes = restored(SETTINGS, found)
    unknown = [n for n in pairs if n not in known and not infotexts.is_of_unit(n)]
    notes += left_out([*unknown, *infotext.more])
    notes += of_sampler(settings, pairs.get("Sampler", "DDIM"))
    units = infotexts.control_units(pairs)[:UNITS_READ]
    if units:
        control, more = _control_of_one(units, condition)
        settings |= control
        notes += more
    return settings, notes


def controls_from(
    text: str, conditions: Mapping[str, Condition]
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Read the units: each one's condition, by name, and its settings as ControlRequest has them.

    The settings have "params" as a dict, and "own_picture" (False, as it is not said). A unit of
    an unknown control is left out with a note.
    """
    infotext = infotexts.parse(text)
    found: list[tuple[str, dict[str, Any]]] = []
    notes: list[str] = []
    for unit in infotexts.control_units(infotext.pairs if infotext else {})[:UNITS_READ]:
        condition = _condition_of(unit, conditions.values())
        if condition is None:
            notes.append(f"One of its controls is unknown here: {_named(unit)}.")
            continue
        settings, more = _control(unit, condition)
        notes += [note for note in more if note not in notes]
        of_control = {field.name for field in fields(ControlRequest)}
        kept = {name: value for name, value in settings.items() if name in of_control}
        found.append((condition.name, kept | {"own_picture": False}))
    return found, notes


def _control_of_one(units: list[dict[str, str]], condition: Condition | None) -> Restored:
    """Return the settings of the condition's unit, or else what any control has of the first."""
    if condition is None:
        return _any_control(units[0])
    unit = next((one for one in units if _condition_of(one, [condition])), None)
    if unit is None:
        settings, notes = _any_control(units[0])
        notes.append(
            f"The picture was made with another control ({_named(units[0])}); its map settings "
            "were ignored."
        )
    else:
        settings, notes = _control(unit, condition)
    if len(units) > 1:
        notes.append("It was made with several controls; only one was restored.")
    return settings, notes


def _condition_of(unit: Mapping[str, str], conditions: Iterable[Condition]) -> Condition | None:
    """Return the condition of a unit's ControlNet; without its name, that of its preprocessor."""
    module, model = unit.get("Module", NO_MODULE).lower(), unit.get("Model", "none").lower()
    conditions = list(conditions)
    by_model = [one for one in conditions if _is_for(one, model)]
    # One ControlNet may serve two conditions: scribbles that are drawn, or made of a photograph.
    by_module = [one for one in by_model or conditions if module in one.annotator.webui.modules]
    by_part = [] if by_model else [one for one in conditions if _is_for(one, module)]
    return next(iter([*by_module, *by_model, *by_part]), None)


def _is_for(condition: Condition, name: str) -> bool:
    """Return whether a ControlNet's or preprocessor's name has a part of the condition's."""
    parts = "|".join(map(re.escape, (condition.weights, *condition.annotator.webui.models)))
    return re.search(rf"(?<![a-z])(?:{parts})", name) is not None


def _any_control(unit: Mapping[str, str]) -> Restored:
    """Return what a unit says that every control has."""
    found: dict[str, object] = {
        ours: number(unit[name]) for name, ours in OF_UNIT.items() if name in unit
    }
    unknown = []
    for name, (ours, options) in OPTIONS.items():
        if unit.get(name) in options:
            found[ours] = options[unit[name]]
        elif name in unit:
            unknown.append(f"The {name.lower()} {unit[name]:.40} is not known here.")
    if "control_mode" in found:
        found["guess_mode"] = False  # which is for every control; its units have modes of their own
    settings, notes = restored(SETTINGS, found)
    return settings, notes + unknown + without_shut_window(settings)


def _control(unit: Mapping[str, str], condition: Condition) -> Restored:
    """Return the settings of a unit that is the condition's."""
    settings, notes = _any_control(unit)
    annotator = condition.annotator
    names = annotator.webui
    resolution = _shown(unit, "Processor Res")
    if annotator.detect_resolution is not None:
        settings["pixel_perfect"] = unit.get("Pixel Perfect") == "True"
        unused = resolution is None or settings["pixel_perfect"]
        more, told = restored(SETTINGS, {} if unused else {"detect_resolution": resolution})
        settings, notes = settings | more, notes + told
    module = unit.get("Module", NO_MODULE)
    known = module.lower() in names.modules  # others have placeholders for thresholds
    thresholds = {
        ours: value
        for name, ours in zip(THRESHOLDS, names.thresholds if known else (), strict=False)
        if (value := _shown(unit, name)) is not None
    }
    settings["params"], told = restored(settings_of(annotator.params), thresholds)
    notes += told
    if module.lower() == NO_MODULE:
        settings["preprocessor"] = ALREADY_A_MAP
    elif known:
        settings["preprocessor"] = names.modules[module.lower()]
    else:
        notes.append(f"Its map was drawn by {module:.40}, which is not here.")
    return settings, notes


def _shown(unit: Mapping[str, str], name: str) -> float | str | None:
    """Return a slider's value; None where it is missing or hidden, which is written as -1."""
    value = number(unit.get(name, "-1"))
    return None if not isinstance(value, str) and value < 0 else value


def _named(unit: Mapping[str, str]) -> str:
    """Return a unit's preprocessor, or its ControlNet if the map was ready."""
    module = unit.get("Module", NO_MODULE)
    return f"{module if module.lower() != NO_MODULE else unit.get('Model', 'none'):.40}"
