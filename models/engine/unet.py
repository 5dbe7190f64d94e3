"""The forward pass through the UNet and ControlNets of SD 1.x, with nothing computed twice.

The weights stay in diffusers' modules; the path between them is ours. The result equals diffusers'
up to rounding (tests/models/engine/test_unet.py). What differs, and why:

- What does not change from step to step is cached: a hint's encoding, the keys and values of the
  text, and each residual block's time embedding, which goes into a convolution's bias.
- The prompts of one image (guidance has two) start from the same latents, so they share one pass up
  to the first cross-attention: in SD 1.5 that includes one of the largest self-attentions.
- A T2I-Adapter runs once for a request, since its features depend on the map alone.
- A ControlNet whose scales are all 0 is not run; the others' residuals are added to the skips in
  place.
- Tensors stay channels-last throughout, so that the 1x1 convolutions around attention are matrix
  products on the same memory, and no layout conversion is needed.
- On an x86 CPU attention, 3x3 convolutions, matrix products and group norms have kernels of our own
  (kernels/), with weights packed for these or for oneDNN (layers.py); GELU and gate are fused into
  a product, upsampling into a convolution.
- Divisions by scales that are 1 in every SD 1.x model are left out.

On a GPU a step is captured as a CUDA graph and replayed (cuda_graph.py). For that, and for batching
requests (batched.py), the pass is public in its parts: `run_down_and_mid`, `run_controlnet` and
`run_up` take everything that `Forward` caches as a StepCache.
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from core.errors import WeightsMismatch
from core.networks import ControlInput, PredictCall, Residuals
from models.engine.kernels.attention import attention
from models.engine.kernels.groupnorm import group_norm
from models.engine.layers import (
    add_and_norm,
    as_it_is,
    convolve,
    convolve_and_norm,
    convolve_doubled,
    convolve_onto,
    multiply,
    multiply_gated,
    to_be_run,
)

KEPT_TIMESTEPS = 200
"""Timesteps whose biases are cached for each network, the most steps of two requests: 50 KB each in
SD 1.5."""
KEPT_HINTS = 8
"""Encoded hints cached on a CPU beyond their request, so that another image of the same map starts
at once."""

PARTS = (
    *("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block", "up_blocks"),
    *("conv_norm_out", "conv_act", "conv_out"),
    *("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"),
)
"""Children of a UNet and of a ControlNet that this pass runs; it would skip any other silently."""

KeysValues = tuple[Tensor, Tensor]
"""Of the text, for one cross-attention: (T * B, 77 * chunks, heads, head width) each."""


class OnDevice(Protocol):
    """Has a network on its device during a block, with memory free for the work (offload.py)."""

    def __call__(
        self, network: nn.Module, latents: Tensor | None = None
    ) -> AbstractContextManager[None]:
        """`latents` (B, C, h, w) are those it will run on; None for a text encoder."""


@dataclass(frozen=True)
class StepCache:
    """What one network's pass needs besides latents and hint, by the module that uses it."""

    keys_values: Mapping[nn.Module, KeysValues]
    """Of each cross-attention."""
    biases: Mapping[nn.Module, Tensor]
    """Of each residual block's first convolution at this timestep, (C,)."""
    qkv_weights: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    """Of self-attentions that compute queries, keys and values as one product: (3 * C, C)."""


