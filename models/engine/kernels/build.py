"""Compiles the suite's own kernels: for the processor, once, into the user's cache; and for a GPU.

They are compiled for the best of TARGETS that the processor has and oneDNN's own limit, the
environment variable ONEDNN_MAX_CPU_ISA, allows. Without GCC, or on another processor (as Arm's),
torch's own run instead. Those for a GPU are compiled by Triton, which comes with torch for NVIDIA
cards and has a cache of its own.

What a kernel and its Python have in common, such as the width of a panel, is a constant of the
C++, exported as a function: `kernel("matmul").panel()`.
"""

import ctypes
import functools
import hashlib
import importlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.memory import is_out_of_memory

LOGGER = logging.getLogger(__name__)

KERNELS = ("attention", "groupnorm", "matmul", "winograd")
"""The sources in SOURCES, without their suffix."""
SOURCES = Path(__file__).parent
ROOT = 0
"""The user id of the superuser."""
FLAGS = ("-std=c++17", "-fPIC", "-fopenmp")


CPU_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names in /proc/cpuinfo: AVX-512 BF16, AMX, and Arm's extension. Without one of them torch's own
bfloat16 is slower than float32."""
LIMIT_VARIABLE = "ONEDNN_MAX_CPU_ISA"
ISAS = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX"),
)
"""oneDNN's names of instruction sets, each with all before it; values of LIMIT_VARIABLE."""


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for."""

    isa: str
    """oneDNN's name for it, of ISAS; empty for any processor."""
    features: tuple[str, ...]
    """What they need of the processor, as torch.cpu names it."""
    flags: tuple[str, ...]


_AVX512_FEATURES = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq")
_AVX512_FLAGS = ("-O3", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")
TARGETS = (
    Target(
        "AVX512_CORE_BF16",
        (*_AVX512_FEATURES, "avx512_vnni", "avx512_bf16"),
        (*_AVX512_FLAGS, "-mavx512vnni", "-mavx512bf16"),
    ),
    Target(
        "AVX512_CORE_VNNI",
        (*_AVX512_FEATURES, "avx512_vnni"),
        (*_AVX512_FLAGS, "-mavx512vnni"),
    ),
    Target("AVX512_CORE", _AVX512_FEATURES, _AVX512_FLAGS),
    Target("AVX2", ("avx2", "fma3"), ("-O3", "-mavx2", "-mfma")),
)
"""The best first."""
PORTABLE = Target("", (), ("-O1", "-Wno-psabi"))
"""The same sources for any processor: the tests' reference. It is slower than torch, so that the
app never uses it."""


def may_use(isa: str) -> bool:
    """Tell whether LIMIT_VARIABLE allows one of ISAS."""
    limit = os.environ.get(LIMIT_VARIABLE, "").upper()
    return limit not in ISAS or ISAS.index(isa) <= ISAS.index(limit)


def cpu_has_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16, and oneDNN may use them."""
    return bool(_cpu_flags() & CPU_BFLOAT16_FLAGS) and may_use("AVX512_CORE_BF16")


def _cpu_flags() -> set[str]:
    """Return the first core's feature names; none if the system does not list them."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return set()
    for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def is_supported(target: Target) -> bool:
    """Tell whether this processor has the features of a target."""
    # Older versions of torch have no such function; then none counts as there.
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return all(features.get(feature) for feature in target.features)


def best_target() -> Target | None:
    """Return the best of TARGETS that runs here and that may be used."""
    return next((one for one in TARGETS if may_use(one.isa) and is_supported(one)), None)


target = best_target()

_no_triton = False
"""Whether a Triton kernel has failed; then none is tried again."""


def on_gpu(function: str, *given: Any) -> Any | None:
    """Return the result of a function of triton_kernels.py, or None if Triton does not work.

    The log says so once. Triton is imported here alone, since not every torch comes with it.

    Raises:
        RuntimeError: memory ran out.
    """
    global _no_triton  # noqa: PLW0603 - Triton is the process's too
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
    """Return the tensors' pointers for a kernel."""
    return [None if one is None else ctypes.c_void_p(one.data_ptr()) for one in tensors]


def fits(*tensors: Tensor | None) -> bool:
    """Tell whether a kernel accepts these: bfloat16, on the CPU, without gradient; or None."""
    return all(
        one is None
        or (one.dtype == torch.bfloat16 and one.device.type == "cpu" and not one.requires_grad)
        for one in tensors
    )


def has_kernels() -> bool:
    """Tell whether all kernels run here, so that none is replaced by torch's or oneDNN's."""
    return not has_tiles() and all(kernel(name) is not None for name in KERNELS)


@functools.cache
def has_tiles() -> bool:
    """Tell whether this CPU has AMX, whose tiles oneDNN uses for products of matrices, if it may.

    With them torch's attention was 2 to 9 times as fast as ours in SD 1.5's self-attentions, and
    about the same for text.
    """
    return may_use("AVX512_CORE_AMX") and bool(torch.cpu._is_amx_tile_supported())


@functools.cache
def kernel(name: str) -> ctypes.CDLL | None:
    """Return one of KERNELS with its functions and constants, compiled for `target` if necessary.

    None where it cannot be; the log says so once, unless it is for want of a compiler or of
    features.
    """
    compiler = shutil.which("g++")
    if compiler is None or target is None or not is_supported(target):
        return None
    source = SOURCES / f"{name}.cpp"
    flags = (*FLAGS, *target.flags)
    texts = [path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))]
    version = hashlib.sha256(b"".join([*texts, " ".join(flags).encode()])).hexdigest()[:16]
    try:
        return ctypes.CDLL(str(_library(name, version, [compiler, *flags], source)))
    # RuntimeError: a user without a home, as in a container.
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        LOGGER.warning("The kernel '%s' cannot be used, so a slower one runs: %s", name, error)
        if isinstance(error, subprocess.CalledProcessError):
            LOGGER.warning("%s", error.stderr.decode(errors="replace").strip())
        return None


