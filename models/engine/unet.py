"""The way through the UNet and the ControlNets of SD 1.x, with nothing computed twice.

The weights stay in diffusers' own modules; what is ours is the path between them. The result is
diffusers' own up to rounding (tests/models/engine/test_unet.py). What differs, and why:

- What does not change from step to step is kept: a map's encoding, the keys and values of the
  text, and the time's part in every residual block, which goes into a convolution's bias.
- The prompts of one image (guidance has two) start from the same latents, so they share one pass up
  to the first look at the text: in SD 1.5 that includes one of the largest self-attentions.
- A ControlNet without weight is not run; the others' residuals are added straight to the skips.
- Pictures stay channels-last from end to end, so that the 1x1 convolutions around attention are
  products of matrices on the same memory, and no layout is ever changed and changed back.
- On a CPU with instructions for bfloat16 attention, 3x3 convolutions, products and group norms have
  kernels of their own (kernels/), and weights lie as these or oneDNN want them (layers.py); a
  product takes GELU and gate in, a convolution an enlargement.
- Divisions by scales that are 1 in every SD 1.x model are left out.

On a GPU a step is recorded and played again (cuda_graph.py).
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from core.errors import WeightsMismatch
from core.networks import ControlInput, PredictCall, Residuals
from models.engine.kernels.attention import attention
from models.engine.kernels.groupnorm import (
    add_and_norm,
    convolve_and_norm,
    convolve_onto,
    group_norm,
)
from models.engine.layers import convolve, convolve_doubled, multiply, multiply_gated

KEPT_TIMES = 200
"""Time tables kept for each network: two requests of the most steps; 50 KB each in SD 1.5."""
KEPT_HINTS = 8
"""Encoded maps kept on a CPU beyond their request, so that another image of one starts at once."""

PARTS = (
    *("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block", "up_blocks"),
    *("conv_norm_out", "conv_act", "conv_out"),
    *("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"),
)
"""Of a UNet and of a ControlNet; others that diffusers knows would be passed by in silence."""

Using = Callable[..., AbstractContextManager[None]]
"""(a part, latents (B, C, h, w) or nothing): it is on its device meanwhile, with room for them."""
KeysValues = tuple[Tensor, Tensor]
"""Of the text, for one attention: (T * B, 77, heads, head width) each."""


@dataclass(frozen=True)
class StepCache:
    """What is known of one network before the latents are: each by the module that needs it."""

    text: Mapping[nn.Module, KeysValues]
    times: Mapping[nn.Module, Tensor]
    """The bias (C,) of each residual block's first convolution at this timestep."""
    joined: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    """Of self-attentions whose queries, keys and values are to be one product: (3 * C, C)."""


class Forward:
    """Predictions of one UNet with its ControlNets; may be called from several threads."""

    def __init__(
        self, unet: nn.Module, controlnets: Mapping[str, nn.Module], using: Using | None = None
    ) -> None:
        """Take the networks as they are; `using` is asked for each ControlNet that is run.

        Raises:
            WeightsMismatch: they are built differently from SD 1.x.
        """
        self._unet: Any = unet
        self._controlnets: Mapping[str, Any] = controlnets
        self.using: Using = using or (lambda *_: nullcontext())
        for network in (unet, *controlnets.values()):
            _check(network)
        self._lock = threading.Lock()
        self._texts = WeakTensorKeyDictionary()
        self._hints = WeakTensorKeyDictionary()
        self._times: OrderedDict[tuple[nn.Module, float], Mapping[nn.Module, Tensor]]
        self._times = OrderedDict()
        self._hints_by_content: OrderedDict[tuple[str, torch.Size, str], Tensor] = OrderedDict()

    def __call__(self, call: PredictCall) -> Tensor:
        """Return the UNet's output (T * B, C, h, w); see core.networks.PredictCall."""
        latents = channels_last(call.latents)
        cache = self._known(self._unet, call)
        skips, x = _encode(self._unet, convolve(self._unet.conv_in, latents), cache)
        for control in call.active_controls:
            with self.using(self._controlnets[control.name], latents):
                for target, (residual, scale) in zip(
                    (*skips, x), self._found(control, call), strict=True
                ):
                    target.add_(residual, alpha=scale)
        if call.residuals:
            for target, residual in zip((*skips, x), call.residuals, strict=True):
                target.add_(residual)
        return _decode(self._unet, skips, x, cache)

    def control_residuals(self, call: PredictCall) -> Residuals:
        """Return what the active controls add, scaled and summed; nothing where there are none.

        Each has (B, C, h, w) at depths before the text is seen, else (T * B, C, h, w).
        """
        total: list[Tensor] = []
        for control in call.active_controls:
            with self.using(self._controlnets[control.name], call.latents):
                found = [residual.mul_(scale) for residual, scale in self._found(control, call)]
            total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
        return tuple(total)

    def _found(self, control: ControlInput, call: PredictCall) -> Iterator[tuple[Tensor, float]]:
        """Yield each residual of a ControlNet with its scale."""
        network = self._controlnets[control.name]
        hint = self._hint(control, call.latents)
        found = _control(network, channels_last(call.latents), hint, self._known(network, call))
        yield from zip(found, control.scales, strict=True)

    # What is kept

    def _known(self, network: Any, call: PredictCall) -> StepCache:
        timestep, texts, images = call.timestep, call.texts, len(call.latents)
        with self._lock:
            by_network = _of(self._texts, texts)
            key = (network, timestep)
            times = self._times.pop(key, None)
            if times is None:
                times = _times(network, timestep, texts)
            self._times[key] = times
            while len(self._times) > KEPT_TIMES * (1 + len(self._controlnets)):
                self._times.popitem(last=False)
            if (network, images) not in by_network:
                by_network[network, images] = {
                    layer: _keys_values(layer, texts, images) for layer in _text_attentions(network)
                }
            return StepCache(by_network[network, images], times)

    def _hint(self, control: ControlInput, like: Tensor) -> Tensor:
        """Return the map as the ControlNet's encoder sees it, (1, C, h, w)."""
        with self._lock:
            by_name = _of(self._hints, control.hint)
            if control.name not in by_name:
                by_name[control.name] = self._encoded(control, like)
            found: Tensor = by_name[control.name]
            return found

    def _encoded(self, control: ControlInput, like: Tensor) -> Tensor:
        network = self._controlnets[control.name]
        if like.is_cuda:  # which has encoded it before a processor has read it
            return _encoded_hint(network, control.hint.to(like))
        content = hashlib.sha256(control.hint.float().cpu().numpy().tobytes()).hexdigest()
        key = (control.name, control.hint.shape, content)
        encoded = self._hints_by_content.pop(key, None)
        if encoded is None:
            encoded = _encoded_hint(network, control.hint.to(like))
        self._hints_by_content[key] = encoded
        if len(self._hints_by_content) > KEPT_HINTS:
            self._hints_by_content.popitem(last=False)
        return encoded


