"""Canny on pictures whose edges a person can point at."""

import cv2
import numpy as np
import pytest

from annotators.canny import ANNOTATOR, CannyParams, draw, draw_kornia, score
from core.condition import ControlMap
from core.errors import BadInput
from core.images import resize_map


@pytest.fixture
def square():
    """A white square, 16 pixels wide, in the middle of 32 x 48 pixels of black."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[8:24, 16:32] = 255
    return picture


def test_white_lines_one_pixel_wide_around_the_square(square):
    edges = draw(square, CannyParams())
    assert edges.shape == square.shape
    assert edges.dtype == np.uint8
    assert set(np.unique(edges)) == {0, 255}
    assert (edges[:, :, 0] == edges[:, :, 1]).all()
    across = np.flatnonzero(edges[16, :, 0])
    assert len(across) == 2
    assert abs(across - [16, 32]).max() <= 1
    assert edges[10:22, 18:30].max() == 0


def test_is_opencv_on_rgb(square):
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert np.array_equal(draw(noisy, CannyParams())[:, :, 2], cv2.Canny(noisy, 100, 200))


def test_the_thresholds_select_edges_by_gradient():
    """A step of 30 grey levels: gradient 4 * 30 = 120 for a 3x3 Sobel."""
    step = np.full((32, 32, 3), 100, np.uint8)
    step[:, 16:] = 130
    assert draw(step, CannyParams()).max() == 0
    assert draw(step, CannyParams(high_threshold=119)).max() == 255
    assert draw(step, CannyParams(high_threshold=120)).max() == 0


def test_thresholds_in_the_wrong_order_are_swapped():
    noisy = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert np.array_equal(draw(noisy, CannyParams(250, 50)), draw(noisy, CannyParams(50, 250)))
    draw(noisy, CannyParams(100, 100))


def test_draw_is_pure(square):
    before = square.copy()
    assert np.array_equal(draw(square, CannyParams()), draw(square, CannyParams()))
    assert np.array_equal(square, before)


@pytest.mark.parametrize("flat", [0, 128, 255])
def test_a_flat_picture_has_no_edges(flat):
    for preprocessor in ANNOTATOR.preprocessors:
        assert preprocessor.draw(np.full((16, 16, 3), flat, np.uint8), CannyParams()).max() == 0


KORNIA_EDGES = """
2020000020600007603ffff86000000020000000200000072000003c200003e020001c002000e000200300032006000c
200c0030201001c02010070020200c032020180e20403018204060302040c0e020c08180208103032081260c21020c18
2104183021043060420c20c3420861864218c30c421086184210841344110422
"""
"""Packed edges of kornia 0.7.0's canny(waves, 0.1, 0.2)."""


def test_kornia_equals_kornia():
    y, x = np.mgrid[:32, :32]
    red = 127 + 70 * np.sin(x / 3) + 50 * np.cos(y / 4 + x / 7)
    green = 127 + 90 * np.sin(x * y / 50)
    blue = 120 + 60 * np.cos(y / 2.3 - x / 9)
    waves = np.stack([red, green, blue], 2).astype(np.uint8)
    edges = draw_kornia(waves, CannyParams())
    assert np.array_equal(edges, draw_kornia(waves, CannyParams(255, 255)))
    assert np.packbits(edges[:, :, 0]).tobytes().hex() == "".join(KORNIA_EDGES.split())


def test_kornia_draws_one_line_around_the_square(square):
    """On either side of the step: their gradients are equal."""
    edges = draw_kornia(square, CannyParams())
    assert set(np.unique(edges)) == {0, 255}
    assert np.array_equal(edges[:, :, 0], edges[:, :, 2])
    across = np.flatnonzero(edges[16, :, 0])
    assert {abs(x - 15.5) < 1 or abs(x - 31.5) < 1 for x in across} == {True}
    assert edges[10:22, 18:30].max() == 0


def test_kornia_keeps_a_weak_edge_connected_to_a_strong_one():
    """A ramp over four pixels that grows downwards; in the first rows its gradient is below 0.2."""
    ramp = np.interp(np.arange(48), [16, 18, 20], [0, 0.5, 1])
    grey = np.linspace(16, 90, 48)[:, None] * ramp
    growing = np.repeat(grey[:, :, None].astype(np.uint8), 3, axis=2)
    assert draw_kornia(growing[:6].copy(), CannyParams()).max() == 0
    assert draw_kornia(growing, CannyParams())[2].max() == 255


def test_thresholds_are_bounded():
    for wrong in (0, 256, 1.5, float("nan")):
        with pytest.raises(BadInput, match="Canny low threshold"):
            CannyParams(low_threshold=wrong)


def lines(*columns) -> ControlMap:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, columns] = 255
    return picture


def test_score():
    same = score(lines(4), lines(4))
    assert (same.headline, same.metric, same.metrics) == (100, "F1", {"F1": 1.0, "F1 exact": 1.0})
    shifted = score(lines(4), lines(5))
    assert shifted.headline == 100
    assert shifted.metrics["F1 exact"] == 0
    assert score(lines(4), lines(9)).headline == 0
    assert score(lines(), lines()).headline == 100
    assert score(lines(4), lines()).headline == 0


def test_lines_survive_shrinking():
    """Every 1-pixel line stays complete and white at half and at a third of the size."""
    grid = np.zeros((96, 96, 3), np.uint8)
    grid[7::12] = 255
    grid[:, 5::12] = 255
    for side in (48, 32):
        small = resize_map(grid, (side, side), ANNOTATOR.interpolation)
        assert set(np.unique(small)) == {0, 255}
        assert (small.max(axis=(1, 2)) > 0).all()
        assert (small[:, :, 0].min(axis=1) == 255).sum() == 8
