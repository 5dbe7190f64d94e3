"""A changed picture has the latents of diffusers' image-to-image and inpainting pipelines."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.diffusion import ControlTrack, Diffusion
from core.original import Original
from core.progress import ProgressReporter
from core.request import GenerationRequest
from tests.core import test_equals_diffusers
from tests.core.test_equals_diffusers import (
    PROMPTS,
    SD15_BETAS,
    SIDE,
    assert_close,
    condition_of,
    networks_of,
    with_our_ramp,
)

parts = test_equals_diffusers.parts  # the fixture
USUAL = {"steps": 6, "guidance_scale": 4.0, "eta": 0.0, "denoising_strength": 0.6}


def random_picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


CONTROL_MAP, PICTURE = random_picture(0), random_picture(1)


def box(top=11, bottom=43, left=5, right=50):
    """Return a mask whose rim is on no border of the latents' cells."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


def ours(parts, seeds, monkeypatch, mask=None, scheduler=None, **given):
    """Return the latents that the pipeline would decode."""
    networks = networks_of(parts, **(scheduler or {}))
    request = GenerationRequest.single(
        condition_of("canny"), PICTURE, mask=mask, **PROMPTS, **(USUAL | given)
    )
    latents = []
    monkeypatch.setattr(networks, "decode", lambda x: latents.append(x) or torch.zeros(1, 3, 8, 8))
    reporter = ProgressReporter(None, None, 0, request.steps_taken, len(seeds))
    tracks = [ControlTrack(request.controls[0], CONTROL_MAP)]
    diffusion = Diffusion(networks, request, tracks, reporter)
    diffusion.original = Original(PICTURE, mask, request.mask_blur)
    diffusion.pictures(seeds)
    return torch.cat(latents)


def theirs(parts, seeds, mask=None, scheduler=None, **given):
    """Return theirs, one image at a time: their inpainting draws a batch's picture only once."""
    asked = USUAL | given
    lcm = asked.get("sampler") == "lcm"
    own = {} if lcm else {"steps_offset": 1, "timestep_spacing": "leading"}
    own |= {"clip_sample": False, "set_alpha_to_one": False} | (scheduler or {})
    kind = (
        StableDiffusionControlNetImg2ImgPipeline
        if mask is None
        else StableDiffusionControlNetInpaintPipeline
    )
    reference = kind(
        **parts,
        scheduler=(LCMScheduler if lcm else DDIMScheduler)(**SD15_BETAS, **own),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    reference.set_progress_bar_config(disable=True)
    picture, control_map = (
        torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255 for one in (PICTURE, CONTROL_MAP)
    )
    masked = {} if mask is None else {"mask_image": torch.from_numpy(mask)[None, None].float()}
    found = [
        reference(
            "a red ball",
            image=picture,
            control_image=control_map,
            **masked,
            strength=asked["denoising_strength"],
            negative_prompt="blur",
            generator=[torch.Generator("cpu").manual_seed(seed)],
            num_inference_steps=asked["steps"],
            guidance_scale=asked["guidance_scale"],
            eta=asked["eta"],
            controlnet_conditioning_scale=asked.get("strength", 1.0),
            guess_mode=asked.get("guess_mode", False),
            control_guidance_start=asked.get("control_start", 0.0),
            control_guidance_end=asked.get("control_end", 1.0),
            output_type="latent",
        ).images
        for seed in seeds
    ]
    return torch.cat(found)


def assert_same(parts, seeds, monkeypatch, **given):
    mine = ours(parts, seeds, monkeypatch, **given)
    assert_close(mine, theirs(parts, seeds, **given))
    return mine


MASKS = {"image to image": None, "inpainting": box()}
both = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


@both
@pytest.mark.parametrize(("strength", "steps"), [(0.2, 5), (0.5, 5), (0.75, 9), (0.99, 4)])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_strengths_steps_and_eta(parts, monkeypatch, mask, strength, steps, eta):
    asked = {"mask": mask, "denoising_strength": strength, "steps": steps, "eta": eta}
    assert_same(parts, [3], monkeypatch, **asked)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_inpainting_from_pure_noise(parts, monkeypatch, eta, sampler):
    asked = {"denoising_strength": 1.0, "eta": eta, "sampler": sampler}
    assert_same(parts, [3], monkeypatch, mask=box(), **asked)


@both
@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
@pytest.mark.parametrize("strength", [0.7, 2.0])
def test_guess_mode(parts, monkeypatch, mask, guidance_scale, strength):
    with_our_ramp(monkeypatch, networks_of(parts).residual_count("canny"))
    asked = {"guidance_scale": guidance_scale, "strength": strength, "guess_mode": True}
    assert_same(parts, [3], monkeypatch, mask=mask, **asked)


@both
@pytest.mark.parametrize(("strength", "steps"), [(0.5, 4), (0.3, 7), (0.9, 8)])
@pytest.mark.parametrize("guidance_scale", [1.0, 1.8])
def test_few_step_sampling(parts, monkeypatch, mask, strength, steps, guidance_scale):
    asked = {"denoising_strength": strength, "steps": steps, "guidance_scale": guidance_scale}
    assert_same(parts, [3, 8], monkeypatch, mask=mask, sampler="lcm", **asked)


@both
@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_every_image_of_a_batch_is_the_one_made_alone(parts, monkeypatch, mask, sampler):
    assert_same(parts, [7, 8, 9, 10], monkeypatch, mask=mask, sampler=sampler, eta=0.5)


@both
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (0.3, 1.0)])
def test_control_window_is_of_the_steps_that_are_taken(parts, monkeypatch, mask, start, end):
    window = {"control_start": start, "control_end": end, "steps": 10}
    whole = assert_same(parts, [3], monkeypatch, mask=mask, steps=10)
    mine = assert_same(parts, [3], monkeypatch, mask=mask, **window)
    assert (mine - whole).norm() > 1e-2 * whole.norm()


