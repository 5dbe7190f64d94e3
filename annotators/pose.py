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

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators._detectors import from_hub, load_detector, run_detector
from annotators._network import HELP, JOINTS, NECK, OFFSET_SCALE, see
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score

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

OPENPOSE = (
    ("body_pose_model.pth", 209_267_595),
    ("hand_pose_model.pth", 147_000_000),
    ("facenet.pth", 154_000_000),
)
NEEDS = f"{from_hub(sum(size for _, size in OPENPOSE))}, for non-commercial use"

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

Person = NDArray[np.float32]
"""(18, 2): x and y in pixels, NaN where not seen."""


@dataclass(frozen=True)
class PoseParams:
    """Poses have no settings."""


def draw_people(people: Sequence[Person], height: int, width: int) -> ControlMap:
    """Draw people on black, as ControlNet v1.1 does."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for person in people:
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
            if np.isnan(person[[a, b]]).any():
                continue
            (ax, ay), (bx, by) = person[a].tolist(), person[b].tolist()
            middle = (int((ax + bx) / 2), int((ay + by) / 2))
            axes = (int(math.hypot(ax - bx, ay - by) / 2), LIMB_HALF_WIDTH)
            angle = int(math.degrees(math.atan2(ay - by, ax - bx)))
            outline = np.array(cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1))
            cv2.fillConvexPoly(canvas, outline, [int(c * LIMB_BRIGHTNESS) for c in colour])
        for (x, y), colour in zip(person.tolist(), COLOURS, strict=True):
            if not math.isnan(x):
                cv2.circle(canvas, (int(x), int(y)), JOINT_RADIUS, colour, thickness=-1)
    return canvas


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
    detector = load_detector("OpenposeDetector", *OPENPOSE)
    return run_detector(detector, image, include_hand=hands_and_face, include_face=hands_and_face)


def joints_in(control_map: ControlMap) -> list[list[tuple[float, float, float]]]:
    """Return, for each of the 18 joints, the discs of its colour: x, y, and the person's size.

    The size is the root of the area of the box around all that hangs together there, in pixels.
    """
    drawn = (control_map.max(axis=2) > 0).astype(np.uint8)
    _, figure = cv2.connectedComponents(drawn)
    found: list[list[tuple[float, float, float]]] = []
    for colour in COLOURS:
        distance = np.abs(control_map.astype(np.int16) - np.array(colour)).max(axis=2)
        mask = (distance <= COLOUR_DISTANCE).astype(np.uint8)
        count, _, stats, centres = cv2.connectedComponentsWithStats(mask)
        discs = []
        for k in range(1, count):
            if stats[k, cv2.CC_STAT_AREA] < JOINT_RADIUS:  # a fleck at the seam of two colours
                continue
            x, y = centres[k]
            ys, xs = np.nonzero(figure == figure[round(y), round(x)])
            discs.append((float(x), float(y), math.sqrt(float(np.ptp(xs) + 1) * (np.ptp(ys) + 1))))
        found.append(discs)
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
    oks = total / count if count else 1.0
    return Score(100 * oks, "OKS", {"OKS": oks})


ANNOTATOR = Annotator(
    name="pose",
    preprocessors=(
        Preprocessor("Diorama", draw_diorama, help=f"{HELP} In photographs it misses most people."),
        Preprocessor(
            "OpenPose",
            partial(draw_openpose, hands_and_face=False),
            needs=NEEDS,
        ),
        Preprocessor(
            "OpenPose with hands and face",
            partial(draw_openpose, hands_and_face=True),
            needs=NEEDS,
        ),
    ),
    params=PoseParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    empty_message="No person found in this picture.",
)