class Forward:
    """Predictions of one UNet with its ControlNets; may be called from several threads."""

    def __init__(
        self,
        unet: nn.Module,
        controlnets: Mapping[str, nn.Module],
        on_device: OnDevice | None = None,
    ) -> None:
        """Take the networks as they are; each ControlNet runs within `on_device`.

        Raises:
            WeightsMismatch: they are not built as SD 1.x is.
        """
        self.unet: Any = unet
        self.controlnets: Mapping[str, Any] = controlnets
        self.on_device: OnDevice = on_device or (lambda *_: nullcontext())
        for network in (unet, *controlnets.values()):
            if not is_adapter(network):
                _check(network)
        self._lock = threading.Lock()
        self._keys_values = WeakTensorKeyDictionary()
        """By text, then by network and image count."""
        self._hints = WeakTensorKeyDictionary()
        """By hint, then by ControlNet."""
        self._biases: OrderedDict[tuple[nn.Module, float, float | None], Mapping[nn.Module, Tensor]]
        self._biases = OrderedDict()
        self._hints_by_content: OrderedDict[tuple[str, torch.Size, str], Tensor] = OrderedDict()

    def __call__(self, call: PredictCall) -> Tensor:
        """Return the UNet's output (T * B, C, h, w), see PredictCall."""
        latents = channels_last(call.latents)
        cache = self.step_cache(self.unet, call)
        start, features = convolve(self.unet.conv_in, latents), self.adapter_features(call)
        skips, x = run_down_and_mid(self.unet, start, cache, features)
        for control in call.active_controls:
            with self.on_device(self.controlnets[control.name], latents):
                for target, (residual, scale) in zip(
                    (*skips, x), self._residuals(control, call), strict=True
                ):
                    target.add_(residual, alpha=scale)
        if call.residuals:
            for target, residual in zip((*skips, x), call.residuals, strict=True):
                target.add_(residual)
        return run_up(self.unet, skips, x, cache)

    def adapter_features(self, call: PredictCall) -> list[Tensor]:
        """Return what the active T2I-Adapters add to each level of the UNet's encoder.

        Each is (1, C, h, w), scaled and summed; [] where there are none.
        """
        total: list[Tensor] = []
        for control in call.active_adapters:
            features = self._features(control, call.latents)
            scaled = [one * scale for one, scale in zip(features, control.scales, strict=True)]
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
        return total

    def _features(self, control: ControlInput, like: Tensor) -> list[Tensor]:
        """Return an adapter's features of its hint, made once for a request."""
        with self._lock:
            by_name = _entry(self._hints, control.hint)
            if control.name not in by_name:
                network = self.controlnets[control.name]
                with self.on_device(network, like):
                    faster = to_be_run(network)
                    hint = control.hint.to(next(faster.parameters()))
                    if network.config.in_channels == 1:
                        hint = hint.mean(1, keepdim=True)
                    by_name[control.name] = [channels_last(one.to(like)) for one in faster(hint)]
            found: list[Tensor] = by_name[control.name]
            return found

    def control_residuals(self, call: PredictCall) -> Residuals:
        """Return what the active ControlNets add, scaled and summed; () where there are none.

        Each has (B, C, h, w) before the first cross-attention, (T * B, C, h, w) after it.
        """
        total: list[Tensor] = []
        for control in call.active_controls:
            with self.on_device(self.controlnets[control.name], call.latents):
                scaled = [
                    residual.mul_(scale) for residual, scale in self._residuals(control, call)
                ]
            total = [a.add_(b) for a, b in zip(total, scaled, strict=True)] if total else scaled
        return tuple(total)

    def _residuals(
        self, control: ControlInput, call: PredictCall
    ) -> Iterator[tuple[Tensor, float]]:
        """Yield each residual of a ControlNet with its scale."""
        network = self.controlnets[control.name]
        start = convolve(network.conv_in, channels_last(call.latents))
        start = start + self.encoded_hint(control, call.latents)
        residuals = run_controlnet(network, start, self.step_cache(network, call))
        yield from zip(residuals, control.scales, strict=True)

    # Caches

    def step_cache(self, network: Any, call: PredictCall) -> StepCache:
        """Return the keys and values of a call's texts and the biases of its timestep."""
        timestep, texts, images = call.timestep, call.texts, len(call.latents)
        with self._lock:
            by_network = _entry(self._keys_values, texts)
            key = (network, timestep, call.guidance_scale)
            biases = self._biases.pop(key, None)
            if biases is None:
                biases = _time_biases(network, timestep, call.guidance_scale, texts)
            self._biases[key] = biases
            while len(self._biases) > KEPT_TIMESTEPS * (1 + len(self.controlnets)):
                self._biases.popitem(last=False)
            if (network, images) not in by_network:
                by_network[network, images] = {
                    layer.attn2: _keys_values(layer.attn2, texts, images)
                    for layer in transformer_layers(network)
                }
            return StepCache(by_network[network, images], biases)

    def encoded_hint(self, control: ControlInput, like: Tensor) -> Tensor:
        """Return a control's hint encoded by its ControlNet, (1, C, h, w), placed like `like`."""
        with self._lock:
            by_name = _entry(self._hints, control.hint)
            if control.name not in by_name:
                by_name[control.name] = self._encode_hint(control, like)
            encoded: Tensor = by_name[control.name]
            return encoded

    def _encode_hint(self, control: ControlInput, like: Tensor) -> Tensor:
        network = self.controlnets[control.name]
        if like.is_cuda:  # a GPU encodes a hint faster than it could be read back and hashed
            return _encode_hint(network, control.hint.to(like))
        content = hashlib.sha256(control.hint.float().cpu().numpy().tobytes()).hexdigest()
        key = (control.name, control.hint.shape, content)
        encoded = self._hints_by_content.pop(key, None)
        if encoded is None:
            encoded = _encode_hint(network, control.hint.to(like))
        self._hints_by_content[key] = encoded
        if len(self._hints_by_content) > KEPT_HINTS:
            self._hints_by_content.popitem(last=False)
        return encoded


