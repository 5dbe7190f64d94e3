"""Settings: dataclass fields that carry their own bounds, label and help, and the checks on them.

A setting's limits are written once, beside the algorithm that owns it. The page builds its widget
from them, the API and the library check against them, and values restored from a file are clamped
to them.

    @dataclass(frozen=True)
    class CannyParams:
        low_threshold: int = bounded(100, 1, 255, 1, "Canny low threshold")

        def __post_init__(self) -> None:
            checked(self)
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from core.errors import BadInput

LARGEST_NUMBER = 1e300
"""Numbers from here on are refused: Python's ints may exceed the largest float."""
NAMES_LISTED = 5
"""Unknown names in a note; a hostile file may hold thousands."""


class NoNearestValue(BadInput):
    """A restored number is not allowed, and no other may stand for it."""


@dataclass(frozen=True)
class Order:
    """Where a setting stands, counted from 1; without a number it comes last."""

    argument: float = math.inf
    """Among an endpoint's arguments: other programs rely on it."""
    row: float = math.inf
    """On the page; those of one row stand in the order of their fields."""


@dataclass(frozen=True)
class Bounds:
    """A number from `low` to `high`, inclusive; `step` is the slider's and is not enforced."""

    default: float | None
    low: float
    high: float
    step: float
    label: str
    help: str
    whole: bool
    """Whether it must be an integer."""
    order: Order = Order()
    exact: bool = False
    """Whether no other number may stand for one that is not allowed, as with seeds."""

    def check(self, value: object) -> float | None:
        """Return the value as int or float; None is allowed if it is the default."""
        if value is None and self.default is None:
            return None
        number = _as_number(value)
        if number is None or (self.whole and number != int(number)):
            kind = "a whole number" if self.whole else "a number"
            raise BadInput(f"{self.label} must be {kind} from {self.low} to {self.high}.")
        if not self.low <= number <= self.high:
            raise BadInput(
                f"{self.label} is {plain(number)}; it must be from {self.low} to {self.high}."
            )
        return int(number) if self.whole else float(number)

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the nearest allowed value, and a note if it changed."""
        if value is None and self.default is None:
            return None, ""
        number = _as_number(value)
        if number is None:
            raise BadInput(f"{self.label} is not a number")
        nearest = min(max(number, self.low), self.high)
        if self.exact and (nearest != number or (self.whole and number != int(number))):
            kind = "a whole number" if self.whole else "a number"
            raise NoNearestValue(
                f"{self.label} {number!s:.40} is not {kind} from {self.low} to {self.high}, so it "
                "was left unchanged."
            )
        nearest = round(nearest) if self.whole else float(nearest)
        note = f"{self.label} was changed from {plain(number)} to {plain(nearest)}"
        return nearest, note if nearest != number else ""


@dataclass(frozen=True)
class Choice:
    """One of several named options."""

    default: str
    options: tuple[str, ...]
    label: str
    help: str
    order: Order = Order()

    def check(self, value: object) -> str:
        """Return the value if it is one of the options."""
        if not isinstance(value, str) or value not in self.options:
            raise BadInput(f"{self.label} must be one of: {', '.join(self.options)}.")
        return value

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the value if it is one of the options; none is nearest to another."""
        return self.check(value), ""


@dataclass(frozen=True)
class Toggle:
    """On or off."""

    default: bool
    label: str
    help: str
    order: Order = Order()

    def check(self, value: object) -> bool:
        """Return the value if it is a bool."""
        if not isinstance(value, bool):
            raise BadInput(f"{self.label} must be on or off (true or false).")
        return value

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the value, unchanged."""
        return self.check(value), ""


@dataclass(frozen=True)
class Text:
    """Free text of at most `max_length` characters."""

    default: str
    label: str
    help: str
    max_length: int
    order: Order = Order()

    def check(self, value: object) -> str:
        """Return the text if it is not too long, with lone surrogates replaced."""
        if not isinstance(value, str):
            raise BadInput(f"{self.label} must be text.")
        if len(value) > self.max_length:
            raise BadInput(
                f"{self.label} has {len(value)} characters; please shorten it to {self.max_length}."
            )
        # A browser that cuts text may leave half an emoji, which cannot be encoded as UTF-8.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the text, cut to max_length, and a note if it was cut."""
        if not isinstance(value, str) or len(value) <= self.max_length:
            return self.check(value), ""
        cut = self.check(value[: self.max_length])
        return cut, f"{self.label} was cut to {self.max_length} characters"


