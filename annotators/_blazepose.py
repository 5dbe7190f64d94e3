"""BlazePose: finds people in photographs, and their hands and faces, with MediaPipe's networks.

A detector proposes people by their faces; a landmark network looks at each in a square that is
turned upright. The networks are Google's (Apache-2.0), as TensorFlow Lite files from the wheel of
mediapipe; LiteRT runs them. What lies between them is written anew from the papers, and its
constants are those of MediaPipe 0.10.21's graphs (mediapipe/modules/*/*.pbtxt), so that the
landmarks are MediaPipe's own.

Sources: Bazarevsky et al. 2020, "BlazePose: On-device Real-time Body Pose Tracking"; Bazarevsky et
al. 2019, "BlazeFace"; Zhang et al. 2020, "MediaPipe Hands"; Grishchenko and Bazarevsky 2020,
"MediaPipe Holistic".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from annotators._pretrained import INFERENCE_LOCK
from core.condition import RGBImage
from core.errors import SuiteError
from models.catalog.download import Watch
from models.catalog.wheels import BLAZEPOSE, fetch_wheel

Points = NDArray[np.floating]
"""(n, 2): x and y, in pixels or in parts of a square's side; NaN where not seen."""
Values = NDArray[np.floating]

PERSON = 0.5
"""Chance above which a person, a hand or a face is taken for one, as in every graph."""
VISIBLE = 0.5
"""Chance above which a joint is drawn: that it is in the picture, and that nothing hides it."""
WRIST_VISIBLE = 0.1
"""From here on a hand is looked for (hand_visibility_from_hand_landmarks_from_pose.pbtxt)."""
OVERLAP = 0.3
"""Of two boxes, intersection over union: beyond it they show the same thing."""
SMALL_PERSON = 0.7
"""The same in tiles of half the side, where more looks like a face."""
SAME_PERSON, STEADY = 0.1, 0.06
"""Mean way between two sets of landmarks, in parts of a person's size: below the first they show
one person; what a second look moves further than the second is none (in 26 photographs the people
moved by 0.05 at most, and what was none and likely in both looks by 0.064 at least)."""
LOOKS = 4
"""At each person: a part of what a first look says comes from where it looked. Maps of a picture
with noise, mirrored, shifted or blurred agree with its own to OKS 0.68 after one, 0.85 after four.
"""
SAME_FACE = 0.15
"""Of a person's size, from nose to neck: a box so near proposes the same person again."""
AROUND_PERSON = 1.25
"""Margin that the landmark network was trained with (pose_detection_to_roi.pbtxt)."""
REFINED_WITHIN = 3
"""Cells of the heat map around a landmark that refine it: a window of 7."""

NOSE, LEFT_EYE, RIGHT_EYE, SHOULDERS = 0, 2, 5, (11, 12)
LANDMARKS = 33
"""Of the network's 39: the others mark the square that a video's next picture would be cut to."""
FACE_LANDMARKS = slice(0, 11)
HANDS = ((15, 17, 19), (16, 18, 20))
"""Wrist, little finger and index finger, left and right."""
OPENPOSE_ORDER = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
"""Which landmark is each of OpenPose's 18 joints; its neck (-1) is the middle of the shoulders."""
FACE_ORDER = (
    234, 93, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 323, 454,  # jaw
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 6, 195, 4, 98, 97, 2, 326, 327,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178,  # lips
)  # fmt: skip
"""Which of the face mesh's 468 points is each of OpenPose's first 68 (dlib's and iBUG's)."""
EYES = slice(36, 42), slice(42, 48)
"""Among these: OpenPose's last two points, the pupils, are their middles."""


@dataclass(frozen=True)
class Figure:
    """One person."""

    body: Points
    """(18, 2): OpenPose's joints, in pixels."""
    hands: tuple[Points, ...] = ()
    """(21, 2) each."""
    face: Points | None = None
    """(70, 2)."""


@dataclass(frozen=True)
class Region:
    """A square of a picture, turned, that a network looks at; all in pixels."""

    x: float
    y: float
    """Of its middle."""
    side: float
    angle: float = 0.0
    """Radians by which its top is turned clockwise."""

    def on_picture(self, points: Points) -> Points:
        """Return points (n, 2), given in parts of its side from its corner, in the picture."""
        cos, sin = math.cos(self.angle) * self.side, math.sin(self.angle) * self.side
        turn = np.array([[cos, sin], [-sin, cos]])
        return np.asarray((points - 0.5) @ turn + (self.x, self.y))

    def cut(self, image: RGBImage, pixels: int, border: int = cv2.BORDER_REPLICATE) -> Values:
        """Return the square as a network's input: (pixels, pixels, 3), 0..1."""
        corners = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
        source = self.on_picture(corners).astype(np.float32)
        matrix = cv2.getAffineTransform(source, corners * pixels)
        cut = cv2.warpAffine(image, matrix, (pixels, pixels), borderMode=border)
        return np.asarray(cut / 255, np.float32)

    def grown(self, scale: float, shift: float = 0.0) -> "Region":
        """Return it moved along its own y axis by a part of its side, then scaled."""
        x, y = self.on_picture(np.array([[0.5, 0.5 + shift]]))[0].tolist()
        return Region(x, y, self.side * scale, self.angle)


