"""What the readers of pictures' settings share."""

from collections.abc import Collection
from typing import Any

NAMES_LISTED = 8
"""Settings of other tools listed in a note; a hostile file may hold thousands."""

Restored = tuple[dict[str, Any], list[str]]
"""Settings by field name, within their bounds, and a note for each that was changed or ignored."""


def left_out(names: Collection[str]) -> list[str]:
    """Return a note that lists ignored settings of another tool; no note for no settings."""
    if not names:
        return []
    rest = len(names) - NAMES_LISTED
    more = f" and {rest} more" if rest > 0 else ""
    listed = ", ".join(name[:40] for name in list(names)[:NAMES_LISTED])
    return [f"Ignored: {listed}{more}."]


def number(text: str) -> float | str:
    """Return the number in a text, of a size such as 512x768 the short side; else the text.

    Whole numbers are exact: as floats, seeds of 64 bits would share their last digits.
    """
    parts = text.split("x")[:2]
    try:
        return min(
            int(part) if part.strip().lstrip("-").isdecimal() else float(part) for part in parts
        )
    except ValueError:
        return text


def without_shut_window(settings: dict[str, Any]) -> list[str]:
    """Drop a control window that ends before it starts, in place; return a note if so."""
    if settings.get("control_start", 0.0) < settings.get("control_end", 1.0):
        return []
    settings.pop("control_start", None)
    settings.pop("control_end", None)
    return ["Control start was not less than control end; both were ignored."]


def of_sampler(settings: dict[str, Any], name: str) -> list[str]:
    """Set the sampler from another tool's name, in place; return a note if it is not known here."""
    known = name.strip().lower()
    if known == "lcm":
        settings["sampler"] = "lcm"
    elif known != "ddim":
        return [f"The picture was made with the sampler {name.strip():.40}; DDIM is used here."]
    return []
