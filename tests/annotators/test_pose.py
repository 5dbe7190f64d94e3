"""Poses: grouping joints, drawing as OpenPose does, and the score."""

import colorsys
import math
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from controlnet_aux.open_pose import OpenposeDetector, PoseResult, draw_poses
from controlnet_aux.open_pose.body import Body, BodyResult, Keypoint
from controlnet_aux.open_pose.face import Face
from controlnet_aux.open_pose.hand import Hand
from hypothesis import given
from hypothesis import strategies as st

from annotators import pose
from annotators._blazepose import Figure
from annotators.pose import draw_people, find_people, joints_in, score
from core.errors import SuiteError
from core.images import resize_map
from training.train_annotator import joint_targets

# A standing person with arms out, in a box of 60 x 80 around (0, 0).
STANDING = np.array(
    [[0, -34], [0, -24], [-8, -24], [-18, -24], [-28, -24], [8, -24], [18, -24], [28, -24],
     [-5, 4], [-6, 20], [-7, 36], [5, 4], [6, 20], [7, 36], [-2, -37], [2, -37], [-5, -36],
     [5, -36]],
    np.float32,
)  # fmt: skip


def person(x: float, y: float) -> np.ndarray:
    return STANDING + np.array([x, y], np.float32)


def test_draws_as_controlnet_aux_does():
    from controlnet_aux.open_pose.util import draw_bodypose

    whole, part = person(64, 64) * 2, person(170, 64)
    part[[4, 10, 16]] = np.nan
    theirs = np.zeros((256, 256, 3), np.uint8)
    for body in (whole, part):
        points = [None if np.isnan(x) else Keypoint(x / 256, y / 256) for x, y in body.tolist()]
        theirs = draw_bodypose(theirs, points)
    assert np.array_equal(draw_people([whole, part], 256, 256), theirs)


def test_the_nose_is_red():
    drawn = draw_people([person(64, 64) * 2], 256, 256)
    assert drawn[60, 128].tolist() == [255, 0, 0]
    assert draw_people([], 8, 8).max() == 0


def test_two_people_are_separated():
    """From perfect predictions, with one person overlapping the other's arm."""
    people = [person(40, 60), person(85, 64)]
    keypoints = np.stack([np.concatenate([p, np.ones((18, 1))], 1) for p in people])
    heatmaps, offset, _ = joint_targets(keypoints.astype(np.float32), 128)
    logits = np.where(heatmaps > 0.5, 4, -4).astype(np.float32) + heatmaps
    grouped = find_people(logits.transpose(1, 2, 0), offset.transpose(1, 2, 0))
    assert len(grouped) == 2
    grouped.sort(key=lambda p: p[1, 0])
    for expected, actual in zip(people, grouped, strict=True):
        assert np.nanmax(np.abs(actual - expected)) <= 1
        assert (~np.isnan(actual[:, 0])).sum() >= 17


def test_predictions_are_drawn_at_the_pictures_scale(monkeypatch):
    """A cell of the prediction is two pixels wide."""
    keypoints = np.concatenate([person(64, 64), np.ones((18, 1))], 1)[None].astype(np.float32)
    heatmaps, offset, _ = joint_targets(keypoints, 128)
    logits = np.where(heatmaps > 0.5, 4, -4).astype(np.float32) + heatmaps
    prediction = {"joints": logits.transpose(1, 2, 0), "offset": offset.transpose(1, 2, 0)}
    monkeypatch.setattr(pose, "predict", lambda _: prediction)
    drawn = pose.draw_diorama(np.zeros((256, 256, 3), np.uint8), pose.PoseParams())
    assert score(draw_people([person(64, 64) * 2], 256, 256), drawn).headline > 75


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 0.8])
def test_joints_are_found_between_the_cells(shift):
    keypoints = np.concatenate([person(64 + shift, 64), np.ones((18, 1))], 1)[None]
    heatmaps, offset, _ = joint_targets(keypoints.astype(np.float32), 128)
    chance = heatmaps.transpose(1, 2, 0).clip(1e-4, 1 - 1e-4)
    (found,) = find_people(np.log(chance / (1 - chance)), offset.transpose(1, 2, 0))
    assert np.abs(found - keypoints[0, :, :2]).max() < 0.15


