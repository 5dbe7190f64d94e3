"""Depth, normals and classes: their conventions, on simple shapes, and their scores."""

import numpy as np
import pytest
import torch

from annotators import _diorama, depth, hed, normal, seg
from annotators._scene_annotator import SceneAnnotator
from annotators.depth import DepthParams
from annotators.hed import HEDParams
from annotators.normal import NormalParams
from annotators.seg import SegParams
from core.errors import SuiteError


@pytest.fixture
def annotator(monkeypatch):
    """Diorama's annotator with random weights and three classes."""
    torch.manual_seed(0)
    network = SceneAnnotator((2, 12, 119), widths=(8, 16, 16, 24, 24)).eval()
    monkeypatch.setattr(_diorama, "load_network", lambda: network)
    monkeypatch.setattr(seg, "load_network", lambda: network)
    return network


PICTURE = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("draw", "params"),
    [
        (depth.draw_diorama, DepthParams()),
        (normal.draw_diorama, NormalParams()),
        (normal.draw_from_diorama_depth, NormalParams()),
        (seg.draw_diorama, SegParams()),
        (hed.draw_diorama, HEDParams()),
    ],
)
def test_maps_have_the_pictures_size_and_are_not_empty(annotator, draw, params):
    before = PICTURE.copy()
    drawn = draw(PICTURE, params)
    assert drawn.shape == PICTURE.shape and drawn.dtype == np.uint8
    assert drawn.max() > drawn.min()
    assert np.array_equal(drawn, draw(PICTURE, params)) and np.array_equal(PICTURE, before)


# What is not a number

NOT_NUMBERS = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize(
    ("draw", "channels"),
    [
        (depth.as_map, ()),
        (hed.as_map, ()),
        (normal.as_map, (3,)),
        (lambda inverse_depth: normal.from_depth(inverse_depth, 0.4), ()),
    ],
)
def test_an_output_that_is_not_finite_is_refused_not_drawn(draw, channels, value):
    output = np.random.default_rng(0).uniform(0, 1, (8, 8, *channels)).astype(np.float32)
    draw(output.copy())
    output[3, 4] = value
    with pytest.raises(SuiteError, match="NaN or infinite"):
        draw(output)


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_a_depth_networks_overflow_is_one_sentence(annotator, monkeypatch, value):
    broken = {"depth": np.full((4, 4, 1), value, np.float32)}
    monkeypatch.setattr(depth, "predict", lambda _: broken)
    with pytest.raises(SuiteError, match="choose another preprocessor"):
        depth.draw_diorama(PICTURE, DepthParams())


# Depth


def test_near_is_white():
    ramp = np.tile(np.linspace(2, 10, 64, dtype=np.float32), (32, 1))
    grey = depth.as_map(ramp)[:, :, 0]
    assert (grey[:, 0] == 0).all() and (grey[:, -1] == 255).all()
    assert depth.as_map(ramp * 0 + 3).max() == 0
    noise = np.random.default_rng(0).normal(0, 1e-3, ramp.shape).astype(np.float32)
    assert depth.as_map(3 + noise).max() == 0, "noise is not stretched to black and white"
    assert depth.as_map(3 + 100 * noise).max() == 255


def test_depth_score():
    ramp = np.repeat(np.tile(np.arange(256, dtype=np.uint8), (8, 1))[:, :, None], 3, 2)
    assert depth.score(ramp, ramp).headline == 100
    shifted = np.clip(ramp.astype(int) + 10, 0, 255).astype(np.uint8)
    assert 9 < depth.score(ramp, shifted).metrics["RMSE"] < 10
    assert 85 < depth.score(ramp, shifted).headline < 88  # 1 - 9.8 / 73.9
    assert depth.score(ramp, ramp * 0).headline == 0
    assert depth.score(ramp, ramp * 0 + 128).headline < 1
    assert depth.score(ramp * 0, ramp * 0).headline == 100


# Normals


