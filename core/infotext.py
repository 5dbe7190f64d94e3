"""AUTOMATIC1111's infotext: prompt, negative prompt, a line of `Name: value` pairs, and more lines.

The line of pairs is the last that begins with "Steps:"; what extensions add after it (Template:,
Negative Template:) may run over several lines. A value with commas, colons or line ends in it is a
JSON string. SD.Next parts pairs with " | ".

Source: the public behaviour of modules/infotext_utils.py (AUTOMATIC1111/stable-diffusion-webui) and
of scripts/infotext.py (Mikubill/sd-webui-controlnet).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
MAX_PAIRS_LENGTH = 16_000
"""Characters of the line of pairs that are read; a hostile file may hold megabytes."""
NAME = r"[A-Za-z][\w /.()-]{0,79}"
QUOTED = r'"(?:\\.|[^\\"])*"'
COMMAS = re.compile(rf"({NAME}):\s*({QUOTED}|[^,]*)(?:,|$)")
BARS = re.compile(rf"({NAME}):\s*({QUOTED}|[^|]*)(?:\||$)")
UNIT = re.compile(r"ControlNet(?: (\d+)|(?:-(\d+))?(?: ([A-Z][A-Za-z ]+))?)")
"""The name of a unit's pairs, or of one of them ("ControlNet-0 Weight", until version 1.1); the
number of the first is left out by old versions."""
IN_UNIT = re.compile(rf"({NAME}):\s*(\([^()]*\)|[^,]*)(?:,|$)")
OLD_NAMES = {
    "preprocessor": ("Module",),
    "starting/ending": ("Guidance Start", "Guidance End"),
    "preprocessor params": ("Processor Res", "Threshold A", "Threshold B"),
    "guidance strength": ("Guidance End",),
}
"""What version 1.1 called a unit's pairs at first; some were tuples."""


@dataclass(frozen=True)
class Infotext:
    """What an infotext holds, as text."""

    prompt: str
    negative_prompt: str
    pairs: dict[str, str]
    """The pairs by name; of two with one name the first, as the others are an extension's."""
    more: tuple[str, ...] = field(default=())
    """The names of what stands after the line of pairs."""


def parse(text: str) -> Infotext | None:
    """Return what an infotext holds; None where it has no line of pairs."""
    lines = text.replace("\r\n", "\n").split("\n")
    at = next((k for k in reversed(range(len(lines))) if _is_pairs(lines[k])), None)
    if at is None:
        return None
    head, rest = "\n".join(lines[:at]), lines[at + 1 :]
    prompt, _, negative = f"\n{head}".partition(f"\n{NEGATIVE}")
    tail = "\n".join(rest)
    more = tuple(dict.fromkeys(re.findall(rf"^({NAME}):", tail, re.MULTILINE)))
    # A quoted value may hold line ends: then the line of pairs goes on after them.
    line = lines[at] if lines[at].count('"') % 2 == 0 else f"{lines[at]}\n{tail}"
    return Infotext(
        prompt.removeprefix("\n"), negative.removeprefix(" "), pairs(line[:MAX_PAIRS_LENGTH]), more
    )


def _is_pairs(line: str) -> bool:
    return re.match(r"\s*Steps:\s*\d", line) is not None


def pairs(line: str) -> dict[str, str]:
    """Return the pairs of a line by name, quoted values without their quotes."""
    by_comma, by_bar = COMMAS.findall(line), BARS.findall(line)
    found: dict[str, str] = {}
    for name, value in by_bar if len(by_bar) > len(by_comma) else by_comma:
        found.setdefault(name.strip(), _unquoted(value.strip()))
    return found


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError:
        return value[1:-1]


def control_units(of: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the pairs of each unit of sd-webui-controlnet, in the order of their numbers.

    They have today's names (Module, Weight, Guidance Start), whichever of its three layouts is
    read. Units that were switched off are left out.
    """
    units: dict[int, dict[str, str]] = {}
    for name, value in of.items():
        if match := UNIT.fullmatch(name):
            number, field_name = int(match[1] or match[2] or 0), match[3]
            found = {field_name: value} if field_name else dict(IN_UNIT.findall(value))
            units.setdefault(number, {}).update(_todays_names(found))
    return [unit for _, unit in sorted(units.items()) if unit.get("Enabled") != "False"]


def is_of_unit(name: str) -> bool:
    """Return whether a pair of this name is read by control_units."""
    return UNIT.fullmatch(name) is not None


def _todays_names(unit: Mapping[str, str]) -> dict[str, str]:
    """Return a unit's pairs by today's names; the numbers of a tuple each get their own."""
    found: dict[str, str] = {}
    for name, value in unit.items():
        several = OLD_NAMES.get(name.lower(), (name.title(),))
        values = value.strip().strip("()").split(",") if len(several) > 1 else [value]
        found |= {new: one.strip() for new, one in zip(several, values, strict=False)}
    return found


def quoted(value: str) -> str:
    """Return a value as it must stand in a line of pairs."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n|]', value) else value
