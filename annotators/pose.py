"""Poses: people as sticks in OpenPose's colours, on black.

Sources: Cao et al. 2017, "Realtime Multi-Person 2D Pose Estimation" (OpenPose, whose weights are
for non-commercial use), through controlnet-aux; keypoints in its order, drawn as in ControlNet v1.1
(limbs at 60 % brightness, joints at full). BlazePose finds the same, under a free licence.
Diorama's annotator predicts joints and, for each, the offset to its person's neck, as in
Papandreou et al. 2018 ("PersonLab").
"""

import colorsys
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators._blazepose import Figure, fetch_blazepose, find_figures
from annotators._diorama import (
    HELP,
    JOINTS,
    NECK,
    OFFSET_SCALE,
    TRAINING_RESOLUTION,
    doubt,
    predict,
)
from annotators._map_checks import MAX_LINES
from annotators._pose_edit import (
    BODY_25_TO_18,
    MOST_PEOPLE,
    UNIT,
    check_edit,
    edit_of,
    figures_in,
)
from annotators._pretrained import (
    INFERENCE_LOCK,
    detector_preprocessor,
    load_detector,
    readable_import_errors,
)
from core.condition import Annotator, ControlMap, Editor, Preprocessor, RGBImage, Score, WebUINames
from core.consistency import lines_in
from core.images import grey_map, resize_map
from models.catalog.download import amount
from models.catalog.wheels import BLAZEPOSE

JOINT_NAMES = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow",
    "left wrist", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12),
    (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of joints (nose 0, neck 1, right shoulder 2, ...), in the order of their colours."""
COLOURS = tuple(
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(k / JOINTS, 1, 1))
    for k in range(JOINTS)
)
"""Of joint k, and at lower brightness of limb k: evenly spaced hues from red."""
JOINT_RADIUS, LIMB_HALF_WIDTH, LIMB_BRIGHTNESS = 4, 4, 0.6
LIMB_COLOURS = tuple(
    tuple(int(channel * LIMB_BRIGHTNESS) for channel in colour) for colour in COLOURS[: len(LIMBS)]
)
FINGERS = tuple((0 if k % 4 == 0 else k, k + 1) for k in range(20))
"""Pairs of a hand's 21 points (wrist 0, then four per finger), in the order of their hues."""
FINGER_COLOURS = tuple(
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(k / len(FINGERS), 1, 1))
    for k in range(len(FINGERS))
)
HAND_COLOUR, HAND_RADIUS, FINGER_WIDTH = (0, 0, 255), 4, 2
FACE_COLOUR, FACE_RADIUS = (255, 255, 255), 3
"""Of the dots of hands and faces, and the lines of fingers, as in ControlNet v1.1."""

OPENPOSE = (
    "OpenposeDetector",
    (
        ("body_pose_model.pth", 209_267_595),
        ("hand_pose_model.pth", 147_000_000),
        ("facenet.pth", 154_000_000),
    ),
)
TERMS = "for non-commercial use"

SMOOTHING_CELLS = 1.0
"""Standard deviation of the blur of the joints' probabilities: a ragged peak is not two."""
CONFIDENT = 0.25
"""Blurred probability above which a peak is a joint."""
SAME_PERSON_CELLS = 14.0
"""Joints that vote for necks closer than this belong to one person."""
MIN_JOINTS = 4
"""Fewer do not make a person."""
OKS_SIGMAS = (
    0.026, 0.079, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087,
    0.089, 0.025, 0.025, 0.035, 0.035,
)  # fmt: skip
"""COCO's sigmas, the spread of human annotations of each joint; the neck has the shoulders'."""
COLOUR_DISTANCE = 30
"""Tolerance of a joint's colour: neighbouring hues are 85 apart, limbs 100 from their joints."""

Person = NDArray[np.floating]
"""(18, 2), or a hand's or face's points: x and y in pixels, NaN where not visible."""