@both
def test_velocity_prediction_and_trailing_steps(parts, monkeypatch, mask):
    config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    mine = ours(
        parts,
        [3],
        monkeypatch,
        mask=mask,
        scheduler={"clip_sample": False, "set_alpha_to_one": False} | config,
    )
    assert_close(mine, theirs(parts, [3], mask=mask, scheduler=config))


@both
def test_a_tiny_autoencoder(parts, monkeypatch, mask):
    """Its encoder draws nothing, so that the noise is the generator's first draw."""
    torch.manual_seed(4)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    vae.register_to_config(block_out_channels=(4, 4, 4, 4))  # diffusers' pipelines ask for it
    tiny = parts | {"vae": vae.eval().requires_grad_(False)}
    assert_same(tiny, [3, 4], monkeypatch, mask=mask, eta=0.5)


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    strength=st.floats(0.25, 0.99),
    steps=st.integers(4, 12),
    eta=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 2**32 - 1),
    masked=st.booleans(),
    pixels=st.integers(0, 2**32 - 1),
)
def test_any_settings_and_any_mask(parts, monkeypatch, **drawn):
    """Masks of single pixels too, of which their pipeline takes the first of every cell."""
    mask = np.random.default_rng(drawn["pixels"]).random((SIDE, SIDE)) < 0.5
    asked = {"denoising_strength": drawn["strength"], "steps": drawn["steps"], "eta": drawn["eta"]}
    mask = mask if drawn["masked"] else None
    assert_same(parts, [drawn["seed"]], monkeypatch, mask=mask, **asked)


def test_the_picture_the_strength_and_the_mask_matter_here(parts, monkeypatch):
    """The comparisons above would prove nothing if they changed nothing."""
    weak = ours(parts, [3], monkeypatch, denoising_strength=0.3)
    strong = ours(parts, [3], monkeypatch, denoising_strength=0.9)
    masked = ours(parts, [3], monkeypatch, denoising_strength=0.9, mask=box())
    assert (weak - strong).norm() > 1e-2 * strong.norm()
    assert (masked - strong).norm() > 1e-2 * strong.norm()
    inside = torch.from_numpy(box()[::8, ::8])
    untouched = ours(parts, [3], monkeypatch, denoising_strength=0.0)
    assert torch.equal(masked[:, :, ~inside], untouched[:, :, ~inside])
    assert not torch.equal(masked[:, :, inside], untouched[:, :, inside])