def test_three_joints_are_not_a_person():
    keypoints = np.zeros((1, 18, 3), np.float32)
    keypoints[0, :3, :2], keypoints[0, :3, 2] = [[30, 30], [30, 40], [22, 40]], 1
    heatmaps, offset, _ = joint_targets(keypoints, 64)
    logits = np.where(heatmaps > 0.5, 4, -4).astype(np.float32)
    assert find_people(logits.transpose(1, 2, 0), offset.transpose(1, 2, 0)) == []


def test_joints_are_read_back_from_the_drawing():
    drawn = draw_people([person(64, 64) * 2], 256, 256)
    for k, discs in enumerate(joints_in(drawn)):
        if k in (0, 14, 15, 16, 17):  # the face's joints overlap
            continue
        assert len(discs) == 1
        assert abs(discs[0][0] - (person(64, 64) * 2)[k, 0]) < 3


def test_score():
    one = draw_people([person(64, 64) * 2], 256, 256)
    assert score(one, one).headline == 100
    blank = np.zeros_like(one)
    assert score(one, blank).headline == 0 and score(blank, blank).headline == 100
    near = draw_people([person(65, 64) * 2], 256, 256)
    far = draw_people([person(75, 64) * 2], 256, 256)
    assert 100 > score(one, near).headline > 75 > score(one, far).headline
    two = draw_people([person(32, 45) * 2, person(96, 83) * 2], 256, 256)
    alone = draw_people([person(32, 45) * 2], 256, 256)
    assert score(two, alone).headline == pytest.approx(50, abs=1)
    assert score(alone, two).headline == pytest.approx(50, abs=1)


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=30))
def test_joints_are_matched_as_if_all_pairs_were_sorted(points):
    """By distance, then by the target's and the other's index."""
    two = np.array([place for *place, side in points if side % 2], np.float64).reshape(-1, 2)
    one = np.array([place for *place, side in points if side % 2 == 0], np.float64).reshape(-1, 2)
    pairs = sorted(
        (math.hypot(*(a - b)), i, j) for i, a in enumerate(one) for j, b in enumerate(two)
    )
    wanted: dict[int, int] = {}
    for _, i, j in pairs:
        if i not in wanted and j not in wanted.values():
            wanted[i] = j
    first, second = pose.matched(one, two)
    assert dict(zip(first.tolist(), second.tolist(), strict=True)) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("with_hands", [False, True])
def test_a_map_full_of_joints_is_scored_in_time(with_hands):
    """Small squares in joints' colours: hundreds of seconds if each were compared with the map."""
    squares = np.zeros((512, 1536, 3), np.uint8)
    for number, x in enumerate(range(0, 1536, 4)):
        squares[:, x : x + 3] = pose.COLOURS[number % len(pose.COLOURS)]
    if with_hands:
        squares[:, ::40] = pose.FINGER_ONLY_COLOURS[0]
    squares[::4] = 0
    began = time.perf_counter()
    joints = sum(map(len, joints_in(squares)))
    one = draw_people([person(64, 64) * 2], 512, 1536)
    low, high = score(squares, one).headline, score(squares, squares).headline
    assert joints > 1000 and low < 5 and high == 100
    assert time.perf_counter() - began < 20


# Hands and faces


def hand(wrist: np.ndarray, outwards: float, scale: float = 1.0) -> list[Keypoint]:
    """Five fingers spread from a wrist (x, y in pixels of 256); the last point is invisible."""
    points = [np.zeros(2)]
    for finger in range(5):
        angle = outwards + (finger - 2) * 0.35
        points += [scale * (8 + 4 * k) * np.array([np.cos(angle), np.sin(angle)]) for k in range(4)]
    keypoints = [Keypoint(*((wrist + point) / 256).tolist()) for point in points]
    return [*keypoints[:-1], Keypoint(-1 / 256, -1 / 256)]


