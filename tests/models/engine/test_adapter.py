"""T2I-Adapters in our forward pass give what diffusers' UNet gives with their features."""

from dataclasses import replace

import pytest
import torch
from diffusers import T2IAdapter
from torch import Tensor

from core.networks import ControlInput, PredictCall
from models.engine import batched
from models.engine.unet import Forward
from tests.models.engine.test_unet import SD15
from tests.tiny_networks import TEXT_WIDTH, tiny_adapter, tiny_controlnet, tiny_unet

SCALES = (0.9, 0.8, 0.7, 0.6)


class Example:
    """A UNet with a ControlNet and two adapters, and what is asked of them."""

    def __init__(self, images: int = 1) -> None:
        torch.manual_seed(0)
        self.unet = tiny_unet(**SD15)
        self.adapters: dict[str, T2IAdapter] = {
            "depth": tiny_adapter(self.unet),
            "sketch": tiny_adapter(self.unet, in_channels=1, adapter_type="light_adapter"),
        }
        self.controlnet = tiny_controlnet(self.unet)
        self.forward = Forward(self.unet, {**self.adapters, "canny": self.controlnet})
        self.latents = torch.randn(images, 4, 16, 8)
        self.texts = torch.randn(2, 77, TEXT_WIDTH)
        self.inputs = [
            ControlInput(
                name,
                torch.rand(1, 1, 128, 64).expand(1, 3, -1, -1),  # grey, as a drawing is
                tuple(share * scale for scale in SCALES),
                is_adapter=True,
            )
            for name, share in (("depth", 1.0), ("sketch", 0.5))
        ]
        count = len(self.controlnet.controlnet_down_blocks) + 1
        self.canny = ControlInput("canny", torch.rand(1, 3, 128, 64), (0.7,) * count)

    def call(self, *controls: ControlInput) -> PredictCall:
        """What is asked, of these controls."""
        return PredictCall(self.latents, 401, self.texts, controls)

    @torch.no_grad()
    def theirs(self, *controls: ControlInput) -> Tensor:
        """diffusers' own pass, on every pair of text and image."""
        images = len(self.latents)
        latents = torch.cat([self.latents] * 2)
        text = self.texts.repeat_interleave(images, 0)
        features: list[Tensor] = []
        residuals = None
        for one in controls:
            if one.is_adapter:
                channels = self.adapters[one.name].config.in_channels
                made = self.adapters[one.name](one.hint[:, :channels])
                scaled = [a * b for a, b in zip(made, one.scales, strict=True)]
                features = [a + b for a, b in zip(features or [0] * len(made), scaled, strict=True)]
            else:
                hint = one.hint.expand(len(latents), -1, -1, -1)
                skips, middle = self.controlnet(latents, 401, text, hint, 0.7, return_dict=False)
                residuals = (*skips, middle)
        return self.unet(
            latents,
            401,
            text,
            down_block_additional_residuals=residuals[:-1] if residuals else None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
            down_intrablock_additional_residuals=[
                one.expand(len(latents), -1, -1, -1).clone() for one in features
            ],
        ).sample


def _close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).norm() <= 1e-5 * wanted.norm())


@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_equals_diffusers(images: int) -> None:
    example = Example(images)
    for controls in (example.inputs[:1], example.inputs, [example.inputs[0], example.canny]):
        wanted = example.theirs(*controls)
        assert _close(example.forward(example.call(*controls)), wanted)
    assert not _close(example.forward(example.call()), wanted)


@torch.no_grad()
def test_a_batch_gives_each_what_it_gets_alone() -> None:
    example = Example()
    calls = [
        example.call(example.inputs[0]),
        example.call(),
        example.call(example.inputs[1], example.canny),
    ]
    alone = [example.forward(call) for call in calls]
    together = batched.predict([(example.forward, call) for call in calls])
    assert all(_close(found, wanted) for found, wanted in zip(together, alone, strict=True))


@torch.no_grad()
def test_features_are_made_once_for_a_hint_and_not_at_strength_0() -> None:
    example, runs = Example(), []
    adapter = example.inputs[0]
    example.adapters["depth"].register_forward_hook(lambda *_: runs.append(1))
    off = replace(adapter, scales=(0.0,) * 4)
    assert _close(example.forward(example.call(off)), example.forward(example.call()))
    assert runs == []
    first = example.forward(example.call(adapter))
    assert torch.equal(example.forward(example.call(adapter)), first)
    assert runs == [1]


@torch.no_grad()
def test_kept_residuals_leave_the_features_out() -> None:
    """As the fast mode keeps a ControlNet's over some steps, while the adapter acts in each."""
    example = Example()
    both = example.call(example.inputs[0], example.canny)
    residuals = example.forward.control_residuals(both)
    kept = replace(both, controls=both.active_adapters, residuals=residuals)
    assert _close(example.forward(kept), example.forward(both))
    assert example.forward.control_residuals(example.call(example.inputs[0])) == ()
