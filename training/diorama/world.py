"""Diorama's procedural world: random scenes and their captions.

A scene is plain data made from a seed: primitives with colours and classes, a ground, a sky or a
room, a light, a camera and a caption. `renderer` turns scenes into pictures with exact depth,
normals, classes and keypoints.

Axes: x right, y up, z away from the camera; lengths in metres. Colours are RGB in 0..1, roughly
linear.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Vector = np.ndarray
Colour = tuple[float, float, float]

# The only colour words in captions; far apart, so that a picture can be checked against them.
COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.06, 0.06),
    "orange": (0.95, 0.45, 0.05),
    "yellow": (0.95, 0.82, 0.10),
    "green": (0.08, 0.55, 0.12),
    "blue": (0.08, 0.22, 0.85),
    "purple": (0.48, 0.12, 0.65),
    "white": (0.92, 0.92, 0.92),
    "black": (0.06, 0.06, 0.07),
}

# Class indices in ADE20K's 150-class list (scene parsing benchmark), from 0.
ADE20K = {
    "wall": 0, "building": 1, "sky": 2, "floor": 3, "tree": 4, "ceiling": 5, "road": 6, "window": 8,
    "grass": 9, "person": 12, "earth": 13, "door": 14, "table": 15, "chair": 19, "car": 20,
    "house": 25, "rock": 34, "box": 41, "column": 42, "sand": 46, "plaything": 108, "ball": 119,
    "sculpture": 132,
}  # fmt: skip

# OpenPose's 18 body keypoints in its order (COCO's 17 plus the neck).
KEYPOINTS = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip

SPHERE, BOX, FRUSTUM, PRISM = range(4)
PLAIN, STRIPES, CHECKER, FACADE = range(4)
MAX_CORNERS = 12  # of a prism's outline

# The ground's words in the caption: its colour and class.
GROUNDS: dict[str, tuple[Colour, str]] = {
    "grass": ((0.25, 0.48, 0.14), "grass"),
    "sand": ((0.80, 0.68, 0.45), "sand"),
    "snow": ((0.88, 0.90, 0.94), "earth"),
    "brown earth": ((0.42, 0.28, 0.17), "earth"),
    "grey asphalt": ((0.34, 0.34, 0.36), "road"),
}
FLOORS: dict[str, Colour] = {
    "a wooden floor": (0.55, 0.34, 0.17),
    "a grey floor": (0.55, 0.55, 0.57),
    "a tiled floor": (0.78, 0.74, 0.68),
}
_FLOOR_PATTERNS = {"a tiled floor": CHECKER, "a wooden floor": STRIPES}
WALLS: dict[str, Colour] = {
    "white walls": (0.88, 0.87, 0.84),
    "blue walls": (0.45, 0.58, 0.78),
    "green walls": (0.52, 0.68, 0.48),
    "yellow walls": (0.90, 0.80, 0.48),
    "pink walls": (0.88, 0.62, 0.62),
}


@dataclass(frozen=True)
class Sky:
    """Colours of the sky, the direct and the ambient light; `clouds` is their opacity, 0..1."""

    zenith: Colour
    horizon: Colour
    sun: Colour
    ambient: Colour
    clouds: float


SKIES: dict[str, Sky] = {
    "a clear blue sky": Sky(
        (0.20, 0.45, 0.90), (0.70, 0.85, 0.98), (0.85, 0.82, 0.74), (0.40, 0.43, 0.48), 0.0
    ),
    "a cloudy sky": Sky(
        (0.35, 0.55, 0.88), (0.75, 0.84, 0.94), (0.68, 0.66, 0.62), (0.46, 0.48, 0.51), 1.0
    ),
    "a grey sky": Sky(
        (0.62, 0.65, 0.69), (0.80, 0.81, 0.83), (0.30, 0.30, 0.30), (0.62, 0.63, 0.65), 0.0
    ),
    "a sunset": Sky(
        (0.42, 0.24, 0.46), (1.00, 0.58, 0.25), (0.88, 0.58, 0.36), (0.40, 0.34, 0.36), 0.0
    ),
    "a night sky": Sky(
        (0.02, 0.03, 0.12), (0.10, 0.14, 0.32), (0.46, 0.48, 0.56), (0.28, 0.30, 0.38), 0.0
    ),
}


@dataclass(frozen=True)
class Primitive:
    """One solid: the affine image of a unit sphere, a unit cube (-1..1), a frustum or a prism.

    `to_local` (3, 3) and `centre` map world to local: local = to_local @ (world - centre). A
    frustum runs along local y from 0 (radius 1) to 1 (radius `taper`); a prism has its outline in
    local xz and runs along y from 0 to 1.
    """

    kind: int
    centre: Vector
    to_local: Vector
    colour: Colour
    class_index: int
    taper: float = 1.0
    outline: Vector | None = None  # (corners, 2)
    second_colour: Colour = (0.0, 0.0, 0.0)
    pattern: int = PLAIN
    gloss: float = 0.0
    reach: float = 1.0  # radius of the bounding sphere around `centre`, in metres


@dataclass(frozen=True)
class Thing:
    """One object: its primitives, its words in the caption, and a person's keypoints."""

    words: str
    primitives: list[Primitive]
    colour: str | None = None  # the colour word in `words`
    coloured: tuple[int, ...] = ()  # indices of the primitives in that colour (empty: all)
    keypoints: Vector | None = None  # (18, 3)
    smooth: bool = False  # normals are blended where its primitives meet