def pose_of(body: np.ndarray, scale: float = 1.0) -> PoseResult:
    """A body (18, 2) in pixels of 256 with both hands and a face."""
    points = [None if np.isnan(x) else Keypoint(x / 256, y / 256) for x, y in body.tolist()]
    face = [
        Keypoint((body[0, 0] + x) / 256, (body[0, 1] + y) / 256) for x in (-6, 6) for y in (6, 9)
    ]
    left, right = hand(body[7], 1.2, scale), hand(body[4], np.pi - 1.2, scale)
    return PoseResult(BodyResult(points, 1.0, 18), left, right, [*face, Keypoint(-0.1, 0.5)])


@pytest.fixture
def openpose(monkeypatch):
    """An OpenposeDetector with random weights that detects one person with hands and a face."""
    from controlnet_aux.open_pose.face import FaceNet
    from controlnet_aux.open_pose.model import bodypose_model, handpose_model

    def with_network(kind, network):
        estimator = object.__new__(kind)
        estimator.model = network.eval()
        return estimator

    torch.manual_seed(0)
    detector = OpenposeDetector(
        with_network(Body, bodypose_model()),
        with_network(Hand, handpose_model()),
        with_network(Face, FaceNet()),
    )
    monkeypatch.setattr(pose, "load_detector", lambda *_: detector)
    calls = []

    def detect_poses(image, include_hand=False, include_face=False):
        calls.append((include_hand, include_face))
        whole = pose_of(person(64, 64) * 2)
        return [
            whole if include_hand else whole._replace(left_hand=None, right_hand=None, face=None)
        ]

    monkeypatch.setattr(detector, "detect_poses", detect_poses)
    detector.calls = calls
    return detector


def drawn_by(name: str) -> np.ndarray:
    draw = next(p.draw for p in pose.ANNOTATOR.preprocessors if p.name == name)
    return draw(np.zeros((256, 256, 3), np.uint8), pose.PoseParams())


