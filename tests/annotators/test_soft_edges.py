"""HED's and PiDiNet's soft edges, scribbles, and the scores between them."""

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from annotators import hed, scribble
from annotators.fake_scribble import ANNOTATOR as FAKE_SCRIBBLE
from annotators.scribble import DARK, LIGHT, ScribbleParams, fake_scribble
from core.consistency import ms_ssim


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)


def circle(side: int, radius: int, thickness: int = 3) -> np.ndarray:
    picture = np.zeros((side, side, 3), np.uint8)
    return cv2.circle(picture, (side // 2, side // 2), radius, (255, 255, 255), thickness)


# Structural similarity


def test_one_scale_is_scikit_images_ssim():
    first, second = (noise(96, 128, seed)[:, :, 0].astype(np.float32) / 255 for seed in (0, 1))
    mixed = (first + second) / 2
    theirs = structural_similarity(
        first, mixed, data_range=1.0, gaussian_weights=True, use_sample_covariance=False
    )
    assert ms_ssim(first, mixed) == pytest.approx(theirs, abs=1e-6)


def test_five_scales_by_hand():
    """Each scale's structure to its weight; the coarsest has the brightness too."""
    first = noise(200, 240)[:, :, 0].astype(np.float32) / 255
    second = np.clip(first * 0.8 + 0.05, 0, 1)
    assert ms_ssim(first, first) == pytest.approx(1)
    # Contrast reduced to 0.8 has the structure 2·0.8 / (1 + 0.64) = 0.976; flat regions, such as
    # those between the blurred spots, count as equal.
    assert 0.976 < ms_ssim(first, second) < 1
    assert ms_ssim(first, 1 - first) == 0


# Soft edges


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("kind", ["HED", "PiDiNet"])
def test_equals_controlnet_aux_on_the_same_weights(kind, safe, monkeypatch):
    from controlnet_aux import HEDdetector, PidiNetDetector
    from controlnet_aux.hed import ControlNetHED_Apache2
    from controlnet_aux.pidi.model import pidinet

    torch.manual_seed(0)
    if kind == "HED":
        detector, draw = HEDdetector(ControlNetHED_Apache2().eval()), hed.draw_hed
    else:
        detector, draw = PidiNetDetector(pidinet().eval()), hed.draw_pidinet
    monkeypatch.setattr(hed, "load_detector", lambda *_: detector)
    picture = noise(64, 128)
    theirs = detector(
        picture, detect_resolution=64, image_resolution=64, output_type="np", safe=safe
    )
    assert np.array_equal(draw(picture, hed.HEDParams(), safe=safe), theirs)
    assert draw(noise(50, 90), hed.HEDParams(), safe=safe).shape == (50, 90, 3)


def test_soft_edge_score():
    drawn = circle(192, 60)
    assert hed.score(drawn, drawn).headline == pytest.approx(100)
    empty = hed.score(drawn, np.zeros_like(drawn))
    assert empty.headline == 0 and empty.metrics["MS-SSIM"] > 0.2
    near, far = circle(192, 61), circle(192, 75)
    assert 100 > hed.score(drawn, near).headline > hed.score(drawn, far).headline
    blank = np.zeros_like(drawn)
    assert hed.score(blank, blank).headline == 100


# Scribbles


def test_a_drawing_on_white_or_on_black_gives_the_same_map():
    light = circle(64, 20)
    for params in (ScribbleParams(), ScribbleParams(LIGHT)):
        assert np.array_equal(scribble.draw(light, params), light)
    dark = 255 - light
    for params in (ScribbleParams(), ScribbleParams(DARK)):
        assert np.array_equal(scribble.draw(dark, params), light)


def test_coloured_lines_count_by_their_darkest_channel():
    paper = np.full((32, 32, 3), 255, np.uint8)
    paper[10:12] = (255, 40, 200)
    lines = scribble.draw(paper, ScribbleParams())
    assert set(np.unique(np.nonzero(lines)[0])) == {10, 11}


def test_a_mostly_painted_canvas_is_not_inverted():
    painted = np.zeros((32, 32, 3), np.uint8)
    painted[4:12, 4:12] = 255  # the white paper that is left
    (draw,) = (p.draw for p in scribble.CANVAS.preprocessors)
    assert np.array_equal(draw(painted, scribble.CANVAS.params()), 255 - painted)
    assert np.array_equal(scribble.draw(painted, ScribbleParams()), painted)  # taken for dark paper


def test_fake_scribble_equals_controlnets_at_its_resolution():
    from controlnet_aux.util import nms

    soft = cv2.GaussianBlur(circle(512, 150, 12), (0, 0), 2)
    theirs = cv2.GaussianBlur(nms(soft[:, :, 0], 127, 3.0), (0, 0), 3.0)
    expected = np.where(theirs > 4, 255, 0).astype(np.uint8)
    drawn = fake_scribble(soft)
    assert np.array_equal(drawn[:, :, 1], expected)
    assert 0 < (drawn > 0).mean() < 0.1
    half = fake_scribble(cv2.resize(soft, (256, 256), interpolation=cv2.INTER_AREA))
    enlarged = cv2.resize(half, (512, 512), interpolation=cv2.INTER_NEAREST)
    assert scribble.score(drawn, enlarged).headline > 95


@pytest.mark.slow
def test_fake_scribbles_of_hed_equal_controlnet_auxs(monkeypatch):
    from controlnet_aux import HEDdetector
    from controlnet_aux.hed import ControlNetHED_Apache2

    torch.manual_seed(0)
    detector = HEDdetector(ControlNetHED_Apache2().eval())
    monkeypatch.setattr(hed, "load_detector", lambda *_: detector)
    picture = noise(512, 512)
    theirs = detector(
        picture, detect_resolution=512, image_resolution=512, output_type="np", scribble=True
    )
    draw = next(p.draw for p in FAKE_SCRIBBLE.preprocessors if p.name == "HED")
    assert theirs.mean() > 0
    assert np.array_equal(draw(picture, FAKE_SCRIBBLE.params()), theirs)


def test_stroke_score():
    drawn = circle(256, 60)
    assert scribble.score(drawn, drawn).headline == 100
    assert scribble.score(drawn, circle(256, 63)).headline == 100  # 1.5 % of 256 is 4 pixels
    assert scribble.score(drawn, circle(256, 90)).headline == 0
    assert scribble.score(drawn, np.zeros_like(drawn)).headline == 0


def test_results_of_a_scribble_are_redrawn_as_fake_scribbles():
    assert scribble.ANNOTATOR.reextract is not None
    assert scribble.ANNOTATOR.reextract.draw is FAKE_SCRIBBLE.preprocessors[0].draw
