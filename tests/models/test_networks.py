"""The networks behind one protocol compute what diffusers' own pipeline does with them."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from torch import Tensor

import models.networks
from annotators import find_annotator
from core.condition import Condition
from core.diffusion import DECODED_IN_FLOAT32, ControlTrack, Diffusion
from core.errors import BadInput
from core.networks import ControlInput, Networks, PredictCall
from core.progress import ProgressReporter
from core.request import ControlRequest, GenerationRequest
from models.checkpoints.loading import fit_preview
from models.networks import DiffusersNetworks
from tests.tiny_networks import tiny_networks

TIMESTEP = 401.0


@pytest.fixture
def latents() -> Tensor:
    """A latent of 8 x 8 cells."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hint() -> Tensor:
    """A control map of 64 x 64 pixels."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def control(
    networks: DiffusersNetworks, hint: Tensor, scale: float, name: str = "canny"
) -> ControlInput:
    """Return a control with the same scale on every residual."""
    return ControlInput(name, hint, (scale,) * networks.residual_count(name))


def test_it_is_what_the_pipeline_asks_for(networks: DiffusersNetworks) -> None:
    asked: Networks = networks  # for mypy; the names below for everybody else
    assert (asked.latent_channels, asked.downscale) == (4, 8)
    # Two levels of two layers and a downsampler between: 1 + 2 + 1 + 2 skips, and the middle.
    assert asked.residual_count("canny") == 7


@pytest.mark.parametrize("tag", ["<lora:style:0.8>", "<lyco:x:1>", "<hypernet:x:1>"])
def test_tags_are_not_words(tag: str, networks: DiffusersNetworks) -> None:
    prompt = f"the red {tag} ball"
    assert torch.equal(networks.encode_text([prompt]), networks.encode_text(["the red ball"]))
    assert networks.fit_prompt(prompt) == networks.fit_prompt("the red ball")


def test_the_same_prompts_are_encoded_once_and_each_request_has_its_own_tensor() -> None:
    networks = tiny_networks()
    runs: list[int] = []
    networks.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    first, second = (networks.encode_text(["the red ball", ""]) for _ in range(2))
    assert len(runs) == 1 and first is not second and torch.equal(first, second)
    networks.encode_text(["", "the red ball"])
    assert len(runs) == 2


def test_text_is_encoded_as_by_diffusers(networks: DiffusersNetworks) -> None:
    pipeline = StableDiffusionControlNetPipeline(
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        tokenizer=networks.tokenizer,
        unet=networks.unet,
        controlnet=networks.controlnets["canny"],
        scheduler=networks.make_scheduler("ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    prompts = ["the red ball", "", "red " * 75, "Ünïcode 😀 <|endoftext|> , !"]
    theirs, _ = pipeline.encode_prompt(prompts, torch.device("cpu"), 1, False)
    ours = networks.encode_text(prompts)
    assert ours.shape == (4, 77, 32)
    assert torch.equal(ours, theirs)


def test_a_prompt_that_fits(networks: DiffusersNetworks) -> None:
    # "the", "red" and "ball" are one token each in the tiny vocabulary.
    assert networks.fit_prompt("the red ball") == (3, "")
    assert networks.fit_prompt("") == (0, "")
    assert networks.fit_prompt("red " * 75) == (75, "")


def test_the_scheduler_has_the_originals_steps(networks: DiffusersNetworks) -> None:
    scheduler = networks.make_scheduler("ddim")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]
    assert scheduler.config.clip_sample is False
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    assert scheduler.config.beta_start == pytest.approx(0.00085)


def test_the_scheduler_keeps_what_the_model_predicts(networks: DiffusersNetworks) -> None:
    velocity = tiny_networks()
    velocity.scheduler_config = {  # as Stable Diffusion's own file names another class
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "linspace",
    }
    config = velocity.make_scheduler("ddim").config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "leading")
    assert networks.make_scheduler("ddim").config.prediction_type == "epsilon"


def test_trailing_steps_begin_at_the_last_timestep_if_the_model_asks_for_them() -> None:
    trailing = tiny_networks()
    trailing.scheduler_config = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    scheduler = trailing.make_scheduler("ddim")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert scheduler.alphas_cumprod[-1] == 0 and scheduler.config.clip_sample is False


def test_each_scheduler_is_a_fresh_one(networks: DiffusersNetworks) -> None:
    networks.make_scheduler("ddim").set_timesteps(7)
    assert networks.make_scheduler("ddim").num_inference_steps is None


def test_an_unknown_sampler_is_refused(networks: DiffusersNetworks) -> None:
    with pytest.raises(BadInput, match="'euler'"):
        networks.make_scheduler("euler")


def test_the_prediction_is_diffusers_own(
    networks: DiffusersNetworks, latents: Tensor, hint: Tensor
) -> None:
    text = networks.encode_text(["the red ball", ""])
    twice = torch.cat([latents, latents])
    with torch.no_grad():
        skips, middle = networks.controlnets["canny"](
            twice, TIMESTEP, text, hint, conditioning_scale=0.7, return_dict=False
        )
        theirs = networks.unet(
            twice,
            TIMESTEP,
            text,
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
        ).sample
    ours = networks.predict(PredictCall(latents, TIMESTEP, text, [control(networks, hint, 0.7)]))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_each_scale_reaches_its_own_residual(
    networks: DiffusersNetworks, latents: Tensor, hint: Tensor
) -> None:
    text = networks.encode_text(["", ""])
    count = networks.residual_count("canny")
    alone = [
        networks.predict(
            PredictCall(latents, TIMESTEP, text, [ControlInput("canny", hint, scales)])
        )
        for scales in torch.eye(count).tolist()
    ]
    plain = networks.predict(PredictCall(latents, TIMESTEP, text, []))
    for k in range(count):
        assert not torch.allclose(alone[k], plain, atol=1e-4)
        for j in range(k):
            assert not torch.allclose(alone[k], alone[j], atol=1e-4)


def test_a_control_of_strength_zero_is_not_run(
    networks: DiffusersNetworks, latents: Tensor
) -> None:
    text = networks.encode_text(["", ""])
    missing = ControlInput("there is none of this name", torch.zeros(1, 3, 64, 64), (0.0,) * 7)
    with_it = networks.predict(PredictCall(latents, TIMESTEP, text, [missing]))
    assert torch.equal(with_it, networks.predict(PredictCall(latents, TIMESTEP, text, [])))


def test_two_controls_add_up(latents: Tensor, hint: Tensor) -> None:
    networks = tiny_networks(controls=("canny", "again"))
    networks.controlnets["again"].load_state_dict(networks.controlnets["canny"].state_dict())
    text = networks.encode_text(["", ""])
    both = [control(networks, hint, 0.5), control(networks, hint, 0.25, "again")]
    once = [control(networks, hint, 0.75)]
    torch.testing.assert_close(
        networks.predict(PredictCall(latents, TIMESTEP, text, both)),
        networks.predict(PredictCall(latents, TIMESTEP, text, once)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_wrong_number_of_scales_is_an_error(
    networks: DiffusersNetworks, latents: Tensor, hint: Tensor
) -> None:
    text = networks.encode_text(["", ""])
    with pytest.raises(ValueError, match="shorter"):
        networks.predict(
            PredictCall(latents, TIMESTEP, text, [ControlInput("canny", hint, (1.0,) * 6)])
        )


def test_nothing_is_written_on_a_network(
    networks: DiffusersNetworks, latents: Tensor, hint: Tensor
) -> None:
    before = {name: set(vars(network)) for name, network in networks.controlnets.items()}
    text = networks.encode_text(["", ""])
    full = networks.predict(PredictCall(latents, TIMESTEP, text, [control(networks, hint, 1.0)]))
    networks.predict(PredictCall(latents, TIMESTEP, text, [control(networks, hint, 0.1)]))
    again = networks.predict(PredictCall(latents, TIMESTEP, text, [control(networks, hint, 1.0)]))
    assert torch.equal(full, again)
    assert before == {name: set(vars(network)) for name, network in networks.controlnets.items()}


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_decoding_undoes_the_scale_and_shift(kind: str, latents: Tensor) -> None:
    networks = tiny_networks(autoencoder=kind)
    config = networks.vae.config
    raw = latents / config.scaling_factor + (0.1 if kind == "tiny" else 0.0)
    with torch.no_grad():
        theirs = networks.vae.decode(raw).sample
    ours = networks.decode(latents)
    assert ours.shape == (1, 3, 64, 64)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_encoding_undoes_what_decoding_does_to_scale_and_shift(kind: str) -> None:
    networks = tiny_networks(autoencoder=kind)
    config, shift = networks.vae.config, 0.1 if kind == "tiny" else 0.0
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        theirs = networks.vae.encode(picture)
    ours = networks.encode(picture)
    assert ours.mean.shape == (1, 4, 8, 8)
    if kind == "kl":
        wanted = theirs.latent_dist.mean
        torch.testing.assert_close(ours.std, theirs.latent_dist.std * config.scaling_factor)
    else:
        wanted = theirs.latents
        assert ours.std is None
    torch.testing.assert_close(ours.mean, (wanted - shift) * config.scaling_factor)


def test_a_picture_is_encoded_in_the_vaes_format(networks: DiffusersNetworks) -> None:
    """The latents are float32 whatever it is; after an overflow the VAE is float32 too."""
    exact = networks
    half = replace(exact, vae=copy.deepcopy(exact.vae).bfloat16(), dtype=torch.bfloat16)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    wanted, coarse, again = (
        one.encode(picture).mean for one in (exact, half, half.with_vae_in_float32())
    )
    assert coarse.dtype == torch.float32
    # The weights of both are rounded; the sums only of the first.
    assert 0 < (again - wanted).norm() < (coarse - wanted).norm() < 0.05 * wanted.norm()


def test_the_preview_is_the_matrix_with_and_without_a_bias() -> None:
    networks = tiny_networks()
    networks.preview_matrix = torch.tensor([[0.5, 0, 0], [0, 0.25, 0], [0, 0, 1], [0, 0, 1.0]])
    latents = torch.tensor([1.0, -2.0, 0.5, 3.0]).reshape(1, 4, 1, 1)
    assert networks.preview(latents).flatten().tolist() == [0.5, -0.5, 1.0]  # 3.5 is clamped
    networks.preview_matrix = torch.cat([networks.preview_matrix, torch.tensor([[0, 0.25, -3.0]])])
    assert networks.preview(latents).flatten().tolist() == [0.5, -0.25, 0.5]


def test_the_preview_is_fitted_to_the_decoder() -> None:
    class Linear(torch.nn.Module):
        """A decoder whose colours are a known matrix of its latents."""

        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (dict,), {"scaling_factor": 2.0})()
            self.matrix = torch.tensor([[0.1, 0, 0.02], [0, 0.1, 0], [0, 0, 0.1], [0.05, 0, 0]])

        def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
            small = torch.einsum("bchw,cr->brhw", latents, self.matrix) + 0.2
            return (torch.nn.functional.interpolate(small, scale_factor=8),)

    decoder = Linear()
    fitted = fit_preview(decoder, 4, torch.device("cpu"), torch.float32)
    wanted = torch.cat([decoder.matrix / 2.0, torch.full((1, 3), 0.2)])
    torch.testing.assert_close(fitted, wanted, rtol=0, atol=1e-5)


def test_half_precision_stays_inside(latents: Tensor, hint: Tensor) -> None:
    exact = tiny_networks()
    half = tiny_networks()
    half.dtype = torch.bfloat16
    for network in (half.text_encoder, half.unet, half.vae, *half.controlnets.values()):
        torch.nn.Module.to(network, torch.bfloat16)
    text = half.encode_text(["the red ball", ""])
    noise = half.predict(PredictCall(latents, TIMESTEP, text, [control(half, hint, 1.0)]))
    picture = half.decode(latents)
    assert noise.dtype == picture.dtype == torch.float32
    exact_text = exact.encode_text(["the red ball", ""])
    reference = exact.predict(
        PredictCall(latents, TIMESTEP, exact_text, [control(exact, hint, 1.0)])
    )
    assert (noise - reference).abs().mean() < 0.05 * reference.abs().mean()


def test_the_float32_retry_has_the_same_weights(latents: Tensor) -> None:
    half = tiny_networks()
    assert half.in_float32() is half
    half.dtype = torch.bfloat16
    for network in (half.text_encoder, half.unet, half.vae, *half.controlnets.values()):
        torch.nn.Module.to(network, torch.bfloat16)
    exact = half.in_float32()
    assert (exact.dtype, exact.unet.dtype, half.unet.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )
    for found, wanted in zip(exact.unet.parameters(), half.unet.parameters(), strict=True):
        assert torch.equal(found, wanted.float())
    assert exact.controlnets["canny"].dtype == torch.float32
    assert exact.decode(latents).isfinite().all()


def test_a_vae_that_overflows_is_the_only_copy_in_float32(
    hint: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents that float16 can hold, decoded by weights whose sums it cannot."""
    exact, half = tiny_networks(), replace(tiny_networks(), dtype=torch.float16)
    for one in (exact, half):
        one.vae.post_quant_conv.weight.data.mul_(1e5)
        one.vae.decoder.conv_in.weight.data.div_(1e4)
    for network in (half.text_encoder, half.unet, half.vae, *half.controlnets.values()):
        torch.nn.Module.to(network, torch.float16)
    copies: list[torch.nn.Module] = []
    copy_to_float32 = models.networks.in_float32

    def counted(part: torch.nn.Module) -> torch.nn.Module:
        copies.append(part)
        return copy_to_float32(part)

    monkeypatch.setattr("models.networks.in_float32", counted)
    picture = (hint[0].permute(1, 2, 0) * 255).byte().numpy()
    condition = Condition("canny", "canny", "", find_annotator("canny"), "canny")
    control = ControlRequest(condition, picture, strength=0.1)
    request = GenerationRequest((control,), prompt="the red ball", guidance_scale=1.5, steps=3)
    steps: list[int] = []

    def made(networks: DiffusersNetworks) -> tuple[Tensor, Diffusion]:
        reporter = ProgressReporter(lambda progress: steps.append(progress.step), None, 0, 3, 1)
        diffusion = Diffusion(networks, request, [ControlTrack(control, picture)], reporter)
        return diffusion.pictures([1]), diffusion

    wanted, _ = made(exact)
    steps.clear()
    found, diffusion = made(half)
    assert copies == [half.vae] and max(steps) == 3 and steps.count(3) == 1
    assert diffusion.reporter.warnings == [DECODED_IN_FLOAT32.format("float16")]
    twin: Any = diffusion.networks
    assert (twin.dtype, twin.vae_dtype, half.vae_dtype) == (
        torch.float16,
        torch.float32,
        torch.float16,
    )
    assert twin._step is half._step, "what a GPU has captured is not captured again"
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_a_network_with_bgr_hints_flips_them_itself(latents: Tensor) -> None:
    """ControlNet v1.0's normals: maps are RGB here, and diffusers' config switch does the rest."""
    hint = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 64, 64)
    turned = tiny_networks()
    text = turned.encode_text(["the red ball", ""])
    wanted = turned.predict(
        PredictCall(latents, TIMESTEP, text, [control(turned, hint.flip(1), 1.0)])
    )
    turned.controlnets["canny"].register_to_config(controlnet_conditioning_channel_order="bgr")
    turned = replace(turned)  # encoded maps are kept, and the switch is set before they are made
    copied = replace(turned, dtype=torch.bfloat16).in_float32()
    assert copied.controlnets["canny"] is not turned.controlnets["canny"]
    for networks in (turned, copied):
        found = networks.predict(
            PredictCall(latents, TIMESTEP, text, [control(networks, hint, 1.0)])
        )
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5)
    unturned = turned.predict(
        PredictCall(latents, TIMESTEP, text, [control(turned, hint.flip(1), 1.0)])
    )
    assert not torch.allclose(unturned, wanted, rtol=0, atol=1e-4)