@pytest.mark.slow
def test_hands_and_faces_are_drawn_as_by_controlnet_aux_without_matplotlib(openpose, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ours = drawn_by("OpenPose with hands and face")
    stand_in = ModuleType("matplotlib")
    stand_in.colors = SimpleNamespace(hsv_to_rgb=lambda hsv: np.array(colorsys.hsv_to_rgb(*hsv)))
    monkeypatch.setitem(sys.modules, "matplotlib", stand_in)
    theirs = draw_poses(openpose.detect_poses(None, True, True), 256, 256)
    assert np.array_equal(ours, theirs)
    for colour in ((255, 255, 255), (0, 0, 255)):
        assert (ours == colour).all(2).sum() > 80
    assert np.array_equal(drawn_by("OpenPose"), draw_people([person(64, 64) * 2], 256, 256))
    assert openpose.calls[0] == (True, True) and openpose.calls[-1] == (False, False)


@pytest.mark.slow
def test_the_real_detector_runs_on_a_black_picture(openpose, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(pose, "load_detector", lambda *_: openpose)
    named = {one.name: one.draw for one in pose.ANNOTATOR.preprocessors}
    draw = named["OpenPose with hands and face"]
    assert draw(np.zeros((64, 96, 3), np.uint8), pose.PoseParams()).shape == (64, 96, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OpenPose", "OpenPose with hands and face"])
def test_a_package_missing_at_run_time_is_one_sentence(openpose, monkeypatch, name):
    def detect_poses(*_):
        raise ModuleNotFoundError("No module named 'matplotlib'")

    monkeypatch.setattr(openpose, "detect_poses", detect_poses)
    with pytest.raises(SuiteError, match=r"OpenPose needs .*'matplotlib'.* another prepro"):
        drawn_by(name)


# The score ignores hands


def with_hands(body: np.ndarray, scale: float = 1.0) -> np.ndarray:
    canvas = draw_people([body], 256, 256)
    for points in (pose_of(body, scale).left_hand, pose_of(body, scale).right_hand):
        visible = np.array([[p.x * 256, p.y * 256] if p.x > 0 else [np.nan] * 2 for p in points])
        pose._draw_hand(canvas, visible)
    return canvas


@pytest.mark.slow
@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_hands_do_not_change_the_score(halved, scale):
    body = person(64, 64) * 2
    body[[4, 7]] = body[[3, 6]] + np.array([0, 24])  # to make room for hands
    plain, handed = draw_people([body], 256, 256), with_hands(body, scale)
    elsewhere = body + np.array([14, 0], np.float32)
    other, other_handed = draw_people([elsewhere], 256, 256), with_hands(elsewhere, scale)
    maps = [plain, handed, other, other_handed]
    if halved:
        maps = [resize_map(one, (128, 128), "nearest") for one in maps]
    plain, handed, other, other_handed = maps
    assert [len(discs) for discs in joints_in(handed)] == [len(discs) for discs in joints_in(plain)]
    assert score(plain, handed).headline > 97 and score(handed, plain).headline > 97
    assert score(handed, handed).headline == 100
    apart = score(plain, other).headline
    assert 20 < apart < 80
    assert score(handed, other_handed).headline == pytest.approx(apart, abs=3)
    assert score(plain, plain * 0).headline == score(handed, plain * 0).headline == 0
    assert score(plain * 0, handed).headline == 0


def test_a_hand_on_a_hip_or_knee_is_not_a_second_knee():
    for joint in (11, 12):
        body = person(64, 64) * 2
        body[7] = body[joint] + np.array([5, -3])
        assert len(joints_in(with_hands(body, 0.5))[12]) == 1


def test_joints_that_cover_their_limbs_count():
    small = person(0, 0) * 0.35 + np.array([64, 64], np.float32)
    drawn = draw_people([small], 128, 128)
    assert sum(len(discs) > 0 for discs in joints_in(drawn)) >= 14
    assert score(drawn, drawn).headline == 100 and score(drawn, drawn * 0).headline == 0


def test_a_joint_without_neighbours_counts():
    body = np.full((18, 2), np.nan, np.float32)
    body[[4, 9, 12, 16]] = [[30, 30], [90, 30], [30, 90], [90, 90]]
    drawn = draw_people([body], 128, 128)
    assert [len(discs) for discs in joints_in(drawn)] == [
        int(k in (4, 9, 12, 16)) for k in range(18)
    ]
    assert score(drawn, drawn * 0).headline == 0


@pytest.mark.parametrize(
    "scale", [3, *(pytest.param(one, marks=pytest.mark.slow) for one in (4, 8))]
)
@pytest.mark.parametrize("hand", [False, True])
def test_thin_sticks_of_a_large_map_stay_visible(scale: int, hand: bool) -> None:
    """A canvas of 8 times the size, on which joints still have OpenPose's few pixels."""
    body = person(60, 70) * 2
    small = draw_people([body], 256, 256)
    hands = ()
    if hand:
        spread = np.stack([np.linspace(0, 40, 21) % 13, np.linspace(0, 40, 21)], 1)
        hands = (body[4] * scale + spread * scale / 3,)
    large = pose.draw_figures([Figure(body * scale, hands)], 256 * scale, 256 * scale)
    fitted = pose.fit_map(large, (256, 256))
    assert sum(len(found) > 0 for found in joints_in(fitted)) >= 17
    assert score(small, fitted).headline > 85
    if scale == 8 and not hand:
        lost = joints_in(resize_map(large, (256, 256), "nearest"))
        assert sum(len(found) > 0 for found in lost) < 5
    assert not hand or (fitted == (0, 0, 255)).all(axis=2).sum() > 40


def test_maps_whose_joints_stay_large_enough_are_only_resized() -> None:
    body = person(60, 70) * 4
    for size in ((256, 256), (512, 512), (640, 640)):
        given = draw_people([body], 512, 512)
        assert np.array_equal(pose.fit_map(given, size), resize_map(given, size, "nearest"))
    empty = np.zeros((1024, 1024, 3), np.uint8)
    assert not pose.fit_map(empty, (256, 256)).any()