Disc = tuple[float, float, float]
"""A joint in a map: x, y and its person's size, in pixels."""
TOUCH_PX = 2
"""Regions this close touch: blended colours may lie between them."""
TOUCHED = np.stack(
    np.meshgrid(*[np.arange(-TOUCH_PX, TOUCH_PX + 1)] * 2, indexing="ij"), -1
).reshape(-1, 2)
"""From a pixel to those that it touches, in rows and columns (25, 2)."""
PIXELS_AT_ONCE = 4096
"""Of a component, whose neighbours are looked at together."""
DISTANCES_AT_ONCE = 2**20
"""Between joints, computed together."""
WRISTS = (4, 7)
FINGER_DISTANCE = 5
"""Tolerance of a finger's colour: some joints' colours are 8 away."""
MAX_DISC_PX = 2 * JOINT_RADIUS + 3
SMALLEST_DISC_PX = 1.5
"""Radius below which a joint no longer counts as one."""
DRAWN_SHARE, SEEN_SHARE = 0.95, 0.3
"""Of a limb's middle line: so much is not black, and more than so much has its colour; joints and
other limbs may lie over the rest."""
SHORT_RADII = 5
"""A limb of less than so many joints' radii need not be seen: others may cover it."""
COVERED_SHARE = 0.5
"""What a limb counts as that its own joints cover."""
FINGER_ONLY_COLOURS = tuple(
    finger
    for finger in FINGER_COLOURS
    if all(max(abs(a - b) for a, b in zip(finger, joint, strict=True)) > 12 for joint in COLOURS)
)
"""The fingers' colours that are no joint's."""


@dataclass(frozen=True)
class PoseParams:
    """Poses have no settings."""


def draw_people(people: Sequence[Person], height: int, width: int) -> ControlMap:
    """Draw people on black, as in ControlNet v1.1."""
    return draw_figures([Figure(person) for person in people], height, width)


