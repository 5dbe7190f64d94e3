"""Group normalisation with SiLU behind it in the same pass, in channels-last memory.

The kernel for bfloat16 on the CPU is norm.cpp, the one for GPUs in gpu_kernels.py; both say why
they are faster. Elsewhere torch's own functions run.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.compiled import fits, kernel, on_gpu

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
    if x.is_cuda and _suits_gpu(x, weight, bias):
        fused: Tensor | None = on_gpu(
            "group_norm", x, weight, bias, layer.num_groups, layer.eps, silu
        )
        if fused is not None:
            return fused
    found: Tensor = layer(x)
    return functional.silu(found, inplace=not found.requires_grad) if silu else found


def _suits_gpu(x: Tensor, *parameters: Tensor) -> bool:
    """Channels-last, not empty, of one format and for no gradient."""
    return (
        x.ndim == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.requires_grad
        and all(one.dtype == x.dtype and not one.requires_grad for one in parameters)
    )


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
