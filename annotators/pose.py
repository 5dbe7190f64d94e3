"""Poses: people as sticks in OpenPose's colours, on black.

Sources: Cao et al. 2017, "Realtime Multi-Person 2D Pose Estimation" (OpenPose, whose weights are
for non-commercial use), through controlnet-aux; keypoints in its order, drawn as ControlNet v1.1
does (limbs at 60 % brightness, joints full). Diorama's annotator finds joints and, for each, the
way to its person's neck, as Papandreou et al. 2018 ("PersonLab") do.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators._diorama import HELP, JOINTS, LEARNED_AT, NECK, OFFSET_SCALE, see
from annotators._map_checks import MANY
from annotators._pretrained import IN_TURN, by_detector, load_detector, plain_import_errors
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.consistency import lines_in

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12),
    (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of joints (nose 0, neck 1, right shoulder 2, ...), in the order of their colours."""
COLOURS = tuple(
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(k / JOINTS, 1, 1))
    for k in range(JOINTS)
)
"""Of joint k, and of limb k: a wheel of hues that starts at red."""
JOINT_RADIUS, LIMB_HALF_WIDTH, LIMB_BRIGHTNESS = 4, 4, 0.6
LIMB_COLOURS = tuple(
    tuple(int(channel * LIMB_BRIGHTNESS) for channel in colour) for colour in COLOURS[: len(LIMBS)]
)
FINGERS = tuple((0 if k % 4 == 0 else k, k + 1) for k in range(20))
"""Pairs of a hand's 21 points (wrist 0, then four for each finger), in the order of their hues."""
FINGER_COLOURS = tuple(
    tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(k / len(FINGERS), 1, 1))
    for k in range(len(FINGERS))
)
HAND_COLOUR, HAND_RADIUS, FINGER_WIDTH = (0, 0, 255), 4, 2
FACE_COLOUR, FACE_RADIUS = (255, 255, 255), 3
"""Of the points of hands and faces, and the lines of fingers, as ControlNet v1.1 draws them."""

OPENPOSE = (
    "OpenposeDetector",
    (
        ("body_pose_model.pth", 209_267_595),
        ("hand_pose_model.pth", 147_000_000),
        ("facenet.pth", 154_000_000),
    ),
)
TERMS = "for non-commercial use"

CONFIDENT = 0.35
"""Chance above which a joint is taken for one."""
SAME_PERSON_CELLS = 14.0
"""Joints whose ways end nearer to each other than this have one neck."""
FEWEST_JOINTS = 4
"""Fewer do not make a person."""
OKS_SPREAD = (
    0.026, 0.079, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087,
    0.089, 0.025, 0.025, 0.035, 0.035,
)  # fmt: skip
"""COCO's sigmas, by which a person's marking of each joint varies; the neck has the shoulders'."""
COLOUR_DISTANCE = 30
"""Of a joint's own colour: neighbours on the wheel lie 85 apart, limbs 100 from their joints."""

Person = NDArray[np.floating]
"""(18, 2), or as many as a hand or face has: x and y in pixels, NaN where not seen."""

Disc = tuple[float, float, float]
"""A joint in a map: x, y and its person's size, in pixels."""
RIM = 2
"""Pixels: how near to each other is touching, so that a seam of blended colours may lie between."""
WRISTS = (4, 7)
FINGER_DISTANCE = 5
"""Of a finger's own colour: some joints' lie 8 from it."""
WIDEST_DISC = 2 * JOINT_RADIUS + 3
FINGERS_ALONE = tuple(
    one
    for one in FINGER_COLOURS
    if all(max(abs(a - b) for a, b in zip(one, joint, strict=True)) > 12 for joint in COLOURS)
)
"""The colours that only fingers have."""


@dataclass(frozen=True)
class PoseParams:
    """Poses have no settings."""


