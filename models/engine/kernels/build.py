"""Compiles the suite's own kernels: for the processor, once, into the user's cache; and for a GPU.

Without GCC, or on a processor that lacks AVX-512 BF16, there are none, and torch's own run. Those
for a GPU are compiled by Triton, which comes with torch for NVIDIA cards, and keeps them itself.
"""

import ctypes
import functools
import hashlib
import importlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.memory import is_out_of_memory

LOGGER = logging.getLogger(__name__)

KERNELS = ("attention", "groupnorm", "matmul", "winograd")
"""The sources beside this file, without their suffix."""
FEATURES = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "avx512_bf16")
"""What the kernels need of the processor, as torch.cpu names them."""
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16"),
    "-mfma",
)


_no_triton = False
"""Whether a kernel for a GPU has failed; then none is tried again."""


def on_gpu(function: str, *given: Any) -> Any | None:
    """Return what a function of triton_kernels.py gives, None where Triton does not work.

    The log says so once. Only there is Triton imported, which not every torch brings.

    Raises:
        RuntimeError: memory ran out.
    """
    global _no_triton  # noqa: PLW0603 - Triton is the process's as well
    if _no_triton:
        return None
    try:
        return getattr(importlib.import_module("models.engine.kernels.triton_kernels"), function)(
            *given
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _no_triton = True
        LOGGER.warning("torch's own kernels are used on the GPU, slower.", exc_info=error)
        return None


def addresses(*tensors: Tensor | None) -> list[ctypes.c_void_p | None]:
    """Return where each lies, as a kernel takes it."""
    return [None if one is None else ctypes.c_void_p(one.data_ptr()) for one in tensors]


def fits(*tensors: Tensor | None) -> bool:
    """Tell whether a kernel may be handed these: bfloat16, on the CPU, for no gradient; or none."""
    return all(
        one is None
        or (one.dtype == torch.bfloat16 and one.device.type == "cpu" and not one.requires_grad)
        for one in tensors
    )


def has_kernels() -> bool:
    """Tell whether all of them run here, and none is left to torch or oneDNN for good."""
    return not has_tiles() and all(kernel(name) is not None for name in KERNELS)


@functools.cache
def has_tiles() -> bool:
    """Tell whether this CPU has AMX, whose tiles oneDNN takes for products of matrices.

    With them torch's own attention was 2 to 9 times as fast in self-attentions of SD 1.5, and about
    the same for text.
    """
    return bool(torch.cpu._is_amx_tile_supported())


@functools.cache
def kernel(name: str) -> ctypes.CDLL | None:
    """Return one of KERNELS with its functions, compiled now where it never was.

    None where it cannot be: the log says so once if that is not for lack of a compiler.
    """
    # Older versions of torch cannot be asked, and then are not.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    compiler = shutil.which("g++")
    if compiler is None or not all(features.get(feature) for feature in FEATURES):
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    text = source.read_bytes() + source.with_name("avx512.h").read_bytes()
    version = hashlib.sha256(text + " ".join(FLAGS).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "controlloop"
    library = cache / f"{name}-{version}.so"
    try:
        if not library.exists():
            LOGGER.info("Compiling the kernel '%s' for this processor, once.", name)
            cache.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, library)
        found = ctypes.CDLL(str(library))
    except (OSError, subprocess.CalledProcessError) as error:
        LOGGER.warning("The kernel '%s' cannot be compiled, so a slower one runs: %s", name, error)
        return None
    return found


def _compile(compiler: str, source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        part, whole = Path(folder, "part.o"), Path(folder, library.name)
        commands: list[list[str | Path]] = [
            [compiler, *FLAGS, "-c", source, "-o", part],
            # Without -fopenmp: a second OpenMP beside torch's would have threads of its own, and
            # both would wait for work on the same cores. So torch's is found when this is loaded.
            [compiler, "-shared", part, "-o", whole],
        ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        whole.replace(library)  # at once, as another process may do the same
