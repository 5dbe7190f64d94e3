"""People of an edit: OpenPose's JSON too, and the map is the one that detection draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotators import pose
from annotators._blazepose import Figure
from annotators._pose_edit import check_edit, edit_of, figures_in
from core.errors import BadInput

PEOPLE = [Figure(np.random.default_rng(k).uniform(20, 230, (18, 2))) for k in range(2)]
PEOPLE[1].body[4] = np.nan
PEOPLE.append(
    Figure(
        PEOPLE[0].body + 5,
        (np.random.default_rng(7).uniform(20, 230, (21, 2)),),
        np.random.default_rng(8).uniform(20, 230, (70, 2)),
    )
)


def test_an_untouched_edit_draws_the_map_that_was_detected():
    detected = pose.draw_figures(PEOPLE, 256, 256)
    edit = check_edit(edit_of(PEOPLE, 256, 256))
    assert np.array_equal(pose.draw_edit(edit, np.zeros((256, 256, 3), np.uint8)), detected)


@pytest.mark.parametrize("part", [0.001, 0.9, 0.9999])
def test_a_joint_just_before_the_next_pixel_stays_in_its_own(part):
    figure = Figure(np.floor(PEOPLE[0].body) + part)
    edit = check_edit(edit_of([figure], 256, 256))
    drawn = pose.draw_edit(edit, np.zeros((256, 256, 3), np.uint8))
    assert np.array_equal(drawn, pose.draw_figures([figure], 256, 256))


def test_a_joint_that_is_not_seen_stays_unseen():
    edit = check_edit(edit_of(PEOPLE[1:2], 256, 256))
    assert edit["people"][0]["body"][4] is None
    assert np.isnan(figures_in(edit, 256, 256)[0].body[4]).all()


def test_people_are_scaled_to_the_map():
    edit = check_edit(edit_of(PEOPLE[:1], 256, 256))
    (figure,) = figures_in(edit, 512, 128)
    assert figure.body == pytest.approx(PEOPLE[0].body * (2, 0.5), abs=0.02)


def test_editing_begins_with_those_whom_the_preprocessor_finds(monkeypatch):
    monkeypatch.setitem(pose.FINDERS, "Diorama", lambda _: PEOPLE)
    picture = np.zeros((256, 256, 3), np.uint8)
    edit = pose.begin_edit(pose.ANNOTATOR.preprocessors[0], picture, pose.PoseParams())
    assert edit == edit_of(PEOPLE, 256, 256)


def test_every_preprocessor_can_begin_an_edit():
    assert {one.name for one in pose.ANNOTATOR.preprocessors} == pose.FINDERS.keys()


def test_nobody_is_an_empty_map():
    edit = check_edit({"size": [64, 64], "people": []})
    assert not pose.draw_edit(edit, np.full((64, 64, 3), 9, np.uint8)).any()


def openpose(points, width=200, height=100, **more):
    keypoints = [number for point in points for number in point]
    people = [{"pose_keypoints_2d": keypoints} | more]
    return {"canvas_width": width, "canvas_height": height, "people": people}


@pytest.mark.parametrize("scale", [(1, 1), (1 / 200, 1 / 100)])
def test_openposes_json_is_taken_in_pixels_or_as_fractions(scale):
    places = [(10 + 9 * k, 5 + 4 * k, 0.9) for k in range(18)]
    places[3] = (0, 0, 0)
    given = openpose([(x * scale[0], y * scale[1], sure) for x, y, sure in places])
    edit = check_edit(given)
    body = edit["people"][0]["body"]
    assert edit["size"] == [200, 100] and body[3] is None
    assert body[17] == pytest.approx([163, 73])


def test_the_25_joints_of_openposes_later_model_become_18():
    body = check_edit(openpose([(k + 2, 50, 1) for k in range(25)]))["people"][0]["body"]
    assert [round(x) - 2 for x, _ in body] == [*range(8), *range(9, 19)]


def test_hands_and_face_of_openposes_json_are_kept():
    hand = [20.0, 30.0, 1.0] * 21
    given = openpose(
        [(10, 10, 1)] * 18, hand_left_keypoints_2d=hand, face_keypoints_2d=[9, 9, 1] * 70
    )
    (person,) = check_edit(given)["people"]
    assert person["hands"] == [[[20.0, 30.0]] * 21] and len(person["face"]) == 70


@pytest.mark.parametrize(
    "raw",
    [
        {"people": []},
        {"size": [64, 64], "people": 3},
        {"size": [64, 64], "people": [[]]},
        {"size": [64, 64], "people": [{"body": [[1, 2]]}]},
        {"size": [64, 64], "people": [{"body": [[1]] * 18}]},
        {"size": [64, 64], "people": [{"body": [None] * 18, "hands": [[None]]}]},
        {"size": [64, 64], "people": [{"body": [None] * 18}] * 51},
        {"canvas_width": 64},
        {"size": [64, 64], "people": [{"body": [[float("nan"), 1]] * 18}]},
        {"size": [64, 64], "people": [{"body": [[1e300, 1]] * 18}]},
        {"size": [64, 64], "people": [{"body": ["1, 1"] * 18}]},
        openpose([(1, 1, 1)] * 20),
        openpose([("a", 1, 1)] * 18),
    ],
)
def test_what_is_no_pose_is_refused_in_a_sentence(raw):
    with pytest.raises(BadInput, match=r"\.$"):
        check_edit(raw)


COORDINATE = st.floats(-300, 600, width=32)
POINT = st.none() | st.tuples(COORDINATE, COORDINATE).map(list)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(POINT, min_size=18, max_size=18), max_size=3))
def test_any_people_are_drawn_and_stay_the_same_when_checked_again(bodies):
    raw = {"size": [256, 192], "people": [{"body": body} for body in bodies]}
    edit = check_edit(raw)
    assert check_edit(edit) == edit
    drawn = pose.draw_edit(edit, np.zeros((96, 128, 3), np.uint8))
    assert drawn.shape == (96, 128, 3)


STANDING = np.array(
    [
        *([0, 8], [0, 18], [-10, 19], [-13, 34], [-15, 48], [10, 19], [13, 34], [15, 48], [-6, 50]),
        *([-7, 73], [-8, 96], [6, 50], [7, 73], [8, 96], [-2, 6], [2, 6], [-5, 7], [5, 7]),
    ]
)
"""A person of 100 pixels."""


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(2, 4.5), st.floats(-0.5, 0.5), st.sets(st.integers(0, 17), max_size=3)),
        min_size=1,
        max_size=3,
    )
)
def test_people_who_stand_apart_are_read_from_a_ready_map(people):
    drawn = []
    for k, (scale, lean, missing) in enumerate(people):
        body = np.round(STANDING * scale + [100 + 170 * k, 20])
        body[:, 0] += np.round(lean * body[:, 1] / 10)
        body[list(missing)] = np.nan
        drawn.append(body)
    given_map = pose.draw_people(drawn, 480, 540)
    edit = check_edit(pose.read_edit(given_map))
    again = pose.draw_edit(edit, np.zeros_like(given_map))
    assert pose.score(given_map, again).headline > 97
    assert (again != given_map).any(axis=2).mean() < 0.003
    if not any(missing for *_, missing in people):
        assert len(edit["people"]) == len(people)


def test_nothing_is_read_from_what_is_no_pose():
    assert pose.read_edit(np.zeros((64, 64, 3), np.uint8)) == {}
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    edit = pose.read_edit(noise)
    assert edit == {} or check_edit(edit)
