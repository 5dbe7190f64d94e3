"""People of an edit: checked, and as figures.

{"size": [width, height], "people": [{"body": 18 joints, "hands": up to two of 21 points,
"face": 70 points}]}, each point [x, y] or null where it is not seen. OpenPose's own JSON, as its
editors write it, is taken too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from annotators._blazepose import Figure, Points
from annotators._diorama import JOINTS
from annotators._strokes import LARGEST_SIDE, checked_point, checked_size, listed, number
from core.errors import BadInput

MOST_PEOPLE = 50
HAND, FACE = 21, 70
"""Points of a hand and of a face."""
MOST_FACE_POINTS = 80
"""Some tools leave out the pupils, others add points."""
BODY_25_TO_18 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
"""OpenPose's later body model, without its middle hip and feet, in the order of the 18."""
DIGITS = 6
"""After the point: the map is drawn at whole pixels, cut off, so that 12.999 must not become 13."""
UNIT = 1.5
"""OpenPose's coordinates are fractions of the picture if none is larger."""


def check_edit(edit: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"size", "people"} with every value checked.

    Raises:
        BadInput: a value is missing, of the wrong type or out of bounds.
    """
    if "size" not in edit and "canvas_width" in edit:
        edit = from_openpose(edit)
    size = checked_size(edit)
    people = []
    for person in listed(edit.get("people"), "people", MOST_PEOPLE):
        if not isinstance(person, dict):
            raise BadInput('Each person of the edit must be {"body": [[x, y], …]}.')
        body = _checked_points(person.get("body"), "body", size, JOINTS, JOINTS)
        found: dict[str, Any] = {"body": body}
        hands = listed(person.get("hands"), "hands", 2)
        if hands:
            found["hands"] = [_checked_points(one, "hand", size, HAND, HAND) for one in hands]
        if person.get("face") is not None:
            found["face"] = _checked_points(person["face"], "face", size, 1, MOST_FACE_POINTS)
        people.append(found)
    return {"size": size, "people": people}


def _checked_points(value: object, what: str, size: list[int], least: int, most: int) -> list[Any]:
    points = listed(value, what, most)
    if len(points) < least:
        raise BadInput(f"The edit's {what} must have {least} points, each [x, y] or null.")
    return [None if point is None else checked_point(point, size, 2) for point in points]


def from_openpose(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the edit of OpenPose's JSON: {"canvas_width", "canvas_height", "people": [...]}.

    Its lists are x, y, confidence for each point, in pixels or as fractions; zeros are not seen.

    Raises:
        BadInput: it is not that.
    """
    width, height = (
        number(given.get(f"canvas_{side}"), f"canvas_{side}", 1, LARGEST_SIDE)
        for side in ("width", "height")
    )
    people = listed(given.get("people"), "people", MOST_PEOPLE)
    lists = [
        {
            name: listed(person.get(f"{name}_keypoints_2d"), name, 3 * MOST_FACE_POINTS)
            for name in ("pose", "hand_left", "hand_right", "face")
        }
        for person in people
        if isinstance(person, dict)
    ]
    numbers = [
        number(value, "keypoints", -1e6, 1e6)
        for person in lists
        for points in person.values()
        for at, value in enumerate(points)
        if at % 3 != 2
    ]
    scale = (width, height) if max(numbers, default=0) <= UNIT else (1, 1)
    return {
        "size": [width, height],
        "people": [_person_of(person, scale) for person in lists],
    }


def _person_of(lists: Mapping[str, list[Any]], scale: tuple[float, float]) -> dict[str, Any]:
    found = {name: _points_of(points, scale) for name, points in lists.items()}
    body = found["pose"]
    if len(body) > JOINTS:
        if len(body) != BODY_25_TO_18[-1] + 7:
            raise BadInput(f"A body has {len(body)} keypoints; OpenPose's have {JOINTS} or 25.")
        body = [body[k] for k in BODY_25_TO_18]
    hands = [found[name] for name in ("hand_left", "hand_right") if any(found[name])]
    face = {"face": found["face"]} if any(found["face"]) else {}
    return {"body": body, "hands": hands} | face


def _points_of(values: Sequence[float], scale: tuple[float, float]) -> list[Any]:
    places = list(zip(values[0::3], values[1::3], values[2::3], strict=False))
    return [
        None if (x <= 0 and y <= 0) or not seen else [x * scale[0], y * scale[1]]
        for x, y, seen in places
    ]


def figures_in(edit: Mapping[str, Any], width: int, height: int) -> list[Figure]:
    """Return a checked edit's people, in the pixels of a map of that size."""
    scale = np.array([width / edit["size"][0], height / edit["size"][1]])
    return [
        Figure(
            _points(person["body"], scale),
            tuple(_points(hand, scale) for hand in person.get("hands", ())),
            _points(person["face"], scale) if "face" in person else None,
        )
        for person in edit["people"]
    ]


def _points(places: Sequence[Any], scale: Points) -> Points:
    missing = [math.nan, math.nan]
    return np.array([missing if place is None else place for place in places], float) * scale


def edit_of(figures: Sequence[Figure], width: int, height: int) -> dict[str, Any]:
    """Return the edit that stands for people found in a picture of that size."""
    people = []
    for figure in figures:
        person: dict[str, Any] = {"body": _places(figure.body)}
        if figure.hands:
            person["hands"] = [_places(hand) for hand in figure.hands]
        if figure.face is not None:
            person["face"] = _places(figure.face)
        people.append(person)
    return {"size": [width, height], "people": people}


def _places(points: Points) -> list[Any]:
    return [
        None if not np.isfinite(point).all() else [round(float(x), DIGITS) for x in point]
        for point in points
    ]