def draw_people(people: Sequence[Person], height: int, width: int) -> ControlMap:
    """Draw people on black, as ControlNet v1.1 does."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for person in people:
        _draw_body(canvas, person)
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
    """Return the people that the network's joints (h, w, 18) and offsets (h, w, 2) show, in cells.

    Every confident peak votes for a neck; votes that end together are one person.
    """
    chance = 1 / (1 + np.exp(-joints))
    peaks = (cv2.dilate(chance, np.ones((3, 3), np.uint8)) == chance) & (chance > CONFIDENT)
    rows, columns, kinds = np.nonzero(peaks)
    order = np.argsort(-chance[rows, columns, kinds], kind="stable")
    people: list[Person] = []
    necks: list[NDArray[np.float32]] = []
    # Necks first: they know best where they are.
    for at in sorted(order, key=lambda k: kinds[k] != NECK):
        row, column, kind = rows[at], columns[at], kinds[at]
        place = np.array([column, row], np.float32)
        vote = place + (0 if kind == NECK else offset[row, column] * OFFSET_SCALE)
        distances = [float(np.linalg.norm(vote - neck)) for neck in necks]
        free = [
            d if np.isnan(p[kind, 0]) else math.inf for d, p in zip(distances, people, strict=True)
        ]
        if free and min(free) < SAME_PERSON_CELLS:
            people[int(np.argmin(free))][kind] = place
        elif not distances or min(distances) >= SAME_PERSON_CELLS:
            person = np.full((JOINTS, 2), np.nan, np.float32)
            person[kind] = place
            people.append(person)
            necks.append(vote)
    return [p for p in people if (~np.isnan(p[:, 0])).sum() >= FEWEST_JOINTS]


def draw_diorama(image: RGBImage, _: PoseParams) -> ControlMap:
    """Draw the people that Diorama's annotator sees."""
    seen = see(image)
    cells = seen["joints"].shape
    scale = np.array([image.shape[1] / cells[1], image.shape[0] / cells[0]], np.float32)
    half = np.float32(0.5)  # a cell's middle is where its index says, and so is a pixel's
    found = find_people(seen["joints"], seen["offset"])
    people = [(person + half) * scale - half for person in found]
    return draw_people(people, *image.shape[:2])


def draw_openpose(image: RGBImage, _: PoseParams, hands_and_face: bool) -> ControlMap:
    """Draw OpenPose's people."""
    detector = load_detector(*OPENPOSE)
    with IN_TURN, plain_import_errors(OPENPOSE[0]):
        found = detector.detect_poses(image, hands_and_face, hands_and_face)
    canvas = np.zeros_like(image)
    height, width = image.shape[:2]
    for pose in found:
        _draw_body(canvas, _placed(pose.body.keypoints, width, height))
        for hand in (pose.left_hand, pose.right_hand):
            if hand:
                _draw_hand(canvas, _on_picture(_placed(hand, width, height)))
        if pose.face:
            face = _on_picture(_placed(pose.face, width, height))
            _draw_dots(canvas, face, FACE_RADIUS, FACE_COLOUR)
    return canvas


def _placed(points: Sequence[Any], width: int, height: int) -> Person:
    """Return controlnet-aux's points, whose x and y are shares of the picture's sides."""
    nowhere = (math.nan, math.nan)
    return np.array([nowhere if p is None else (p.x * width, p.y * height) for p in points])


def _on_picture(points: Person) -> Person:
    """Return points with those that lie left of or above the picture unseen: its word for that."""
    return np.where((points >= 1).all(1, keepdims=True), points, np.nan)


def joints_in(control_map: ControlMap) -> list[list[Disc]]:
    """Return, for each of the 18 joints, the discs of its colour, and the size of their people.

    Hands have no part in it, though their points have the colour of a joint and their lines those
    of several: what lies on a hand counts only at a limb of its own, one at either end of each, and
    a wrist that a hand covers is where its forearm ends.
    """
    hands = hands_in(control_map)
    body = control_map.max(axis=2) > 0
    _, figure = cv2.connectedComponents(body.astype(np.uint8))
    body &= ~hands
    joints = [_parts(control_map, colour) for colour in COLOURS]
    limbs = [_parts(control_map, colour) for colour in LIMB_COLOURS] if hands.any() else []
    found: list[list[Disc]] = []
    for kind, parts in enumerate(joints):
        numbers = parts.numbers
        ended: set[_Limb] = set()
        if limbs:
            numbers, ended = _off_hands(kind, parts, limbs, hands)
        places = [(parts.centre(number), parts.pixel(number)) for number in numbers]
        if limbs and kind in WRISTS:
            places += _under_hands(kind, ended, joints, limbs, hands)
        found.append([])
        for (x, y), pixel in places:
            ys, xs = np.nonzero((figure == figure[pixel]) & body)
            size = math.sqrt(float(np.ptp(xs) + 1) * (np.ptp(ys) + 1)) if len(xs) else 1.0
            found[-1].append((x, y, size))
    return found


