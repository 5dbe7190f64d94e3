"""LSD on simple pictures, the score of lines, the wrapped M-LSD, and edits of lines."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotators import mlsd
from annotators.mlsd import MLSDParams, draw_lsd, score
from core.errors import BadInput
from core.images import resize_map


@pytest.fixture
def board():
    """A white board, 80 pixels wide and 40 high, on grey; 128 pixels square."""
    picture = np.full((128, 128, 3), 100, np.uint8)
    picture[44:84, 24:104] = 255
    return picture


def test_the_four_sides_of_a_board(board):
    lines = draw_lsd(board, MLSDParams())
    assert lines.shape == board.shape and lines.dtype == np.uint8
    assert set(np.unique(lines)) == {0, 255}
    rows, columns = np.nonzero(lines[:, :, 0])
    near = [(abs(rows - 43.5) < 2) | (abs(rows - 83.5) < 2)]
    near += [(abs(columns - 23.5) < 2) | (abs(columns - 103.5) < 2)]
    assert (near[0] | near[1]).all()
    for row in (44, 84):
        assert lines[row - 2 : row + 2, 30:98].max(axis=(0, 2)).min() == 255
    for column in (24, 104):
        assert lines[50:78, column - 2 : column + 2].max(axis=(1, 2)).min() == 255


def test_the_value_is_the_contrast_across_a_line():
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[64:, :] = 40
    assert draw_lsd(picture, MLSDParams(value_threshold=0.15)).max() == 255  # 40 / 255 = 0.157
    assert draw_lsd(picture, MLSDParams(value_threshold=0.16)).max() == 0


def test_short_lines_fall_below_the_distance_threshold(board):
    # The short sides are 40 pixels: 20 at half resolution.
    lines = draw_lsd(board, MLSDParams(distance_threshold=20.0))
    assert lines[60:68].max() == 0 and lines[42:46].max() == 255


def test_flat_pictures_are_black_and_draw_is_pure(board):
    assert draw_lsd(np.full((64, 64, 3), 200, np.uint8), MLSDParams()).max() == 0
    before = board.copy()
    assert np.array_equal(draw_lsd(board, MLSDParams()), draw_lsd(board, MLSDParams()))
    assert np.array_equal(board, before)


def line(row: int) -> np.ndarray:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[row, 4:28] = 255
    return picture


def test_score():
    assert score(line(8), line(8)).headline == 100
    assert score(line(8), line(10)).headline == 100
    assert score(line(8), line(11)).headline == 0
    assert score(line(8), line(8) * 0).headline == 0
    assert score(line(8) * 0, line(8) * 0).headline == 100
    both = np.maximum(line(8), line(20))
    assert score(both, line(8)).metrics["line F1"] == pytest.approx(2 / 3)


def test_equals_controlnet_aux_on_the_same_weights(board, monkeypatch):
    """Random weights give random lines, the same as the package's own detector."""
    from controlnet_aux import MLSDdetector
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    torch.manual_seed(0)
    detector = MLSDdetector(MobileV2_MLSD_Large().eval())
    monkeypatch.setattr(mlsd, "load_detector", lambda *_: detector)
    picture = cv2.GaussianBlur(
        np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8), (0, 0), 2
    )
    theirs = detector(
        picture, thr_v=0.01, thr_d=0.01, detect_resolution=128, image_resolution=128,
        output_type="np",
    )  # fmt: skip
    ours = mlsd.draw_mlsd(picture, MLSDParams(0.01, 0.01))
    assert theirs.max() == 255
    assert np.array_equal(ours, theirs)
    edit = begun(picture, "MLSD", MLSDParams(0.01, 0.01))
    assert edit["lines"] and np.array_equal(drawn_at(edit, 128, 128), ours)
    assert mlsd.draw_mlsd(picture, MLSDParams(2.0, 20.0)).max() == 0  # no lines: not an error

    def broken(_):
        raise IndexError("list index out of range")

    monkeypatch.setattr(detector.model, "forward", broken)
    with pytest.raises(IndexError, match="list index"):
        mlsd.draw_mlsd(picture, MLSDParams())


# Edits

EDITOR = mlsd.ANNOTATOR.editor


