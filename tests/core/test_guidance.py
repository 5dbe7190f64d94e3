"""Scales and windows, as numbers a person can check."""

import pytest

from core.guidance import acts, in_window, residual_scales

V1_RAMP = (
    0.0994, 0.1205, 0.1461, 0.1770, 0.2146, 0.2601, 0.3153,
    0.3822, 0.4633, 0.5615, 0.6806, 0.8250, 1.0,
)  # fmt: skip


def test_guess_mode_is_the_ramp_of_v1():
    assert residual_scales(13, 1.0, guess_mode=True) == pytest.approx(V1_RAMP, abs=5e-5)
    doubled = [2 * scale for scale in V1_RAMP]
    assert residual_scales(13, 2.0, guess_mode=True) == pytest.approx(doubled, abs=1e-4)


def test_without_guess_mode_all_are_equal():
    assert residual_scales(13, 0.7, guess_mode=False) == (0.7,) * 13
    assert not any(residual_scales(13, 0.0, guess_mode=True))


@pytest.mark.parametrize(
    ("start", "end", "acting"),
    [
        (0.0, 1.0, [0, 1, 2, 3]),
        (0.5, 1.0, [2, 3]),
        (0.0, 0.5, [0, 1]),
        (0.3, 0.6, []),
        (0.26, 1.0, [2, 3]),
        (0.0, 0.74, [0, 1]),
    ],
)
def test_a_step_must_lie_wholly_in_the_window(start, end, acting):
    assert [step for step in range(4) if in_window(step, 4, start, end)] == acting
    assert acts(4, start, end) == bool(acting)
