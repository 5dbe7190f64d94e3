"""Shared by the benchmarks: command and machine, a running site, PSNR, sheets, failures."""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from core.condition import RGBImage
from core.errors import SuiteError
from core.images import to_images, to_tensor
from core.networks import Networks
from core.request import GenerationRequest

ROOT = Path(__file__).resolve().parent.parent
MAX_SHEET_ROWS = 12
ENDING_S = 120
"""A server that is asked to end, and does not in that time, is killed."""


def command(name: str, arguments: Sequence[str] | None) -> str:
    """The command line of a benchmark; `arguments` are those of its `main`."""
    options = sys.argv[1:] if arguments is None else arguments
    return f"python -m benchmarks.{name} {shlex.join(options)}".strip()


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The date, machine and versions, for the JSON."""
    packages = ("torch", "diffusers", "transformers")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "dtype": str(dtype),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def _processor() -> str:
    """The processor's name; on Linux only /proc/cpuinfo has it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


@dataclass(frozen=True)
class Site:
    """A running server."""

    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def running(
    command: Sequence[str],
    root: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Site]:
    """Run a command that ends in `launch.py` or an app's file, until the block ends.

    `root` is the repository's folder, or another build's; `log` gets what it writes.

    Raises:
        SystemExit: It ended before it answered.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (log or Path(os.devnull)).open("ab") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port)], cwd=root, env=environment, stdout=out, stderr=out
        )
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).read()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("the server ended before it answered") from None
                time.sleep(0.05)
        yield Site(address, server)
    finally:
        server.terminate()
        try:
            server.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def served(program: str, *options: str, root: Path = ROOT) -> Iterator[str]:
    """Run `launch.py` or an app's file until the block ends; yield its address once it answers.

    Raises:
        SystemExit: As running.
    """
    with running([sys.executable, str(root / program), *options], root) as site:
        yield site.address


def round_trip(networks: Networks, image: RGBImage) -> RGBImage:
    """Encode and decode a picture with the autoencoder."""
    vae = networks.vae  # type: ignore[attr-defined]
    pixels = (to_tensor(image) * 2 - 1).to(networks.device, networks.dtype)
    with torch.no_grad():
        encoded = vae.encode(pixels)
        latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mean
        return to_images(vae.decode(latents).sample.float())[0]


def at_strength(request: GenerationRequest, strength: float) -> GenerationRequest:
    """The request with its one control at another strength."""
    (control,) = request.controls
    return replace(request, controls=(replace(control, strength=strength),))


def psnr(a: RGBImage, b: RGBImage) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, in dB."""
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def save_sheet(rows: Sequence[Sequence[RGBImage]], sheet: Path, name: str) -> None:
    """Save the first rows of pictures as one picture, `sheet` with `-name` after its stem."""
    sheet.parent.mkdir(parents=True, exist_ok=True)
    whole = np.concatenate([np.concatenate(row, 1) for row in rows[:MAX_SHEET_ROWS]], 0)
    Image.fromarray(whole).save(sheet.with_stem(f"{sheet.stem}-{name}"))


@contextmanager
def record_failure(
    name: str, failed: dict[str, str], only: type[Exception] = Exception
) -> Iterator[None]:
    """Record a failure in `failed` and on stderr, so that one condition does not stop the run.

    An exception other than SuiteError is a bug: its traceback is printed too.
    """
    try:
        yield
    except only as error:
        failed[name] = str(error)
        if not isinstance(error, SuiteError):
            traceback.print_exception(error)
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{name}: {failed[name]}", file=sys.stderr, flush=True)