def between(centre: Points, above: Points, size: float = 2.0) -> Region:
    """Return the square around a point (2,), upright towards another, so many times their way."""
    (x, y), (right, down) = centre.tolist(), (above - centre).tolist()
    return Region(x, y, size * math.hypot(right, down), math.atan2(right, -down))


def around(points: Points, right: Points, left: Points) -> Region:
    """Return the square around points (n, 2), level with the line from one eye to the other."""
    low, high = points.min(0), points.max(0)
    (x, y), (across, down) = ((low + high) / 2).tolist(), (left - right).tolist()
    return Region(x, y, float((high - low).max()), math.atan2(down, across))


def chance_of(logits: Values) -> NDArray[np.float64]:
    """Return the chances (0..1) that a network gives as logits."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64).clip(-100, 100))))


def anchors(pixels: int, strides: Sequence[int]) -> Points:
    """Return the middles (n, 2) of a detector's cells in parts of its side, row by row.

    Each layer brings two anchors a cell, and layers of one stride lie together.
    """
    middles = []
    for stride in dict.fromkeys(strides):
        cells = pixels // stride
        row = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(row, row), 2).reshape(-1, 2)
        middles.append(grid.repeat(2 * strides.count(stride), 0))
    return np.concatenate(middles)


def detections(
    raw: Values, logits: Values, middles: Points, pixels: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return a detector's boxes and points (n, 2 + k, 2) in parts of its side, and chances (n,).

    Of `raw` (N, 4 + 2k) the first two are the box's middle and the next two its sides; a box is
    given by its corners. What overlaps is averaged, weighed by its chance ("blending" instead of
    suppression: BlazeFace, section 3.3). The likeliest is first.
    """
    chances = chance_of(logits)
    likely = np.flatnonzero(chances > PERSON)
    likely = likely[np.argsort(-chances[likely], kind="stable")]
    chances = chances[likely]
    values = raw[likely].reshape(len(likely), raw.shape[1] // 2, 2) / pixels
    values[:, [0, *range(2, values.shape[1])]] += middles[likely][:, None]
    half = values[:, 1] / 2
    values[:, 0], values[:, 1] = values[:, 0] - half, values[:, 0] + half
    blended, best = [], []
    left = np.arange(len(likely))
    while len(left):
        same = overlaps(values[left[0], :2], values[left, :2]) > OVERLAP
        same[0] = True
        group = left[same]
        blended.append(np.average(values[group], axis=0, weights=chances[group]))
        best.append(chances[group[0]])
        left = left[~same]
    return np.reshape(blended, (-1, *values.shape[1:])), np.array(best)


def overlaps(box: Points, boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the intersection over union of a box (2, 2), by its corners, with others (n, 2, 2)."""
    low, high = np.maximum(box[0], boxes[:, 0]), np.minimum(box[1], boxes[:, 1])
    shared = (high - low).clip(0).prod(1)
    whole = np.prod(box[1] - box[0]) + (boxes[:, 1] - boxes[:, 0]).prod(1) - shared
    return np.asarray(shared / np.maximum(whole, 1e-9))


def tiles(width: int, height: int) -> list[Region]:
    """Return where a detector, made for one person in the middle, looks for people of all sizes.

    The whole picture, squares as large as they fit, and squares of half the side, each overlapping
    the next by half or more.
    """
    short = min(width, height)
    found = [Region(width / 2, height / 2, max(width, height))]
    for side in (short, short / 2):
        across, down = (
            np.linspace(side / 2, length - side / 2, math.ceil(2 * length / side) - 1).tolist()
            for length in (width, height)
        )
        found += [Region(x, y, side) for y in down for x in across]
    return list(dict.fromkeys(found))


def _apart(points: Points, others: Points) -> float:
    """Return the mean way between landmarks, in parts of their extent."""
    way = np.linalg.norm(points - others, axis=1).mean()
    return float(way / np.ptp(points, axis=0).max())


def _shows(box: Points, person: Points) -> bool:
    """Return whether a detector's box (2, 2) lies where a person's face and neck are."""
    nose, neck, middle = person[NOSE], person[list(SHOULDERS)].mean(0), box.mean(0)
    along = np.clip((middle - nose) @ (neck - nose) / max(np.sum((neck - nose) ** 2), 1e-9), 0, 1)
    way = np.linalg.norm(middle - nose - along * (neck - nose))
    return bool(way < SAME_FACE * np.ptp(person, axis=0).max())


def refined(points: Points, heat: Values) -> Points:
    """Return landmarks (n, 2), in parts of the side, moved to the middle of the heat around them.

    `heat` (h, w, n) are logits; where it is nowhere likelier than not, a landmark stays.
    """
    height, width = heat.shape[:2]
    result = points.copy()
    for k, (x, y) in enumerate(points.tolist()):
        column, row = int(x * width), int(y * height)
        if not (0 <= column < width and 0 <= row < height):
            continue
        left, top = max(0, column - REFINED_WITHIN), max(0, row - REFINED_WITHIN)
        window = heat[top : row + REFINED_WITHIN + 1, left : column + REFINED_WITHIN + 1, k]
        chance = chance_of(window)
        if chance.max() >= 0.5:
            rows, columns = np.indices(window.shape)
            total = chance.sum()
            result[k] = (
                (left + (columns * chance).sum() / total) / width,
                (top + (rows * chance).sum() / total) / height,
            )
    return result


def openpose_body(landmarks: Points, chances: Values, width: int, height: int) -> Points:
    """Return OpenPose's 18 joints (18, 2) of 33 landmarks in pixels; NaN where not seen.

    A joint is not seen where its chance (33,) is low or where it lies beyond the picture's edge.
    """
    inside = ((landmarks >= 0) & (landmarks < (width, height))).all(1)
    seen = np.where(((chances > VISIBLE) & inside)[:, None], landmarks, np.nan)
    body = seen[list(OPENPOSE_ORDER)]
    body[1] = seen[list(SHOULDERS)].mean(0)
    return np.asarray(body)


def openpose_face(mesh: Points) -> Points:
    """Return OpenPose's 70 face points (70, 2) of the mesh's 468."""
    face = mesh[list(FACE_ORDER)]
    return np.concatenate([face, [face[eye].mean(0) for eye in EYES]])


def fetch_blazepose(watch: Watch | None = None) -> Path:
    """Return the folder of the networks.

    Raises:
        WeightsMissing: they are not here, and the package index cannot be reached.
        SuiteError: LiteRT cannot be imported, so that they would be of no use.
        Exception: what `watch` raises.
    """
    _runtime()
    return fetch_wheel(BLAZEPOSE, watch)


def _runtime() -> Any:
    try:
        from ai_edge_litert import interpreter  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SuiteError(
            f"BlazePose needs ai-edge-litert, which cannot be used here ({error}): run "
            f"`{BLAZEPOSE.advice}` or choose another preprocessor."
        ) from error
    return interpreter.Interpreter


@lru_cache(maxsize=8)
def _network(file: Path) -> Any:
    network = _runtime()(str(file))
    network.allocate_tensors()
    return network


class Networks:
    """The networks of a folder; hold INFERENCE_LOCK while they are used."""

    def __init__(self, folder: Path) -> None:
        """Remember where they are; each is loaded when first used, and kept."""
        self._folder = folder

    def run(self, name: str, pixels: Values) -> list[Values]:
        """Return what a network says about one picture (h, w, 3), its outputs in their order."""
        network = _network(self._folder / f"{name}.tflite")
        network.set_tensor(network.get_input_details()[0]["index"], pixels[None])
        network.invoke()
        outputs = network.get_output_details()
        return [np.asarray(network.get_tensor(one["index"])[0], np.float32) for one in outputs]

    def detect(
        self, name: str, image: RGBImage, region: Region, pixels: int, strides: Sequence[int]
    ) -> tuple[list[Points], NDArray[np.floating]]:
        """Return all that a detector finds, box's corners and points (2 + k, 2), and chances."""
        cut = region.cut(image, pixels, cv2.BORDER_CONSTANT) * 2 - 1
        raw, logits = self.run(name, cut)
        found, chances = detections(raw, logits[:, 0], anchors(pixels, strides), pixels)
        return [region.on_picture(one) for one in found], chances

    def people(self, image: RGBImage) -> list[tuple[Points, Values]]:
        """Return each person's 33 landmarks (33, 2) in pixels, and how likely each is seen.

        The largest are first. Each is looked at LOOKS times, every time where the landmarks before
        say, as MediaPipe does from one picture of a video to the next.
        """
        people: list[tuple[Points, Values]] = []
        for tile in tiles(*image.shape[1::-1]):
            for box, region in self._candidates(image, tile):
                if any(_shows(box, points) for points, _ in people):
                    continue
                found = self._person(image, region)
                if found and all(_apart(found[0], other) > SAME_PERSON for other, _ in people):
                    people.append(found)
        return people

    def _candidates(self, image: RGBImage, tile: Region) -> list[tuple[Points, Region]]:
        """Return who is proposed in a tile: a box (2, 2) around the face, and where to look."""
        found, chances = self.detect("pose_detection", image, tile, 224, (8, 16, 32, 32, 32))
        least = PERSON if tile.side >= min(image.shape[:2]) else SMALL_PERSON
        return [
            (one[:2], between(one[2], one[3]).grown(AROUND_PERSON))
            for one, chance in zip(found, chances, strict=True)
            if chance > least
        ]

    def _person(self, image: RGBImage, region: Region) -> tuple[Points, Values] | None:
        """Return the landmarks of the person in a region, the mean of the last two looks."""
        looks: list[tuple[Points, Values]] = []
        while len(looks) < LOOKS:
            seen = self._landmarks(image, region)
            if seen is None:
                return None
            looks.append(seen)
            hips, above = seen[0][LANDMARKS : LANDMARKS + 2]
            region = between(hips, above).grown(AROUND_PERSON)
            if len(looks) == 2 and _apart(looks[0][0][:LANDMARKS], seen[0][:LANDMARKS]) > STEADY:
                return None
        (before, chances_before), (points, chances) = looks[-2:]
        return ((before + points) / 2)[:LANDMARKS], (chances_before + chances) / 2

    def _landmarks(self, image: RGBImage, region: Region) -> tuple[Points, Values] | None:
        """Return 39 landmarks (39, 2) in pixels, and the chances of the first 33, of a person."""
        values, flag, _, heat, _ = self.run("pose_landmark_full", region.cut(image, 256))
        if flag[0] < PERSON:
            return None
        values = values.reshape(-1, 5)
        points = region.on_picture(refined(values[:, :2] / 256, heat))
        return points, chance_of(values[:LANDMARKS, 3:]).min(1)

    def hand(self, image: RGBImage, wrist: Points, little: Points, index: Points) -> Points | None:
        """Return a hand's 21 points (21, 2) near a wrist, if there is one."""
        middle = (2 * index + little) / 3
        region = replace(between(wrist, middle), x=float(middle[0]), y=float(middle[1]))
        region = region.grown(2.7, -0.1)
        (values,) = self.run("hand_recrop", region.cut(image, 256))
        centre, corner = region.on_picture(values.reshape(2, 2) / 256)
        region = between(centre, 2 * centre - corner).grown(1.0, -0.1)
        values, flag, *_ = self.run("hand_landmark_full", region.cut(image, 224))
        if flag[0] < PERSON:
            return None
        return region.on_picture(values.reshape(21, 3)[:, :2] / 224)

    def face(self, image: RGBImage, landmarks: Points) -> Points | None:
        """Return a face's 468 points (468, 2) near those of a person's landmarks, if it has one."""
        region = around(landmarks[FACE_LANDMARKS], landmarks[RIGHT_EYE], landmarks[LEFT_EYE])
        faces, _ = self.detect(
            "face_detection_short_range", image, region.grown(3.0), 128, (8, 16, 16, 16)
        )
        if not faces:
            return None
        points = faces[0][2:]
        region = around(points, points[0], points[1]).grown(2.0, -0.1)
        values, flag = self.run("face_landmark", region.cut(image, 192))
        if flag.item() < 0:  # a logit
            return None
        return region.on_picture(values.reshape(468, 3)[:, :2] / 192)


def find_figures(image: RGBImage, hands_and_face: bool) -> list[Figure]:
    """Return the people in a picture (H, W, 3), the largest first.

    Raises:
        WeightsMissing, SuiteError: as fetch_blazepose.
    """
    networks = Networks(fetch_blazepose())
    height, width = image.shape[:2]
    figures = []
    with INFERENCE_LOCK:
        for landmarks, chances in networks.people(image):
            body = openpose_body(landmarks, chances, width, height)
            if not hands_and_face:
                figures.append(Figure(body))
                continue
            places = [landmarks[list(hand)] for hand in HANDS if chances[hand[0]] > WRIST_VISIBLE]
            hands = [networks.hand(image, *place) for place in places]
            mesh = networks.face(image, landmarks)
            face = None if mesh is None else openpose_face(mesh)
            figures.append(Figure(body, tuple(one for one in hands if one is not None), face))
    return figures
