"""An axis of a sweep: which setting it varies, and the values that a person has typed for it."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition
from core.errors import BadInput
from core.params import Bounds, Choice, Json, Setting, Text, Toggle, plain, settings_of
from core.pipeline import LARGEST_DRAWN_SEED
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL

Variable = Bounds | Choice | Toggle | Text
"""A setting with values that can be typed."""
MOST_CELLS = 36
"""Pictures of one sweep."""
NO_TEXT = '""'
"""How an empty prompt is written: an empty line would be overlooked."""
FIRST = ("strength", "guidance_scale", "steps", "seed", "guess_mode", "prompt")
"""The settings that people vary most, before the others."""
USUAL_VALUES = {
    "strength": "0, 0.5, 1, 1.5",
    "guidance_scale": "1, 2, 3, 5, 7.5, 9",
    "steps": "5, 10, 20, 40",
    "seed": "1..4",
}
"""Of settings whose whole range says little."""
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"
RANGE = re.compile(rf"({NUMBER})\s*\.\.\s*({NUMBER})(?:\s+step\s+({NUMBER}))?")
LONGEST_PART = 80
"""Characters of a number or a range; Python refuses numbers of thousands of digits."""
HOW_NUMBERS = "write values such as 0.5, 1, 1.5 or a range such as 0..2 step 0.5"
ON_OFF = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


@dataclass(frozen=True)
class Axis:
    """A setting with the values that it takes, in their order, each once."""

    name: str
    """The setting's field name."""
    setting: Variable
    values: tuple[Any, ...]

    def label(self, index: int) -> str:
        """Return a value as it stands beside the grid."""
        value = self.values[index]
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, int | float):
            return plain(value)
        return value.strip() or f"no {self.setting.label.lower()}"


def axis_settings(condition: Condition, suite: Suite) -> dict[str, Variable]:
    """Return what can be varied with a condition, by field name, the usual ones first.

    All settings of a request and of the annotator, but for the number of images. A model or a
    preprocessor is a choice of those on offer.
    """
    annotator = condition.annotator
    preprocessors = (*(one.name for one in annotator.preprocessors), ALREADY_A_MAP)
    choices: dict[str, Variable] = {
        name: Choice(options[0], options, SETTINGS[name].label, SETTINGS[name].help)
        for name, options in (
            ("model", tuple(suite.models(condition))),
            ("preprocessor", preprocessors),
        )
    }
    left_out = {"num_samples", *(SETTINGS_OF_ORIGINAL if condition.input != "photo" else ())}
    if annotator.detect_resolution is None:
        left_out |= {"detect_resolution", "pixel_perfect"}
    known: dict[str, Setting] = {**SETTINGS, **choices, **settings_of(annotator.params)}
    order = [*FIRST, *settings_of(annotator.params), *choices, *known]
    return {
        name: setting
        for name in dict.fromkeys(order)
        if name not in left_out and not isinstance(setting := known[name], Json)
    }


def parsed_axis(name: object, text: object, known: Mapping[str, Variable]) -> Axis:
    """Return the axis of a setting among `known` with the values in a text, all within bounds.

    Numbers stand between commas, alone or as ranges (0..2 step 0.5; whole ones need no step); a
    prompt is a line; options and switches without any text take all there are. A seed of -1 is
    drawn.

    Raises:
        BadInput: the setting is unknown, there is no value, or one cannot be used.
    """
    if not isinstance(name, str) or name not in known:
        raise BadInput(
            f"There is no setting {str(name)[:40]!r} to vary here; there are: {', '.join(known)}."
        )
    setting = known[name]
    if not isinstance(text, str):
        raise BadInput(f"{setting.label}: its values must be given as text.")
    values: list[Any]
    match setting:
        case Bounds():
            values = [value for part in _parts(text) for value in _numbers(setting, part)]
        case Text():
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            values = ["" if line == NO_TEXT else line for line in lines]
        case Toggle():
            values = [_switch(setting, part) for part in _parts(text)] or [False, True]
        case Choice():
            values = [_option(setting, part) for part in _parts(text)] or list(setting.options)
    if not values:
        how = "write one in each line" if isinstance(setting, Text) else HOW_NUMBERS
        raise BadInput(f"{setting.label} has no values yet: please {how}.")
    checked = [setting.check(value) for value in values]
    if name == "seed":
        drawn = secrets.randbelow(LARGEST_DRAWN_SEED + 1)
        checked = [drawn if seed == -1 else seed for seed in checked]
    unique = tuple(dict.fromkeys(checked))
    if len(unique) > MOST_CELLS:
        raise BadInput(
            f"{setting.label} has {len(unique)} values; a sweep makes at most {MOST_CELLS} "
            "pictures, so please name fewer."
        )
    return Axis(name, setting, unique)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"[,;\n]", text) if part.strip()]


def _numbers(setting: Bounds, part: str) -> list[float]:
    """Return the numbers of one part: a number, or those of a range, its end included."""
    readable = len(part) <= LONGEST_PART
    if readable and re.fullmatch(NUMBER, part):
        return [_number(part)]
    match = RANGE.fullmatch(part) if readable else None
    if not match:
        raise BadInput(f"{setting.label}: {part[:40]!r} is not a number; please {HOW_NUMBERS}.")
    start, end = Decimal(match[1]), Decimal(match[2])
    if match[3] is None and not setting.whole:
        raise BadInput(
            f"{setting.label}: the range {part[:40]} needs a step, as in {part[:40]} step "
            f"{_step_for(start, end)}."
        )
    step = abs(Decimal(match[3] or 1))
    if step == 0:
        raise BadInput(f"{setting.label}: the step of {part[:40]} must not be 0.")
    count = int(abs(end - start) / step) + 1
    if count > MOST_CELLS:
        raise BadInput(
            f"{setting.label}: {part[:40]} has {count} values; a sweep makes at most {MOST_CELLS} "
            "pictures, so please take a larger step."
        )
    toward = step if end >= start else -step
    return [_number(format(start + index * toward, "f")) for index in range(count)]


def _number(text: str) -> float:
    """Return an int where there is no decimal point: a seed has more digits than a float."""
    return float(text) if "." in text else int(text)


def _step_for(start: Decimal, end: Decimal) -> str:
    """Return a step of about a quarter of a range, for an example."""
    return plain(float(abs(end - start) / 4)) if start != end else "1"


def _switch(setting: Toggle, part: str) -> bool:
    if part.lower() not in ON_OFF:
        raise BadInput(f"{setting.label}: {part[:40]!r} is neither on nor off.")
    return ON_OFF[part.lower()]


def _option(setting: Choice, part: str) -> str:
    found = [option for option in setting.options if option.lower() == part.lower()]
    if not found:
        raise BadInput(
            f"{setting.label}: there is no {part[:40]!r}; there are: {', '.join(setting.options)}."
        )
    return found[0]


def suggested_values(name: str, setting: Variable, prompts: Sequence[str]) -> str:
    """Return values to start with, as they are typed; `prompts` are some for the model."""
    match setting:
        case Text():
            return "\n".join(prompts)
        case Toggle():
            return "off, on"
        case Choice():
            return ", ".join(setting.options)
        case Bounds():
            middle = setting.low if setting.default is None else setting.default
            numbers = sorted({setting.low, middle, setting.high})
            return USUAL_VALUES.get(name, ", ".join(map(plain, numbers)))
