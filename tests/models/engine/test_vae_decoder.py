"""Our way through the decoders gives what diffusers' own gives."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from models.checkpoints.loading import Placement
from models.engine import vae_decoder
from models.engine.kernels.build import cpu_has_bfloat16
from models.engine.vae_decoder import decode_latents
from tests.tiny_networks import tiny_autoencoder


def theirs(vae: Any, latents: Tensor) -> Tensor:
    found: Tensor = vae.decode(latents, return_dict=False)[0]
    return found


def changed(vae: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Return another config; what it lists as left at its default would stay so."""
    config = dict(vae.config) | changes
    config.pop("_use_default_values", None)
    return config


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Who was left to diffusers."""
    asked: list[Any] = []
    for kind in (AutoencoderKL, AutoencoderTiny):
        own = kind.decode

        def noted(self: Any, *given: Any, _own: Any = own, **named: Any) -> Any:
            asked.append(self)
            return _own(self, *given, **named)

        monkeypatch.setattr(kind, "decode", noted)
    return asked


@torch.no_grad()
def test_it_is_diffusers_own_result(refused: list[Any]) -> None:
    torch.manual_seed(0)
    vae = Placement(torch.device("cpu"), torch.float32).place(tiny_autoencoder())
    latents = torch.randn(2, 4, 8, 6)
    found = decode_latents(vae, latents)
    assert not refused
    torch.testing.assert_close(found, theirs(vae, latents), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_in_bfloat16_it_is_no_further_from_float32() -> None:
    torch.manual_seed(0)
    vae = tiny_autoencoder()
    latents = torch.randn(4, 4, 8, 6)
    reference = theirs(vae, latents.bfloat16().float())
    vae = Placement(torch.device("cpu"), torch.bfloat16).place(vae)
    before = theirs(vae, latents.bfloat16())
    found = decode_latents(vae, latents.bfloat16())
    assert (found - reference).norm() <= 1.1 * (before - reference).norm()
    assert torch.equal(theirs(vae, latents.bfloat16()), before)


@pytest.mark.parametrize(
    "changes",
    [{"mid_block_add_attention": False}, {"act_fn": "gelu"}, {"use_post_quant_conv": False}],
)
@torch.no_grad()
def test_another_construction_is_left_to_diffusers(
    changes: dict[str, Any], refused: list[Any]
) -> None:
    vae = AutoencoderKL.from_config(changed(tiny_autoencoder(), changes)).eval()
    assert torch.isfinite(decode_latents(vae, torch.randn(1, 4, 8, 8))).all()
    assert refused == [vae]


@torch.no_grad()
def test_another_tiny_one_is_left_to_diffusers(refused: list[Any]) -> None:
    vae = AutoencoderTiny.from_config(changed(tiny_autoencoder("tiny"), {"act_fn": "silu"})).eval()
    assert torch.isfinite(decode_latents(vae, torch.randn(1, 4, 8, 8))).all()
    assert refused == [vae]


@torch.no_grad()
def test_a_tiny_one_gives_diffusers_own_result_to_the_bit(refused: list[Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        vae = Placement(torch.device("cpu"), dtype).place(tiny_autoencoder("tiny"))
        latents = torch.randn(1, 4, 8, 6).to(dtype).contiguous(memory_format=torch.channels_last)
        found = decode_latents(vae, latents)
        assert not refused
        if dtype == torch.float32 or cpu_has_bfloat16():
            assert torch.equal(found, theirs(vae, latents))
        else:  # kernels of our own
            torch.testing.assert_close(found, theirs(vae, latents), rtol=2e-2, atol=2e-2)
        refused.clear()


@torch.no_grad()
def test_tiles_are_left_to_diffusers(refused: list[Any]) -> None:
    vae = tiny_autoencoder()
    vae.enable_tiling()
    decode_latents(vae, torch.randn(1, 4, 8, 8))
    assert refused == [vae] and not vae_decoder._is_kl(vae)