def _entry(cache: WeakTensorKeyDictionary, tensor: Tensor) -> dict[Any, Any]:
    """Return a tensor's own dictionary, which lives as long as the tensor."""
    if tensor not in cache:
        cache[tensor] = {}
    entry: dict[Any, Any] = cache[tensor]
    return entry


def _encode_hint(network: Any, hint: Tensor) -> Tensor:
    if network.config.controlnet_conditioning_channel_order == "bgr":
        hint = hint.flip(1)
    return as_it_is(network.controlnet_cond_embedding, channels_last(hint))


def _keys_values(attention: Any, texts: Tensor, images: int) -> KeysValues:
    keys, values = (
        _heads(as_it_is(projection, texts), attention.heads).repeat_interleave(images, 0)
        for projection in (attention.to_k, attention.to_v)
    )
    return keys, values


def is_adapter(network: Any) -> bool:
    """Tell whether a control is a T2I-Adapter; a ControlNet is built as a UNet's encoder is."""
    return not hasattr(network, "down_blocks")


def takes_guidance_scale(network: Any) -> bool:
    """Return whether a UNet has the guidance scale as an input (diffusers: time_cond_proj_dim)."""
    return network.time_embedding.cond_proj is not None


def _time_biases(
    network: Any, timestep: float, guidance_scale: float | None, like: Tensor
) -> Mapping[nn.Module, Tensor]:
    """Return each residual block's projected time embedding plus its first convolution's bias."""
    at = torch.full((1,), timestep, dtype=torch.float32, device=like.device)
    condition = None
    if guidance_scale is not None and takes_guidance_scale(network):
        width = network.time_embedding.cond_proj.in_features
        condition = _guidance_embedding(guidance_scale, width).to(like)
    embedding = network.time_embedding(network.time_proj(at).to(like.dtype), condition)
    active = functional.silu(embedding)
    return {
        block: block.conv1.bias + block.time_emb_proj(active)[0]
        for level in _levels(network)
        for block in level.resnets
    }


def _guidance_embedding(guidance_scale: float, width: int) -> Tensor:
    """Return the input (1, width) for a guidance scale: sines, then cosines.

    Source: the official code of Latent Consistency Models (Luo et al. 2023, arXiv 2310.04378),
    where w = guidance_scale - 1 counts thousandths as timesteps count steps.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1)))
    angles = (guidance_scale - 1) * 1000 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    return functional.pad(embedding, (0, width % 2))[None]


def _levels(network: Any) -> Iterator[Any]:
    yield from network.down_blocks
    if network.mid_block is not None:
        yield network.mid_block
    yield from getattr(network, "up_blocks", ())


def transformer_layers(network: Any) -> Iterator[Any]:
    """Yield each BasicTransformerBlock; attn1 is its self-attention, attn2 its cross-attention."""
    for level in _levels(network):
        for transformer in getattr(level, "attentions", ()):
            yield from transformer.transformer_blocks


# The pass


def channels_last(picture: Tensor) -> Tensor:
    """Return a tensor (B, C, h, w) in channels-last memory; itself where it lies so already."""
    return picture.contiguous(memory_format=torch.channels_last)


def run_down_and_mid(
    network: Any, x: Tensor, cache: StepCache, features: Sequence[Tensor] = ()
) -> tuple[list[Tensor], Tensor]:
    """Run the down blocks and the middle block of a UNet or a ControlNet on conv_in's output.

    `features`, (1 or B, C, h, w) for each down block, are added to what comes out of its last layer
    (T2I-Adapters). Returns every skip, shallowest first, and the middle block's output. They have B
    rows before the first cross-attention, T * B after it.
    """
    skips = [x]
    for depth, level in enumerate(network.down_blocks):
        attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
        for block, transformer in zip(level.resnets, attentions, strict=True):
            x = _residual_block(block, x, cache)
            if transformer is not None:
                x = _transformer(transformer, x, cache)
            if features and block is level.resnets[-1]:
                own = features[depth]
                x.view(-1, len(own), *x.shape[1:]).add_(own)
            skips.append(x)
        for downsampler in level.downsamplers or ():
            x = convolve(downsampler.conv, x)
            skips.append(x)
    if network.mid_block is None:  # a distilled UNet, as BK-SDM-Tiny
        return skips, x.clone()  # residuals are added in place
    first, *others = network.mid_block.resnets
    x = _residual_block(first, x, cache)
    for transformer, block in zip(network.mid_block.attentions, others, strict=True):
        x = _residual_block(block, _transformer(transformer, x, cache), cache)
    return skips, x


def run_controlnet(network: Any, x: Tensor, cache: StepCache) -> Iterator[Tensor]:
    """Yield a ControlNet's residuals, unscaled, for conv_in's output plus the encoded hint."""
    skips, middle = run_down_and_mid(network, x, cache)
    zero_convolutions = (*network.controlnet_down_blocks, network.controlnet_mid_block)
    for source, zero in zip((*skips, middle), zero_convolutions, strict=True):
        yield convolve(zero, source)


def run_up(unet: Any, skips: list[Tensor], x: Tensor, cache: StepCache) -> Tensor:
    """Run the up blocks and return the UNet's output (T * B, C, h, w); empties `skips`."""
    for level in unet.up_blocks:
        attentions = getattr(level, "attentions", None) or [None] * len(level.resnets)
        for block, transformer in zip(level.resnets, attentions, strict=True):
            x = torch.cat([x, _repeated(skips.pop(), x.shape[0])], 1)
            x = _residual_block(block, x, cache)
            if transformer is not None:
                x = _transformer(transformer, x, cache)
        for upsampler in level.upsamplers or ():
            x = convolve_doubled(upsampler.conv, x)
    return convolve(unet.conv_out, group_norm(unet.conv_norm_out, x, silu=True))


