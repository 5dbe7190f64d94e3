"""The request refuses what cannot work, where it is made."""

from dataclasses import replace

import numpy as np
import pytest

from core.condition import ALREADY_A_MAP
from core.errors import BadInput
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL, ControlRequest, GenerationRequest


@pytest.fixture
def picture():
    return np.zeros((8, 8, 3), np.uint8)


def test_defaults_are_v1(condition, picture):
    request = GenerationRequest.single(condition, picture)
    assert request.added_prompt == "best quality, extremely detailed"
    assert request.negative_prompt.startswith("longbody, lowres, bad anatomy")
    assert (request.num_samples, request.image_resolution, request.steps) == (1, 512, 20)
    assert (request.controls[0].strength, request.guidance_scale, request.eta) == (1.0, 9.0, 0.0)
    assert not request.guess_mode


def test_ranges_are_v1():
    limits = {n: (c.low, c.high, c.step) for n, c in SETTINGS.items() if hasattr(c, "low")}
    assert limits["num_samples"] == (1, 12, 1)
    assert limits["image_resolution"] == (256, 768, 64)
    assert limits["strength"] == (0.0, 2.0, 0.01)
    assert limits["steps"] == (1, 100, 1)
    assert limits["guidance_scale"] == (0.1, 30.0, 0.1)
    assert limits["seed"] == (-1, 2**32 - 1, 1)


@pytest.mark.parametrize(
    "image",
    [
        None,
        "photo.png",
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_no_picture_or_not_a_picture(condition, image):
    with pytest.raises(BadInput, match="picture"):
        ControlRequest(condition, image)


def test_a_request_without_a_control():
    with pytest.raises(BadInput, match="No control was chosen"):
        GenerationRequest(())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 101},
        {"steps": 2.5},
        {"steps": float("nan")},
        {"guidance_scale": 0},
        {"guidance_scale": float("inf")},
        {"strength": -1},
        {"strength": 99},
        {"num_samples": 0},
        {"num_samples": 13},
        {"eta": -1},
        {"eta": 2},
        {"seed": -2},
        {"seed": 2**32},
        {"seed": 1.5},
        {"seed": "abc"},
        {"image_resolution": 0},
        {"image_resolution": 4096},
        {"control_start": 0.5, "control_end": 0.5},
        {"control_start": 0.9, "control_end": 0.1},
        {"prompt": "x" * 4001},
        {"prompt": None},
        {"sampler": "euler"},
        {"sampler": "lcm", "steps": 51},
        {"sampler": "lcm", "mode": "fast"},
        {"denoising_strength": -0.1},
        {"denoising_strength": 1.1},
        {"mask_blur": -1},
        {"mask": np.ones((8, 8))},
        {"mask": np.ones((8, 8, 3), bool)},
        {"mask": np.zeros((8, 8), bool)},
        {"mask": np.ones((8, 12), bool)},
    ],
)
def test_numbers_out_of_range(condition, picture, wrong):
    with pytest.raises(BadInput) as caught:
        GenerationRequest.single(condition, picture, **wrong)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", [{"denoising_strength": 0.5}, {"mask": np.ones((8, 8), bool)}])
def test_a_drawing_or_a_map_is_no_picture_to_change(condition, picture, asked):
    drawn = replace(condition, input="drawing")
    assert GenerationRequest.single(condition, picture, **asked).changes_picture
    for request in (
        lambda: GenerationRequest.single(drawn, picture, **asked),
        lambda: GenerationRequest.single(condition, picture, preprocessor=ALREADY_A_MAP, **asked),
    ):
        with pytest.raises(BadInput, match=r"^There is no picture to change, because .*\.$"):
            request()


def test_a_mask_may_have_another_size_of_the_same_shape(condition, picture):
    for shape in ((24, 24), (64, 64), (512, 512)):
        mask = np.ones(shape, bool)
        assert GenerationRequest.single(condition, picture, mask=mask).changes_picture
    assert not GenerationRequest.single(condition, picture).changes_picture


def test_settings_of_an_original_are_settings():
    assert set(SETTINGS_OF_ORIGINAL) < SETTINGS.keys()