def draw_figures(figures: Sequence[Figure], height: int, width: int) -> ControlMap:
    """Draw people with their hands and faces on black, as in ControlNet v1.1."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for figure in figures:
        _draw_body(canvas, figure.body)
        for hand in figure.hands:
            _draw_hand(canvas, hand)
        if figure.face is not None:
            _draw_dots(canvas, figure.face, FACE_RADIUS, FACE_COLOUR)
    return canvas


def _draw_body(canvas: ControlMap, person: Person) -> None:
    for (a, b), colour in zip(LIMBS, LIMB_COLOURS, strict=True):
        if np.isnan(person[[a, b]]).any():
            continue
        (ax, ay), (bx, by) = person[a].tolist(), person[b].tolist()
        middle = (int((ax + bx) / 2), int((ay + by) / 2))
        axes = (int(math.hypot(ax - bx, ay - by) / 2), LIMB_HALF_WIDTH)
        angle = int(math.degrees(math.atan2(ay - by, ax - bx)))
        outline = np.array(cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1))
        cv2.fillConvexPoly(canvas, outline, colour)
    for (x, y), colour in zip(person.tolist(), COLOURS, strict=True):
        if not math.isnan(x):
            cv2.circle(canvas, (int(x), int(y)), JOINT_RADIUS, colour, thickness=-1)


def _draw_hand(canvas: ControlMap, points: Person) -> None:
    for (a, b), colour in zip(FINGERS, FINGER_COLOURS, strict=True):
        if not np.isnan(points[[a, b]]).any():
            start, end = points[[a, b]].astype(int).tolist()
            cv2.line(canvas, start, end, colour, FINGER_WIDTH)
    _draw_dots(canvas, points, HAND_RADIUS, HAND_COLOUR)


def _draw_dots(canvas: ControlMap, points: Person, radius: int, colour: tuple[int, ...]) -> None:
    for x, y in points[~np.isnan(points[:, 0])].astype(int).tolist():
        cv2.circle(canvas, (x, y), radius, colour, thickness=-1)


def find_people(joints: NDArray[np.float32], offset: NDArray[np.float32]) -> list[Person]:
    """Group the network's joints (h, w, 18) by its offsets (h, w, 2) into people, in cells.

    Every confident peak votes for the position of a neck; close votes make one person.
    """
    blurred = cv2.GaussianBlur(1 / (1 + np.exp(-joints)), (0, 0), SMOOTHING_CELLS)
    chance = np.asarray(blurred, np.float32).reshape(joints.shape)
    peaks = (cv2.dilate(chance, np.ones((3, 3), np.uint8)) == chance) & (chance > CONFIDENT)
    rows, columns, kinds = np.nonzero(peaks)
    order = np.argsort(-chance[rows, columns, kinds], kind="stable")
    people = np.full((len(order), JOINTS, 2), np.nan, np.float32)
    necks = np.full((len(order), 2), np.inf, np.float32)
    count = 0
    # Necks first: their own position is the best vote.
    for peak in sorted(order, key=lambda k: kinds[k] != NECK):
        row, column, kind = rows[peak], columns[peak], kinds[peak]
        position = _top_of(chance[:, :, kind], row, column)
        cell = np.array([column, row], np.float32)
        vote = cell + (0 if kind == NECK else offset[row, column] * OFFSET_SCALE)
        distances = np.linalg.norm(vote - necks[:count], axis=1)
        free = np.where(np.isnan(people[:count, kind, 0]), distances, np.inf)
        if count and free.min() < SAME_PERSON_CELLS:
            people[free.argmin(), kind] = position
        elif not count or distances.min() >= SAME_PERSON_CELLS:
            people[count, kind], necks[count] = position, vote
            count += 1
    return [p for p in people[:count] if (~np.isnan(p[:, 0])).sum() >= MIN_JOINTS]


def _top_of(chance: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """Return x and y, in cells, of the top of a peak: of the parabolas through its logarithms."""
    position = np.array([column, row], np.float32)
    for axis, line, at in ((0, chance[row], column), (1, chance[:, column], row)):
        if 0 < at < len(line) - 1:
            before, top, after = np.log(np.maximum(line[at - 1 : at + 2], 1e-6))
            bend = 2 * top - before - after
            position[axis] += (after - before) / (2 * bend) if bend > 0 else 0
    return position


def find_diorama(image: RGBImage) -> list[Figure]:
    """Return the people that Diorama's annotator predicts, in whole pixels."""
    prediction = predict(image)
    cells = prediction["joints"].shape
    scale = np.array([image.shape[1] / cells[1], image.shape[0] / cells[0]], np.float32)
    half = np.float32(0.5)  # an index is the centre of its cell, or of its pixel
    people = find_people(prediction["joints"], prediction["offset"])
    # Rounded here, because drawing cuts fractions off, which moves a mirrored person.
    return [Figure(np.round((person + half) * scale - half)) for person in people]


def draw_diorama(image: RGBImage, _: PoseParams) -> ControlMap:
    """Draw the people that Diorama's annotator predicts."""
    return draw_figures(find_diorama(image), *image.shape[:2])


def find_openpose(image: RGBImage, hands_and_face: bool) -> list[Figure]:
    """Return OpenPose's people."""
    detector = load_detector(*OPENPOSE)
    with INFERENCE_LOCK, readable_import_errors(OPENPOSE[0]):
        poses = detector.detect_poses(image, hands_and_face, hands_and_face)
    height, width = image.shape[:2]
    figures: list[Figure] = []
    for pose in poses:
        hands = [_in_pixels(one, width, height) for one in (pose.left_hand, pose.right_hand) if one]
        figures.append(
            Figure(
                _in_pixels(pose.body.keypoints, width, height),
                tuple(_drop_outside(hand) for hand in hands),
                _drop_outside(_in_pixels(pose.face, width, height)) if pose.face else None,
            )
        )
    return figures


def find_blazepose(image: RGBImage, hands_and_face: bool) -> list[Figure]:
    """Return BlazePose's people."""
    figures = find_figures(image, hands_and_face)
    return [one for one in figures if np.isfinite(one.body[:, 0]).sum() >= MIN_JOINTS]


def draw_found(
    image: RGBImage, _: PoseParams, find: Callable[[RGBImage], list[Figure]]
) -> ControlMap:
    """Draw the people that `find` returns."""
    return draw_figures(find(image), *image.shape[:2])


