"""XDoG on simple pictures, the score of line art, and the wrapped networks."""

import cv2
import numpy as np
import pytest
import torch

from annotators import lineart
from annotators.lineart import LineartParams, draw_xdog, score


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:, :128], picture[:, 128:] = left, right
    return picture


def test_one_line_along_the_darker_side_of_an_edge():
    lines = draw_xdog(halves((30, 30, 30), (200, 200, 200)), LineartParams())
    assert lines.shape == (256, 256, 3) and lines.dtype == np.uint8
    assert (lines[:, :, 0] == lines[:, :, 2]).all()
    assert lines[128, 126:128].min() > 200
    drawn = np.nonzero(lines[128, :, 0])[0]
    assert drawn.min() >= 120 and drawn.max() == 127, "areas stay black"


def test_colours_of_equal_brightness_are_separated():
    # By Rec. 601 both are grey 76.
    lines = draw_xdog(halves((255, 0, 0), (0, 130, 0)), LineartParams())
    assert lines[128, 124:132].max() > 200


def test_a_faint_edge_falls_below_the_threshold():
    faint = halves(
        (100, 100, 100), (110, 110, 110)
    )  # 0.04 apart; the difference is a ninth of that
    assert draw_xdog(faint, LineartParams(line_threshold=0.0)).max() > 0
    assert draw_xdog(faint, LineartParams(line_threshold=0.01)).max() == 0


def test_flat_pictures_are_black_and_draw_is_pure():
    assert (
        draw_xdog(np.full((64, 64, 3), 90, np.uint8), LineartParams(line_threshold=0.0)).max() == 0
    )
    picture = halves((0, 0, 0), (255, 255, 255))
    before = picture.copy()
    assert np.array_equal(draw_xdog(picture, LineartParams()), draw_xdog(picture, LineartParams()))
    assert np.array_equal(picture, before)


def test_score():
    def ring(radius: int) -> np.ndarray:
        return cv2.circle(np.zeros((192, 192, 3), np.uint8), (96, 96), radius, (255,) * 3, 3)

    assert score(ring(60), ring(60)).headline == pytest.approx(100)
    assert score(ring(60), ring(60) * 0).headline == 0
    assert 100 > score(ring(60), ring(61)).headline > score(ring(60), ring(75)).headline
    assert score(ring(60), ring(61)).metric == "MS-SSIM"


@pytest.mark.parametrize("coarse", [False, True])
def test_equals_controlnet_aux_on_the_same_weights(coarse, monkeypatch):
    from controlnet_aux import LineartDetector
    from controlnet_aux.lineart import Generator

    torch.manual_seed(0)
    detector = LineartDetector(Generator(3, 1, 3).eval(), Generator(3, 1, 3).eval())
    monkeypatch.setattr(lineart, "load_detector", lambda *_: detector)
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    theirs = detector(
        picture, detect_resolution=64, image_resolution=64, output_type="np", coarse=coarse
    )
    name = "Lineart coarse" if coarse else "Lineart"
    draw = next(p.draw for p in lineart.ANNOTATOR.preprocessors if p.name == name)
    assert np.array_equal(draw(picture, LineartParams()), theirs)
    assert draw(picture[:50, :90], LineartParams()).shape == (50, 90, 3)


def test_anime_equals_controlnet_aux_on_the_same_weights(monkeypatch):
    from controlnet_aux import LineartAnimeDetector
    from controlnet_aux.lineart_anime import UnetGenerator

    torch.manual_seed(0)
    detector = LineartAnimeDetector(UnetGenerator(3, 1, 8, ngf=4).eval())
    monkeypatch.setattr(lineart, "load_detector", lambda *_: detector)
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    theirs = detector(picture, detect_resolution=64, image_resolution=64, output_type="np")
    assert theirs.std() > 1
    assert np.array_equal(lineart.draw_anime(picture, LineartParams()), theirs)
