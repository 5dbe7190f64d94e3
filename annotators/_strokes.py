"""Strokes of an edit: checked, and drawn onto a map. Editors of lines and of areas share this.

{"points": [[x, y], …], "width": 8}, where a point may have a third number, the pen's pressure from
0 to 1, which scales the width there. Coordinates are pixels of a picture of the edit's size.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from core.condition import ControlMap, Editor
from core.errors import BadInput

LARGEST_SIDE = 8192
MOST_STROKES = 5000
MOST_POINTS = 100_000
"""Of all strokes together: hours of drawing."""
FINER = 4
"""Strokes are drawn so much larger and averaged: OpenCV's smooth lines are too wide."""

Stroke = dict[str, Any]
Mask = NDArray[np.uint8]
"""(H, W), 0..255: how much of each pixel is covered."""


def number(value: object, what: str, low: float, high: float) -> float:
    """Return a number from `low` to `high`.

    Raises:
        BadInput: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadInput(f"The edit's {what} must be a number from {low:g} to {high:g}.")
    return value


def listed(value: object, what: str, most: int) -> list[Any]:
    """Return a list of at most `most` entries; None is an empty one.

    Raises:
        BadInput: it is not one.
    """
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most:
        raise BadInput(f"The edit's {what} must be a list of at most {most:,} entries.")
    return value


def checked_size(edit: Mapping[str, Any]) -> list[int]:
    """Return an edit's [width, height].

    Raises:
        BadInput: it is missing or out of bounds.
    """
    size = listed(edit.get("size"), "size", 2)
    if len(size) != 2:
        raise BadInput("The edit needs its size, [width, height] in pixels.")
    return [round(number(side, "size", 1, LARGEST_SIDE)) for side in size]


def checked_point(value: object, size: list[int], numbers: int = 3) -> list[float]:
    """Return [x, y], or with pressure [x, y, pressure]; points may lie beside the picture.

    Raises:
        BadInput: it is not one.
    """
    point = listed(value, "point", numbers)
    if len(point) < 2:
        raise BadInput("Each point of the edit must be [x, y].")
    far = 4 * max(size)
    place = [number(coordinate, "coordinate", -far, far) for coordinate in point[:2]]
    return place + [number(pressure, "pressure", 0, 1) for pressure in point[2:]]


def checked_strokes(
    value: object,
    size: list[int],
    more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _: {},
) -> list[Stroke]:
    """Return strokes with every value checked; `more` checks and returns what a kind adds.

    Raises:
        BadInput: a value is missing, of the wrong type or out of bounds, or there are too many.
    """
    strokes, points = [], 0
    for one in listed(value, "strokes", MOST_STROKES):
        if not isinstance(one, dict):
            raise BadInput('Each stroke of the edit must be {"points": [[x, y], …], "width": 8}.')
        found = [checked_point(p, size) for p in listed(one.get("points"), "points", MOST_POINTS)]
        points += len(found)
        if points > MOST_POINTS:
            raise BadInput(f"The edit has more than {MOST_POINTS:,} points; please simplify it.")
        if found:
            width = number(one.get("width", 8), "width", 0.1, max(size))
            strokes.append({"points": found, "width": width} | more(one))
    return strokes


def check_strokes_edit(edit: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"size", "strokes"}; a stroke with "erase" takes away what it covers.

    Raises:
        BadInput: see checked_strokes.
    """
    size = checked_size(edit)
    strokes = checked_strokes(
        edit.get("strokes"), size, lambda one: {"erase": True} if one.get("erase") else {}
    )
    return {"size": size, "strokes": strokes}


def draw_strokes(edit: Mapping[str, Any], control_map: ControlMap) -> ControlMap:
    """Draw an edit's strokes over a map of light lines: white, or black where they erase."""
    drawn = control_map.copy()
    height, width = drawn.shape[:2]
    for stroke in edit["strokes"]:
        covered = stroke_mask(stroke, edit["size"], (height, width))[:, :, None]
        if stroke.get("erase"):
            np.minimum(drawn, 255 - covered, out=drawn)
        else:
            np.maximum(drawn, covered, out=drawn)
    return drawn


def line_editor(width: float) -> Editor:
    """Return the editor of a map of light lines: add lines of `width` pixels, or rub them out."""
    facts = {"over": True, "width": width}
    return Editor("strokes", check_strokes_edit, draw_strokes, facts=facts)


def stroke_mask(
    stroke: Stroke, size: list[int], shape: tuple[int, int], fill: bool = False
) -> Mask:
    """Return what a stroke covers on a map of shape (height, width), with soft rims.

    The stroke's coordinates are pixels of a picture of `size`; its width is scaled by the mean of
    both sides' scales. With `fill` the area it encloses is covered too.
    """
    mask = np.zeros(shape, np.uint8)
    scale = np.array([shape[1] / size[0], shape[0] / size[1]])
    thickness = stroke["width"] * float(scale.mean())
    points = np.array([point[:2] for point in stroke["points"]], float) * scale
    margin = thickness / 2 + 2
    left, top = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(axis=0) + margin), shape[::-1]).astype(int)
    if left >= right or top >= bottom:
        return mask  # it lies beside the picture
    fine = np.zeros(((bottom - top) * FINER, (right - left) * FINER), np.uint8)
    # OpenCV's pixel (0, 0) has its centre at 0, the page's at 0.5.
    places = np.round((points - (left, top)) * FINER - 0.5).astype(np.int32)
    pressures = [point[2] if len(point) > 2 else 1.0 for point in stroke["points"]]
    if fill and len(places) > 2:
        cv2.fillPoly(fine, [places], 255)
    means = (sum(pair) / 2 for pair in pairwise(pressures))
    for (start, end), pressure in zip(pairwise(places), means, strict=True):
        wide = max(1, round(thickness * pressure * FINER))
        cv2.line(fine, start.tolist(), end.tolist(), 255, wide)
    if len(places) == 1:
        radius = max(1, round(thickness * pressures[0] * FINER / 2))
        cv2.circle(fine, places[0].tolist(), radius, 255, -1)
    covered = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    mask[top:bottom, left:right] = covered
    return mask