@dataclass(frozen=True)
class Camera:
    """Position (3,), rotation (3, 3) with rows right/up/forward, focal length in half heights."""

    position: Vector
    rotation: Vector
    focal: float


@dataclass(frozen=True)
class Scene:
    """Everything the renderer needs, and the caption."""

    seed: int
    caption: str
    things: list[Thing]
    camera: Camera
    sky: Sky
    light: Vector  # unit vector towards the sun; in a room, the position of the lamp
    ground: Colour
    ground_pattern: int
    ground_class: int
    cartoon: bool
    night: bool
    room: tuple[float, float, float] | None = None  # half width, height, depth of the back wall
    wall: Colour = (0.0, 0.0, 0.0)


def _turn(yaw: float) -> Vector:
    """The rotation (3, 3) by `yaw` radians about the vertical."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])


def _solid(
    kind: int,
    centre: Vector,
    size: tuple[float, float, float],
    rotation: Vector,
    colour: Vector | Colour,
    class_name: str,
    **more: Any,
) -> Primitive:
    """A primitive of half sizes `size` in metres; the rows of `rotation` are its axes.

    For frustums and prisms the y size is the full height. `more` are other fields of `Primitive`.
    """
    reach = math.sqrt(size[0] ** 2 + size[2] ** 2 + size[1] ** 2)
    if kind == SPHERE:
        reach = max(size)
    to_local = rotation / np.asarray(size)[:, None]
    red, green, blue = colour
    return Primitive(
        kind,
        np.asarray(centre, float),
        to_local,
        (red, green, blue),
        ADE20K[class_name],
        reach=reach,
        **more,
    )


def _limb(a: Vector, b: Vector, width: float, colour: Vector | Colour) -> Primitive:
    """An ellipsoid of half width `width` from a to b, part of a person."""
    axis = b - a
    length = float(np.linalg.norm(axis)) + 1e-6
    y = axis / length
    x = np.cross(y, [0.0, 0.0, 1.0] if abs(y[2]) < 0.9 else [1.0, 0.0, 0.0])
    x /= np.linalg.norm(x)
    z = np.cross(x, y)
    half = length / 2 + width * 0.45
    rotation = np.stack([x, y, z])
    return _solid(SPHERE, (a + b) / 2, (width, half, width), rotation, colour, "person")


def _vec(x: float, y: float, z: float) -> Vector:
    return np.array([x, y, z], float)


def _material(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A finish: its word in the caption, and its fields of `Primitive`."""
    roll = rng.random()
    if roll < 0.55:
        return "", {}
    if roll < 0.80:
        return "shiny ", {"gloss": 0.8}
    return "striped ", {"pattern": STRIPES}


def _stripe_colour(name: str) -> Colour:
    """The stripes on a colour: a lighter shade (darker on white), so that its word stays true."""
    base = np.asarray(COLOURS[name])
    return tuple(base * 0.72) if name == "white" else tuple(base * 0.55 + 0.30)