def _residual_block(block: Any, x: Tensor, cache: StepCache) -> Tensor:
    hidden = convolve_and_norm(
        block.conv1, block.norm2, group_norm(block.norm1, x, silu=True), cache.biases[block]
    )
    shortcut = x if block.conv_shortcut is None else convolve(block.conv_shortcut, x)
    return convolve_onto(block.conv2, hidden, shortcut)


def _transformer(transformer: Any, x: Tensor, cache: StepCache) -> Tensor:
    height, width = x.shape[2:]
    # In channels-last memory a picture is a list of pixels already: both views cost nothing.
    pixels = group_norm(transformer.norm, x).permute(0, 2, 3, 1).flatten(1, 2)
    pixels = multiply(transformer.proj_in, pixels)
    for layer in transformer.transformer_blocks:
        attended = _self_attention(layer.attn1, layer.norm1(pixels), cache)
        keys, values = cache.keys_values[layer.attn2]
        # From the first cross-attention on, each text has rows of its own.
        attended, pixels = (_repeated(one, keys.shape[0]) for one in (attended, pixels))
        pixels, normed = add_and_norm(layer.norm2, attended, pixels)
        queries = _heads(multiply(layer.attn2.to_q, normed), layer.attn2.heads)
        attended = _attention(layer.attn2, queries, keys, values)
        pixels, normed = add_and_norm(layer.norm3, attended, pixels)
        pixels = _feed_forward(layer.ff, normed).add_(pixels)
    pixels = multiply(transformer.proj_out, pixels)
    picture = pixels.reshape(len(pixels), height, width, -1).permute(0, 3, 1, 2)
    return picture.add_(_repeated(x, len(picture)))


def _self_attention(layer: Any, pixels: Tensor, cache: StepCache) -> Tensor:
    if layer in cache.qkv_weights:
        projected = functional.linear(pixels, cache.qkv_weights[layer]).chunk(3, -1)
    else:
        projected = tuple(multiply(part, pixels) for part in (layer.to_q, layer.to_k, layer.to_v))
    queries, keys, values = (_heads(part, layer.heads) for part in projected)
    return _attention(layer, queries, keys, values)


def _attention(layer: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return multiply(layer.to_out[0], attention(queries, keys, values))


def _feed_forward(layer: Any, pixels: Tensor) -> Tensor:
    return multiply(layer.net[2], multiply_gated(layer.net[0].proj, pixels))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * width) → (B, N, heads, width)."""
    return x.view(*x.shape[:2], heads, -1)


def _repeated(x: Tensor, rows: int) -> Tensor:
    """Return a batch of `rows` by repeating x whole; x itself where it has as many."""
    # Not Tensor.repeat, which would leave channels-last.
    return x if x.shape[0] == rows else torch.cat([x] * (rows // x.shape[0]))


# What is supported


def _check(network: Any) -> None:
    """Refuse what the pass above would silently get wrong."""
    expected: dict[type, Callable[[Any], bool]] = _expectations()
    unsupported = [name for name, _ in network.named_children() if name not in PARTS]
    for name, module in network.named_modules():
        holds = expected.get(type(module))
        if holds is not None and not holds(module):
            unsupported.append(name)
    if unsupported:
        raise WeightsMismatch(
            f"This model is not built as Stable Diffusion 1.x is (at {unsupported[0]}), so it "
            "cannot run here; please choose another."
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
