"""Chooses the device and the number format (dtype) that the networks run in.

The format is the fastest on the device: bfloat16 on CPUs with instructions for it or kernels of our
own (engine/kernels), float16 on NVIDIA GPUs since Volta (Stable Diffusion 1.x is published in it,
and bfloat16 has three mantissa bits fewer), float32 elsewhere.
"""

import os
import re

import torch

from core.errors import BadInput, DeviceUnavailable
from models.engine.kernels.build import cpu_has_bfloat16, has_kernels

DEVICE_VARIABLE = "CONTROLLOOP_DEVICE"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VOLTA = (7, 0)
"""First CUDA compute capability with float16 tensor cores."""

_shared: torch.device | None = None


def share_device(device: torch.device) -> None:
    """Have the annotators run on this device too; a Store does so with its own."""
    global _shared  # noqa: PLW0603 - a process has one store, and annotators are pure functions
    _shared = device


def shared_device() -> torch.device:
    """Return the device of the latest Store, else the one that choose_device prefers.

    Raises:
        BadInput, DeviceUnavailable: as choose_device.
    """
    return _shared or choose_device()[0]


def choose_device(
    requested: str | None = None, dtype: str | None = None
) -> tuple[torch.device, torch.dtype, str]:
    """Return the device, the format, and a note for the page that says which and why.

    `requested` is auto, cpu, cuda or cuda:N; None reads the environment variable
    CONTROLLOOP_DEVICE. `dtype` is float32, bfloat16 or float16; None takes the device's best.

    Raises:
        BadInput: the device or the format is not one of these.
        DeviceUnavailable: this machine does not have the device, or its driver does not work.
    """
    name = requested or os.environ.get(DEVICE_VARIABLE) or "auto"
    asker = "The device" if requested else DEVICE_VARIABLE
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise BadInput(f"{asker} is '{name}': it must be auto, cpu, cuda or cuda:N.")
    if dtype is not None and dtype not in DTYPES:
        raise BadInput(f"The number format is '{dtype}': it must be {', '.join(DTYPES)}.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        _require_cuda(device, asker)
    best, reason = _best_dtype(device)
    if dtype is not None:
        best, reason = DTYPES[dtype], "as asked"
    if device.type == "cuda":
        title = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        title = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return device, best, f"{title}, {str(best).removeprefix('torch.')} ({reason})"


def _require_cuda(device: torch.device, asker: str) -> None:
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            f"{asker} asks for {device}, but PyTorch finds no working NVIDIA GPU here: "
            "use cpu, or check the driver."
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(
            f"{asker} asks for {device}, but the last GPU here is "
            f"cuda:{torch.cuda.device_count() - 1}."
        )


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= VOLTA:
            return torch.float16, "this GPU has float16 tensor cores"
        return torch.float32, "this GPU is slow in float16"
    if cpu_has_bfloat16():
        return torch.bfloat16, "this processor has bfloat16 instructions"
    if has_kernels():
        return torch.bfloat16, "with kernels for this processor, which has no bfloat16 instructions"
    return torch.float32, "this processor has no bfloat16 instructions"