def hands_in(control_map: ControlMap) -> NDArray[np.bool_]:
    """Return where (H, W) a pose map has hands: points and lines that hang together.

    They are known by lines whose colours no joint has, by points that make up more than a disc, and
    by a point at a forearm and at no leg: a small hand's points cover its lines.
    """
    known, like_hands = (
        np.any([_near(control_map, one, FINGER_DISTANCE) for one in colours], axis=0)
        for colours in (FINGERS_ALONE, (HAND_COLOUR, *FINGER_COLOURS))
    )
    points = _parts(control_map, HAND_COLOUR)
    forearms, legs = (
        [
            _parts(control_map, LIMB_COLOURS[k])
            for k, limb in enumerate(LIMBS)
            if set(ends) & {*limb}
        ]
        for ends in (WRISTS, (COLOURS.index(HAND_COLOUR),))
    )
    for number in points.numbers:
        part = points.labels == number
        wide = max(points.stats[number, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]) > WIDEST_DISC
        at_arm = any(limb.touched(part) for limb in forearms)
        if wide or (at_arm and not any(limb.touched(part) for limb in legs)):
            known |= part
    _, labels = cv2.connectedComponents(like_hands.astype(np.uint8))
    return np.isin(labels, np.unique(labels[known]))


@dataclass(frozen=True)
class _Parts:
    """All of one colour in a map: what hangs together has one number, from 1."""

    labels: NDArray[np.int32]
    stats: NDArray[np.int32]
    centres: NDArray[np.float64]

    @property
    def numbers(self) -> list[int]:
        """Those large enough to be no fleck at the seam of two colours."""
        large = self.stats[:, cv2.CC_STAT_AREA] >= JOINT_RADIUS
        return [k for k in np.flatnonzero(large).tolist() if k]

    def centre(self, number: int) -> tuple[float, float]:
        x, y = self.centres[number].tolist()
        return x, y

    def pixel(self, number: int) -> tuple[int, int]:
        """Return the row and column of one of a part's pixels; its centre may not be one."""
        row, column = np.argwhere(self.labels == number)[0].tolist()
        return row, column

    def touched(self, part: NDArray[np.bool_]) -> set[int]:
        """Return which of these parts touch another."""
        grown = cv2.dilate(part.astype(np.uint8), np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8))
        return set(np.unique(self.labels[grown > 0]).tolist()) & set(self.numbers)


def _near(control_map: ControlMap, colour: tuple[int, ...], distance: int) -> NDArray[np.bool_]:
    low, high = (np.array(colour) + sign * distance for sign in (-1, 1))
    return cv2.inRange(control_map, low, high) > 0


def _parts(control_map: ControlMap, colour: tuple[int, ...]) -> _Parts:
    mask = _near(control_map, colour, COLOUR_DISTANCE).astype(np.uint8)
    _, labels, stats, centres = cv2.connectedComponentsWithStats(mask)
    return _Parts(
        np.asarray(labels, np.int32), np.asarray(stats, np.int32), np.asarray(centres, np.float64)
    )


_Limb = tuple[int, int]
"""A limb's kind, and its number among the parts of its colour."""