def _library(name: str, version: str, compiler: list[str], source: Path) -> Path:
    """Return a kernel's library in the cache, compiled if it is not there or is damaged.

    Its name ends in the hash of its content: a loader may crash on a file that was cut.

    Raises:
        OSError: the cache is not this user's alone, or cannot be written to.
        RuntimeError: there is no home.
        subprocess.CalledProcessError: it does not compile.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "controlloop"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_own(cache)
    for library in cache.glob(f"{name}-{version}-*.so"):
        _require_own(library)
        if library.stem.endswith(_digest(library)):
            return library
        LOGGER.warning("%s is damaged and is compiled again.", library)
        library.unlink()
    LOGGER.info("Compiling the kernel '%s' for this processor, once.", name)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        whole = _compile(compiler, source, Path(folder))
        library = cache / f"{name}-{version}-{_digest(whole)}.so"
        whole.replace(library)  # atomic: another process may do the same
    return library


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _require_own(path: Path) -> None:
    """Refuse what another user could change: it would run here.

    Raises:
        OSError: it is another user's, or others may write to it.
    """
    facts, user = path.stat(), getattr(os, "getuid", lambda: 0)()
    if facts.st_uid not in (user, ROOT) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{path} is another user's, or others can write to it: delete it.")


def _compile(compiler: list[str], source: Path, folder: Path) -> Path:
    """Compile a kernel in a folder; return the library."""
    part, whole = folder / "part.o", folder / "whole.so"
    commands: list[list[str | Path]] = [
        [*compiler, "-c", source, "-o", part],
        # Without -fopenmp, so that loading finds torch's OpenMP: a second one would have its own
        # threads, and both would spin on the same cores.
        [compiler[0], "-shared", part, "-o", whole],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    return whole
