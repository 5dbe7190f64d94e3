"""Memory: how much is free, which errors mean that it ran out, and returning cached memory."""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core.errors import DeviceUnavailable

OUT_OF_MEMORY = (
    "There is too little memory for this: please choose a smaller image resolution, or close other "
    "programs that use it."
)

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
"""The parameters' numbers in glibc's malloc.h."""
LARGE_BLOCK = 2**20


def free_bytes(device: torch.device) -> float:
    """Return the bytes that can still be allocated on a GPU, torch's cache included.

    Infinite for a CPU, from which nothing can be offloaded.
    """
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or on this machine.

    For a CPU, cuDNN and cuBLAS torch raises a plain RuntimeError, recognised by its text.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def release_cached_memory() -> None:
    """Return freed memory that allocators have cached to the system, as far as possible.

    torch caches a GPU's memory, glibc a CPU's.
    """
    torch.cuda.empty_cache()  # does nothing without a GPU
    release_freed_memory()


def keep_one_arena() -> None:
    """Have glibc allocate for all threads from one arena, from now on.

    It gives every few threads one of their own, and what is freed in one serves no other: a server
    of many short requests grew by a tenth in six hundred (`python -m benchmarks.load`).
    """
    _set_malloc(M_ARENA_MAX, 1)


def return_large_blocks() -> None:
    """Have glibc return each block of a megabyte or more when it is freed, from now on.

    It raises that limit to 32 MB by itself, and keeps the gaps between the blocks in use: 1.6 of
    the 8.9 GB that a step of training at Stable Diffusion's size took.
    """
    _set_malloc(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _set_malloc(parameter: int, value: int) -> None:
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(parameter, value)


def release_freed_memory() -> None:
    """Return what glibc keeps of a CPU's memory to the system.

    It keeps pieces in an arena for every few threads: half a gigabyte after a hundred requests.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def oom_as_device_unavailable() -> Iterator[None]:
    """Turn an out-of-memory error into the one for the user.

    Raises:
        DeviceUnavailable: memory ran out in the block.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceUnavailable(OUT_OF_MEMORY) from error
