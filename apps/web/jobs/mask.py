"""The mask that is painted on a page: strokes over the picture, as an edit of it.

{"size": [width, height], "strokes": [{"points", "width", "fill", "erase"}]}: a stroke with "fill"
covers the area that it encloses too, one with "erase" takes away what it covers.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from annotators._strokes import (
    MOST_POINTS,
    MOST_STROKES,
    checked_size,
    checked_strokes,
    stroke_mask,
)
from core.condition import ControlMap, Editor, PixelMask

HALF = 127
"""Of 255: a pixel of which more is covered is in the mask."""


def check(edit: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"size", "strokes"} with every value checked.

    Raises:
        BadInput: a value is missing, of the wrong type or out of bounds, or there are too many.
    """
    size = checked_size(edit)
    kinds = ("fill", "erase")
    strokes = checked_strokes(
        edit.get("strokes"), size, lambda one: {kind: True for kind in kinds if one.get(kind)}
    )
    return {"size": size, "strokes": strokes}


def draw(edit: Mapping[str, Any], picture: ControlMap) -> ControlMap:
    """Return the picture with the edit's strokes in white, and in black where they erase."""
    drawn = picture.copy()
    for stroke in edit["strokes"]:
        covered = stroke_mask(stroke, edit["size"], drawn.shape[:2], fill=stroke.get("fill", False))
        drawn[covered > HALF] = 0 if stroke.get("erase") else 255
    return drawn


EDITOR = Editor("mask", check, draw)


def mask_of(edit: Mapping[str, Any]) -> PixelMask:
    """Return the mask (H, W) of an edit, at its size.

    Raises:
        BadInput: see check.
    """
    checked = check(edit)
    width, height = checked["size"]
    return np.asarray(draw(checked, np.zeros((height, width, 3), np.uint8))[:, :, 0] > HALF)


def edit_of(mask: PixelMask) -> dict[str, Any] | None:
    """Return an edit whose mask is this one (H, W); None if it would have too many strokes."""
    strokes: list[dict[str, Any]] = []
    region, erase = mask, False
    while region.any():
        outlines, _ = cv2.findContours(
            region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        filled = np.zeros(mask.shape, np.uint8)
        cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
        for outline in outlines:
            points = (outline[:, 0] + 0.5).tolist()
            strokes.append(
                {"points": points, "width": 1.0, "fill": True} | ({"erase": True} if erase else {})
            )
        # What is inside and is not of it: holes, and in them what is of the mask again.
        region, erase = (filled > 0) & ~region, not erase
    points = sum(len(stroke["points"]) for stroke in strokes)
    if len(strokes) > MOST_STROKES or points > MOST_POINTS:
        return None
    return {"size": [mask.shape[1], mask.shape[0]], "strokes": strokes}
