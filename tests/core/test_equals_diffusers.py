"""Our loop gives the latents of diffusers' own pipeline on the same weights, seeds and settings."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from annotators import find_annotator
from core.condition import Condition
from core.diffusion import ControlTrack, Diffusion
from core.guidance import residual_scales
from core.images import to_tensor
from core.networks import ControlInput, PredictCall
from core.progress import ProgressReporter
from core.request import ControlRequest, GenerationRequest
from models.networks import DiffusersNetworks

SIDE = 64
SD15_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def letter_tokenizer():
    """Return CLIP's tokenizer with the letters alone, so that no vocabulary file is needed."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    tokenizer.model_max_length = 77
    return tokenizer


@pytest.fixture(scope="module")
def parts():
    """Tiny random networks, with zero convolutions that are not zero: else control does nothing."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    with torch.no_grad():
        for block in (
            *controlnet.controlnet_down_blocks,
            controlnet.controlnet_mid_block,
            controlnet.controlnet_cond_embedding.conv_out,
        ):
            torch.nn.init.normal_(block.weight, std=0.5)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=54,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=52,
            eos_token_id=53,
        )
    )
    modules = {
        "unet": unet,
        "controlnet": controlnet,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": letter_tokenizer(),
    }
    for module in (unet, controlnet, vae, text_encoder):
        module.eval().requires_grad_(False)
    return modules


def networks_of(parts, **scheduler):
    return DiffusersNetworks(
        name="tiny",
        tokenizer=parts["tokenizer"],
        text_encoder=parts["text_encoder"],
        unet=parts["unet"],
        vae=parts["vae"],
        controlnets={"canny": parts["controlnet"]},
        scheduler_config={"num_train_timesteps": 1000, **SD15_BETAS, **scheduler},
        preview_matrix=torch.zeros(4, 3),
        hashes={},
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.fixture
def control_map():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def condition_of(weights):
    return Condition(weights, weights, "", find_annotator("canny"), weights)


PROMPTS = {"prompt": "a red ball", "added_prompt": "", "negative_prompt": "blur"}


def ours(parts, control_map, seeds, monkeypatch, scheduler=None, **settings):
    """Return the latents that the pipeline would decode, and how often the ControlNet ran."""
    networks = networks_of(parts, **(scheduler or {}))
    request = GenerationRequest.single(condition_of("canny"), control_map, **PROMPTS, **settings)
    latents = []
    monkeypatch.setattr(networks, "decode", lambda x: latents.append(x) or torch.zeros(1, 3, 8, 8))
    reporter = ProgressReporter(None, None, 0, request.steps, len(seeds))
    Diffusion(
        networks, request, [ControlTrack(request.controls[0], control_map)], reporter
    ).pictures(seeds)
    return torch.cat(latents)


def theirs(parts, control_map, seeds, scheduler=None, **settings):
    lcm = settings.get("sampler") == "lcm"
    own = {} if lcm else {"steps_offset": 1, "timestep_spacing": "leading"}
    own |= {"clip_sample": False, "set_alpha_to_one": False} | (scheduler or {})
    reference = StableDiffusionControlNetPipeline(
        **parts,
        scheduler=(LCMScheduler if lcm else DDIMScheduler)(
            **SD15_BETAS,
            **own,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    reference.set_progress_bar_config(disable=True)
    maps = control_map if isinstance(control_map, list) else [control_map]
    hints = [torch.from_numpy(one).permute(2, 0, 1)[None].float() / 255 for one in maps]
    return reference(
        "a red ball",
        image=hints if isinstance(control_map, list) else hints[0],
        negative_prompt="blur",
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance_scale"],
        eta=settings["eta"],
        controlnet_conditioning_scale=settings["strength"],
        guess_mode=settings.get("guess_mode", False),
        control_guidance_start=settings.get("control_start", 0.0),
        control_guidance_end=settings.get("control_end", 1.0),
        output_type="latent",
    ).images


def assert_close(mine, reference):
    assert torch.isfinite(reference).all()
    assert (mine - reference).norm() <= 1e-4 * reference.norm()


def with_our_ramp(monkeypatch, count):
    """Give diffusers v1.0's ramp: its own goes from 0.1 in equal ratios, off by up to 0.0012."""
    ramp = torch.tensor(residual_scales(count, 1.0, soft=True))
    monkeypatch.setattr(torch, "logspace", lambda *_, **__: ramp)


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim(parts, control_map, monkeypatch, strength, guidance_scale, eta):
    settings = {
        "steps": 5,
        "strength": strength,
        "guidance_scale": guidance_scale,
        "eta": eta,
    }
    mine = ours(parts, control_map, [3], monkeypatch, **settings)
    assert_close(mine, theirs(parts, control_map, [3], **settings))