def _off_hands(
    kind: int, parts: _Parts, limbs: Sequence[_Parts], hands: NDArray[np.bool_]
) -> tuple[list[int], set[_Limb]]:
    """Return which parts of a joint's colour are no part of a hand, and the limbs they end."""
    ends: dict[int, set[_Limb]] = {}
    for number in parts.numbers:
        part = parts.labels == number
        own = [k for k, limb in enumerate(LIMBS) if kind in limb]
        ends[number] = {(k, limb) for k in own for limb in limbs[k].touched(part)}
    free = [number for number in ends if not hands[parts.labels == number].any()]
    ended = set().union(*(ends[number] for number in free))
    # On a hand the best comes first, so that a finger on a knee does not take its place.
    for number in sorted(ends.keys() - set(free), key=lambda one: -len(ends[one])):
        if ends[number] - ended:
            free.append(number)
            ended |= ends[number]
    return free, ended


def _under_hands(
    wrist: int,
    ended: set[_Limb],
    joints: Sequence[_Parts],
    limbs: Sequence[_Parts],
    hands: NDArray[np.bool_],
) -> list[tuple[tuple[float, float], tuple[int, int]]]:
    """Return the ends of forearms, with a pixel of each, that have a hand for a wrist."""
    found = []
    (forearm, elbow) = next((k, a) for k, (a, b) in enumerate(LIMBS) if b == wrist)
    for number in limbs[forearm].numbers:
        arm = limbs[forearm].labels == number
        elbows = joints[elbow].touched(arm)
        if (forearm, number) in ended or not elbows:
            continue
        start = np.array(joints[elbow].centre(min(elbows)))
        points = np.argwhere(arm)[:, ::-1]
        end = points[np.square(points - start).sum(1).argmax()]
        x, y = end.tolist()
        if hands[max(y - RIM, 0) : y + RIM + 1, max(x - RIM, 0) : x + RIM + 1].any():
            x_beyond, y_beyond = end + HAND_RADIUS * (end - start) / np.linalg.norm(end - start)
            found.append(((float(x_beyond), float(y_beyond)), (y, x)))
    return found


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two pose maps of one size by their joints: object keypoint similarity (OKS), 0..1.

    Each wanted joint is paired with the nearest found one of its kind and earns
    exp(-d² / (2 s² k²)), COCO's similarity; joints missed, and joints that nobody asked for, earn
    nothing. Ours in that it is read from the maps, so that it serves every way to draw one, and
    does not ask whether joints hang together. Two maps without people agree fully.
    """
    total, count = 0.0, 0
    for wanted_discs, found_discs, spread in zip(
        joints_in(wanted), joints_in(found), OKS_SPREAD, strict=True
    ):
        pairs = sorted(
            (math.hypot(a[0] - b[0], a[1] - b[1]), i, j)
            for i, a in enumerate(wanted_discs)
            for j, b in enumerate(found_discs)
        )
        used_wanted: set[int] = set()
        used_found: set[int] = set()
        for distance, i, j in pairs:
            if i not in used_wanted and j not in used_found:
                used_wanted.add(i)
                used_found.add(j)
                total += math.exp(-(distance**2) / (2 * (2 * spread * wanted_discs[i][2]) ** 2))
        count += len(wanted_discs) + len(found_discs) - len(used_wanted)
    oks = total / count if count else float(np.array_equal(wanted, found))
    return Score(100 * oks, "OKS", {"OKS": oks})


def map_warning(control_map: ControlMap) -> str:
    """Tell of a map that is no sticks on black."""
    if lines_in(control_map).mean() > MANY:
        return "Most of this map is bright, but a pose is sticks on black."
    return ""


ANNOTATOR = Annotator(
    name="pose",
    preprocessors=(
        Preprocessor(
            "Diorama",
            draw_diorama,
            help=f"{HELP} In photographs it misses most people and sees some where none are.",
            detect_resolution=LEARNED_AT,
        ),
        by_detector("OpenPose", partial(draw_openpose, hands_and_face=False), OPENPOSE, TERMS),
        by_detector(
            "OpenPose with hands and face",
            partial(draw_openpose, hands_and_face=True),
            OPENPOSE,
            TERMS,
        ),
    ),
    params=PoseParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    empty_message="No person found in this picture.",
    map_warning=map_warning,
)
