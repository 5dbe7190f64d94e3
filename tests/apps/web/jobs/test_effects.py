"""What is said to have no effect has none, and is all that has none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.web.jobs.effects import DECIDING, DEPENDENT, without_effect
from apps.web.suite import Suite
from core.condition import Condition
from core.images import read_image
from core.modes import MODES
from core.request import DEFAULTS, GenerationRequest

PHOTO = Path(__file__).resolve().parents[4] / "test_imgs" / "coffee.jpg"
OTHER = {"steps": 3, "sampler": "lcm", "guidance_scale": 3.0, "eta": 1.0, "negative_prompt": "dull"}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_says_what_it_sets(mode: str) -> None:
    idle = without_effect({name: DEFAULTS[name] for name in DECIDING} | {"mode": mode})
    assert MODES[mode].settings.keys() <= idle.keys() <= set(DEPENDENT)
    assert all(f"mode {mode} sets it" in idle[name] for name in MODES[mode].settings)
    assert (idle == {}) == (mode != "preview")


@pytest.mark.slow
@pytest.mark.parametrize(
    "decided",
    [
        {"sampler": "ddim", "guidance_scale": 2.0},
        {"sampler": "lcm", "guidance_scale": 2.0},
        {"sampler": "ddim", "guidance_scale": 1.0},
    ],
    ids=str,
)
def test_eta_and_negative_prompt_are_said_to_be_idle_exactly_where_they_are(
    suite: Suite, canny: Condition, decided: dict[str, object]
) -> None:
    given = {"model": "tiny", "steps": 3, "seed": 5, "image_resolution": 256, "eta": 0.0}
    photo = read_image(PHOTO)[0]
    request = GenerationRequest.single(canny, photo, prompt="a red ball", **given, **decided)
    first = suite.pipeline.generate(request).images[0]
    idle = without_effect({"mode": "exact", **decided})
    for name in ("eta", "negative_prompt"):
        other = suite.pipeline.generate(replace(request, **{name: OTHER[name]})).images[0]
        assert np.array_equal(first, other) == (name in idle), name