# What a request or a timestep fixes


def _of(kept: WeakTensorKeyDictionary, tensor: Tensor) -> dict[Any, Any]:
    """Return what is kept for as long as a tensor lives."""
    if tensor not in kept:
        kept[tensor] = {}
    found: dict[Any, Any] = kept[tensor]
    return found


def _encoded_hint(network: Any, hint: Tensor) -> Tensor:
    if network.config.controlnet_conditioning_channel_order == "bgr":
        hint = hint.flip(1)
    encoded: Tensor = network.controlnet_cond_embedding(channels_last(hint))
    return encoded


def _keys_values(layer: Any, texts: Tensor, images: int) -> KeysValues:
    keys, values = (
        _heads(part(texts), layer.heads).repeat_interleave(images, 0)
        for part in (layer.to_k, layer.to_v)
    )
    return keys, values


def _times(network: Any, timestep: float, like: Tensor) -> Mapping[nn.Module, Tensor]:
    """Return the time's part in each residual block, its first convolution's own bias included."""
    at = torch.full((1,), timestep, dtype=torch.float32, device=like.device)
    embedding = network.time_embedding(network.time_proj(at).to(like.dtype))
    active = functional.silu(embedding)
    return {
        block: block.conv1.bias + block.time_emb_proj(active)[0] for block in _residuals(network)
    }


def _blocks(network: Any) -> Iterator[Any]:
    yield from network.down_blocks
    yield network.mid_block
    yield from getattr(network, "up_blocks", ())


def _residuals(network: Any) -> Iterator[Any]:
    for block in _blocks(network):
        yield from block.resnets


def _text_attentions(network: Any) -> Iterator[Any]:
    for layer in _transformer_layers(network):
        yield layer.attn2


def _transformer_layers(network: Any) -> Iterator[Any]:
    for block in _blocks(network):
        for transformer in getattr(block, "attentions", ()):
            yield from transformer.transformer_blocks


# The way through


def channels_last(picture: Tensor) -> Tensor:
    """Return a tensor (B, C, h, w) in channels-last memory; itself where it lies so already."""
    return picture.contiguous(memory_format=torch.channels_last)


def _encode(network: Any, x: Tensor, known: StepCache) -> tuple[list[Tensor], Tensor]:
    """Return every skip, shallowest first, and the middle block's output."""
    skips = [x]
    for block in network.down_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for residual, transformer in zip(block.resnets, attentions, strict=True):
            x = _residual(residual, x, known)
            if transformer is not None:
                x = _transformer(transformer, x, known)
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = convolve(downsampler.conv, x)
            skips.append(x)
    first, *others = network.mid_block.resnets
    x = _residual(first, x, known)
    for transformer, residual in zip(network.mid_block.attentions, others, strict=True):
        x = _residual(residual, _transformer(transformer, x, known), known)
    return skips, x


def _control(network: Any, latents: Tensor, hint: Tensor, known: StepCache) -> Iterator[Tensor]:
    """Yield what a ControlNet adds at each depth, before it is scaled."""
    found, middle = _encode(network, convolve(network.conv_in, latents) + hint, known)
    zeros = (*network.controlnet_down_blocks, network.controlnet_mid_block)
    for source, zero in zip((*found, middle), zeros, strict=True):
        yield convolve(zero, source)


