"""The forward pass through a VAE's decoder, as unet.py is for the UNet.

The weights stay in diffusers' modules and the result equals diffusers' up to rounding. Tensors stay
channels-last and use the kernels of groupnorm.py. On a CPU upsampling and the convolution after it
are one pass, and the attention over all pixels has its own kernel. On a GPU the kernels run longer
than their launches take, so that a CUDA graph (cuda_graph.py) would gain nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn

from core.memory import release_cached_memory
from models.engine.kernels.attention import attention
from models.engine.kernels.groupnorm import group_norm
from models.engine.layers import (
    convolve,
    convolve_and_norm,
    convolve_doubled,
    convolve_onto,
    multiply,
)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode a VAE's own latents (B, C, h, w), unscaled, to pictures (B, 3, H, W).

    diffusers decodes where this module does not apply: a VAE built otherwise than Stable
    Diffusion's or the tiny one, another device, and the tiny one on a GPU.
    """
    if latents.device.type in ("cpu", "cuda") and _is_kl(vae):
        if latents.device.type == "cpu":
            # The memory that the steps have freed is too fragmented for pictures of this size.
            release_cached_memory()
        x = latents.contiguous(memory_format=torch.channels_last)
        return _decode(vae.decoder, convolve(vae.post_quant_conv, x))
    if latents.device.type == "cpu" and _is_tiny(vae):
        return _decode_tiny(vae.decoder, latents.contiguous(memory_format=torch.channels_last))
    pictures: Tensor = vae.decode(latents, return_dict=False)[0]
    return pictures


# The pass


def _decode(decoder: Any, x: Tensor) -> Tensor:
    x = convolve(decoder.conv_in, x)
    first, second = decoder.mid_block.resnets
    x = _residual_block(first, x)
    x = _residual_block(second, _attention(decoder.mid_block.attentions[0], x))
    for block in decoder.up_blocks:
        for residual in block.resnets:
            x = _residual_block(residual, x)
        for upsampler in block.upsamplers or ():
            x = convolve_doubled(upsampler.conv, x)
    x = group_norm(decoder.conv_norm_out, x, silu=True)
    return convolve(decoder.conv_out, x)


def _decode_tiny(decoder: Any, x: Tensor) -> Tensor:
    # With so few channels fused upsampling and a fused sum gain nothing; a fused ReLU a sixth.
    first, _, *layers = decoder.layers
    x = convolve(first, torch.tanh(x / 3) * 3, relu=True)
    for layer in layers:
        if isinstance(layer, nn.Upsample):
            x = layer(x)
        elif isinstance(layer, nn.Conv2d):
            x = convolve(layer, x)
        else:
            one, _, two, _, three = layer.conv
            hidden = convolve(two, convolve(one, x, relu=True), relu=True)
            x = convolve(three, hidden, kept=x, relu=True)
    return x.mul(2).sub(1)  # from [0, 1]


def _residual_block(block: Any, x: Tensor) -> Tensor:
    hidden = convolve_and_norm(block.conv1, block.norm2, group_norm(block.norm1, x, silu=True))
    shortcut = x if block.conv_shortcut is None else convolve(block.conv_shortcut, x)
    return convolve_onto(block.conv2, hidden, shortcut)


def _attention(layer: Any, x: Tensor) -> Tensor:
    # In channels-last memory a picture is a list of pixels already: the views cost nothing.
    height, width = x.shape[2:]
    pixels = group_norm(layer.group_norm, x).permute(0, 2, 3, 1).flatten(1, 2)
    queries, keys, values = (
        multiply(part, pixels).unsqueeze(2) for part in (layer.to_q, layer.to_k, layer.to_v)
    )
    attended = multiply(layer.to_out[0], attention(queries, keys, values))
    return attended.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).add_(x)


# What is supported


def _is_kl(vae: Any) -> bool:
    if type(vae).__name__ != "AutoencoderKL":
        return False
    decoder, middle = vae.decoder, vae.decoder.mid_block
    attentions = [one for one in middle.attentions if one is not None]
    return (
        vae.post_quant_conv is not None
        and not (vae.use_tiling or vae.use_slicing)
        and len(attentions) == 1
        and len(middle.resnets) == 2
        and attentions[0].heads == 1
        and attentions[0].residual_connection
        and attentions[0].rescale_output_factor == 1
        and attentions[0].spatial_norm is None
        and all(
            one.output_scale_factor == 1
            and one.time_emb_proj is None
            and one.time_embedding_norm in ("default", "group")  # the same without a time embedding
            and isinstance(one.nonlinearity, nn.SiLU)
            for one in decoder.modules()
            if type(one).__name__.startswith("Resnet")
        )
        and all(not any(getattr(one, "attentions", ())) for one in decoder.up_blocks)
    )


def _is_tiny(vae: Any) -> bool:
    if type(vae).__name__ != "AutoencoderTiny" or vae.use_tiling or vae.use_slicing:
        return False
    first, activation, *layers = vae.decoder.layers
    return (
        isinstance(first, nn.Conv2d)
        and isinstance(activation, nn.ReLU)
        and all(
            isinstance(one, nn.Conv2d | nn.Upsample)
            or (isinstance(one.skip, nn.Identity) and isinstance(one.conv[1], nn.ReLU))
            for one in layers
        )
    )
