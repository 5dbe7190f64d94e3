"""BlazePose's arithmetic in cases to follow by hand, and its people where its files are here."""

import sys

import cv2
import numpy as np
import pytest

from annotators import find_annotator
from annotators._blazepose import (
    FACE_ORDER,
    Networks,
    Region,
    anchors,
    around,
    between,
    detections,
    find_figures,
    openpose_body,
    openpose_face,
    overlaps,
    refined,
    tiles,
)
from core.consistency import Extractor
from core.errors import SuiteError
from core.images import read_image
from models.catalog.wheels import BLAZEPOSE

RIGHT = np.pi / 2


def test_anchors_are_the_middles_of_cells_two_a_layer():
    # Two layers of stride 8 share a grid of 2 x 2 cells with four anchors each.
    expected = np.repeat([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]], 4, axis=0)
    assert np.array_equal(anchors(16, (8, 8)), expected)
    assert np.array_equal(anchors(16, (16, 8))[:3], [[0.5, 0.5], [0.5, 0.5], [0.25, 0.25]])
    # As many as the networks have outputs for.
    assert (
        len(anchors(224, (8, 16, 32, 32, 32))) == 2254 and len(anchors(128, (8, 16, 16, 16))) == 896
    )


def test_overlap_is_intersection_over_union():
    box = np.array([[0.0, 0.0], [2.0, 2.0]])
    others = np.array(
        [[[1.0, 0.0], [3.0, 2.0]], [[0.0, 0.0], [2.0, 2.0]], [[2.0, 0.0], [4.0, 2.0]]]
    )
    assert overlaps(box, others) == pytest.approx([1 / 3, 1, 0])


def test_boxes_are_read_and_blended():
    def logit(chance):
        return np.log(chance / (1 - chance))

    # Middle, sides and one point, in pixels of 100, from anchors at 0.5 and 0.9.
    raw = np.array(
        [
            [0, 0, 20, 20, 1, -10],
            [4, 0, 20, 20, 5, -10],  # overlaps the first by two thirds
            [0, 0, 20, 20, 0, 0],  # at the other anchor
            [0, 0, 20, 20, 0, 0],  # hardly likely
        ],
        np.float32,
    )
    middles = np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.5], [0.1, 0.5]])
    chances = np.array([0.9, 0.6, 0.8, 0.4], np.float32)
    found, best = detections(raw, logit(chances), middles, 100)
    assert best == pytest.approx([0.9, 0.8])
    moved = 0.04 * 0.6 / 1.5  # the second pulls by its share of the chances
    blended = [[0.4 + moved, 0.4], [0.6 + moved, 0.6], [0.51 + moved, 0.4]]
    assert found[0] == pytest.approx(np.array(blended))
    assert found[1] == pytest.approx(np.array([[0.8, 0.4], [1.0, 0.6], [0.9, 0.5]]))
    none, chances = detections(raw[3:], logit(chances[3:]), middles[3:], 100)
    assert none.shape == (0, 3, 2) and not len(chances)


def test_a_region_turns_with_its_person():
    top = np.array([[0.5, 0.0]])
    assert Region(10, 20, 8).on_picture(top) == pytest.approx(np.array([[10, 16]]))
    assert Region(10, 20, 8, RIGHT).on_picture(top) == pytest.approx(np.array([[14, 20]]))
    assert Region(10, 20, 8, RIGHT).grown(2, -0.5) == Region(14, 20, 16, RIGHT)
    # Who lies with the head to the right is looked at in a square whose top is the right.
    lying = between(np.array([10.0, 20.0]), np.array([13.0, 20.0]))
    assert (lying.x, lying.y, lying.side, lying.angle) == pytest.approx((10, 20, 6, RIGHT))
    standing = between(np.array([10.0, 20.0]), np.array([10.0, 15.0]))
    assert (standing.side, standing.angle) == pytest.approx((10, 0))
    # A face whose left eye is below its right one.
    points = np.array([[0.0, 0.0], [4.0, 2.0]])
    face = around(points, np.array([1.0, 1.0]), np.array([1.0, 3.0]))
    assert (face.x, face.y, face.side, face.angle) == pytest.approx((2, 1, 4, RIGHT))


def test_a_cut_shows_the_region_upright():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 25:] = 255  # the right quarter of the square around the middle, and beyond
    upright = Region(20, 20, 20, RIGHT).cut(image, 40)
    assert upright.shape == (40, 40, 3) and upright.dtype == np.float32
    assert upright[:8].min() == 1 and upright[12:].max() == 0
    beyond = Region(20, 20, 80)
    image[:] = 255
    assert beyond.cut(image, 40).min() == 1
    assert beyond.cut(image, 40, cv2.BORDER_CONSTANT)[:8].max() == 0


def test_heat_moves_a_landmark_and_cold_leaves_it():
    heat = np.full((16, 16, 3), -20, np.float32)
    heat[6, 9, 0] = heat[6, 10, 0] = 20
    heat[6, 15, 1] = 20  # four cells away: out of its window
    points = np.array([[8.5 / 16, 6.5 / 16], [8.5 / 16, 6.5 / 16], [1.5, 0.5]])
    moved = refined(points, heat)
    assert moved[0] == pytest.approx([9.5 / 16, 6 / 16])
    assert np.array_equal(moved[1:], points[1:])