FINDERS: dict[str, Callable[[RGBImage], list[Figure]]] = {
    "Diorama": find_diorama,
    "BlazePose": partial(find_blazepose, hands_and_face=False),
    "BlazePose with hands and face": partial(find_blazepose, hands_and_face=True),
    "OpenPose": partial(find_openpose, hands_and_face=False),
    "OpenPose with hands and face": partial(find_openpose, hands_and_face=True),
}
"""What finds the people of each preprocessor, by its name."""


def begin_edit(preprocessor: Preprocessor, image: RGBImage, _: Any) -> dict[str, Any]:
    """Return the edit of the people that a preprocessor finds."""
    height, width = image.shape[:2]
    return edit_of(FINDERS[preprocessor.name](image), width, height)


def read_edit(control_map: ControlMap) -> dict[str, Any]:
    """Return the edit of the people in a ready map, without hands and faces; {} for nobody."""
    height, width = control_map.shape[:2]
    figures = [Figure(person) for person in people_in(control_map)]
    return edit_of(figures, width, height) if figures else {}


def draw_edit(edit: Mapping[str, Any], control_map: ControlMap) -> ControlMap:
    """Draw an edit's people, as those that are found."""
    height, width = control_map.shape[:2]
    return draw_figures(figures_in(edit, width, height), height, width)


def _in_pixels(points: Sequence[Any], width: int, height: int) -> Person:
    """Convert controlnet-aux's points, whose x and y are fractions of the picture's sides."""
    missing = (math.nan, math.nan)
    return np.array([missing if p is None else (p.x * width, p.y * height) for p in points])


def _drop_outside(points: Person) -> Person:
    """Make points left of or above the picture NaN: so controlnet-aux marks invisible ones."""
    return np.where((points >= 1).all(1, keepdims=True), points, np.nan)


def fit_map(control_map: ControlMap, size: tuple[int, int]) -> ControlMap:
    """Fit a ready map to (width, height).

    Joints that would shrink away are drawn at their usual size again, limbs with them; hands and
    faces keep every dot and line that they had.
    """
    resized = resize_map(control_map, size, "nearest")
    shrunk = min(control_map.shape[1] / size[0], control_map.shape[0] / size[1])
    radius = _disc_radius(control_map) / shrunk
    if shrunk <= 1 or not 0 < radius < SMALLEST_DISC_PX:
        return resized
    hands = hands_in(control_map)
    fine = hands | _near(control_map, FACE_COLOUR, COLOUR_DISTANCE)
    side = 2 * round(JOINT_RADIUS - radius) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    fitted = np.zeros_like(resized)
    for colour in (*LIMB_COLOURS, *COLOURS):
        mask = _near(control_map, colour, COLOUR_DISTANCE) & ~hands
        fitted[cv2.dilate(_shrunk(mask, size), disc) > 0] = colour
    kept = resize_map(control_map * fine[:, :, None], size, "lines")
    return np.where(kept.any(axis=2, keepdims=True), kept, fitted)


