"""Our forward pass gives what diffusers' own gives."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from core.errors import WeightsMismatch
from core.networks import ControlInput, PredictCall
from models.checkpoints.loading import Placement
from models.engine.kernels.attention import attention
from models.engine.unet import KEPT_HINTS, Forward
from tests.tiny_networks import TEXT_WIDTH, tiny_controlnet, tiny_unet

SD15 = {
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
"""Stable Diffusion 1.5's blocks, narrow."""
DIORAMA = {
    "layers_per_block": 1,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
WITHOUT_MIDDLE = {"layers_per_block": 1, "mid_block_type": None}
"""As BK-SDM-Tiny's; every ControlNet of diffusers has a middle block."""
LINEAR = {"use_linear_projection": True, "transformer_layers_per_block": 2}


class Example:
    """A UNet, two ControlNets, and what is asked of them."""

    def __init__(self, changes: dict[str, Any], images: int = 1, texts: int = 2) -> None:
        torch.manual_seed(0)
        self.unet = tiny_unet(**changes)
        like = tiny_unet(**(changes | {"mid_block_type": "UNetMidBlock2DCrossAttn"}))
        self.controlnets = {name: tiny_controlnet(like) for name in ("canny", "depth")}
        self.forward = Forward(self.unet, self.controlnets)
        self.latents = torch.randn(images, 4, 16, 8)
        self.texts = torch.randn(texts, 77, TEXT_WIDTH)
        self.hint = torch.rand(1, 3, 128, 64)

    def control(self, scale: float = 0.7, name: str = "canny") -> ControlInput:
        """One scale for every residual."""
        count = len(self.controlnets[name].controlnet_down_blocks) + 1
        return ControlInput(name, self.hint, tuple(scale - 0.01 * k for k in range(count)))

    def round(self) -> None:
        """Everything in bfloat16 from here on, as the store places it."""
        placement = Placement(torch.device("cpu"), torch.bfloat16)
        self.unet, *controls = (placement.place(n) for n in (self.unet, *self.controlnets.values()))
        self.controlnets = dict(zip(self.controlnets, controls, strict=True))
        self.forward = Forward(self.unet, self.controlnets)
        self.latents, self.texts = self.latents.bfloat16(), self.texts.bfloat16()
        self.hint = self.hint.bfloat16()

    def call(
        self,
        controls: Sequence[ControlInput] = (),
        timestep: float = 401,
        guidance_scale: float | None = None,
    ) -> PredictCall:
        """What is asked, of its latents and texts."""
        return PredictCall(
            self.latents, timestep, self.texts, controls, guidance_scale=guidance_scale
        )

    @torch.no_grad()
    def ours(self, controls: list[ControlInput], timestep: int = 401) -> Tensor:
        """Our own."""
        return self.forward(self.call(controls, timestep))

    @torch.no_grad()
    def theirs(self, controls: list[ControlInput], timestep: int = 401) -> Tensor:
        """diffusers' own passes, on every pair of text and image."""
        images = len(self.latents)
        latents = torch.cat([self.latents] * len(self.texts))
        text = self.texts.repeat_interleave(images, 0)
        residuals: list[Tensor] | None = None
        for control in controls:
            skips, middle = self.controlnets[control.name](
                latents,
                timestep,
                text,
                control.hint.expand(len(latents), -1, -1, -1),
                return_dict=False,
            )
            scaled = [r * s for r, s in zip((*skips, middle), control.scales, strict=True)]
            before = residuals or [torch.zeros(())] * len(scaled)
            residuals = [a + b for a, b in zip(before, scaled, strict=True)]
        return self.unet(
            latents,
            timestep,
            text,
            down_block_additional_residuals=residuals[:-1] if residuals else None,
            mid_block_additional_residual=residuals[-1] if residuals else None,
        ).sample


@pytest.mark.parametrize(
    "changes",
    [SD15, DIORAMA, LINEAR, WITHOUT_MIDDLE],
    ids=["sd15", "diorama", "linear", "no-middle"],
)
@pytest.mark.parametrize(("images", "texts"), [(1, 2), (3, 2), (2, 1)])
def test_it_is_diffusers_own_result(changes: dict[str, Any], images: int, texts: int) -> None:
    example = Example(changes, images, texts)
    for controls in (
        [],
        [example.control()],
        [example.control(), example.control(0.4, "depth")],
    ):
        torch.testing.assert_close(
            example.ours(controls), example.theirs(controls), rtol=1e-4, atol=1e-5
        )


def test_reversed_channels_are_reversed() -> None:
    example = Example({})
    wanted = example.ours([example.control()])
    turned = ControlNetModel.from_config(
        example.controlnets["canny"].config, controlnet_conditioning_channel_order="bgr"
    )
    turned.load_state_dict(example.controlnets["canny"].state_dict())
    example.forward = Forward(example.unet, {"canny": turned})
    assert not torch.allclose(example.ours([example.control()]), wanted, atol=1e-4)
    example.hint = example.hint.flip(1)
    torch.testing.assert_close(example.ours([example.control()]), wanted)


def test_each_request_and_step_has_its_own() -> None:
    """What is kept from one call must not leak into another."""
    example = Example({})
    first = example.ours([example.control()], 401)
    for change in ("texts", "hint"):
        setattr(example, change, torch.rand_like(getattr(example, change)))
        for timestep in (401, 7):
            controls = [example.control()]
            found, wanted = (f(controls, timestep) for f in (example.ours, example.theirs))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found, first, atol=1e-4)