def _decode(unet: Any, skips: list[Tensor], x: Tensor, known: StepCache) -> Tensor:
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for residual, transformer in zip(block.resnets, attentions, strict=True):
            x = torch.cat([x, _repeated(skips.pop(), x.shape[0])], 1)
            x = _residual(residual, x, known)
            if transformer is not None:
                x = _transformer(transformer, x, known)
        for upsampler in block.upsamplers or ():
            x = convolve_doubled(upsampler.conv, x)
    return convolve(unet.conv_out, group_norm(unet.conv_norm_out, x, silu=True))


def _residual(block: Any, x: Tensor, known: StepCache) -> Tensor:
    found = convolve_and_norm(
        block.conv1, block.norm2, group_norm(block.norm1, x, silu=True), known.times[block]
    )
    kept = x if block.conv_shortcut is None else convolve(block.conv_shortcut, x)
    return convolve_onto(block.conv2, found, kept)


def _transformer(transformer: Any, x: Tensor, known: StepCache) -> Tensor:
    height, width = x.shape[2:]
    # In channels-last memory a picture is its list of pixels already: both views cost nothing.
    pixels = group_norm(transformer.norm, x).permute(0, 2, 3, 1).flatten(1, 2)
    pixels = multiply(transformer.proj_in, pixels)
    for layer in transformer.transformer_blocks:
        found = _self_attention(layer.attn1, layer.norm1(pixels), known)
        keys, values = known.text[layer.attn2]
        # Here the texts part.
        found, pixels = (_repeated(one, keys.shape[0]) for one in (found, pixels))
        pixels, normed = add_and_norm(layer.norm2, found, pixels)
        queries = _heads(multiply(layer.attn2.to_q, normed), layer.attn2.heads)
        found = _attention(layer.attn2, queries, keys, values)
        pixels, normed = add_and_norm(layer.norm3, found, pixels)
        pixels = _feed_forward(layer.ff, normed).add_(pixels)
    pixels = multiply(transformer.proj_out, pixels)
    picture = pixels.reshape(len(pixels), height, width, -1).permute(0, 3, 1, 2)
    return picture.add_(_repeated(x, len(picture)))


def _self_attention(layer: Any, pixels: Tensor, known: StepCache) -> Tensor:
    if layer in known.joined:
        parts = functional.linear(pixels, known.joined[layer]).chunk(3, -1)
    else:
        parts = tuple(multiply(part, pixels) for part in (layer.to_q, layer.to_k, layer.to_v))
    queries, keys, values = (_heads(part, layer.heads) for part in parts)
    return _attention(layer, queries, keys, values)


def _attention(layer: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return multiply(layer.to_out[0], attention(queries, keys, values))


def _feed_forward(layer: Any, pixels: Tensor) -> Tensor:
    return multiply(layer.net[2], multiply_gated(layer.net[0].proj, pixels))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * width) → (B, N, heads, width)."""
    return x.view(*x.shape[:2], heads, -1)


def _repeated(x: Tensor, rows: int) -> Tensor:
    """Return a batch of `rows` by repeating x whole; as it is where it has as many."""
    # Not Tensor.repeat, which would leave channels-last.
    return x if x.shape[0] == rows else torch.cat([x] * (rows // x.shape[0]))


# What is supported


def _check(network: Any) -> None:
    """Refuse what the way above would silently get wrong."""
    expected: dict[type, Callable[[Any], bool]] = _expectations()
    strange = [name for name, _ in network.named_children() if name not in PARTS]
    for name, module in network.named_modules():
        holds = expected.get(type(module))
        if holds is not None and not holds(module):
            strange.append(name)
    if strange:
        raise WeightsMismatch(
            f"This model is not built as Stable Diffusion 1.x is (at {strange[0]}), so it cannot "
            "run here; please choose another."
        )


def _expectations() -> dict[type, Callable[[Any], bool]]:
    # diffusers takes seconds to import, and the store imports this module at once.
    from diffusers.models.attention import BasicTransformerBlock, FeedForward  # noqa: PLC0415
    from diffusers.models.attention_processor import Attention  # noqa: PLC0415
    from diffusers.models.downsampling import Downsample2D  # noqa: PLC0415
    from diffusers.models.resnet import ResnetBlock2D  # noqa: PLC0415
    from diffusers.models.upsampling import Upsample2D  # noqa: PLC0415

    return {
        ResnetBlock2D: lambda m: (
            m.output_scale_factor == 1
            and m.time_embedding_norm == "default"
            and m.time_emb_proj is not None
            and isinstance(m.nonlinearity, nn.SiLU)
            and not (m.up or m.down)
        ),
        Attention: lambda m: (
            m.rescale_output_factor == 1
            and m.group_norm is None
            and m.norm_q is None
            and not m.residual_connection
        ),
        BasicTransformerBlock: lambda m: (
            m.norm_type == "layer_norm" and m.attn2 is not None and not m.only_cross_attention
        ),
        FeedForward: lambda m: type(m.net[0]).__name__ == "GEGLU",
        Downsample2D: lambda m: m.use_conv and m.padding == 1,
        Upsample2D: lambda m: m.use_conv and not m.use_conv_transpose,
    }
