"""Group normalisation in bfloat16 on the CPU, with SiLU behind it in the same pass.

The kernel is norm.cpp, which says why it is faster. Elsewhere torch's own functions run.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.compiled import fits, kernel

LANES = 16
"""Of whose multiples the kernel takes channels."""


def group_norm(layer: Any, x: Tensor, *, silu: bool = False) -> Tensor:
    """Return what a GroupNorm makes of x (B, C, h, w) in channels-last memory, and so is it.

    With `silu` what SiLU makes of that.
    """
    weight, bias, channels = layer.weight, layer.bias, x.shape[1]
    if (
        x.ndim == 4
        and channels % LANES == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and fits(x, weight, bias)
    ):
        normalize = kernel("norm", "normalize")
        if normalize is not None:
            return _normalized(normalize, layer, x, silu)
    found: Tensor = layer(x)
    return functional.silu(found, inplace=not found.requires_grad) if silu else found


def _normalized(normalize: Any, layer: Any, x: Tensor, silu: bool) -> Tensor:
    found = torch.empty_like(x)
    failed = normalize(
        *(ctypes.c_void_p(one.data_ptr()) for one in (x, found, layer.weight, layer.bias)),
        x.shape[0],
        ctypes.c_int64(x.shape[2] * x.shape[3]),
        x.shape[1],
        layer.num_groups,
        int(silu),
        ctypes.c_float(layer.eps),
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for a group normalisation.")
    return found
