"""Products with a layer's weights in bfloat16 on the CPU, and GEGLU's gate within one.

The kernel is matmul.cpp, which says why it is faster. layers.py asks for it where it suits.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels.build import addresses, fits, has_tiles, kernel

LANES = 16
"""Of whose multiples the kernel takes columns."""
PANEL = 64
"""Columns that the kernel takes at once; the last panel is filled up with zeros."""


def suits(weight: Tensor, x: Tensor, bias: Tensor | None, *, gated: bool = False) -> bool:
    """Tell whether the kernel takes a weight (out, in, ...) for x (..., in), and fast.

    Not where oneDNN is the faster one: on a processor with tiles for products (AMX).
    """
    return (
        x.shape[-1] == weight.shape[1]
        and x.shape[-1] % 2 == 0
        and weight.shape[0] % (2 * LANES if gated else LANES) == 0
        and x.is_contiguous()
        and (bias is None or (bias.is_contiguous() and len(bias) == len(weight)))
        and fits(x, bias)
        and not has_tiles()
        and kernel("matmul") is not None
    )


def pack_vnni(weight: Tensor) -> Tensor:
    """Return a plain weight (out, in) as the kernel wants it, (panels, in / 2, 64, 2)."""
    outputs, inputs = weight.shape
    padded = functional.pad(weight, (0, 0, 0, -outputs % PANEL))
    return padded.reshape(-1, PANEL, inputs // 2, 2).permute(0, 2, 1, 3).contiguous()


def from_pairs(pairs: Tensor, outputs: int) -> Tensor:
    """Return the plain weight (out, in)."""
    return pairs.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:outputs]


def to_gated_pairs(weight: Tensor) -> Tensor:
    """Return a plain weight, values above gates, with panels of 32 values and their 32 gates."""
    width, inputs = PANEL // 2, weight.shape[1]
    halves = [functional.pad(half, (0, 0, 0, -len(half) % width)) for half in weight.chunk(2)]
    both = torch.stack([half.reshape(-1, width, inputs) for half in halves], 1)
    return pack_vnni(both.flatten(0, 2))


def from_gated_pairs(pairs: Tensor, outputs: int) -> Tensor:
    """Return the plain weight (out, in)."""
    rows = from_pairs(pairs, pairs.shape[0] * PANEL)
    values, gates = rows.reshape(-1, 2, PANEL // 2, rows.shape[1]).unbind(1)
    return torch.cat([half.flatten(0, 1)[: outputs // 2] for half in (values, gates)])


def multiply(
    x: Tensor, pairs: Tensor, bias: Tensor | None, outputs: int, *, gated: bool = False
) -> Tensor:
    """Return the product (..., outputs) of what `suits`; gated, of the values' columns alone."""
    found = x.new_empty(*x.shape[:-1], outputs)
    library = kernel("matmul")
    assert library is not None
    depth = x.shape[-1]
    sizes = (ctypes.c_int64(x.numel() // depth), ctypes.c_int64(depth))
    library.multiply(
        *addresses(x, pairs, bias, found), *sizes, outputs, int(gated), torch.get_num_threads()
    )
    return found