def test_normals_of_a_ridge():
    """Inverse depth rises to the middle: the left half faces left and is red."""
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    ridge = np.tile(1000 * (1 - np.abs(x)), (64, 1))
    drawn = normal.as_map(normal.from_depth(ridge, 0.0))
    left, right = drawn[32, 16], drawn[32, 48]
    assert left[0] > 200 and right[0] < 55 and abs(int(left[1]) - 127) <= 1
    upwards = normal.as_map(normal.from_depth(ridge.T.copy(), 0.0))
    assert upwards[16, 32][1] > 200 and upwards[48, 32][1] < 55  # the upper half faces up


def test_background_faces_the_camera():
    slope = np.tile(np.linspace(0, 1000, 64, dtype=np.float32), (64, 1))
    drawn = normal.as_map(normal.from_depth(slope, 0.5))
    assert drawn[0, 10].tolist() == [127, 127, 255] and drawn[0, 50][0] > 200
    assert (normal.as_map(np.zeros((4, 4, 3), np.float32)) == [127, 127, 255]).all()


def test_dioramas_normals_are_mirrored_for_the_map(annotator, monkeypatch):
    facing_right = np.tile(np.array([1, 0, 0.1], np.float32), (8, 8, 1))
    monkeypatch.setattr(normal, "predict", lambda _: {"normal": facing_right})
    assert normal.draw_diorama(PICTURE, NormalParams())[0, 0, 0] < 10


def test_noise_in_dioramas_depth_does_not_make_its_normals_rough(annotator, monkeypatch):
    slope = np.tile(np.linspace(0.5, 1, 128, dtype=np.float32), (128, 1))
    noise = np.random.default_rng(0).normal(0, 0.003, slope.shape).astype(np.float32)

    def drawn(inverse_depth):
        monkeypatch.setattr(normal, "predict", lambda _: {"depth": inverse_depth[:, :, None]})
        picture = np.zeros((256, 256, 3), np.uint8)
        picture[0] = 255  # not flat
        return normal.draw_from_diorama_depth(picture, NormalParams(background_threshold=0))

    error = normal.score(drawn(slope), drawn(slope + noise)).metrics["mean angle"]
    assert error < 5, "without the blur it is above 20"


def test_normal_score():
    left = normal.as_map(np.tile(np.array([1, 0, 1], np.float32), (8, 8, 1)))
    right = normal.as_map(np.tile(np.array([-1, 0, 1], np.float32), (8, 8, 1)))
    both = np.concatenate([left, right], 1)
    assert normal.score(both, both).headline == pytest.approx(100)
    turned = normal.score(both, both[:, ::-1])
    assert turned.metrics["mean angle"] == pytest.approx(90, abs=1) and turned.headline == 0
    half = np.concatenate([left, left], 1)
    assert normal.score(both, half).metrics["mean angle"] == pytest.approx(45, abs=1)
    assert normal.score(both, both * 0).headline == 0
    assert normal.score(left, left).headline == 100 and normal.score(left, right).headline == 0


# Classes


def test_the_palette_is_controlnet_auxs_with_one_colour_shared():
    from controlnet_aux.util import ade_palette

    names, colours = seg.palette()
    assert colours.tolist() == ade_palette() and len(names) == 150
    assert (names[0], names[2], names[12]) == ("wall", "sky", "person")
    assert colours[6].tolist() == colours[48].tolist() == [140, 140, 140]
    assert len(np.unique(colours, axis=0)) == 149