@dataclass(frozen=True)
class Json:
    """A JSON object, of at most `max_length` characters as text; None if there is none."""

    label: str
    help: str
    max_length: int
    order: Order = Order()
    default: None = None

    def check(self, value: object) -> dict[str, Any] | None:
        """Return the object, given as itself or as text; an empty text or object is None."""
        refused = BadInput(f"{self.label} must be a JSON object, or empty.")
        try:
            text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
            if len(text) > self.max_length:
                raise BadInput(
                    f"{self.label} has over {self.max_length:,} characters; please simplify it."
                )
            found = json.loads(text, parse_constant=_not_json) if text.strip() else None
        except (TypeError, ValueError, RecursionError):
            raise refused from None
        if found is not None and not isinstance(found, dict):
            raise refused
        return found or None

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the object, unchanged."""
        return self.check(value), ""


def _not_json(constant: str) -> float:
    """Refuse NaN and Infinity, which Python's reader would take."""
    raise ValueError(constant)


Setting = Bounds | Choice | Toggle | Text | Json


def plain(number: float) -> str:
    """Return a number as people write it: a whole one of up to 40 digits without an exponent."""
    return str(int(number)) if number == int(number) and abs(number) < 1e40 else f"{number:.10g}"


def _as_number(value: object) -> float | None:
    """Return a finite number, or None; numpy's scalars are numbers, bools and text are not."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -LARGEST_NUMBER < value < LARGEST_NUMBER else None  # None for NaN too


def bounded(
    default: float | None,
    low: float,
    high: float,
    step: float,
    label: str,
    help: str = "",  # noqa: A002 - the word a page uses, and Bounds.help
    exact: bool = False,
    **order: int,
) -> Any:
    """Make a field for a number: an integer if its default (or, for None, its lower bound) is one.

    A default of None makes it optional; `exact` as in Bounds. `order`: the fields of Order, for all
    makers.
    """
    whole = isinstance(low if default is None else default, int)
    setting = Bounds(default, low, high, step, label, help, whole, Order(**order), exact)
    return field(default=default, metadata={"setting": setting})


def choice(
    default: str,
    options: tuple[str, ...],
    label: str,
    help: str = "",  # noqa: A002
    **order: int,
) -> Any:
    """Make a field for one of several options."""
    setting = Choice(default, tuple(options), label, help, Order(**order))
    return field(default=default, metadata={"setting": setting})


def toggle(default: bool, label: str, help: str = "", **order: int) -> Any:  # noqa: A002
    """Make a field for a switch."""
    setting = Toggle(default, label, help, Order(**order))
    return field(default=default, metadata={"setting": setting})


def text(
    default: str,
    label: str,
    help: str = "",  # noqa: A002
    max_length: int = 4000,
    **order: int,
) -> Any:
    """Make a field for text; max_length keeps megabytes of it out of tokenizers."""
    setting = Text(default, label, help, max_length, Order(**order))
    return field(default=default, metadata={"setting": setting})


def json_object(
    label: str,
    help: str = "",  # noqa: A002
    max_length: int = 1_000_000,
    **order: int,
) -> Any:
    """Make a field for a JSON object, None by default."""
    setting = Json(label, help, max_length, Order(**order))
    return field(default=None, metadata={"setting": setting})


def settings_of(record_type: type) -> dict[str, Setting]:
    """Return the settings of a record type by field name, in the order of the fields."""
    return {f.name: f.metadata["setting"] for f in fields(record_type) if "setting" in f.metadata}


def checked(record: Any) -> None:
    """Check every setting of a frozen record and store the coerced value; call from __post_init__.

    Raises:
        BadInput: a value of the wrong type, not finite or out of bounds.
    """
    for name, setting in settings_of(type(record)).items():
        object.__setattr__(record, name, setting.check(getattr(record, name)))


def restored(
    known: Mapping[str, Setting], values: Mapping[str, object]
) -> tuple[dict[str, Any], list[str]]:
    """Take values from an untrusted source: clamp those of known settings, skip the rest.

    Returns values by field name, all of which `checked` accepts, and one note per change.
    """
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for name, setting in known.items():
        if name not in values:
            continue
        try:
            settings[name], note = setting.clamp(values[name])
        except NoNearestValue as error:
            notes.append(str(error))
            continue
        except BadInput:
            notes.append(f"{setting.label} could not be read and was left unchanged.")
            continue
        if note:
            notes.append(f"{note}.")
    unknown = [str(name)[:40] for name in values if name not in known]
    if unknown:
        rest = len(unknown) - NAMES_LISTED
        more = f" and {rest} more" if rest > 0 else ""
        notes.append(f"Unknown settings were ignored: {', '.join(unknown[:NAMES_LISTED])}{more}.")
    return settings, notes
