"""Attention: in bfloat16 on the CPU several times as fast as torch's own, if it can be compiled.

The kernel is attention.cpp, which says why it is faster. Otherwise torch's own attention runs, also
on a processor with AMX, whose tiles torch's uses. On a GPU torch takes the first of its attentions
that applies, which is not always the fastest; for long inputs cuDNN's is timed against it.
"""

import ctypes
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from core.memory import is_out_of_memory
from models.engine.kernels.build import addresses, fits, has_tiles, kernel

LOGGER = logging.getLogger(__name__)

LONG = 1024
"""Fewest keys for which cuDNN's attention is tried on a GPU: building it takes a moment."""
TIMED_RUNS = 5
MAX_ERROR = 2e-2
"""Relative difference to torch's above which cuDNN's is wrong, and not just rounded otherwise."""

_cudnn_is_better: dict[Any, bool] = {}
"""By device, dtype and shapes."""


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(queries keys' / sqrt(width)) values, (B, N, heads * width).

    queries (B, N, heads, width); keys and values (B, M, heads, width).
    """
    if _suits(queries, keys, values) and not has_tiles():
        library = kernel("attention")
        if library is not None and queries.shape[3] <= library.widest():
            return _attended(library.attend, queries, keys, values)
    by_heads = [one.transpose(1, 2) for one in (queries, keys, values)]
    attend = _cudnn if _should_be_cudnn(*by_heads) else _torchs
    return attend(*by_heads).transpose(1, 2).flatten(2)


def _torchs(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(queries, keys, values)


def _cudnn(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        queries, keys, values, None, compute_log_sumexp=False
    )[0]
    return found


def _should_be_cudnn(*tensors: Tensor) -> bool:
    """Tell whether cuDNN's is the faster for these (B, heads, N, width), by a trial the first time.

    Only if torch chooses convolutions in the same way: each thread builds cuDNN's anew.
    """
    queries, keys, _ = tensors
    if not (queries.is_cuda and torch.backends.cudnn.benchmark and keys.shape[2] >= LONG):
        return False
    if any(one.dtype == torch.float32 or one.requires_grad for one in tensors):
        return False
    asked = (queries.device, queries.dtype, queries.shape, keys.shape)
    if asked not in _cudnn_is_better and not torch.cuda.is_current_stream_capturing():
        _cudnn_is_better[asked] = _is_better(_cudnn, *tensors)
    return _cudnn_is_better.get(asked, False)


def _is_better(attend: Any, *tensors: Tensor) -> bool:
    """Tell whether it gives the result of torch's own choice in less time."""
    try:
        wanted, found = _torchs(*tensors).float(), attend(*tensors).float()
        if not (found - wanted).norm() <= MAX_ERROR * wanted.norm():
            return False
        return _milliseconds(attend, *tensors) < _milliseconds(_torchs, *tensors)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        LOGGER.info("cuDNN has no attention for %s: %s", tuple(tensors[0].shape), error)
        return False


def _milliseconds(attend: Any, *tensors: Tensor) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    for _ in range(TIMED_RUNS):
        attend(*tensors)
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended))


def _suits(*tensors: Tensor) -> bool:
    width = tensors[0].shape[3]
    dense = all(one.stride()[2:] == (width, 1) for one in tensors)
    return width % 2 == 0 and dense and fits(*tensors)


def _attended(attend: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    batch, rows, heads, width = queries.shape
    found = queries.new_empty(batch, rows, heads * width)
    strides = [one.stride(axis) for one in (queries, keys, values, found) for axis in (0, 1)]
    failed = attend(
        *addresses(queries, keys, values, found),
        *(batch, heads, rows, keys.shape[1], width),
        (ctypes.c_int64 * len(strides))(*strides),
        ctypes.c_float(width**-0.5),
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for an attention.")
    return found