def test_classes_are_read_back_from_their_colours():
    classes = np.arange(150, dtype=np.uint8).reshape(10, 15)
    back = seg.as_classes(seg.as_map(classes))
    assert np.array_equal(back, classes)
    original_palette = seg.palette()[1][classes]
    difference = seg.as_map(classes).astype(int) - original_palette
    assert difference.sum() == difference.reshape(-1, 3)[48, 2] == 1
    noisy = np.clip(seg.as_map(classes).astype(int) + 2, 0, 255).astype(np.uint8)
    for colours in (original_palette, noisy):
        back = seg.as_classes(colours)
        assert np.array_equal(np.delete(back, 48), np.delete(classes, 48))
        assert back.flat[48] == 6
    street, city = (np.full((8, 8), index, np.uint8) for index in (6, 48))
    assert seg.score(seg.as_map(street), seg.as_map(city)).headline == 0


def test_specks_of_a_class_get_the_next_likely_class():
    scores = np.zeros((32, 32, 4), np.float32)
    scores[..., 0] = 1
    scores[:, 20:, 1] = 2
    scores[0, :4, 2] = 3  # four of 1024 pixels are kept
    scores[5, 24:27, 3] = 4  # three are not, and class 1 is next
    classes = seg.most_likely(scores)
    assert classes[0, :5].tolist() == [2, 2, 2, 2, 0]
    assert (classes[5, 20:] == 1).all() and (scores[5, 24:27, 3] == 4).all()


def test_diorama_draws_only_classes_it_knows(annotator):
    drawn = seg.draw_diorama(PICTURE, SegParams())
    known = {tuple(seg.palette()[1][k]) for k in (2, 12, 119)}
    assert {tuple(c) for c in drawn.reshape(-1, 3)} <= known


def test_class_score():
    first = np.zeros((10, 10), np.uint8)
    first[:, 5:] = 4
    second = first.copy()
    second[:, 5] = 0
    same = seg.score(seg.as_map(first), seg.as_map(first))
    assert same.headline == 100 and same.metrics["pixel accuracy"] == 1
    shifted = seg.score(seg.as_map(first), seg.as_map(second))
    assert shifted.metrics["mIoU"] == pytest.approx((50 / 60 + 40 / 50) / 2)
    assert shifted.metrics["pixel accuracy"] == pytest.approx(0.9)
    sky = np.full((10, 10), 2, np.uint8)
    assert seg.score(seg.as_map(first), seg.as_map(sky)).headline == 0
    third = first.copy()
    third[:, :2] = 2  # an extra class counts in the mean
    added = seg.score(seg.as_map(first), seg.as_map(third))
    assert added.metrics["mIoU"] == pytest.approx((30 / 50 + 1 + 0) / 3)


def test_bae_equals_controlnet_aux_on_the_same_weights(monkeypatch):
    """With a small network of the same interface: the last scale's first three channels count."""
    from controlnet_aux import NormalBaeDetector

    class Scales(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 5, padding=2)

        def forward(self, pixels):
            return [[self.conv(pixels)]]

    torch.manual_seed(0)
    detector = NormalBaeDetector(Scales())
    monkeypatch.setattr(normal, "load_detector", lambda *_: detector)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs = detector(picture, detect_resolution=64, image_resolution=64, output_type="np")
    assert theirs.std() > 10
    assert np.array_equal(normal.draw_bae(picture, NormalParams()), theirs)


def test_midas_equals_controlnet_aux_on_the_same_weights(monkeypatch):
    """With a small random network in place of the real one."""
    from controlnet_aux import MidasDetector

    class Slopes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 1, 5, padding=2)

        def forward(self, pixels):
            return 1000 * self.conv(pixels)[:, 0]

    torch.manual_seed(0)
    detector = MidasDetector(Slopes())
    monkeypatch.setattr(depth, "load_detector", lambda *_: detector)
    monkeypatch.setattr(normal, "load_detector", lambda *_: detector)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    theirs, their_normal = detector(
        picture, depth_and_normal=True, bg_th=0.4, detect_resolution=64, image_resolution=64
    )
    assert np.array_equal(depth.draw_midas(picture, DepthParams()), theirs)
    ours = normal.draw_from_midas(picture, NormalParams())
    assert np.abs(ours[:, :, ::-1].astype(int) - their_normal).max() <= 1  # theirs is BGR
