"""Products with a layer's weights in bfloat16 on the CPU, GEGLU's gate included.

The kernel is matmul.cpp, which says why it is faster. layers.py uses it where it applies.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels.build import addresses, fits, has_tiles, kernel
from models.engine.kernels.eight_bit import in_blocks, out_of_blocks


def suits(
    weight: Tensor, x: Tensor, bias: Tensor | None, *, gated: bool = False, light: bool = False
) -> bool:
    """Tell whether the kernel takes a weight (out, in, ...) for x (..., in), and is the fastest.

    With AMX, whose tiles multiply matrices, oneDNN is faster, but for `light` weights, which have
    no other kernel.
    """
    halves = 2 if gated else 1
    return (
        x.shape[-1] == weight.shape[1]
        and x.is_contiguous()
        and takes(weight.shape[1], weight.shape[0], x, bias, halves=halves, light=light)
    )


def takes(
    inputs: int,
    outputs: int,
    x: Tensor,
    bias: Tensor | None,
    *,
    halves: int = 1,
    light: bool = False,
) -> bool:
    """Tell whether the kernel takes a weight (outputs, inputs) of `halves` equal parts.

    x is where the inputs are from; `light` as in suits.
    """
    return (
        inputs % 2 == 0
        and (bias is None or (bias.is_contiguous() and len(bias) == outputs))
        and fits(x, bias)
        and (light or not has_tiles())
        and (library := kernel("matmul")) is not None
        and outputs % (halves * library.lanes()) == 0
    )


def pack(weight: Tensor) -> Tensor:
    """Return a plain weight (out, in) in VNNI order: (panels, in / 2, columns of a panel, 2)."""
    outputs, inputs = weight.shape
    panel = _library().panel()
    padded = functional.pad(weight, (0, 0, 0, -outputs % panel))
    return padded.reshape(-1, panel, inputs // 2, 2).permute(0, 2, 1, 3).contiguous()


def unpack(packed: Tensor, outputs: int) -> Tensor:
    """Return the plain weight (out, in)."""
    return packed.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:outputs]


def pack_gated(weight: Tensor) -> Tensor:
    """Pack a plain weight, values above gates: half of each panel's columns are values."""
    return pack(_mixed(weight))


def unpack_gated(packed: Tensor, outputs: int) -> Tensor:
    """Return the plain weight (out, in)."""
    return _unmixed(unpack(packed, len(packed) * _library().panel()), outputs)


def pack_light(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a plain weight as 8-bit integers in the same order, and their scales (eight_bit.py).

    The scales are (panels, blocks, columns of a panel).
    """
    outputs, inputs = weight.shape
    library = _library()
    panel = library.panel()
    padded = functional.pad(weight, (0, 0, 0, -outputs % panel)).reshape(-1, panel, inputs)
    numbers, scales = in_blocks(padded.permute(0, 2, 1)[:, :, None], library.depth())
    pairs = numbers.reshape(-1, inputs // 2, 2, panel).permute(0, 1, 3, 2)
    return pairs.contiguous(), scales


def unpack_light(parts: tuple[Tensor, ...], outputs: int) -> Tensor:
    """Return the plain weight (out, in) in bfloat16."""
    pairs, scales = parts
    numbers = pairs.permute(0, 1, 3, 2).flatten(1, 2)[:, :, None]
    found = out_of_blocks(numbers, scales, _library().depth())
    return found[:, :, 0].permute(0, 2, 1).flatten(0, 1)[:outputs]


def pack_gated_light(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As pack_light, of a plain weight, values above gates, as in pack_gated."""
    return pack_light(_mixed(weight))


def unpack_gated_light(parts: tuple[Tensor, ...], outputs: int) -> Tensor:
    """Return the plain weight (out, in) in bfloat16."""
    return _unmixed(unpack_light(parts, len(parts[0]) * _library().panel()), outputs)


def _mixed(weight: Tensor) -> Tensor:
    """Return a weight, values above gates, with both in turns, half a panel of each."""
    width, inputs = _library().panel() // 2, weight.shape[1]
    halves = [functional.pad(half, (0, 0, 0, -len(half) % width)) for half in weight.chunk(2)]
    both = torch.stack([half.reshape(-1, width, inputs) for half in halves], 1)
    return both.flatten(0, 2)


def _unmixed(rows: Tensor, outputs: int) -> Tensor:
    values, gates = rows.reshape(-1, 2, _library().panel() // 2, rows.shape[1]).unbind(1)
    return torch.cat([half.flatten(0, 1)[: outputs // 2] for half in (values, gates)])


def multiply(
    x: Tensor, parts: tuple[Tensor, ...], bias: Tensor | None, outputs: int, *, gated: bool = False
) -> Tensor:
    """Return the product (..., outputs) of x and a packed weight that `suits` accepted.

    The parts are what `pack` returned, or what pack_light did. With `gated` it is the first half of
    the columns times the GELU of the second.
    """
    found = x.new_empty(*x.shape[:-1], outputs)
    depth = x.shape[-1]
    sizes = (ctypes.c_int64(x.numel() // depth), ctypes.c_int64(depth))
    packed, scales = parts if len(parts) > 1 else (parts[0], None)
    failed = _library().multiply(
        *addresses(x, packed, scales, bias, found),
        *sizes,
        outputs,
        int(gated),
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for a product.")
    return found


def _library() -> Any:
    library = kernel("matmul")
    assert library is not None
    return library
