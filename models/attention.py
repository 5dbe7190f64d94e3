"""Attention in bfloat16 on the CPU, several times as fast as torch's own where it can be compiled.

The kernel is attention.cpp, which says why it is faster. Elsewhere torch's own attention runs.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.compiled import fits, kernel

WIDEST = 512
"""Largest width of a head that the kernel takes; the UNet has 40, 80 and 160, the decoder 512."""


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(queries keys' / sqrt(width)) values, (B, N, heads * width).

    queries (B, N, heads, width); keys and values (B, M, heads, width).
    """
    if _suits(queries, keys, values):
        attend = kernel("attention", "attend")
        if attend is not None:
            return _attended(attend, queries, keys, values)
    found = functional.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return found.transpose(1, 2).flatten(2)


def _suits(*tensors: Tensor) -> bool:
    width = tensors[0].shape[3]
    dense = all(one.stride()[2:] == (width, 1) for one in tensors)
    return width <= WIDEST and width % 2 == 0 and dense and fits(*tensors)


def _attended(attend: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    batch, rows, heads, width = queries.shape
    found = queries.new_empty(batch, rows, heads * width)
    strides = [one.stride(axis) for one in (queries, keys, values, found) for axis in (0, 1)]
    failed = attend(
        *(ctypes.c_void_p(one.data_ptr()) for one in (queries, keys, values, found)),
        *(batch, heads, rows, keys.shape[1], width),
        (ctypes.c_int64 * len(strides))(*strides),
        ctypes.c_float(width**-0.5),
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for an attention.")
    return found
