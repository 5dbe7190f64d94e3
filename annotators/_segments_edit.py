"""The editor of class maps: paints, fills and replaces classes, every pixel exactly one of them.

{"size": [width, height], "ops": [...]}, applied in order over the detected map:

    {"op": "paint", "class": 21, "points": [[x, y], …], "width": 20}   as a stroke
    {"op": "fill", "class": 2, "at": [x, y]}     the connected region of one class there
    {"op": "replace", "from": 4, "to": 9}        wherever a class is
    {"op": "empty", "class": 2}                  this class everywhere

Nothing is detected if the map is emptied: it says all, also without a picture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators._strokes import (
    MOST_POINTS,
    MOST_STROKES,
    checked_point,
    checked_size,
    checked_strokes,
    listed,
    number,
    stroke_mask,
)
from core.condition import ControlMap, Editor
from core.errors import BadInput

ClassMap = NDArray[np.uint8]
"""(H, W): indices of classes, from 0."""
Op = dict[str, Any]

WIDTH = 24
"""Of the brush at the start, in pixels of the map."""
HALF = 128
"""Of 255: a pixel gets the class of a stroke that covers so much of it."""


def segments_editor(
    names: Sequence[str],
    colours: NDArray[np.uint8],
    as_classes: Callable[[ControlMap], ClassMap],
    as_map: Callable[[ClassMap], ControlMap],
) -> Editor:
    """Return the editor of maps that have one of `colours` (N, 3) for each named class.

    `as_classes` reads a map's classes, and `as_map` draws them.
    """
    facts = {
        # Joined: Gradio takes a quoted word of the page's script for the name of an event.
        "names": ",".join(names),
        "colours": ",".join(bytes(colour).hex() for colour in colours),
        "width": WIDTH,
    }
    return Editor(
        "segments",
        lambda edit: check_segments(edit, len(names)),
        lambda edit, control_map: as_map(edited(edit, as_classes(control_map))),
        facts=facts,
        is_whole=is_emptied,
    )


def check_segments(edit: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return {"size", "ops"} of classes below `classes`; strokes without points are left out.

    Raises:
        BadInput: a value is missing, of the wrong type or out of bounds, or there are too many.
    """
    size = checked_size(edit)
    ops, points = list[Op](), 0
    for raw in listed(edit.get("ops"), "ops", MOST_STROKES):
        op = _checked(raw, size, classes)
        points += len(op.get("points", []))
        if points > MOST_POINTS:
            raise BadInput(f"The edit has more than {MOST_POINTS:,} points; please simplify it.")
        if op.get("points") != []:
            ops.append(op)
    return {"size": size, "ops": ops}


def _checked(raw: object, size: list[int], classes: int) -> Op:
    kind = raw.get("op") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or kind not in ("paint", "fill", "replace", "empty"):
        raise BadInput('Each of the edit\'s ops must have an "op": paint, fill, replace or empty.')
    if kind == "replace":
        return {"op": kind} | {end: _class(raw, end, classes) for end in ("from", "to")}
    op = {"op": kind, "class": _class(raw, "class", classes)}
    if kind == "paint":
        strokes = checked_strokes([raw], size)
        return op | (strokes[0] if strokes else {"points": []})
    if kind == "fill":
        return op | {"at": checked_point(raw.get("at"), size, numbers=2)}
    return op


def _class(op: Mapping[str, Any], name: str, classes: int) -> int:
    value = number(op.get(name), f'"{name}"', 0, classes - 1)
    if not isinstance(value, int):
        raise BadInput(f'The edit\'s "{name}" must be a whole number, the index of a class.')
    return value


def is_emptied(edit: Mapping[str, Any]) -> bool:
    """Return whether an edit has one class everywhere at some time, so that what was is gone."""
    return any(op["op"] == "empty" for op in edit["ops"])


def edited(edit: Mapping[str, Any], classes: ClassMap) -> ClassMap:
    """Return a class map (H, W) with a checked edit's ops applied in order."""
    drawn = np.array(classes, np.uint8, order="C")
    height, width = drawn.shape
    for op in edit["ops"]:
        if op["op"] == "paint":
            drawn[stroke_mask(op, edit["size"], (height, width)) >= HALF] = op["class"]
        elif op["op"] == "replace":
            drawn[drawn == op["from"]] = op["to"]
        elif op["op"] == "empty":
            drawn[:] = op["class"]
        else:
            x = int(np.floor(op["at"][0] * width / edit["size"][0]))
            y = int(np.floor(op["at"][1] * height / edit["size"][1]))
            if 0 <= x < width and 0 <= y < height:
                cv2.floodFill(drawn, None, (x, y), op["class"], flags=4)
    return drawn