def begun(picture: np.ndarray, preprocessor: str = "LSD", params: MLSDParams | None = None):
    (way,) = [one for one in mlsd.ANNOTATOR.preprocessors if one.name == preprocessor]
    return EDITOR.check(EDITOR.begin(way, picture, params or MLSDParams()))


def drawn_at(edit, width: int, height: int) -> np.ndarray:
    return EDITOR.draw(edit, np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(192, 128), (96, 64), (64, 64), (320, 256)])
def test_an_untouched_edit_draws_the_detected_map_at_every_size(size):
    with Image.open("test_imgs/diorama_1.png") as opened:
        picture = np.asarray(opened.convert("RGB").resize((192, 128)))
    detected = draw_lsd(picture, MLSDParams())
    edit = begun(picture)
    assert len(edit["lines"]) > 3
    assert np.array_equal(drawn_at(edit, *size), resize_map(detected, size, "lines"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 95)] * 4, st.integers(0, 255)), max_size=5))
def test_every_untouched_edit_draws_the_detected_map(boxes):
    picture = np.full((96, 96, 3), 128, np.uint8)
    for x, y, to_x, to_y, grey in boxes:
        cv2.rectangle(picture, (x, y), (to_x, to_y), (grey, grey, grey), -1)
    detected = draw_lsd(picture, MLSDParams())
    assert np.array_equal(drawn_at(begun(picture), 96, 96), detected)


def test_a_line_ends_in_the_pixels_of_its_ends():
    edit = EDITOR.check({"size": [64, 32], "lines": [[10.0, 8.9, 20.9, 8.0]]})
    rows, columns = np.nonzero(drawn_at(edit, 64, 32)[:, :, 0])
    assert set(rows) == {8} and (columns.min(), columns.max()) == (10, 20)


def test_a_picture_without_lines_begins_an_empty_edit():
    edit = begun(np.full((64, 96, 3), 200, np.uint8))
    assert edit == {"size": [96, 64], "lines": []}
    assert not drawn_at(edit, 96, 64).any()


def test_every_preprocessor_begins_an_edit():
    assert list(mlsd.FINDERS) == [one.name for one in mlsd.ANNOTATOR.preprocessors]


@pytest.mark.parametrize(
    "lines", [7, {}, [7], [[1, 2, 3]], [[1, 2, 3, 4, 5]], [[1, 2, 3, "4"]], [[1, 2, 3, 1e9]]]
)
def test_what_is_no_line_is_refused_in_a_sentence(lines):
    with pytest.raises(BadInput, match=r"^(The|Each) .*edit.*\.$"):
        EDITOR.check({"size": [64, 64], "lines": lines})


@settings(max_examples=40, deadline=None)
@example([[17, 4, 4, 23]])  # the last pixels of which are too few to be found by themselves
@given(st.lists(st.lists(st.integers(4, 250), min_size=4, max_size=4), min_size=1, max_size=6))
def test_lines_are_read_from_a_ready_map(lines):
    lines = [line for line in lines if np.hypot(line[2] - line[0], line[3] - line[1]) > 20]
    ready = drawn_at(EDITOR.check({"size": [256, 256], "lines": lines}), 256, 256)
    edit = mlsd.read_edit(ready)
    assert bool(edit) == bool(lines)
    if lines:
        assert score(ready, drawn_at(EDITOR.check(edit), 256, 256)).headline > 95


def test_a_line_that_others_cross_is_read_as_one():
    lines = [[20, 30, 240, 70], [60, 10, 80, 250], [200, 5, 170, 245], [15, 200, 245, 180]]
    ready = drawn_at({"size": [256, 256], "lines": lines}, 256, 256)
    read = np.array(mlsd.read_edit(ready)["lines"])
    assert len(read) == 4
    for line in lines:
        either_way = [np.abs(read - [*line[2 * k :], *line[: 2 * k]]).max(axis=1) for k in (0, 1)]
        assert np.min(either_way) < 3


def test_a_texture_is_no_lines():
    noise = np.random.default_rng(0).random((256, 256)) > 0.5
    assert mlsd.read_edit(np.repeat(noise[:, :, None] * np.uint8(255), 3, axis=2)) == {}
