"""Editors of maps of surfaces, as depth and normals: sliders over a map, and soft strokes on it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators._strokes import Stroke, checked_size, checked_strokes, number, stroke_mask
from core.condition import ControlMap, Editor


@dataclass(frozen=True)
class Slider:
    """A number of an edit; it has a slider in the page."""

    name: str
    """Its key in the edit."""
    label: str
    low: float
    high: float
    step: float
    neutral: float
    """The value that changes nothing; an edit without the key has it."""
    help: str


def surface_editor(
    name: str,
    sliders: tuple[Slider, ...],
    check_stroke: Callable[[Mapping[str, Any]], dict[str, Any]],
    draw: Callable[[Mapping[str, Any], ControlMap], ControlMap],
    width: float,
    **facts: Any,
) -> Editor:
    """Return the editor whose edits are {"size", "strokes"} and the sliders that are not neutral.

    `check_stroke` returns what a stroke has besides points and width, checked; `width` is that of
    the page's brush at the start, in pixels; `facts` are more for the page, as JSON.
    """

    def check(edit: Mapping[str, Any]) -> dict[str, Any]:
        size = checked_size(edit)
        set_to = {
            one.name: number(edit.get(one.name, one.neutral), one.name, one.low, one.high)
            for one in sliders
        }
        moved = {one.name: set_to[one.name] for one in sliders if set_to[one.name] != one.neutral}
        strokes = checked_strokes(edit.get("strokes"), size, check_stroke)
        return {"size": size, **moved, "strokes": strokes}

    shown = {"sliders": [asdict(one) for one in sliders], "width": width}
    return Editor(name, check, draw, facts=shown | facts)


def slider_values(edit: Mapping[str, Any], sliders: tuple[Slider, ...]) -> dict[str, float]:
    """Return every slider's value by its name."""
    return {one.name: edit.get(one.name, one.neutral) for one in sliders}


def soft_cover(stroke: Stroke, size: list[int], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return how much of each pixel a stroke with soft rims covers: (H, W, 1), 0..1.

    It fades from the middle line, which it covers wholly, to nothing half a width beyond its rim.
    Coordinates are as for stroke_mask.
    """
    mask = stroke_mask(stroke, size, shape)
    left, top, wide, high = cv2.boundingRect(mask)
    thickness = stroke["width"] * (shape[1] / size[0] + shape[0] / size[1]) / 2
    box = 2 * round(thickness / 4) + 1
    if wide and box > 1:
        part = mask[max(top - box, 0) : top + high + box, max(left - box, 0) : left + wide + box]
        # Box filters cost the same for every width.
        for _ in range(2):
            part[:] = cv2.blur(part, (box, box), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(mask[:, :, None] / np.float32(255), np.float32)
