"""Fields that carry their own bounds, label and help, and the checks that read them.

A setting's limits are written once, beside the algorithm that owns it; the page draws its widget
from them, the API and the library check with them, and a restored file is clamped by them.

    @dataclass(frozen=True)
    class CannyParams:
        low_threshold: int = bounded(100, 1, 255, 1, "Canny low threshold")

        def __post_init__(self) -> None:
            checked(self)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from core.errors import BadInput

BEYOND_REASON = 1e300
"""No number from here on is taken for one; Python's ints may exceed what a float can hold."""
NAMES_LISTED = 5
"""Unknown names shown in a note; a hostile file may hold thousands."""


@dataclass(frozen=True)
class Order:
    """Where a setting stands, counted from 1; without a number it comes last."""

    argument: float = math.inf
    """Among an endpoint's arguments: other programs rely on it."""
    row: float = math.inf
    """On the page."""


@dataclass(frozen=True)
class Bounds:
    """A number from `low` to `high`, both included; `step` is the slider's grain, not enforced."""

    default: float | None
    low: float
    high: float
    step: float
    label: str
    help: str
    whole: bool
    """Whether only whole numbers make sense."""
    order: Order = Order()

    def check(self, value: object) -> float | None:
        """Return the value as int or float; None passes where the default is None."""
        if value is None and self.default is None:
            return None
        number = _as_number(value)
        if number is None or (self.whole and number != int(number)):
            kind = "a whole number" if self.whole else "a number"
            raise BadInput(f"{self.label} must be {kind} from {self.low} to {self.high}.")
        if not self.low <= number <= self.high:
            raise BadInput(
                f"{self.label} is {number:.10g}, but must lie from {self.low} to {self.high}."
            )
        return int(number) if self.whole else float(number)

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the nearest allowed value and a note ("" when nothing changed)."""
        if value is None and self.default is None:
            return None, ""
        number = _as_number(value)
        if number is None:
            raise BadInput(f"{self.label} is not a number")
        nearest = min(max(number, self.low), self.high)
        nearest = round(nearest) if self.whole else float(nearest)
        note = "" if nearest == number else f"{self.label} {number:.10g} became {nearest:.10g}"
        return nearest, note


@dataclass(frozen=True)
class Choice:
    """One of a few named options."""

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
        """Return the value, unchanged: there is no nearest option."""
        return self.check(value), ""


@dataclass(frozen=True)
class Toggle:
    """Yes or no."""

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
        """Return the value if it is text and not too long."""
        if not isinstance(value, str):
            raise BadInput(f"{self.label} must be text.")
        if len(value) > self.max_length:
            raise BadInput(
                f"{self.label} has {len(value)} characters; please shorten it to {self.max_length}."
            )
        # Half an emoji, as a browser's own cut may leave it, is no text for a tokenizer or a file.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def clamp(self, value: object) -> tuple[Any, str]:
        """Return the text, cut to its longest length, and a note if it was cut."""
        if not isinstance(value, str) or len(value) <= self.max_length:
            return self.check(value), ""
        cut = self.check(value[: self.max_length])
        return cut, f"{self.label} was cut to {self.max_length} characters"


Setting = Bounds | Choice | Toggle | Text


def _as_number(value: object) -> float | None:
    """Return a finite int or float, or None; a bool is no number here.

    numpy's scalars count as numbers; text does not, so that "20" is refused, not guessed.
    """
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        value = item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -BEYOND_REASON < value < BEYOND_REASON else None  # NaN is neither


def bounded(
    default: float | None,
    low: float,
    high: float,
    step: float,
    label: str,
    help: str = "",  # noqa: A002 - the word a page uses, and Bounds.help
    **order: int,
) -> Any:
    """Make a field for a number; whole if default (or, for None, the lower bound) is an int.

    A default of None makes the number optional: None then means "as the annotator has it".
    `order`, here and below: the fields of Order.
    """
    whole = isinstance(low if default is None else default, int)
    setting = Bounds(default, low, high, step, label, help, whole, Order(**order))
    return field(default=default, metadata={"setting": setting})


def choice(
    default: str,
    options: tuple[str, ...],
    label: str,
    help: str = "",  # noqa: A002
    **order: int,
) -> Any:
    """Make a field for one of a few options."""
    setting = Choice(default, tuple(options), label, help, Order(**order))
    return field(default=default, metadata={"setting": setting})


def toggle(default: bool, label: str, help: str = "", **order: int) -> Any:  # noqa: A002
    """Make a field for yes or no."""
    setting = Toggle(default, label, help, Order(**order))
    return field(default=default, metadata={"setting": setting})


def text(
    default: str,
    label: str,
    help: str = "",  # noqa: A002
    max_length: int = 4000,
    **order: int,
) -> Any:
    """Make a field for text; the cap keeps hostile or accidental megabytes out of tokenizers."""
    setting = Text(default, label, help, max_length, Order(**order))
    return field(default=default, metadata={"setting": setting})


def settings_of(record_type: type) -> dict[str, Setting]:
    """Return the settings of a record type by field name, in the order of the fields."""
    return {f.name: f.metadata["setting"] for f in fields(record_type) if "setting" in f.metadata}


def checked(record: Any) -> None:
    """Check every setting of a frozen record and store the coerced value; call from __post_init__.

    Raises:
        BadInput: a value is of the wrong kind, not finite or out of bounds.
    """
    for name, setting in settings_of(type(record)).items():
        object.__setattr__(record, name, setting.check(getattr(record, name)))


def restored(
    known: Mapping[str, Setting], values: Mapping[str, object]
) -> tuple[dict[str, Any], list[str]]:
    """Take values from an untrusted source: clamp those of known settings, skip the rest.

    Returns the usable values by field name, each of which `checked` accepts, and one note for each
    change.
    """
    settings: dict[str, Any] = {}
    notes: list[str] = []
    for name, setting in known.items():
        if name not in values:
            continue
        try:
            settings[name], note = setting.clamp(values[name])
        except BadInput:
            notes.append(f"{setting.label} could not be read and was left as it is.")
            continue
        if note:
            notes.append(f"{note}.")
    unknown = [str(name)[:40] for name in values if name not in known]
    if unknown:
        rest = len(unknown) - NAMES_LISTED
        more = f" and {rest} more" if rest > 0 else ""
        notes.append(f"Not known here and left out: {', '.join(unknown[:NAMES_LISTED])}{more}.")
    return settings, notes
