"""3x3 convolutions in bfloat16 on the CPU, up to 3 times as fast as oneDNN's.

The kernel is winograd.cpp, which says why it is faster. layers.py uses it where it applies.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels.build import addresses, cpu_has_bfloat16, fits, has_tiles, kernel
from models.engine.kernels.eight_bit import in_blocks, out_of_blocks

FEW_PIXELS = 49
"""Pixels of a picture from which on the kernel is faster: below, transforming the weights takes too
long. There oneDNN runs, or a product (layers.py), and a layer that sees both sizes in turn is
packed anew each time, which takes 25 to 90 ms with 1280 channels: about a second for all of Stable
Diffusion's."""


def suits(
    layer: Any,
    x: Tensor,
    bias: Tensor | None,
    kept: Tensor | None,
    *,
    doubled: bool = False,
    light: bool = False,
) -> bool:
    """Tell whether the kernel takes a convolution layer for x (B, C, h, w), and is the fastest.

    `kept`, if given, is to be added to the result; with `doubled` each pixel of x stands for 2 x 2.
    With AMX, whose tiles multiply matrices, torch's own is faster. A number of output channels that
    fills no vector is left to oneDNN where that is fast in bfloat16. `light` weights have no other
    kernel.
    """
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and x.shape[1] == layer.in_channels
        and (light or x.shape[2] * x.shape[3] * (4 if doubled else 1) >= FEW_PIXELS)
        and x.is_contiguous(memory_format=torch.channels_last)
        and (kept is None or (not doubled and _is_like_result(kept, layer, x)))
        and (bias is None or (bias.is_contiguous() and len(bias) == layer.out_channels))
        and fits(x, bias, kept)
        and (light or not has_tiles())
        and (library := kernel("winograd")) is not None
        and layer.in_channels % library.lanes() == 0
        and (layer.out_channels % library.lanes() == 0 or (kept is None and not cpu_has_bfloat16()))
    )


def _is_like_result(kept: Tensor, layer: Any, x: Tensor) -> bool:
    shape = (x.shape[0], layer.out_channels, *x.shape[2:])
    return kept.shape == shape and kept.is_contiguous(memory_format=torch.channels_last)


def pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a plain weight (out, in, 3, 3) as the kernel wants it: panels, equalization and norms.

    The panels (panels, in, 9, output channels of a panel) are divided by the equalization (in,),
    powers of two by which pixels are multiplied instead: otherwise what a channel adds to the
    result would drown in the rounding of another with larger pixels and smaller weights. The norms
    (panels, blocks of input channels, output channels of a panel) scale the kernel's integers: the
    largest norm of a block's transformed column, or twice its largest number.
    """
    panels, equalization = _equalized(weight)
    return panels, equalization, _norms(panels, None)


def unpack(parts: tuple[Tensor, ...], outputs: int) -> Tensor:
    """Return the plain weight (out, in, 3, 3)."""
    panels, equalization, _ = parts
    plain = (panels * equalization[:, None, None]).to(panels.dtype)  # exact: powers of two
    return plain.permute(0, 3, 1, 2).reshape(-1, panels.shape[1], 3, 3)[:outputs]


def pack_light(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `pack` does with panels of 8-bit integers, and their scales, like the norms."""
    panels, equalization = _equalized(weight)
    numbers, scales = in_blocks(panels, _library().depth())
    return numbers, equalization, _norms(numbers, scales), scales


def unpack_light(parts: tuple[Tensor, ...], outputs: int) -> Tensor:
    """Return the plain weight (out, in, 3, 3) in bfloat16."""
    numbers, equalization, norms, scales = parts
    return unpack(
        (out_of_blocks(numbers, scales, _library().depth()), equalization, norms), outputs
    )


def _equalized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a plain weight's panels, divided by their equalization, and that."""
    library = _library()
    panel = library.panel()
    outputs, inputs = weight.shape[:2]
    padded = functional.pad(weight.reshape(outputs, inputs, 9), (0, 0, 0, 0, 0, -outputs % panel))
    panels = padded.reshape(-1, panel, inputs, 9).permute(0, 2, 3, 1).contiguous()
    equalization = torch.empty(inputs, dtype=torch.float32)
    library.equalize(*addresses(panels, equalization), len(panels), inputs)
    return panels, equalization


def _norms(panels: Tensor, scales: Tensor | None) -> Tensor:
    library = _library()
    count, inputs, _, panel = panels.shape
    norms = torch.empty(count, -(-inputs // library.depth()), panel, dtype=torch.float32)
    library.measure_norms(*addresses(panels, scales, norms), count, inputs)
    return norms


def convolve(
    x: Tensor,
    parts: tuple[Tensor, ...],
    bias: Tensor | None,
    outputs: int,
    *,
    kept: Tensor | None = None,
    doubled: bool = False,
    relu: bool = False,
) -> Tensor:
    """Return the convolution (B, out, h, w) that `suits` accepted, plus `kept` if given.

    With `doubled` it is that of x enlarged twice by its nearest pixels, with `relu` the ReLU of the
    sum.
    """
    batch, channels, height, width = x.shape
    missing = -outputs % _library().lanes()
    if missing:
        bias = None if bias is None else functional.pad(bias, (0, missing))
        found = convolve(x, parts, bias, outputs + missing, doubled=doubled, relu=relu)
        return found[:, :outputs].contiguous(memory_format=torch.channels_last)
    if doubled:
        height, width = 2 * height, 2 * width
    found = torch.empty(
        (batch, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last
    )
    scales = parts[3] if len(parts) > 3 else None
    failed = _library().convolve(
        *addresses(x, *parts[:3], scales, bias, kept, found),
        *(batch, height, width, channels, outputs, int(doubled), int(relu)),
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for a convolution.")
    return found


def _library() -> Any:
    library = kernel("winograd")
    assert library is not None
    return library
