"""Attention in bfloat16 on the CPU, several times as fast as torch's own where it can be compiled.

The kernel (attention.cpp, which says why it is faster) is compiled once, when it is first needed,
and kept in the user's cache. Without GCC, or on another processor, torch's own attention runs.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOGGER = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("attention.cpp")
FEATURES = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_bf16")
"""What the kernel needs of the processor, as torch.cpu names them."""
WIDEST = 512
"""Largest width of a head that the kernel takes; the UNet has 40, 80 and 160, the decoder 512."""
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"),
)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(queries keys' / sqrt(width)) values, (B, N, heads * width).

    queries (B, N, heads, width); keys and values (B, M, heads, width).
    """
    if _suits(queries, keys, values):
        attend = kernel()
        if attend is not None:
            return _attended(attend, queries, keys, values)
    found = functional.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return found.transpose(1, 2).flatten(2)


def _suits(*tensors: Tensor) -> bool:
    width = tensors[0].shape[3]
    return (
        width <= WIDEST
        and width % 2 == 0
        and all(
            one.dtype == torch.bfloat16
            and one.device.type == "cpu"
            and one.stride()[2:] == (width, 1)
            and not one.requires_grad
            for one in tensors
        )
    )


def _attended(attend: Callable[..., int], queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    batch, rows, heads, width = queries.shape
    found = queries.new_empty(batch, rows, heads * width)
    strides = [one.stride(axis) for one in (queries, keys, values, found) for axis in (0, 1)]
    failed = attend(
        *(one.data_ptr() for one in (queries, keys, values, found)),
        *(batch, heads, rows, keys.shape[1], width),
        (ctypes.c_int64 * len(strides))(*strides),
        width**-0.5,
        torch.get_num_threads(),
    )
    if failed:
        raise torch.OutOfMemoryError("There is no memory for an attention.")
    return found


@functools.cache
def kernel() -> Callable[..., int] | None:
    """Return the compiled kernel, compiled now where this machine never did; None without one."""
    # Older versions of torch cannot be asked, and then are not.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    compiler = shutil.which("g++")
    if compiler is None or not all(features.get(name) for name in FEATURES):
        return None
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "controlloop"
    library = cache / f"attention-{name}.so"
    try:
        if not library.exists():
            LOGGER.info("Compiling the attention for this processor, once.")
            cache.mkdir(parents=True, exist_ok=True)
            _compile(compiler, library)
        attend: Any = ctypes.CDLL(str(library)).attend
    except (OSError, subprocess.CalledProcessError) as error:
        LOGGER.warning("torch's own attention is used, which is slower: %s", error)
        return None
    pointers, sizes = [ctypes.c_void_p] * 4, [ctypes.c_int] * 5
    strides = ctypes.POINTER(ctypes.c_int64)
    attend.argtypes = [*pointers, *sizes, strides, ctypes.c_float, ctypes.c_int]
    found: Callable[..., int] = attend
    return found


def _compile(compiler: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        part, whole = Path(folder, "attention.o"), Path(folder, library.name)
        commands: list[list[str | Path]] = [
            [compiler, *FLAGS, "-c", SOURCE, "-o", part],
            # Without -fopenmp: a second OpenMP beside torch's would have threads of its own, and
            # both would wait for work on the same cores. So torch's is found when this is loaded.
            [compiler, "-shared", part, "-o", whole],
        ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        whole.replace(library)  # at once, as another process may do the same