def _shrunk(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Shrink a mask (H, W) to (width, height); a pixel is set if any of those it covers is."""
    return resize_map(grey_map(mask * np.uint8(255)), size, "lines")[:, :, 0]


def _disc_radius(control_map: ControlMap) -> float:
    """Return the median radius of a map's joints in pixels; 0 if there is none."""
    found = [_regions(control_map, colour) for colour in COLOURS]
    areas = [int(one.stats[k, cv2.CC_STAT_AREA]) for one in found for k in one.numbers]
    return math.sqrt(float(np.median(areas)) / math.pi) if areas else 0.0


def joints_in(control_map: ControlMap) -> list[list[Disc]]:
    """Return the discs in a pose map for each of the 18 joints.

    Hands are ignored, though their dots have a joint's colour and their lines several joints': a
    region on a hand counts only if it ends a limb of that joint, one region per end, and a wrist
    hidden by a hand is the end of its forearm.
    """
    hands = hands_in(control_map)
    body = control_map.max(axis=2) > 0
    _, figure = cv2.connectedComponents(body.astype(np.uint8))
    sizes = _sizes(figure * (body & ~hands), int(figure.max()))
    joints = [_regions(control_map, colour) for colour in COLOURS]
    limbs = [_regions(control_map, colour) for colour in LIMB_COLOURS] if hands.any() else []
    discs: list[list[Disc]] = []
    for kind, regions in enumerate(joints):
        numbers = regions.numbers
        ended: set[_Limb] = set()
        if limbs:
            numbers, ended = _without_hands(kind, regions, limbs, hands)
        centres = [(regions.centre(number), regions.pixel(number)) for number in numbers]
        if limbs and kind in WRISTS:
            centres += _hidden_wrists(kind, ended, joints, limbs, hands)
        discs.append([(x, y, float(sizes[figure[pixel]])) for (x, y), pixel in centres])
    return discs


def _sizes(figure: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """Return the size of each figure of labels (H, W) from 1 to `count`; of one without pixels 1.

    The size is the square root of the area of its bounding box.
    """
    places = np.nonzero(figure)
    numbers, area = figure[places], np.ones(count + 1)
    for axis in places:
        low, high = np.full(count + 1, np.iinfo(np.int64).max), np.zeros(count + 1, np.int64)
        np.minimum.at(low, numbers, axis)
        np.maximum.at(high, numbers, axis)
        area *= np.where(low <= high, high - low + 1, 1)
    return np.sqrt(area)


def people_in(control_map: ControlMap) -> list[Person]:
    """Return the people in a pose map: its joints, grouped by the limbs between them.

    Where the joint between two groups is missing they are one person if no limb longer than those
    in sight parts them; drawn again they look the same. A map of more than MOST_PEOPLE has none.
    """
    joints = joints_in(control_map)
    if max(map(len, joints)) > MOST_PEOPLE:
        return []
    places = {
        (kind, k): np.array(disc[:2])
        for kind, discs in enumerate(joints)
        for k, disc in enumerate(discs)
    }
    person_of = {joint: dict([joint]) for joint in places}

    def join(a: _Joint, b: _Joint) -> None:
        first, second = person_of[a], person_of[b]
        first |= second
        for joint in second.items():
            person_of[joint] = first

    # The best seen first; of those that their joints cover, the shortest.
    limbs = sorted(_limbs_in(control_map, places))
    for _, _, a, b in limbs:
        if not person_of[a].keys() & person_of[b].keys():
            join(a, b)
    longest = max((length for _, length, _, _ in limbs), default=0)
    apart = {pair: math.dist(*(places[one] for one in pair)) for pair in combinations(places, 2)}
    for (a, b), distance in sorted(apart.items(), key=lambda item: item[1]):
        if distance <= longest and not _would_touch(person_of[a], person_of[b]):
            join(a, b)
    people = []
    for found in {id(person): person for person in person_of.values()}.values():
        people.append(np.full((JOINTS, 2), np.nan))
        for joint in found.items():
            people[-1][joint[0]] = np.round(places[joint])
    return people


def _would_touch(first: Mapping[int, int], second: Mapping[int, int]) -> bool:
    """Return whether two groups of joints, by kind, share a kind or would have a limb between."""
    return bool(first.keys() & second.keys()) or any(
        (a in first and b in second) or (b in first and a in second) for a, b in LIMBS
    )


_Joint = tuple[int, int]
"""Its kind, and which of the map's."""


def _limbs_in(
    control_map: ControlMap, places: Mapping[_Joint, Person]
) -> Iterator[tuple[float, float, _Joint, _Joint]]:
    """Yield what may be limbs: the unseen share of each, its length in pixels, and its joints."""
    radius = _disc_radius(control_map)
    drawn = control_map.max(axis=2) > min(map(max, LIMB_COLOURS)) - COLOUR_DISTANCE
    for (a, b), colour in zip(LIMBS, LIMB_COLOURS, strict=True):
        coloured = _near(control_map, colour, COLOUR_DISTANCE)
        ends = ([joint for joint in places if joint[0] == kind] for kind in (a, b))
        for one, other in product(*ends):
            start, end = places[one], places[other]
            length = math.dist(start, end)
            along = np.linspace(0, 1, math.ceil(length) + 1)
            x, y = np.round(start + along[:, None] * (end - start)).astype(int).T
            between = np.abs(along - 0.5) * length < length / 2 - radius  # not on their discs
            seen = coloured[y, x][between]
            share = float(seen.mean()) if len(seen) else COVERED_SHARE
            is_seen = share > SEEN_SHARE or length < SHORT_RADII * radius
            if is_seen and drawn[y, x].mean() > DRAWN_SHARE:
                yield 1 - share, length, one, other


def hands_in(control_map: ControlMap) -> NDArray[np.bool_]:
    """Return a mask (H, W) of the hands in a pose map: connected dots and lines.

    A hand is recognised by lines in a colour no joint has, by dots that cover more than a disc, or
    by a dot that touches a forearm and no leg: a small hand's dots cover its lines.
    """
    certain, possible = (
        np.any([_near(control_map, colour, FINGER_DISTANCE) for colour in colours], axis=0)
        for colours in (FINGER_ONLY_COLOURS, (HAND_COLOUR, *FINGER_COLOURS))
    )
    dots = _regions(control_map, HAND_COLOUR)
    forearms, legs = (
        [
            _regions(control_map, LIMB_COLOURS[k])
            for k, limb in enumerate(LIMBS)
            if set(ends) & {*limb}
        ]
        for ends in (WRISTS, (COLOURS.index(HAND_COLOUR),))
    )
    sides = dots.stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    at_arm, at_leg = (
        set[int]().union(*(dots.touching(limb.mask) for limb in limbs))
        for limbs in (forearms, legs)
    )
    on_hand = [k for k in dots.numbers if sides[k] > MAX_DISC_PX or k in at_arm - at_leg]
    certain |= np.isin(dots.labels, on_hand)
    _, labels = cv2.connectedComponents(possible.astype(np.uint8))
    return np.isin(labels, np.unique(labels[certain]))


@dataclass(frozen=True)
class _Regions:
    """The connected components of one colour in a map, numbered from 1.

    A map may have tens of thousands of them, so nothing looks at the whole map for each.
    """

    labels: NDArray[np.int32]
    stats: NDArray[np.int32]
    centres: NDArray[np.float64]

    @cached_property
    def large(self) -> NDArray[np.bool_]:
        """By number, whether a component is no speck between two blended colours."""
        large = self.stats[:, cv2.CC_STAT_AREA] >= JOINT_RADIUS
        large[0] = False
        return np.asarray(large, bool)

    @cached_property
    def numbers(self) -> list[int]:
        """Those components."""
        return np.flatnonzero(self.large).tolist()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where they are (H, W)."""
        return np.asarray(self.large[self.labels], bool)

    def centre(self, number: int) -> tuple[float, float]:
        x, y = self.centres[number].tolist()
        return x, y

    def pixel(self, number: int) -> tuple[int, int]:
        """Return the row and column of one of a component's pixels; its centre may not be one."""
        left, row, width = self.stats[number, : cv2.CC_STAT_HEIGHT].tolist()
        inside = self.labels[row, left : left + width] == number
        return row, left + int(inside.argmax())

    def pixels(self, number: int) -> NDArray[np.intp]:
        """Return the rows and columns (N, 2) of a component's pixels, in the map's order."""
        order, ends = self._order
        return order[ends[number - 1] : ends[number]]

    @cached_property
    def _order(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """All pixels (N, 2) by component, and how many there are up to each."""
        pixels = np.argwhere(self.labels)
        numbers = self.labels[pixels[:, 0], pixels[:, 1]]
        ends = np.bincount(numbers, minlength=len(self.stats)).cumsum()
        return pixels[numbers.argsort(kind="stable")], ends

    def touching(self, mask: NDArray[np.bool_]) -> set[int]:
        """Return the components that touch a mask (H, W)."""
        side = 2 * TOUCH_PX + 1
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8))
        return self._numbers_in(self.labels[grown > 0])

    def touching_pixels(self, pixels: NDArray[np.intp]) -> set[int]:
        """Return the components that touch any of the pixels (N, 2)."""
        found: set[int] = set()
        last = np.array(self.labels.shape) - 1
        for start in range(0, len(pixels), PIXELS_AT_ONCE):
            near = pixels[start : start + PIXELS_AT_ONCE, None] + TOUCHED
            rows, columns = np.moveaxis(near.clip(0, last), 2, 0)
            found |= self._numbers_in(self.labels[rows, columns])
        return found

    def _numbers_in(self, labels: NDArray[np.int32]) -> set[int]:
        numbers = np.unique(labels)
        return set(numbers[self.large[numbers]].tolist())


def _near(control_map: ControlMap, colour: tuple[int, ...], distance: int) -> NDArray[np.bool_]:
    low, high = (np.array(colour) + sign * distance for sign in (-1, 1))
    return cv2.inRange(control_map, low, high) > 0


def _regions(control_map: ControlMap, colour: tuple[int, ...]) -> _Regions:
    mask = _near(control_map, colour, COLOUR_DISTANCE).astype(np.uint8)
    _, labels, stats, centres = cv2.connectedComponentsWithStats(mask)
    return _Regions(
        np.asarray(labels, np.int32), np.asarray(stats, np.int32), np.asarray(centres, np.float64)
    )


_Limb = tuple[int, int]
"""A limb's index in LIMBS, and a component of its colour."""


def _without_hands(
    kind: int, regions: _Regions, limbs: Sequence[_Regions], hands: NDArray[np.bool_]
) -> tuple[list[int], set[_Limb]]:
    """Return the regions of a joint's colour that are joints, not hands, and the limbs they end."""
    ends: dict[int, set[_Limb]] = {}
    joint_limbs = [k for k, limb in enumerate(LIMBS) if kind in limb and limbs[k].numbers]
    for number in regions.numbers:
        region = regions.pixels(number)
        ends[number] = {(k, limb) for k in joint_limbs for limb in limbs[k].touching_pixels(region)}
    on_hands = set(np.unique(regions.labels[hands]).tolist())
    kept = [number for number in ends if number not in on_hands]
    ended = set().union(*(ends[number] for number in kept))
    # Regions on a hand: those that end most limbs first, lest a finger on a knee replaces the knee.
    for number in sorted(ends.keys() - set(kept), key=lambda n: -len(ends[n])):
        if ends[number] - ended:
            kept.append(number)
            ended |= ends[number]
    return kept, ended


def _hidden_wrists(
    wrist: int,
    ended: set[_Limb],
    joints: Sequence[_Regions],
    limbs: Sequence[_Regions],
    hands: NDArray[np.bool_],
) -> list[tuple[tuple[float, float], tuple[int, int]]]:
    """Return (x, y), and a pixel (row, column), of wrists that a hand covers."""
    wrists = []
    (forearm, elbow) = next((k, a) for k, (a, b) in enumerate(LIMBS) if b == wrist)
    for number in limbs[forearm].numbers:
        arm = limbs[forearm].pixels(number)
        elbows = joints[elbow].touching_pixels(arm)
        if (forearm, number) in ended or not elbows:
            continue
        start = np.array(joints[elbow].centre(min(elbows)))
        points = arm[:, ::-1]
        end = points[np.square(points - start).sum(1).argmax()]
        x, y = end.tolist()
        near = TOUCH_PX
        if hands[max(y - near, 0) : y + near + 1, max(x - near, 0) : x + near + 1].any():
            x_beyond, y_beyond = end + HAND_RADIUS * (end - start) / np.linalg.norm(end - start)
            wrists.append(((float(x_beyond), float(y_beyond)), (y, x)))
    return wrists


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two pose maps of one size by their joints: object keypoint similarity (OKS), 0..1.

    Each target joint is matched with the nearest extracted one of its kind and scores COCO's
    exp(-d² / (2 s² k²)); missing and extra joints score 0. Unlike COCO's, it reads the joints from
    the maps, whatever drew them, and ignores which person they belong to. Two empty maps score 1.
    """
    total, count = 0.0, 0
    for target_discs, extracted_discs, sigma in zip(
        joints_in(target), joints_in(extracted), OKS_SIGMAS, strict=True
    ):
        wanted, found = (
            np.array(discs, np.float64).reshape(-1, 3) for discs in (target_discs, extracted_discs)
        )
        first, second = matched(wanted[:, :2], found[:, :2])
        squares = np.square(wanted[first, :2] - found[second, :2]).sum(1)
        total += float(np.exp(-squares / (2 * (2 * sigma * wanted[first, 2]) ** 2)).sum())
        count += len(wanted) + len(found) - len(first)
    oks = total / count if count else float(np.array_equal(target, extracted))
    return Score(100 * oks, "OKS", {"OKS": oks})


def matched(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match points (N, 2) and (M, 2) one to one, the nearest pair first; return pairs of indices.

    As if all pairs were sorted by their distance, then by their indices. Whoever is the other's
    nearest is matched at once: nothing nearer can take either.
    """
    left, right = np.arange(len(first)), np.arange(len(second))
    pairs: list[NDArray[np.intp]] = [np.zeros((2, 0), np.intp)]
    while len(left) and len(right):
        nearest = _nearest(first[left], second[right])
        mutual = _nearest(second[right], first[left])[nearest] == np.arange(len(left))
        pairs.append(np.stack([left[mutual], right[nearest[mutual]]]))
        left, right = left[~mutual], np.delete(right, nearest[mutual])
    both = np.concatenate(pairs, 1)
    return both[0], both[1]


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return for each point (N, 2) the index (N,) of the nearest of the others (M, 2)."""
    step = max(1, DISTANCES_AT_ONCE // len(others))
    found = np.empty(len(points), np.intp)
    for start in range(0, len(points), step):
        x, y = np.moveaxis(points[start : start + step, None], 2, 0)  # apart: sum(2) is slow
        squares = np.square(x - others[:, 0])
        squares += np.square(y - others[:, 1])
        found[start : start + step] = squares.argmin(1)
    return found


def map_warning(control_map: ControlMap) -> str:
    """Warn of a map that is not sticks on black."""
    if lines_in(control_map).mean() > MAX_LINES:
        return "Most of this map is bright, but a pose is sticks on black."
    return ""


ANNOTATOR = Annotator(
    name="pose",
    preprocessors=(
        Preprocessor(
            "Diorama",
            draw_diorama,
            help=f"{HELP} In photographs it finds nobody.",
            detect_resolution=TRAINING_RESOLUTION,
            doubt=doubt,
        ),
        *(
            Preprocessor(
                f"BlazePose{more}",
                partial(draw_found, find=FINDERS[f"BlazePose{more}"]),
                f"{amount(BLAZEPOSE.size)} from the package index, and {BLAZEPOSE.requirements}",
                "Finds people in photographs; free for any use.",
                fetch_blazepose,
            )
            for more in ("", " with hands and face")
        ),
        *(
            detector_preprocessor(name, partial(draw_found, find=FINDERS[name]), OPENPOSE, TERMS)
            for name in ("OpenPose", "OpenPose with hands and face")
        ),
    ),
    params=PoseParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    empty_message="No person found in this picture.",
    empty_in_doubt=True,
    map_warning=map_warning,
    fit_map=fit_map,
    webui=WebUINames(
        {
            "openpose": "OpenPose",
            "openpose_full": "OpenPose with hands and face",
            "dw_openpose_full": "BlazePose with hands and face",
        },
        ("openpose",),
    ),
    editor=Editor(
        "pose",
        check_edit,
        draw_edit,
        begin_edit,
        read_edit,
        facts={
            "joints": JOINT_NAMES,
            "body25": BODY_25_TO_18,
            "unit": UNIT,
            "limbs": LIMBS,
            "colours": COLOURS,
            "limbColours": LIMB_COLOURS,
            "radius": JOINT_RADIUS,
            "halfWidth": LIMB_HALF_WIDTH,
        },
    ),
)
