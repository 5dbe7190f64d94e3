"""Normalisation in one pass with what stands before or behind it, in channels-last memory.

The kernel for bfloat16 on the CPU is groupnorm.cpp, the one for GPUs in triton_kernels.py; both say
why they are faster. Elsewhere torch's own functions run.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels.build import addresses, fits, kernel, on_gpu
from models.engine.layers import convolve

LANES = 16
"""Of whose multiples the kernel takes channels."""


def group_norm(layer: Any, x: Tensor, *, silu: bool = False, bias: Tensor | None = None) -> Tensor:
    """Return what a GroupNorm makes of x (B, C, h, w) in channels-last memory, and so is it.

    With `silu` what SiLU makes of that; a `bias` (C,) is added to x first.
    """
    weight, shift, channels = layer.weight, layer.bias, x.shape[1]
    if (
        x.ndim == 4
        and channels % LANES == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and fits(x, weight, shift)
        and bias is None
    ):
        library = kernel("groupnorm")
        if library is not None:
            return _normalized(library.normalize, layer, x, silu)
    if x.is_cuda and _suits_gpu(x, weight, shift):
        how = (layer.num_groups, layer.eps, silu)
        fused: Tensor | None = on_gpu("group_norm", x, weight, shift, *how, bias)
        if fused is not None:
            return fused
    found: Tensor = layer(x if bias is None else x + bias[:, None, None])
    return functional.silu(found, inplace=not found.requires_grad) if silu else found


def convolve_and_norm(convolution: Any, norm: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what a GroupNorm and SiLU make of a convolution of x, with another bias if given.

    For a GPU torch adds the bias in a pass of its own, which the normalisation does on its way.
    """
    if x.is_cuda:
        bias = convolution.bias if bias is None else bias
        found = _without_bias(convolution, x)
    else:
        found, bias = convolve(convolution, x, bias), None
    del x  # which nobody else may need any more, and memory peaks here
    return group_norm(norm, found, silu=True, bias=bias)


def convolve_onto(convolution: Any, x: Tensor, kept: Tensor) -> Tensor:
    """Return the sum of a convolution of x and a tensor like it; on a GPU with the bias at once."""
    if x.is_cuda and not x.requires_grad and not convolution.weight.requires_grad:
        found = _without_bias(convolution, x)
        suits = lie_alike(found, kept)
        if suits and on_gpu("add_with_bias", found, kept, convolution.bias) is not None:
            return found
        return found.add_(convolution.bias[:, None, None]).add_(kept)
    return convolve(convolution, x, kept=kept)


def add_and_norm(norm: Any, found: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of two tensors (B, N, C), and what a LayerNorm makes of it.

    The first is not to be used again. On a GPU both are one pass.
    """
    alike = found.is_contiguous() and kept.is_contiguous() and found.shape == kept.shape
    if found.is_cuda and alike and not found.requires_grad and not norm.weight.requires_grad:
        fused = on_gpu("add_and_norm", found, kept, norm.weight, norm.bias, norm.eps)
        if fused is not None:
            return found, fused
    total = found.add_(kept)
    return total, norm(total)


def _without_bias(convolution: Any, x: Tensor) -> Tensor:
    weight, stride, padding = convolution.weight, convolution.stride, convolution.padding
    return functional.conv2d(x, weight, None, stride, padding)


def lie_alike(*pictures: Tensor) -> bool:
    """Tell whether all have one shape and lie in channels-last memory without gaps."""
    return all(
        one.shape == pictures[0].shape and one.is_contiguous(memory_format=torch.channels_last)
        for one in pictures
    )


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
