"""People found and drawn: joints a person can point at, OpenPose's drawing, and the score."""

import numpy as np
import pytest

from annotators import pose
from annotators.pose import draw_people, find_people, joints_in, score
from training.train_annotator import joint_targets

# A person standing with arms out, in a box of 60 x 80 around (0, 0).
STANDING = np.array(
    [[0, -34], [0, -24], [-8, -24], [-18, -24], [-28, -24], [8, -24], [18, -24], [28, -24],
     [-5, 4], [-6, 20], [-7, 36], [5, 4], [6, 20], [7, 36], [-2, -37], [2, -37], [-5, -36],
     [5, -36]],
    np.float32,
)  # fmt: skip


def person(x: float, y: float) -> np.ndarray:
    return STANDING + np.array([x, y], np.float32)


def test_draws_as_controlnet_aux_does():
    from controlnet_aux.open_pose.body import Keypoint
    from controlnet_aux.open_pose.util import draw_bodypose

    whole, part = person(64, 64) * 2, person(170, 64)
    part[[4, 10, 16]] = np.nan
    theirs = np.zeros((256, 256, 3), np.uint8)
    for one in (whole, part):
        points = [None if np.isnan(x) else Keypoint(x / 256, y / 256) for x, y in one.tolist()]
        theirs = draw_bodypose(theirs, points)
    assert np.array_equal(draw_people([whole, part], 256, 256), theirs)


def test_the_nose_is_red_and_nothing_else_is():
    drawn = draw_people([person(64, 64) * 2], 256, 256)
    assert drawn[60, 128].tolist() == [255, 0, 0]
    assert draw_people([], 8, 8).max() == 0


def test_two_people_are_found_apart():
    """Perfect answers of the network, one person overlapping the other's arm."""
    people = [person(40, 60), person(85, 64)]
    keypoints = np.stack([np.concatenate([p, np.ones((18, 1))], 1) for p in people])
    places, offset, _ = joint_targets(keypoints.astype(np.float32), 128)
    logits = np.where(places > 0.5, 4, -4).astype(np.float32) + places
    found = find_people(logits.transpose(1, 2, 0), offset.transpose(1, 2, 0))
    assert len(found) == 2
    found.sort(key=lambda p: p[1, 0])
    for wanted, one in zip(people, found, strict=True):
        assert np.nanmax(np.abs(one - wanted)) <= 1
        assert (~np.isnan(one[:, 0])).sum() >= 17


def test_what_the_network_sees_is_drawn_on_the_picture(monkeypatch):
    """The network's cells are two pixels wide."""
    keypoints = np.concatenate([person(64, 64), np.ones((18, 1))], 1)[None].astype(np.float32)
    places, offset, _ = joint_targets(keypoints, 128)
    logits = np.where(places > 0.5, 4, -4).astype(np.float32) + places
    seen = {"joints": logits.transpose(1, 2, 0), "offset": offset.transpose(1, 2, 0)}
    monkeypatch.setattr(pose, "see", lambda _: seen)
    drawn = pose.draw_diorama(np.zeros((256, 256, 3), np.uint8), pose.PoseParams())
    assert score(draw_people([person(64, 64) * 2], 256, 256), drawn).headline > 75


def test_three_joints_are_nobody():
    alone = np.zeros((1, 18, 3), np.float32)
    alone[0, :3, :2], alone[0, :3, 2] = [[30, 30], [30, 40], [22, 40]], 1
    places, offset, _ = joint_targets(alone, 64)
    logits = np.where(places > 0.5, 4, -4).astype(np.float32)
    assert find_people(logits.transpose(1, 2, 0), offset.transpose(1, 2, 0)) == []


def test_joints_are_read_back_from_the_drawing():
    drawn = draw_people([person(64, 64) * 2], 256, 256)
    for k, discs in enumerate(joints_in(drawn)):
        if k in (0, 14, 15, 16, 17):  # of the face: they cover each other in part
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


def test_openpose_is_asked_for_hands_only_where_wanted(monkeypatch):
    asked = []

    def detector(image, **options):
        asked.append(options)
        return 255 - image

    monkeypatch.setattr(pose, "load_detector", lambda *_: detector)
    picture = np.zeros((64, 64, 3), np.uint8)
    for preprocessor in pose.ANNOTATOR.preprocessors[1:]:
        assert preprocessor.draw(picture, pose.PoseParams()).min() == 255
    assert [options["include_hand"] for options in asked] == [False, True]