@pytest.mark.parametrize("strength", [0.7, 2.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
def test_guess_mode(parts, control_map, monkeypatch, strength, guidance_scale):
    with_our_ramp(monkeypatch, networks_of(parts).residual_count("canny"))
    settings = {
        "steps": 5,
        "strength": strength,
        "guidance_scale": guidance_scale,
        "eta": 0.3,
        "guess_mode": True,
    }
    mine = ours(parts, control_map, [3], monkeypatch, **settings)
    assert_close(mine, theirs(parts, control_map, [3], **settings))


@pytest.mark.parametrize("control_mode", ["more prompt", "more control"])
@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
def test_control_modes(parts, control_map, monkeypatch, control_mode, guidance_scale):
    """The reference's ControlNet gives what scripts/hook.py of sd-webui-controlnet makes of it.

    There, soft_injection multiplies residual i by 0.825 ** (12 - i), and cfg_injection by a mark
    that is 0 for the negative prompt's rows.
    """
    settings = {"steps": 5, "strength": 0.7, "guidance_scale": guidance_scale, "eta": 0.3}
    mine = ours(parts, control_map, [3], monkeypatch, control_mode=control_mode, **settings)
    run = ControlNetModel.forward

    def hooked(self, sample, *args, **options):
        skips, middle = run(self, sample, *args, **options)
        mark = torch.ones(len(sample), 1, 1, 1)
        if control_mode == "more control":
            mark[: len(sample) // 2] = 0
        last = len(skips)
        soft = [skip * 0.825 ** (last - i) * mark for i, skip in enumerate(skips)]
        return soft, middle * mark

    monkeypatch.setattr(ControlNetModel, "forward", hooked)
    assert_close(mine, theirs(parts, control_map, [3], **settings))


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_several_images_in_any_batch_size(parts, control_map, monkeypatch, batch, guess_mode):
    with_our_ramp(monkeypatch, networks_of(parts).residual_count("canny"))
    seeds = [7, 8, 9, 10]
    settings = {
        "steps": 4,
        "strength": 1.0,
        "guidance_scale": 9.0,
        "eta": 0.5,
        "guess_mode": guess_mode,
    }
    groups = [seeds[i : i + batch] for i in range(0, 4, batch)]
    mine = torch.cat([ours(parts, control_map, g, monkeypatch, **settings) for g in groups])
    assert_close(mine, theirs(parts, control_map, seeds, **settings))


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (0.3, 1.0), (0.25, 0.75)])
def test_control_window(parts, control_map, monkeypatch, start, end):
    settings = {"steps": 7, "strength": 1.0, "guidance_scale": 9.0, "eta": 0.0}
    window = {"control_start": start, "control_end": end}
    mine = ours(parts, control_map, [3], monkeypatch, **settings, **window)
    assert_close(mine, theirs(parts, control_map, [3], **settings, **window))
    whole = theirs(parts, control_map, [3], **settings)
    assert (mine - whole).norm() > 1e-2 * whole.norm()


def test_velocity_prediction(parts, control_map, monkeypatch):
    settings = {"steps": 5, "strength": 1.0, "guidance_scale": 4.0, "eta": 0.2}
    velocity = {"prediction_type": "v_prediction"}
    mine = ours(parts, control_map, [3], monkeypatch, scheduler=velocity, **settings)
    assert_close(mine, theirs(parts, control_map, [3], scheduler=velocity, **settings))


@pytest.mark.parametrize("steps", [1, 5, 7])
@pytest.mark.parametrize(
    "config",
    [
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
        {"timestep_spacing": "trailing", "set_alpha_to_one": True},
        {"timestep_spacing": "trailing", "prediction_type": "epsilon"},
    ],
)
def test_zero_terminal_snr_and_trailing_steps(parts, control_map, monkeypatch, steps, config):
    """As a folder's scheduler_config.json asks for; see models/checkpoints/prediction.py."""
    settings = {"steps": steps, "strength": 1.0, "guidance_scale": 4.0, "eta": 0.3}
    config = {"prediction_type": "v_prediction", **config}
    usual = {"clip_sample": False, "set_alpha_to_one": False}
    mine = ours(parts, control_map, [3], monkeypatch, scheduler=usual | config, **settings)
    assert_close(mine, theirs(parts, control_map, [3], scheduler=config, **settings))


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("guidance", [1.0, 1.8])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_few_step_sampling(parts, control_map, monkeypatch, steps, guidance, prediction):
    """LCM, which draws noise between its steps: each image's from its own generator."""
    settings = {"steps": steps, "strength": 1.0, "guidance_scale": guidance, "eta": 0.0}
    settings |= {"sampler": "lcm", "scheduler": {"prediction_type": prediction}}
    seeds = [3, 8]
    mine = ours(parts, control_map, seeds, monkeypatch, **settings)
    assert_close(mine, theirs(parts, control_map, seeds, **settings))
    assert_close(ours(parts, control_map, [8], monkeypatch, **settings), mine[1:])


@pytest.fixture(scope="module", params=[16, 33])
def distilled(parts, request):
    """The same networks, but the UNet takes the guidance scale as an input of that width."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_config(
        {**parts["unet"].config, "time_cond_proj_dim": request.param}
    )
    unet.load_state_dict(parts["unet"].state_dict(), strict=False)
    return parts | {"unet": unet.eval().requires_grad_(False)}


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sampler", ["lcm", "ddim"])
def test_a_distilled_lcm_is_told_the_guidance_scale(
    distilled, control_map, monkeypatch, steps, sampler
):
    settings = {"steps": steps, "strength": 0.7, "eta": 0.0, "sampler": sampler}
    made = {}
    for scale in (1.0, 7.5):
        settings["guidance_scale"] = scale
        made[scale] = ours(distilled, control_map, [3, 8], monkeypatch, **settings)
        assert_close(made[scale], theirs(distilled, control_map, [3, 8], **settings))
    difference = (made[1.0] - made[7.5]).norm()
    assert difference > 1e-3 * made[1.0].norm(), "the scale does nothing here"


def test_control_matters_here(parts, control_map, monkeypatch):
    """The comparisons above would prove nothing if the map changed nothing."""
    settings = {"steps": 5, "guidance_scale": 9.0, "eta": 0.0}
    without, weak, guess = (
        ours(parts, control_map, [3], monkeypatch, **settings, **control)
        for control in ({"strength": 0.0}, {"strength": 0.7}, {"strength": 0.7, "guess_mode": True})
    )
    assert (weak - without).norm() > 1e-2 * without.norm()
    assert (weak - guess).norm() > 1e-2 * without.norm()


def test_the_controlnet_does_not_run_where_it_has_no_effect(parts, control_map, monkeypatch):
    calls = []
    first = parts["controlnet"].down_blocks[0].resnets[0].norm1
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    settings = {"steps": 4, "guidance_scale": 9.0, "eta": 0.0}
    try:
        ours(parts, control_map, [3], monkeypatch, strength=0.0, **settings)
        assert calls == []
        ours(parts, control_map, [3], monkeypatch, strength=1.0, control_end=0.5, **settings)
        assert len(calls) == 2
    finally:
        hook.remove()


# Several controls at once, against diffusers' MultiControlNetModel


@pytest.fixture(scope="module")
def another(parts):
    """A second ControlNet of the same UNet, with other weights."""
    torch.manual_seed(1)
    network = ControlNetModel.from_unet(
        parts["unet"], conditioning_embedding_out_channels=(4, 4, 8, 8)
    )
    with torch.no_grad():
        for block in (
            *network.controlnet_down_blocks,
            network.controlnet_mid_block,
            network.controlnet_cond_embedding.conv_out,
        ):
            torch.nn.init.normal_(block.weight, std=0.5)
    return network.eval().requires_grad_(False)


STRENGTHS, WINDOWS = (0.7, 1.3), ((0.0, 0.6), (0.4, 1.0))
SHARED = {"steps": 5, "eta": 0.3}


def ours_of_two(
    parts, another, maps, monkeypatch, names=("canny", "other"), strengths=STRENGTHS, **settings
):
    networks = networks_of(parts)
    networks.controlnets["other"] = another
    latents = []
    monkeypatch.setattr(networks, "decode", lambda x: latents.append(x) or torch.zeros(1, 3, 8, 8))
    controls = tuple(
        ControlRequest(
            condition_of(name), one, strength=strength, control_start=start, control_end=end
        )
        for name, one, strength, (start, end) in zip(names, maps, strengths, WINDOWS, strict=True)
    )
    request = GenerationRequest(controls, **PROMPTS, **settings)
    tracks = [ControlTrack(control, control.image) for control in controls]
    reporter = ProgressReporter(None, None, 0, request.steps, 1)
    Diffusion(networks, request, tracks, reporter).pictures([3])
    return torch.cat(latents)


def theirs_of_two(parts, another, maps, **settings):
    starts, ends = zip(*WINDOWS, strict=True)
    return theirs(
        {**parts, "controlnet": MultiControlNetModel([parts["controlnet"], another])},
        maps,
        [3],
        strength=list(STRENGTHS),
        control_start=list(starts),
        control_end=list(ends),
        **settings,
    )


@pytest.fixture
def two_maps(control_map):
    return [control_map, np.ascontiguousarray(control_map[::-1])]


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
def test_several_controls(parts, another, two_maps, monkeypatch, guess_mode, guidance_scale):
    with_our_ramp(monkeypatch, networks_of(parts).residual_count("canny"))
    settings = {**SHARED, "guess_mode": guess_mode, "guidance_scale": guidance_scale}
    mine = ours_of_two(parts, another, two_maps, monkeypatch, **settings)
    assert_close(mine, theirs_of_two(parts, another, two_maps, **settings))


def test_the_same_control_twice(parts, two_maps, monkeypatch):
    settings = {**SHARED, "guidance_scale": 9.0}
    same = parts["controlnet"]
    mine = ours_of_two(parts, same, two_maps, monkeypatch, names=("canny", "canny"), **settings)
    assert_close(mine, theirs_of_two(parts, same, two_maps, **settings))


@pytest.mark.parametrize("silent", [0, 1])
def test_each_of_several_controls_matters_here(parts, another, two_maps, monkeypatch, silent):
    settings = {**SHARED, "guidance_scale": 9.0}
    both = ours_of_two(parts, another, two_maps, monkeypatch, **settings)
    left = [0.0 if i == silent else strength for i, strength in enumerate(STRENGTHS)]
    alone = ours_of_two(parts, another, two_maps, monkeypatch, strengths=left, **settings)
    assert (both - alone).norm() > 1e-2 * both.norm()


def test_the_residuals_are_those_of_diffusers_summed(parts, another, two_maps):
    """What our networks add to the UNet is what MultiControlNetModel returns."""
    networks = networks_of(parts)
    networks.controlnets["other"] = another
    generator = torch.Generator().manual_seed(0)
    latents, text = (
        torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 16))
    )
    hints = [to_tensor(one) for one in two_maps]
    count = networks.residual_count("canny")
    controls = [
        ControlInput(name, hint, (strength,) * count)
        for name, hint, strength in zip(("canny", "other"), hints, STRENGTHS, strict=True)
    ]
    own = networks.predict(PredictCall(latents, 500, text, controls))
    skips, middle = MultiControlNetModel([parts["controlnet"], another])(
        latents, torch.tensor(500), text, hints, list(STRENGTHS), return_dict=False
    )
    reference = parts["unet"](
        latents,
        torch.tensor(500),
        text,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
    ).sample
    torch.testing.assert_close(own, reference)
