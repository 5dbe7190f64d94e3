"""Memory: how much of it is free, which errors say that it ran out, and giving it back."""

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


def free_bytes(device: torch.device) -> float:
    """Return what a GPU can still hold, in bytes, torch's own reserve included.

    Infinite for a CPU: its system decides, and nothing could be moved anywhere from there.
    """
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, of a GPU or of this machine.

    Of a CPU torch raises a plain RuntimeError, and of cuDNN and cuBLAS too: only the text tells.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def release_cached_memory() -> None:
    """Return to the system what this process has freed but kept for later, as far as it can.

    torch keeps a GPU's memory in a reserve; glibc keeps a CPU's between what is still in use.
    """
    torch.cuda.empty_cache()  # without a GPU, nothing
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def oom_as_device_unavailable() -> Iterator[None]:
    """Turn an error that says so into the one for the user.

    Raises:
        DeviceUnavailable: memory ran out in the block.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceUnavailable(OUT_OF_MEMORY) from error