def test_the_same_map_and_text_are_encoded_once() -> None:
    example = Example({})
    seen: list[str] = []

    def count(name: str) -> Any:
        return lambda *_: seen.append(name)

    control = example.controlnets["canny"]
    control.controlnet_cond_embedding.register_forward_hook(count("map"))
    control.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.register_forward_hook(
        count("text")
    )
    control.time_embedding.register_forward_hook(count("time"))
    for timestep in (401, 7, 401):
        example.ours([example.control()], timestep)
    assert sorted(seen) == ["map", "text", "time", "time"]
    # Another request brings a map of its own that says the same.
    example.hint = example.hint.clone()
    example.ours([example.control()])
    assert seen.count("map") == 1
    for _ in range(KEPT_HINTS):
        example.hint = torch.rand_like(example.hint)
        example.ours([example.control()])
    assert seen.count("map") == 1 + KEPT_HINTS


def test_equal_pixels_in_another_shape_are_another_map() -> None:
    """An empty map is black whether it stands or lies."""
    example = Example({})
    for _ in range(2):
        example.latents, example.hint = example.latents.mT, torch.zeros_like(example.hint.mT)
        found, wanted = (f([example.control()]) for f in (example.ours, example.theirs))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_requests_in_several_threads_do_not_mix() -> None:
    example = Example({})

    @torch.no_grad()
    def predict(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(2, 77, TEXT_WIDTH, generator=generator)
        hint = torch.rand(example.hint.shape, generator=generator)
        control = replace(example.control(), hint=hint)
        calls = [PredictCall(example.latents, t, text, [control]) for t in (401 + seed, 7)]
        return [example.forward(call) for call in calls]

    seeds = list(range(2 * KEPT_HINTS))
    wanted = [predict(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predict, seeds))
    torch.testing.assert_close(found, wanted)


def test_a_control_of_scale_0_does_not_run() -> None:
    example = Example({})
    missing = ControlInput("there is none of this name", example.hint, (0.0,) * 7)
    assert torch.equal(example.ours([missing]), example.ours([]))


@pytest.mark.parametrize(("images", "texts"), [(1, 2), (3, 2), (2, 1)])
def test_cached_residuals_act_like_computed_ones(images: int, texts: int) -> None:
    example = Example(DIORAMA, images, texts)
    controls = [example.control(), example.control(0.4, "depth"), example.control(0.0)]
    controls[-1] = replace(controls[-1], scales=(0.0,) * 7)
    with torch.no_grad():
        kept = example.forward.control_residuals(example.call(controls))
        call = replace(example.call(), residuals=kept)
        found = example.forward(call)
        later = example.forward(replace(call, timestep=7))
        # The second text's share of them serves it alone.
        half = tuple(residual[-images:] for residual in kept)
        alone = example.forward(replace(call, texts=example.texts[-1:], residuals=half))
        assert example.forward.control_residuals(example.call(controls[2:])) == ()
    torch.testing.assert_close(found, example.theirs(controls), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, found[-images:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(later, example.theirs(controls, 7), atol=1e-4)


def test_prompts_share_the_pass_up_to_cross_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = Example(SD15)
    rows: list[int] = []

    def count(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows.append(len(queries))
        return attention(queries, keys, values)

    monkeypatch.setattr("models.engine.unet.attention", count)
    example.ours([])
    # The first looks at itself alone; every later one knows a text already.
    assert rows[0] == 1 and set(rows[1:]) == {2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [SD15, DIORAMA, LINEAR, WITHOUT_MIDDLE],
    ids=["sd15", "diorama", "linear", "no-middle"],
)
def test_in_bfloat16_it_is_no_further_from_float32(changes: dict[str, Any]) -> None:
    """Where this processor has kernels for bfloat16, they are what runs here."""
    assert_no_further(changes)


@pytest.mark.slow
@pytest.mark.usefixtures("without_bfloat16")
@pytest.mark.parametrize("compiled", ["AVX512_CORE_VNNI", "AVX512_CORE", "AVX2"], indirect=True)
@pytest.mark.parametrize("changes", [SD15, DIORAMA], ids=["sd15", "diorama"])
def test_nor_is_it_on_a_processor_without_bfloat16(changes: dict[str, Any]) -> None:
    assert_no_further(changes)


def assert_no_further(changes: dict[str, Any]) -> None:
    ours, theirs = [], []
    for seed in range(4):
        example = Example(changes, images=2)
        example.latents = torch.randn(
            example.latents.shape, generator=torch.Generator().manual_seed(seed)
        )
        reference = example.theirs([example.control()])
        example.round()
        theirs.append((example.theirs([example.control()]).float() - reference).norm())
        ours.append((example.ours([example.control()]).float() - reference).norm())
        # Afterwards the networks are still diffusers' own, and say the same.
        again = (example.theirs([example.control()]).float() - reference).norm()
        assert again == theirs[-1]
    assert sum(ours) <= sum(theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"resnet_time_scale_shift": "scale_shift"},
        {"mid_block_scale_factor": 2.0},
        {"only_cross_attention": True},
        {"encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"},
        {"time_embedding_act_fn": "silu"},
    ],
    ids=["time", "scale", "attention", "text", "activation"],
)
def test_another_architecture_is_refused(changes: dict[str, Any]) -> None:
    unet: UNet2DConditionModel = tiny_unet(**changes)
    with pytest.raises(WeightsMismatch, match="not built as Stable Diffusion"):
        Forward(unet, {})
