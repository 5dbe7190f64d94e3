"""3x3 convolutions in bfloat16 on the CPU, up to 3 times as fast as oneDNN's.

The kernel is winograd.cpp, which says why it is faster. layers.py asks for it where it suits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels.build import addresses, fits, has_tiles, kernel

LANES = 16
"""Of whose multiples the kernel takes channels."""
PANEL = 64
"""Output channels that the kernel takes at once; the last panel is filled up with zeros."""
DEPTH = 128
"""Input channels whose weights, of one output channel, the kernel keeps with a factor in common."""
FEW = 49
"""Pixels of a picture from which on it is faster: below, turning the weights takes too long. There
oneDNN takes a layer, and one that sees both sizes in turn is laid out anew each time, which takes
25 to 90 ms with 1280 channels: about a second for all of Stable Diffusion's."""


def suits(
    layer: Any, x: Tensor, bias: Tensor | None, kept: Tensor | None, *, doubled: bool = False
) -> bool:
    """Tell whether the kernel takes a convolution layer for x (B, C, h, w), and fast.

    What is kept, if anything, is to be added to the result; with `doubled` each of x's pixels
    stands twice in both directions. Not where torch's is the faster one: on a processor with tiles
    for products (AMX).
    """
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.in_channels % LANES == layer.out_channels % LANES == 0
        and x.shape[1] == layer.in_channels
        and x.shape[2] * x.shape[3] * (4 if doubled else 1) >= FEW
        and x.is_contiguous(memory_format=torch.channels_last)
        and (kept is None or (not doubled and _like_the_result(kept, layer, x)))
        and (bias is None or (bias.is_contiguous() and len(bias) == layer.out_channels))
        and fits(x, bias, kept)
        and not has_tiles()
        and kernel("winograd") is not None
    )


def _like_the_result(kept: Tensor, layer: Any, x: Tensor) -> bool:
    shape = (x.shape[0], layer.out_channels, *x.shape[2:])
    return kept.shape == shape and kept.is_contiguous(memory_format=torch.channels_last)


def to_panels(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a plain weight (out, in, 3, 3) as the kernel wants it: panels, balance and norms.

    Panels (panels, in, 9, 64), divided by the balance (in,): powers of two, with which pixels are
    multiplied instead. So what a channel adds to the result does not drown in the rounding of
    another with larger pixels and smaller weights. The norms (panels, blocks, 64) are the largest
    that each column of a block has as it is turned, or twice its largest number: the kernel's
    whole numbers are weights in proportion to them.
    """
    library = kernel("winograd")
    assert library is not None
    outputs, inputs = weight.shape[:2]
    padded = functional.pad(weight.reshape(outputs, inputs, 9), (0, 0, 0, 0, 0, -outputs % PANEL))
    panels = padded.reshape(-1, PANEL, inputs, 9).permute(0, 2, 3, 1).contiguous()
    balance = torch.empty(inputs, dtype=torch.float32)
    norms = torch.empty(len(panels), -(-inputs // DEPTH), PANEL, dtype=torch.float32)
    library.prepare(*addresses(panels, balance, norms), len(panels), inputs)
    return panels, balance, norms


def from_panels(parts: tuple[Tensor, ...], outputs: int) -> Tensor:
    """Return the plain weight (out, in, 3, 3)."""
    panels, balance, _ = parts
    plain = (panels * balance[:, None, None]).to(panels.dtype)  # exact: these are powers of two
    return plain.permute(0, 3, 1, 2).reshape(-1, panels.shape[1], 3, 3)[:outputs]


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
    """Return the convolution (B, out, h, w) of what `suits`, with what is kept added to it.

    If asked for, of x with every pixel twice in both directions; or what ReLU makes of the sum.
    """
    batch, channels, height, width = x.shape
    if doubled:
        height, width = 2 * height, 2 * width
    found = torch.empty(
        (batch, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last
    )
    library = kernel("winograd")
    assert library is not None
    failed = library.convolve(
        *addresses(x, *parts, bias, kept, found),
        *(batch, height, width, channels, outputs, int(doubled), int(relu)),
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for a convolution.")
    return found
