"""A request with a T2I-Adapter gives the latents of diffusers' own pipeline for them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionAdapterPipeline, T2IAdapter
from PIL import Image

from core.guidance import Guidance, adapter_scales
from core.modes import Shortcuts
from core.networks import ControlInput
from tests.core import test_equals_diffusers
from tests.core.test_equals_diffusers import SD15_BETAS, SIDE, assert_close, networks_of, ours

parts = test_equals_diffusers.parts
SETTINGS = {"steps": 4, "guidance_scale": 5.0, "eta": 0.0, "strength": 0.7}


@pytest.fixture
def adapter_parts(parts):
    """The tiny networks with an adapter in the ControlNet's place."""
    torch.manual_seed(1)
    return parts | {"controlnet": T2IAdapter(3, [8, 16], 2, 8).eval().requires_grad_(False)}


@pytest.fixture
def control_map():
    drawn = np.zeros((SIDE, SIDE, 3), np.uint8)
    drawn[16:48, 20:24] = 255
    return drawn


@pytest.mark.parametrize("seeds", [[3], [3, 4]])
def test_latents_are_diffusers(adapter_parts, control_map, seeds, monkeypatch):
    found = ours(adapter_parts, control_map, seeds, monkeypatch, **SETTINGS)
    rest = {name: part for name, part in adapter_parts.items() if name != "controlnet"}
    reference = StableDiffusionAdapterPipeline(
        **rest,
        adapter=adapter_parts["controlnet"],
        scheduler=DDIMScheduler(
            **SD15_BETAS,
            steps_offset=1,
            timestep_spacing="leading",
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    reference.set_progress_bar_config(disable=True)

    def theirs(strength):
        return reference(
            "a red ball",
            image=Image.fromarray(control_map),
            negative_prompt="blur",
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=SETTINGS["steps"],
            guidance_scale=SETTINGS["guidance_scale"],
            adapter_conditioning_scale=strength,
            output_type="latent",
        ).images

    wanted = theirs(SETTINGS["strength"])
    assert_close(found, wanted)
    assert (theirs(0.0) - wanted).norm() > 1e-2 * wanted.norm(), "the adapter does something"


def test_guess_mode_has_sd_webui_s_ramp():
    assert adapter_scales(4, 2.0, soft=True) == (0.5, 1.24, 1.65, 2.0)
    assert adapter_scales(2, 1.0, soft=True) == (0.825, 1.0)
    assert adapter_scales(4, 0.5, soft=False) == (0.5,) * 4


def test_the_fast_mode_keeps_it_in_every_step(adapter_parts):
    """Its features are no residuals, which the fast mode keeps over some steps."""
    networks, calls = networks_of(adapter_parts), []
    predict = networks.predict
    networks.predict = lambda call: calls.append(call) or predict(call)
    control = ControlInput("canny", torch.rand(1, 3, SIDE, SIDE), (1.0, 1.0), is_adapter=True)
    texts = torch.randn(2, 77, 16)
    guidance = Guidance(networks, 4, texts, [control], 3.0, Shortcuts(control_every=2))
    latents = torch.randn(1, 4, SIDE // 8, SIDE // 8)
    for step in range(4):
        guidance.predict(latents, torch.tensor(900 - 200 * step), step)
    assert [call.controls for call in calls] == [[control]] * 4
