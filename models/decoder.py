"""The way through an autoencoder's decoder on the CPU, as forward.py is for the UNet.

The weights stay in diffusers' modules and the result is diffusers' own up to rounding. Pictures
stay channels-last, an enlargement and the convolution behind it are one transposed convolution
(three of them are a quarter of Stable Diffusion's decoder), and the attention over all pixels has
its own kernel.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import attention
from models.packed import convolve, convolve_doubled, multiply

TINY_RANGE = 3.0
"""What AutoencoderTiny bounds its latents to, by a hyperbolic tangent."""


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Return an autoencoder's pictures (B, 3, H, W) of its own latents (B, C, h, w).

    vae: an AutoencoderKL or AutoencoderTiny. Where one is built in another way than those of Stable
    Diffusion 1.x and of Diorama are, or runs on another device, diffusers decodes.
    """
    if latents.device.type == "cpu":
        x = latents.contiguous(memory_format=torch.channels_last)
        if _is_tiny(vae):
            return _decode_tiny(vae.decoder, x)
        if _is_kl(vae):
            return _decode_kl(vae.decoder, convolve(vae.post_quant_conv, x))
    found: Tensor = vae.decode(latents, return_dict=False)[0]
    return found


# AutoencoderKL


def _decode_kl(decoder: Any, x: Tensor) -> Tensor:
    x = convolve(decoder.conv_in, x)
    first, second = decoder.mid_block.resnets
    x = _residual(first, x)
    x = _residual(second, _look_around(decoder.mid_block.attentions[0], x))
    for block in decoder.up_blocks:
        for residual in block.resnets:
            x = _residual(residual, x)
        for upsampler in block.upsamplers or ():
            x = convolve_doubled(upsampler.conv, x)
    x = functional.silu(decoder.conv_norm_out(x), inplace=True)
    return convolve(decoder.conv_out, x)


def _residual(block: Any, x: Tensor) -> Tensor:
    found = convolve(block.conv1, functional.silu(block.norm1(x), inplace=True))
    found = convolve(block.conv2, functional.silu(block.norm2(found), inplace=True))
    kept = x if block.conv_shortcut is None else convolve(block.conv_shortcut, x)
    return found.add_(kept)


def _look_around(layer: Any, x: Tensor) -> Tensor:
    # In channels-last memory a picture is its list of pixels already: the views cost nothing.
    height, width = x.shape[2:]
    pixels = layer.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
    queries, keys, values = (
        multiply(part, pixels).unsqueeze(2) for part in (layer.to_q, layer.to_k, layer.to_v)
    )
    found = multiply(layer.to_out[0], attention(queries, keys, values))
    return found.reshape(len(x), height, width, -1).permute(0, 3, 1, 2).add_(x)


def _is_kl(vae: Any) -> bool:
    if type(vae).__name__ != "AutoencoderKL":
        return False
    decoder, middle = vae.decoder, vae.decoder.mid_block
    looks = [one for one in middle.attentions if one is not None]
    return (
        vae.post_quant_conv is not None
        and not (vae.use_tiling or vae.use_slicing)
        and len(looks) == 1
        and len(middle.resnets) == 2
        and looks[0].heads == 1
        and looks[0].residual_connection
        and looks[0].rescale_output_factor == 1
        and looks[0].spatial_norm is None
        and all(
            one.output_scale_factor == 1
            and one.time_emb_proj is None
            and one.time_embedding_norm in ("default", "group")  # without a time, the same
            and isinstance(one.nonlinearity, nn.SiLU)
            for one in decoder.modules()
            if type(one).__name__.startswith("Resnet")
        )
        and all(not any(getattr(one, "attentions", ())) for one in decoder.up_blocks)
    )


# AutoencoderTiny


def _decode_tiny(decoder: Any, x: Tensor) -> Tensor:
    x = torch.tanh(x / TINY_RANGE) * TINY_RANGE
    enlarge = False
    for layer in decoder.layers:
        if isinstance(layer, nn.Upsample):
            enlarge = True  # together with the convolution that follows
        elif isinstance(layer, nn.Conv2d):
            x = (convolve_doubled if enlarge else convolve)(layer, x)
            enlarge = False
        elif isinstance(layer, nn.ReLU):
            x = functional.relu(x, inplace=True)
        else:
            first, _, second, _, third = layer.conv
            found = functional.relu(convolve(first, x), inplace=True)
            found = functional.relu(convolve(second, found), inplace=True)
            x = functional.relu(convolve(third, found).add_(x), inplace=True)
    return x.mul_(2).sub_(1)  # from [0, 1]


def _is_tiny(vae: Any) -> bool:
    if type(vae).__name__ != "AutoencoderTiny" or vae.use_tiling or vae.use_slicing:
        return False
    layers = list(vae.decoder.layers)
    known = all(
        isinstance(layer, nn.Conv2d | nn.ReLU)
        or (isinstance(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor == 2)
        or (
            type(layer).__name__ == "AutoencoderTinyBlock"
            and isinstance(layer.skip, nn.Identity)
            and isinstance(layer.conv[1], nn.ReLU)
        )
        for layer in layers
    )
    return known and all(
        isinstance(after, nn.Conv2d)
        for layer, after in pairwise(layers)
        if isinstance(layer, nn.Upsample)
    )
