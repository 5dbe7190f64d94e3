"""Any Stable Diffusion 1.x base: what it says of itself is believed, and the rest is refused."""

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, T2IAdapter, UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.nn import functional

from core.errors import SuiteError
from tests.tiny_networks import tiny_controlnet, tiny_networks
from training import train_control
from training.base import Base
from training.decoder import decoder_of
from training.diffusion import NoisyTarget


def picture(folder, name):
    pixels = np.asarray(Image.open(folder / name), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def one_step(monkeypatch, arguments):
    """Return the networks, targets and losses of a run's first step, instead of training."""
    seen = {}

    class Seen(NoisyTarget):
        def __init__(self, scheduler, latents, noise, timesteps):
            super().__init__(scheduler, latents, noise, timesteps)
            seen.update(latents=latents, timesteps=timesteps, noise=noise)

    def train(_run, modules, loss_at, *_):
        seen.update(**modules, loss=loss_at(0)["loss"])

    monkeypatch.setattr(train_control, "NoisyTarget", Seen)
    monkeypatch.setattr(train_control, "EMPTY_PROMPTS", 0.0)
    monkeypatch.setattr(train_control.Batches, "rows", lambda *_: torch.tensor([0, 1]))
    monkeypatch.setattr(train_control, "train", train)
    train_control.main(arguments)
    return seen


def few(sd_base, folder, tmp_path, *more):
    """Return the arguments of a run in float32 on both pictures."""
    few = ["--batch", "2", "--size", "64", "--device", "cpu", "--mixed-precision", "no"]
    places = ["--base", f"{sd_base}", "--folder", f"{folder}", "--out", f"{tmp_path / 'run'}"]
    return [*few, *places, *more]


def inputs(sd_base, folder, seen):
    """Return the base's UNet and what diffusers' training gives it: latents, text, maps."""
    networks = tiny_networks()
    tokenizer, text_encoder, vae = networks.tokenizer, networks.text_encoder, networks.vae
    scheduler = DDPMScheduler.from_pretrained(sd_base / "scheduler")
    with torch.no_grad():
        pictures = torch.stack([picture(folder, f"target{k}.png") for k in range(2)]) * 2 - 1
        encoded = vae.encode(pictures).latent_dist
        drawn = (seen["latents"] / vae.config.scaling_factor - encoded.mean) / encoded.std
        assert abs(float(drawn.mean())) < 0.15 and abs(float(drawn.std()) - 1) < 0.15
        prompts = tokenizer(["the red ball", "the ball"], padding="max_length", return_tensors="pt")
        text = text_encoder(prompts.input_ids)[0]
    noisy = scheduler.add_noise(seen["latents"], seen["noise"], seen["timesteps"])
    maps = torch.stack([picture(folder, f"source{k}.png") for k in range(2)])
    return UNet2DConditionModel.from_pretrained(sd_base / "unet"), noisy, text, maps


def assert_learns_alike(seen, theirs, predicted):
    """Compare loss and gradients with those of diffusers' network and its UNet's prediction."""
    seen["loss"].backward()
    loss = functional.mse_loss(predicted, seen["noise"])
    loss.backward()
    assert float((loss - seen["loss"]).detach().abs()) < 1e-5
    assert_same_gradients(seen["control"], theirs)


def assert_same_gradients(ours, theirs):
    """Compare those of all weights that have any: the others have none in ours either."""
    found, largest = dict(ours.named_parameters()), 0.0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            assert found[name].grad is None, name
        else:
            assert torch.allclose(found[name].grad, parameter.grad, atol=1e-4), name
            largest = max(largest, float(parameter.grad.abs().max()))
    assert largest > 0.01  # so that 1e-4 means something


CHECKPOINTING, UNLOCKED = "--gradient-checkpointing", "--unlock-decoder"


@pytest.mark.parametrize(
    "more", [(), (CHECKPOINTING,), (UNLOCKED,), (UNLOCKED, CHECKPOINTING)], ids=" ".join
)
def test_a_step_equals_diffusers_training(sd_base, folder, tmp_path, monkeypatch, more):
    """Loss and gradients of examples/controlnet/train_controlnet.py, the recipe of its README.

    There the UNet is frozen, its decoder too; it is the original's sd_locked that frees that.
    """
    start = ["--start", f"{sd_base / 'controlnet' / 'canny'}"]
    seen = one_step(monkeypatch, [*few(sd_base, folder, tmp_path, *more), *start])
    unet, noisy, text, maps = inputs(sd_base, folder, seen)
    control = tiny_controlnet(unet)
    control.load_state_dict(seen["control"].state_dict())
    down, middle = control(
        noisy, seen["timesteps"], encoder_hidden_states=text, controlnet_cond=maps,
        return_dict=False,
    )  # fmt: skip
    predicted = unet(
        noisy, seen["timesteps"], encoder_hidden_states=text,
        down_block_additional_residuals=down, mid_block_additional_residual=middle,
    ).sample  # fmt: skip
    assert_learns_alike(seen, control, predicted)
    if UNLOCKED in more:
        assert_same_gradients(seen["decoder"], decoder_of(unet))


def test_the_middle_alone_learns_as_with_diffusers(sd_base, folder, tmp_path, monkeypatch):
    begun = ControlNetModel.from_pretrained(sd_base / "controlnet" / "canny")
    for one in begun.controlnet_down_blocks.parameters():
        nn.init.zeros_(one)
    begun.save_pretrained(tmp_path / "begun")
    start = ["--start", f"{tmp_path / 'begun'}", "--only-mid-control"]
    seen = one_step(monkeypatch, [*few(sd_base, folder, tmp_path), *start])
    unet, noisy, text, maps = inputs(sd_base, folder, seen)
    control = tiny_controlnet(unet)
    control.load_state_dict(seen["control"].state_dict())
    down, middle = control(noisy, seen["timesteps"], text, maps, return_dict=False)
    nothing = [torch.zeros_like(one) for one in down]
    predicted = unet(
        noisy, seen["timesteps"], encoder_hidden_states=text,
        down_block_additional_residuals=nothing, mid_block_additional_residual=middle,
    ).sample  # fmt: skip
    assert_learns_alike(seen, control, predicted)
    assert not any(one.any() for one in seen["control"].controlnet_down_blocks.parameters())


@pytest.mark.parametrize("more", [(), (CHECKPOINTING,)], ids=" ".join)
def test_an_adapters_step_equals_diffusers_training(sd_base, folder, tmp_path, monkeypatch, more):
    """As examples/t2i_adapter/train_t2i_adapter_sdxl.py gives the features to the UNet."""
    arguments = few(sd_base, folder, tmp_path, *more)
    seen = one_step(monkeypatch, [*arguments, "--adapter"])
    unet, noisy, text, maps = inputs(sd_base, folder, seen)
    adapter = T2IAdapter(3, [*unet.config.block_out_channels], 2, 8, "full_adapter")
    adapter.load_state_dict(seen["control"].state_dict())
    predicted = unet(
        noisy, seen["timesteps"], encoder_hidden_states=text,
        down_intrablock_additional_residuals=adapter(maps),
    ).sample  # fmt: skip
    assert_learns_alike(seen, adapter, predicted)


def test_a_new_controlnet_is_a_copy_of_the_unets_encoder(sd_base, folder, tmp_path, monkeypatch):
    control = one_step(monkeypatch, few(sd_base, folder, tmp_path))["control"]
    unet = UNet2DConditionModel.from_pretrained(sd_base / "unet").state_dict()
    copied = {name: one for name, one in control.state_dict().items() if name in unet}
    assert len(copied) > 100 and all(torch.equal(one, unet[name]) for name, one in copied.items())
    zero = [
        *control.controlnet_down_blocks.parameters(),
        *control.controlnet_mid_block.parameters(),
    ]
    assert not any(one.any() for one in zero)


def test_frozen_networks_are_copied_once_and_from_their_files(folder, tmp_path, monkeypatch):
    """In float32 on the way, or with their files still mapped, they take twice the memory."""
    seen, called = [], []

    def make(base, unet, start):
        seen.append(unet.dtype)
        return train_control.make_control(base, unet, start)

    monkeypatch.setattr(train_control, "train", lambda *_: None)
    monkeypatch.setattr(train_control, "return_large_blocks", lambda: called.append(1))
    few = ["--batch", "1", "--size", "64", "--device", "cpu", "--gradient-checkpointing"]
    places = ["--folder", f"{folder}", "--out", f"{tmp_path / 'run'}"]
    training = train_control.trained([*few, *places], make)
    assert seen == [torch.float16] and called == [1]
    formats = {
        torch.bfloat16: (training._unet, training._text_encoder),
        torch.float32: (training._vae, training.control),
    }
    for dtype, networks in formats.items():
        assert {one.dtype for network in networks for one in network.parameters()} == {dtype}

    found = Base("diorama").load()
    weights = [one for network in found[1:] for one in network.parameters()]
    mapped = [one.data for one in weights]
    found.place("cpu", torch.float16)  # their files' own, which needs no conversion
    assert not {one.data_ptr() for one in mapped} & {one.data_ptr() for one in weights}


def test_sizes_come_from_the_base(sd_base):
    found = Base(str(sd_base))
    assert (found.downscale, found.multiple, found.size(None)) == (8, 64, 64)
    assert found.scheduler.config.prediction_type == "epsilon" and not found.is_sd1
    diorama = Base("diorama")
    assert (diorama.downscale, diorama.multiple, diorama.size(None)) == (8, 32, 256)
    assert diorama.scheduler.config.prediction_type == "v_prediction"
    assert diorama.scheduler.config.beta_end == 0.02


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("unet", {"cross_attention_dim": 2048}, "Stable Diffusion 1.x model is needed"),
        ("unet", {"cross_attention_dim": 1024}, "Stable Diffusion 1.x model is needed"),
        ("unet", {"in_channels": 9}, "inpainting or editing"),
        ("unet", {"time_cond_proj_dim": 256}, "takes a further input (time_cond_proj_dim)"),
        ("scheduler", {"prediction_type": "sample"}, "neither noise nor velocity"),
    ],
)
def test_what_cannot_be_trained_beside_is_refused(sd_base, tmp_path, part, changes, sentence):
    for one in sd_base.iterdir():
        (tmp_path / one.name).symlink_to(one)
    (tmp_path / part).unlink()
    (tmp_path / part).mkdir()
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    config = json.loads((sd_base / part / name).read_text())
    (tmp_path / part / name).write_text(json.dumps(config | changes))
    for file in (sd_base / part).glob("*.safetensors"):
        (tmp_path / part / file.name).symlink_to(file)
    with pytest.raises(SuiteError) as refused:
        Base(str(tmp_path))
    assert sentence in str(refused.value) and str(refused.value).count(". ") == 0


def test_a_size_that_the_unet_cannot_halve_is_refused(sd_base):
    with pytest.raises(SuiteError, match="multiple of 64"):
        Base(str(sd_base)).size(96)
