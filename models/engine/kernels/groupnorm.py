"""Group normalisation in channels-last memory, in one pass with a bias before and SiLU after it.

The kernel for bfloat16 on the CPU is groupnorm.cpp, the one for GPUs in triton_kernels.py; both say
why they are faster. Elsewhere torch's own functions run.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels.build import addresses, fits, kernel, on_gpu


def group_norm(layer: Any, x: Tensor, *, silu: bool = False, bias: Tensor | None = None) -> Tensor:
    """Return a GroupNorm layer's result for x (B, C, h, w), both channels-last.

    With `silu` it is the SiLU of that; a `bias` (C,) is added to x first.
    """
    weight, shift, channels = layer.weight, layer.bias, x.shape[1]
    if (
        x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and fits(x, weight, shift)
        and bias is None
    ):
        library = kernel("groupnorm")
        if library is not None and channels % library.lanes() == 0:
            return _normalized(library.normalize, layer, x, silu)
    if x.is_cuda and _suits_gpu(x, weight, shift):
        how = (layer.num_groups, layer.eps, silu)
        fused: Tensor | None = on_gpu("group_norm", x, weight, shift, *how, bias)
        if fused is not None:
            return fused
    found: Tensor = layer(x if bias is None else x + bias[:, None, None])
    return functional.silu(found, inplace=not found.requires_grad) if silu else found


def lie_alike(*pictures: Tensor) -> bool:
    """Tell whether all have the same shape and are dense and channels-last."""
    return all(
        one.shape == pictures[0].shape and one.is_contiguous(memory_format=torch.channels_last)
        for one in pictures
    )


def _suits_gpu(x: Tensor, *parameters: Tensor) -> bool:
    """Tell whether Triton's kernel applies: channels-last, not empty, one dtype, no gradient."""
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
        *addresses(x, found, layer.weight, layer.bias),
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
