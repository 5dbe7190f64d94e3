"""Scales and windows, as numbers a person can check."""

from dataclasses import replace

import numpy as np
import pytest

from core.guidance import MORE_CONTROL, MORE_PROMPT, acts, in_window, residual_scales
from core.modes import FIRST_STEPS
from core.pipeline import Pipeline
from core.request import ControlRequest, GenerationRequest

V1_RAMP = (
    0.0994, 0.1205, 0.1461, 0.1770, 0.2146, 0.2601, 0.3153,
    0.3822, 0.4633, 0.5615, 0.6806, 0.8250, 1.0,
)  # fmt: skip


def test_soft_scales_are_the_ramp_of_v1():
    assert residual_scales(13, 1.0, soft=True) == pytest.approx(V1_RAMP, abs=5e-5)
    doubled = [2 * scale for scale in V1_RAMP]
    assert residual_scales(13, 2.0, soft=True) == pytest.approx(doubled, abs=1e-4)


def test_other_scales_are_equal():
    assert residual_scales(13, 0.7, soft=False) == (0.7,) * 13
    assert not any(residual_scales(13, 0.0, soft=True))


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


def ask(condition, image, *modes, **settings):
    """Return a request with a control for each control mode."""
    controls = tuple(ControlRequest(condition, image, control_mode=mode) for mode in modes)
    usual = {"prompt": "a ball", "image_resolution": 256, "steps": 2, "seed": 5}
    return GenerationRequest(controls, **(usual | settings))


@pytest.fixture
def pipeline(networks):
    return Pipeline(lambda *_, **__: networks)


def halves(networks):
    """Return of each call the number of texts, and the shallowest and the last scale of each map.

    FakeNetworks' texts are the prompts' lengths; the negative prompt is the longer one.
    """
    return [(len(texts), [(one[0], one[-1]) for one in maps]) for _, texts, maps in networks.calls]


SOFT, PLAIN = (pytest.approx(0.825**12), 1.0), (1.0, 1.0)


def test_more_prompt_scales_both_halves(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, MORE_PROMPT))
    assert halves(networks) == [(2, [SOFT])] * 2


def test_more_control_leaves_the_negative_half_alone(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, MORE_CONTROL))
    assert halves(networks) == [(1, []), (1, [SOFT])] * 2
    negative, positive = (texts for _, texts, _ in networks.calls[:2])
    assert negative > positive


def test_each_control_has_its_mode(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, "balanced", MORE_CONTROL, MORE_PROMPT))
    assert halves(networks)[:2] == [(1, [PLAIN, SOFT]), (1, [PLAIN, SOFT, SOFT])]


def test_guess_mode_is_more_control_for_all(pipeline, condition, image, networks):
    modes = "balanced", MORE_PROMPT
    guess = pipeline.generate(ask(condition, image, *modes, guess_mode=True))
    calls = halves(networks)
    networks.calls.clear()
    control = pipeline.generate(ask(condition, image, MORE_CONTROL, MORE_CONTROL))
    assert np.array_equal(guess.images[0], control.images[0]) and halves(networks) == calls
    (note,) = guess.warnings
    assert note.startswith("Bright: guess mode is on") and not control.warnings


def test_without_guidance_more_control_is_more_prompt(pipeline, condition, image):
    one, other = (
        pipeline.generate(ask(condition, image, mode, guidance_scale=1.0))
        for mode in (MORE_CONTROL, MORE_PROMPT)
    )
    assert np.array_equal(one.images[0], other.images[0])


def test_the_fast_mode_keeps_the_residuals_of_each_half(pipeline, condition, image, networks):
    request = ask(condition, image, "balanced", MORE_CONTROL, mode="fast", steps=12)
    pipeline.generate(request)
    each = [networks.control_calls.count(time) for time in dict.fromkeys(networks.control_calls)]
    predicted = len({time for time, *_ in networks.calls})
    assert each[:FIRST_STEPS] == [2] * FIRST_STEPS, "one for each half"
    assert len(each) < predicted, "some are kept"
    kept = len(networks.control_calls)
    networks.control_calls.clear()
    pipeline.generate(replace(request, guidance_scale=1.0))
    assert len(networks.control_calls) < kept