def _ball(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    word, finish = _material(rng)
    r = rng.uniform(0.35, 0.8)
    turn, second = _turn(rng.uniform(0, 6.3)), _stripe_colour(name)
    part = _solid(
        SPHERE,
        _vec(x, r, z),
        (r, r, r),
        turn,
        COLOURS[name],
        "ball",
        second_colour=second,
        **finish,
    )
    return Thing(f"{word}{name} ball", [part], name)


def _box(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    word, finish = _material(rng)
    size = rng.uniform(0.3, 0.75, 3)
    turn, second, base = _turn(rng.uniform(0, 6.3)), _stripe_colour(name), _vec(x, size[1], z)
    part = _solid(
        BOX, base, tuple(size), turn, COLOURS[name], "box", second_colour=second, **finish
    )
    return Thing(f"{word}{name} box", [part], name)


def _cylinder(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    word, finish = _material(rng)
    r, h = rng.uniform(0.2, 0.55), rng.uniform(0.7, 2.2)
    foot, second = _vec(x, 0, z), _stripe_colour(name)
    part = _solid(
        FRUSTUM, foot, (r, h, r), _turn(0), COLOURS[name], "column", second_colour=second, **finish
    )
    return Thing(f"{word}{name} cylinder", [part], name)


def _cone(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    word, finish = _material(rng)
    r, h = rng.uniform(0.4, 0.75), rng.uniform(0.9, 1.9)
    foot, finish = _vec(x, 0, z), finish | {"taper": 0.0, "second_colour": _stripe_colour(name)}
    part = _solid(FRUSTUM, foot, (r, h, r), _turn(0), COLOURS[name], "plaything", **finish)
    return Thing(f"{word}{name} cone", [part], name)


def _blob(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    """Merged ellipsoids: an outline without corners or symmetry."""
    parts = []
    height = rng.uniform(0.7, 1.7)
    for k in range(int(rng.integers(3, 7))):
        size = rng.uniform(0.22, 0.55, 3)
        offset = rng.normal(0, 0.3, 2) if k else np.zeros(2)
        y = float(size[1] * 0.9)
        if k:
            y = max(float(rng.uniform(0.15, 1.0) * height), float(size[1] * 0.7))
        centre, turn = _vec(x + offset[0], y, z + offset[1]), _turn(rng.uniform(0, 6.3))
        parts.append(_solid(SPHERE, centre, tuple(size), turn, COLOURS[name], "sculpture"))
    return Thing(f"{name} blob", parts, name, smooth=True)


def _shape(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    """A board with a random outline, upright or lying down."""
    corners = int(rng.integers(5, MAX_CORNERS + 1))
    angle = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radius = rng.uniform(0.45, 1.0, corners)
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    scale, thick = rng.uniform(0.6, 1.1), rng.uniform(0.15, 0.5)
    yaw = _turn(rng.uniform(-0.7, 0.7))
    if rng.random() < 0.75:
        # Upright: the outline's second axis points up, the extrusion towards the camera.
        rotation = np.stack([yaw[0], yaw[2], _vec(0, 1, 0)])
        centre = _vec(x, -scale * float(outline[:, 1].min()), z)
    else:
        rotation, centre = yaw, _vec(x, 0, z)
    part = _solid(
        PRISM, centre, (scale, thick, scale), rotation, COLOURS[name], "sculpture", outline=outline
    )
    return Thing(f"{name} shape", [part], name)


def _house(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    w, h, d = rng.uniform(0.9, 1.8), rng.uniform(0.7, 1.3), rng.uniform(0.8, 1.5)
    yaw = _turn(rng.uniform(-0.8, 0.8))
    roof_name = str(rng.choice([c for c in COLOURS if c != name]))
    windows = {"pattern": FACADE, "second_colour": (0.16, 0.20, 0.28)}
    walls = _solid(BOX, _vec(x, h, z), (w, h, d), yaw, COLOURS[name], "house", **windows)
    roof_height = rng.uniform(0.6, 1.2)
    gable = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # The gable stands in local xz, so local z points up and the ridge runs along local y.
    rotation = np.stack([yaw[0], yaw[2], _vec(0, 1, 0)])
    size = (w * 1.12, 2 * d * 1.06, roof_height)
    eaves = _vec(x, 2 * h, z) - yaw[2] * d * 1.06
    roof = _solid(PRISM, eaves, size, rotation, COLOURS[roof_name], "house", outline=gable)
    return Thing(
        f"{name} house with {_article(roof_name)} roof", [walls, roof], name, coloured=(0,)
    )


def _tree(rng: np.random.Generator, x: float, z: float, _name: str) -> Thing:
    bark = np.array([0.35, 0.22, 0.12]) * rng.uniform(0.8, 1.2)
    leaf = np.array([0.12, 0.40, 0.10]) * rng.uniform(0.75, 1.3)
    h = rng.uniform(0.6, 1.3)
    parts = [
        _solid(FRUSTUM, _vec(x, 0, z), (0.14, h + 0.4, 0.14), _turn(0), bark, "tree", taper=0.7)
    ]
    if rng.random() < 0.45:
        for k in range(3):
            r, y = 0.85 - 0.2 * k, h + 0.55 * k
            parts.append(
                _solid(FRUSTUM, _vec(x, y, z), (r, 0.95, r), _turn(0), leaf, "tree", taper=0.0)
            )
        return Thing("pine tree", parts)
    for _ in range(int(rng.integers(2, 5))):
        size = rng.uniform(0.45, 0.85, 3)
        offset = rng.normal(0, 0.28, 3)
        centre = _vec(x + offset[0], h + 0.8 + 0.5 * abs(offset[1]), z + offset[2])
        parts.append(_solid(SPHERE, centre, tuple(size), _turn(0), leaf, "tree"))
    return Thing("tree", parts)


def _table(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    w, d, h = rng.uniform(0.6, 1.1), rng.uniform(0.4, 0.7), rng.uniform(0.75, 0.95)
    yaw = _turn(rng.uniform(-0.6, 0.6))
    colour = COLOURS[name]
    parts = [_solid(BOX, _vec(x, h, z), (w, 0.06, d), yaw, colour, "table")]
    for sx in (-1, 1):
        for sz in (-1, 1):
            foot = _vec(x, h / 2, z) + yaw[0] * sx * (w - 0.08) + yaw[2] * sz * (d - 0.08)
            parts.append(_solid(BOX, foot, (0.06, h / 2, 0.06), yaw, colour, "table"))
    return Thing(f"{name} table", parts, name)


def _chair(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    w, h = rng.uniform(0.3, 0.42), rng.uniform(0.5, 0.62)
    yaw = _turn(rng.uniform(0, 6.3))
    colour = COLOURS[name]
    back = _vec(x, h + 0.42, z) + yaw[2] * (w - 0.05)
    parts = [
        _solid(BOX, _vec(x, h, z), (w, 0.05, w), yaw, colour, "chair"),
        _solid(BOX, back, (w, 0.42, 0.05), yaw, colour, "chair"),
    ]
    for sx in (-1, 1):
        for sz in (-1, 1):
            foot = _vec(x, h / 2, z) + yaw[0] * sx * (w - 0.06) + yaw[2] * sz * (w - 0.06)
            parts.append(_solid(BOX, foot, (0.05, h / 2, 0.05), yaw, colour, "chair"))
    return Thing(f"{name} chair", parts, name)


def _car(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    yaw = _turn(rng.uniform(-0.5, 0.5) + (math.pi if rng.random() < 0.5 else 0.0))
    base = _vec(x, 0, z)
    up = _vec(0, 1, 0)
    body = _solid(BOX, base + up * 0.48, (1.15, 0.26, 0.52), yaw, COLOURS[name], "car", gloss=0.5)
    # The cabin's outline and the wheels' discs stand upright: local z points up, y to the far side.
    upright = np.stack([yaw[0], yaw[2], up])
    outline = np.array([[-0.75, 0.0], [0.65, 0.0], [0.40, 1.0], [-0.55, 1.0]])
    glass = {"outline": outline, "gloss": 0.6}
    corner = base + up * 0.72 - yaw[2] * 0.46
    cabin = _solid(PRISM, corner, (1.0, 0.92, 0.42), upright, (0.13, 0.16, 0.20), "car", **glass)
    parts = [body, cabin]
    for sx in (-1, 1):
        for side in (-0.56, 0.36):
            centre = base + yaw[0] * 0.7 * sx + yaw[2] * side + up * 0.26
            size, black = (0.26, 0.2, 0.26), (0.05, 0.05, 0.05)
            parts.append(_solid(FRUSTUM, centre, size, upright, black, "car"))
    return Thing(f"{name} car", parts, name, coloured=(0,))


def _person(rng: np.random.Generator, x: float, z: float, name: str) -> Thing:
    """A mannequin in a random pose, with a shirt of the named colour."""
    facing = _turn(rng.uniform(-0.9, 0.9) + (math.pi if rng.random() < 0.12 else 0.0))
    points = _pose(rng, x, z, facing)
    up, front = _vec(0, 1, 0), -facing[2]

    skin = np.array([0.80, 0.58, 0.44]) * rng.uniform(0.5, 1.15)
    hair = np.array([0.10, 0.07, 0.05])
    shirt, trousers = COLOURS[name], np.array([0.16, 0.18, 0.26]) * rng.uniform(0.7, 1.6)
    middle = (points["right_hip"] + points["left_hip"]) / 2
    parts = [_limb(middle - up * 0.02, points["neck"], 0.165, shirt)]
    for side in ("right", "left"):
        parts.append(_limb(points[f"{side}_shoulder"], points[f"{side}_elbow"], 0.062, shirt))
        parts.append(_limb(points["neck"], points[f"{side}_shoulder"], 0.075, shirt))
    coloured = tuple(range(len(parts)))
    head = points["neck"] + up * 0.21
    crown = head + up * 0.045 - front * 0.03
    parts.append(_solid(SPHERE, head, (0.105, 0.14, 0.12), facing, skin, "person"))
    parts.append(_solid(SPHERE, crown, (0.112, 0.12, 0.12), facing, hair, "person"))
    parts.append(_limb(points["neck"] - up * 0.02, head, 0.055, skin))
    for side in ("right", "left"):
        parts.append(_limb(points[f"{side}_elbow"], points[f"{side}_wrist"], 0.048, skin))
        parts.append(_limb(points[f"{side}_hip"], points[f"{side}_knee"], 0.085, trousers))
        parts.append(_limb(points[f"{side}_knee"], points[f"{side}_ankle"], 0.062, trousers))
    keypoints = np.stack([points[k] for k in KEYPOINTS])
    return Thing(f"person in {name}", parts, name, coloured, keypoints)


def _pose(rng: np.random.Generator, x: float, z: float, facing: Vector) -> dict[str, Vector]:
    """A random pose's 18 keypoints, each (3,), with the lower foot on the ground."""
    # The body's axes: the right of a person who faces the camera is on the picture's left.
    right, up, front = -facing[0], _vec(0, 1, 0), -facing[2]

    def direction(side: float, forward: float) -> Vector:
        """A unit vector pointing down, raised sideways and forwards by these angles."""
        lifted: Vector = (
            -up * math.cos(side) * math.cos(forward)
            + right * math.sin(side)
            + front * math.cos(side) * math.sin(forward)
        )
        return lifted

    hip = _vec(x, 0.92, z)
    lean = rng.normal(0, 0.08)
    neck = hip + up * 0.56 + right * lean * 0.5
    points: dict[str, Vector] = {"neck": neck, "nose": neck + up * 0.20 + front * 0.12}
    for side, sign in (("right", 1.0), ("left", -1.0)):
        shoulder = neck + right * 0.19 * sign - up * 0.05
        lift = abs(rng.normal(0.25, 0.6)) if rng.random() < 0.75 else rng.uniform(1.2, 2.7)
        swing = rng.normal(0, 0.5)
        elbow = shoulder + 0.29 * direction(sign * lift, swing)
        bent, bend = sign * (lift + rng.normal(0.1, 0.5)), abs(rng.normal(0.3, 0.4))
        wrist = elbow + 0.27 * direction(bent, swing + bend)
        joint = hip + right * 0.10 * sign
        stride = rng.normal(0, 0.35)
        spread = abs(rng.normal(0.06, 0.14))
        knee = joint + 0.43 * direction(sign * spread, stride)
        ankle = knee + 0.43 * direction(sign * spread, stride - abs(rng.normal(0, 0.35)))
        points[f"{side}_shoulder"], points[f"{side}_elbow"] = shoulder, elbow
        points[f"{side}_wrist"], points[f"{side}_hip"] = wrist, joint
        points[f"{side}_knee"], points[f"{side}_ankle"] = knee, ankle
        points[f"{side}_eye"] = neck + up * 0.24 + front * 0.10 + right * 0.035 * sign
        points[f"{side}_ear"] = neck + up * 0.22 + right * 0.085 * sign
    drop = up * (min(points["right_ankle"][1], points["left_ankle"][1]) - 0.06)
    return {key: value - drop for key, value in points.items()}


# Each kind of thing: its function, and the radius of floor it needs in metres.
_MAKERS: dict[str, tuple[Callable[[np.random.Generator, float, float, str], Thing], float]] = {
    "ball": (_ball, 0.8), "box": (_box, 0.9), "cylinder": (_cylinder, 0.6), "cone": (_cone, 0.75),
    "blob": (_blob, 0.9), "shape": (_shape, 1.1), "house": (_house, 2.1), "tree": (_tree, 0.9),
    "table": (_table, 1.2), "chair": (_chair, 0.6), "car": (_car, 1.3), "person": (_person, 0.6),
}  # fmt: skip
# Relative frequency of each kind in each place.
_PLACES: dict[str, dict[str, float]] = {
    "landscape": {"ball": 3, "box": 2.5, "cylinder": 1.5, "cone": 1.5, "blob": 2, "shape": 2.5,
                  "house": 3, "tree": 2.5, "person": 1.5},
    "street": {"house": 3, "car": 3, "tree": 1.5, "person": 2, "box": 1, "shape": 1.5, "blob": 1},
    "room": {"table": 2, "chair": 2, "ball": 2, "box": 2, "cylinder": 1, "cone": 1, "person": 1.5,
             "blob": 1.5, "shape": 2},
}  # fmt: skip
# Probability of each number of named things in a scene.
_COUNTS = {1: 0.34, 2: 0.36, 3: 0.22, 4: 0.08}
MAX_THINGS = max(_COUNTS)
# Smallest and largest distance from the camera, by kind and by default.
_DISTANCES = {"house": (6.0, 9.5), "tree": (5.0, 9.0), "car": (4.2, 7.0)}
_DISTANCE = (2.6, 6.0)


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _tower(rng: np.random.Generator, x: float, z: float) -> Thing:
    """A background building of a street; there are too many to name in the caption."""
    shade = rng.uniform(0.35, 0.75) * np.array(
        [1.0, rng.uniform(0.85, 1.0), rng.uniform(0.75, 1.0)]
    )
    size = (rng.uniform(1.2, 2.0), rng.uniform(1.8, 4.5), rng.uniform(1.2, 2.0))
    windows = {"pattern": FACADE, "second_colour": (0.15, 0.18, 0.24)}
    part = _solid(BOX, _vec(x, size[1], z), size, _turn(0), shade, "building", **windows)
    return Thing("building", [part])


@dataclass(frozen=True)
class _Surroundings:
    """What surrounds a scene's things, and its words in the caption; fields as in `Scene`."""

    words: str
    sky_name: str
    sky: Sky
    light: Vector
    ground: Colour
    ground_pattern: int
    ground_class: int
    room: tuple[float, float, float] | None = None
    wall: Colour = (0.0, 0.0, 0.0)
    buildings: tuple[Thing, ...] = ()


def make_scene(seed: int) -> Scene:
    """The scene of a seed, the same on every machine."""
    # The order of random draws is fixed: moving one changes all scenes.
    rng = np.random.default_rng(seed)
    place = str(rng.choice(["landscape", "street", "room"], p=[0.62, 0.16, 0.22]))
    sky_name = str(rng.choice(list(SKIES), p=[0.34, 0.2, 0.16, 0.18, 0.12]))
    cartoon = rng.random() < 0.12
    camera = _camera(rng)
    things = _place_things(rng, place, camera.focal)
    around = _indoors(rng) if place == "room" else _outdoors(rng, place, sky_name)

    style = "a cartoon of " if cartoon else ""
    caption = f"{style}{_join(list(phrases(things).values()))} {around.words}"
    if around.sky_name:
        caption += f", {around.sky_name}"
    return Scene(
        seed=seed,
        caption=caption,
        things=[*things, *around.buildings],
        camera=camera,
        sky=around.sky,
        light=around.light,
        ground=around.ground,
        ground_pattern=around.ground_pattern,
        ground_class=around.ground_class,
        cartoon=cartoon,
        night=around.sky_name == "a night sky",
        room=around.room,
        wall=around.wall,
    )


def _camera(rng: np.random.Generator) -> Camera:
    """A camera near eye level, looking slightly down."""
    focal = rng.uniform(1.5, 2.8)  # a field of view of 67 to 39 degrees
    height, pitch = rng.uniform(1.1, 2.4), rng.uniform(0.02, 0.20)
    c, s = math.cos(pitch), math.sin(pitch)
    return Camera(_vec(0, height, 0), np.array([[1.0, 0, 0], [0, c, s], [0, -s, c]]), focal)


def _place_things(rng: np.random.Generator, place: str, focal: float) -> list[Thing]:
    """One to four things in view that do not overlap, from left to right."""
    kinds = list(_PLACES[place])
    weights = np.array([_PLACES[place][k] for k in kinds])
    count = int(rng.choice(list(_COUNTS), p=list(_COUNTS.values())))
    things: list[Thing] = []
    occupied: list[tuple[float, float, float]] = []
    colours: dict[str, str] = {}
    for _ in range(count * 6):
        if len(things) == count:
            break
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        make, space = _MAKERS[kind]
        z = rng.uniform(*_DISTANCES.get(kind, _DISTANCE))
        x = rng.uniform(-0.75, 0.75) * z / focal
        if any(
            math.hypot(x - a, (z - b) * 0.7) < space * 0.8 + other * 0.8 for a, b, other in occupied
        ):
            continue
        # Two of a kind share their colour: a caption could not say which is which.
        colour = colours.setdefault(kind, str(rng.choice(list(COLOURS))))
        occupied.append((x, z, space))
        things.append(make(rng, x, z, colour))
    things.sort(key=lambda thing: float(np.mean([p.centre[0] for p in thing.primitives])))
    return things


def phrases(things: Iterable[Thing]) -> dict[str, str]:
    """Map each thing's words to its phrase in the caption, in the order of `things`.

    `red ball` → `a red ball`, or `two red balls` for two.
    """
    counts = Counter(thing.words for thing in things)
    numbers = {2: "two", 3: "three", 4: "four"}
    return {
        words: _article(words) if count == 1 else f"{numbers.get(count, 'many')} {_plural(words)}"
        for words, count in counts.items()
    }


def _indoors(rng: np.random.Generator) -> _Surroundings:
    """A room with a lamp."""
    room = (rng.uniform(2.6, 4.2), rng.uniform(2.8, 3.6), rng.uniform(6.5, 9.0))
    wall_name, floor_name = str(rng.choice(list(WALLS))), str(rng.choice(list(FLOORS)))
    return _Surroundings(
        words=f"in a room with {wall_name} and {floor_name}",
        sky_name="",
        sky=Sky((0, 0, 0), (0, 0, 0), (0.75, 0.72, 0.66), (0.42, 0.41, 0.40), 0.0),
        light=_vec(rng.uniform(-1.5, 1.5), room[1] - 0.4, rng.uniform(1.0, 4.0)),
        ground=FLOORS[floor_name],
        ground_pattern=_FLOOR_PATTERNS.get(floor_name, PLAIN),
        ground_class=ADE20K["floor"],
        room=room,
        wall=WALLS[wall_name],
    )


def _outdoors(rng: np.random.Generator, place: str, sky_name: str) -> _Surroundings:
    """Open ground or a street between buildings, under a sky."""
    ground_name = str(rng.choice(list(GROUNDS))) if place == "landscape" else "grey asphalt"
    ground, class_name = GROUNDS[ground_name]
    words, buildings = f"on {ground_name}", []
    if place == "street":
        words = "on a street with buildings"
        buildings = [_tower(rng, x, z) for x, z in _street(rng)]
    azimuth, up = rng.uniform(-2.6, 2.6), rng.uniform(0.5, 1.1)
    return _Surroundings(
        words=words,
        sky_name=sky_name,
        sky=SKIES[sky_name],
        light=_vec(
            math.sin(azimuth) * math.cos(up), math.sin(up), -math.cos(azimuth) * math.cos(up)
        ),
        ground=ground,
        ground_pattern=PLAIN,
        ground_class=ADE20K[class_name],
        buildings=tuple(buildings),
    )


def _plural(words: str) -> str:
    """`red ball` → `red balls`; `person in red` → `people in red`."""
    if words.startswith("person"):
        return "people" + words[len("person") :]
    head, _, tail = words.partition(" with ")
    plural = head + ("es" if head.endswith("x") else "s")
    return plural + (f" with {tail.split(' ', 1)[1]}s" if tail else "")


def _street(rng: np.random.Generator) -> list[tuple[float, float]]:
    """(x, z) of a street's background buildings: both sides, front to back."""
    places = []
    for side in (-1, 1):
        for k in range(int(rng.integers(1, 4))):
            z = 9.0 + 3.6 * k + rng.uniform(-0.5, 0.5)
            places.append((side * (rng.uniform(3.2, 4.6) + 0.3 * k), z))
    return places