def test_landmarks_become_openposes_joints():
    landmarks = np.stack([np.arange(33.0), 2 * np.arange(33.0)], 1)
    chances = np.ones(33, np.float32)
    body = openpose_body(landmarks, chances, 100, 100)
    neck = (landmarks[11] + landmarks[12]) / 2
    assert np.array_equal(
        body[[0, 1, 2, 5, 10, 13]], [*landmarks[[0]], neck, *landmarks[[12, 11, 28, 27]]]
    )
    chances[[12, 28]] = 0.4
    hidden = np.isnan(openpose_body(landmarks, chances, 100, 50)[:, 0])
    # A shoulder and the neck, an ankle, and what lies below the edge: knees and ankles.
    assert np.flatnonzero(hidden).tolist() == [1, 2, 9, 10, 12, 13]


def test_the_mesh_becomes_openposes_face():
    mesh = np.stack([np.arange(468.0), np.zeros(468)], 1)
    face = openpose_face(mesh)
    assert face.shape == (70, 2) and len(set(FACE_ORDER)) == 68
    assert face[30].tolist() == [4, 0], "the nose's tip"
    right = [33, 160, 158, 133, 153, 144]
    assert face[68, 0] == pytest.approx(np.mean(right))


def test_a_missing_runtime_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    (one,) = (p for p in find_annotator("pose").preprocessors if p.name == "BlazePose")
    for ask in (
        lambda: one.fetch(watch=None),
        lambda: one.draw(np.zeros((8, 8, 3), np.uint8), None),
    ):
        with pytest.raises(SuiteError, match=r"^BlazePose needs .*requirements-blazepose.txt` or"):
            ask()


@pytest.fixture
def files() -> None:
    pytest.importorskip("ai_edge_litert", reason="pip install -r requirements-blazepose.txt")
    if BLAZEPOSE.missing:
        pytest.skip("python -m models fetch blazepose")


@pytest.fixture
def astronaut() -> np.ndarray:
    return read_image("test_imgs/astronaut.jpg")[0]


THEIRS = {
    0: (223.9, 132.6), 2: (248.5, 116.2), 5: (205.6, 108.2), 7: (265.6, 126.0),
    8: (188.8, 112.9), 11: (305.6, 256.2), 12: (109.6, 243.4), 14: (71.2, 414.5),
}  # fmt: skip
"""The astronaut's landmarks by mediapipe 0.10.21 itself: Holistic, static image, complexity 1."""
THEIR_FACE = {1: (222.5, 131.2), 33: (193.3, 100.3), 263: (256.4, 103.9), 152: (221.0, 177.4)}
NEAR = 6.0
"""Pixels: a third of a cell of the heat map, which is laid over 1256 pixels here."""


def test_a_first_look_sees_what_mediapipe_does(files, astronaut):
    networks = Networks(BLAZEPOSE.folder)
    ((box, region),) = networks._candidates(astronaut, Region(256, 256, 512))
    assert (box[0] < THEIRS[0]).all() and (THEIRS[0] < box[1] + 10).all()
    points, chances = networks._landmarks(astronaut, region)
    away = [np.linalg.norm(points[k] - place) for k, place in THEIRS.items()]
    assert max(away) < NEAR and np.mean(away) < NEAR / 2
    assert chances[[0, 2, 5, 7, 8, 11, 12]].min() > 0.9 and chances[[15, 16, 27, 28]].max() < 0.3
    mesh = networks.face(astronaut, points)
    away = [np.linalg.norm(mesh[k] - place) for k, place in THEIR_FACE.items()]
    assert max(away) < NEAR


def test_a_turned_person_is_found_as_an_upright_one(files, astronaut):
    (upright,) = find_figures(astronaut, hands_and_face=False)
    (lying,) = find_figures(np.ascontiguousarray(np.rot90(astronaut)), hands_and_face=False)
    turned = np.stack([upright.body[:, 1], astronaut.shape[1] - upright.body[:, 0]], 1)
    head = [0, 14, 15, 16, 17]
    assert np.abs(turned - lying.body)[head].max() < 2 * NEAR


def test_two_people_are_two_and_a_cat_is_none(files, astronaut):
    half = cv2.resize(astronaut, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    two = np.concatenate([half, half[:, ::-1]], 1)
    figures = find_figures(two, hands_and_face=False)
    noses = sorted(figure.body[0, 0] for figure in figures)
    assert noses == pytest.approx([0.6 * 223.9, two.shape[1] - 0.6 * 223.9], abs=2 * NEAR)
    for other in ("chelsea.jpg", "coffee.jpg"):
        assert find_figures(read_image(f"test_imgs/{other}")[0], hands_and_face=True) == []


@pytest.mark.parametrize("name", ["BlazePose", "BlazePose with hands and face"])
def test_its_map_is_scored_against_the_same_persons(files, astronaut, name):
    annotator = find_annotator("pose")
    (one,) = (p for p in annotator.preprocessors if p.name == name)
    extractor = Extractor(annotator, one, annotator.params(), 512)
    control_map = extractor.extract(astronaut, (512, 512))
    blurred = cv2.GaussianBlur(astronaut, (0, 0), 1)
    again, score = extractor.reextract_and_score(blurred, control_map)
    assert again.any() and score.headline > 70
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    assert extractor.reextract_and_score(mirrored, control_map)[1].headline < 40
    with_face = (again == 255).all(2).any()
    assert with_face == name.endswith("face")


def test_tiles_cover_a_picture_thrice():
    assert tiles(100, 100)[:1] == [Region(50, 50, 100)] and len(tiles(100, 100)) == 1 + 9
    wide = tiles(250, 100)
    squares = [tile.x for tile in wide if tile.side == 100]
    assert wide[0] == Region(125, 50, 250) and squares == [50, 100, 150, 200]
    for side in (100, 50):
        own = sorted({tile.x for tile in wide if tile.side == side})
        assert own[0] == side / 2 and own[-1] == 250 - side / 2
        assert max(np.diff(own)) <= side / 2
