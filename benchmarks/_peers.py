"""Who takes part in the speed benchmark: this project's pipeline, and diffusers' in several ways.

Every peer makes the pictures of a request, from prompt and map to 8-bit pixels, and notes when each
step ended and what the final latents were.
"""

import copy
import ctypes
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._openvino import converted
from core.diffusion import batches
from core.pipeline import Pipeline, image_seeds
from core.request import GenerationRequest, Progress
from core.sampling import seeded_noise

COMPILERS = ("c++", "g++", "clang++")
COMPILED: dict[str, dict[str, dict[str, Any]]] = {
    "inductor": {
        # Freezing lets it pack weights for oneDNN: on a CPU its fastest way.
        "cpu": {"backend": "inductor", "options": {"freezing": True}},
        # With CUDA graphs, as diffusers' own documentation has it for a ControlNet.
        "cuda": {"mode": "reduce-overhead"},
    },
    # Also tries its own kernels for products and convolutions: many minutes of compiling.
    "inductor_autotuned": {"cuda": {"mode": "max-autotune"}},
    "openvino": {"cpu": {}},
}
"""Who compiles the networks, with torch.compile's arguments on each kind of device."""


@dataclass
class Made:
    """One request's run."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    """Above what was there before the run."""
    latents: list[Tensor] = field(default_factory=list)
    """The final latents, (B, C, h, w) of each batch, float32 on the CPU."""
    on_gpu: bool = False
    _ends: list[tuple[int, int, Any]] = field(default_factory=list)
    """Of each step: its number, its images, and the moment."""

    def stepped(self, step: int, images: int) -> None:
        """Note the end of a batch's step, counted from 1."""
        moment: Any = time.perf_counter()
        if self.on_gpu:
            # Python is ahead of a GPU; to wait for it here would slow whoever makes use of that.
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self._ends.append((step, images, moment))

    @property
    def step_seconds(self) -> list[float]:
        """Of each step but a batch's first, whose beginning nobody sees; for one image.

        On a GPU to be asked for when it has finished.
        """
        return [
            (before.elapsed_time(end) / 1000 if self.on_gpu else end - before) / images
            for (_, _, before), (step, images, end) in pairwise(self._ends)
            if step > 1
        ]


class Peer(Protocol):
    """Somebody who takes part."""

    networks: Any

    def __call__(self, request: GenerationRequest, made: Made) -> None:
        """Make the pictures, and note each step and the final latents."""


class Ours:
    """The pipeline of this project."""

    def __init__(self, networks: Any) -> None:
        self.networks = networks

    def __call__(self, request: GenerationRequest, made: Made) -> None:
        """See Peer."""
        # Its pictures need no other sides than these, which the benchmark's maps have already.
        height, width = request.controls[0].image.shape[:2]
        batch = len(batches(range(request.num_samples), self.networks, (width, height))[0])

        def stepped(progress: Progress) -> None:
            if progress.stage == "sample" and progress.step:
                made.stepped(progress.step, batch)

        watched: Any = _Watched(self.networks, made)

        def load(_model: str, /, *_controls: str, few_step: bool = False) -> Any:
            return watched

        Pipeline(load).generate(request, stepped)


class _Watched:
    """Networks that note the latents they are asked to decode."""

    def __init__(self, networks: Any, made: Made) -> None:
        self._networks, self._made = networks, made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w), and keep a float32 copy of them."""
        self._made.latents.append(latents.detach().float().cpu())
        pictures: Tensor = self._networks.decode(latents)
        return pictures


class Diffusers:
    """StableDiffusionControlNetPipeline on the very modules of `networks`.

    With `compiled` (of COMPILED) the UNet, the ControlNet and the decoder are
    compiled, for shapes that do not change.
    """

    def __init__(self, networks: Any, control: str, compiled: str | None = None) -> None:
        from diffusers import StableDiffusionControlNetPipeline  # noqa: PLC0415 - seconds to import

        self.networks = networks
        # A copy, because its decoder is replaced.
        vae = copy.deepcopy(networks.vae) if compiled else networks.vae
        self._peer: Any = StableDiffusionControlNetPipeline(
            vae=vae,
            text_encoder=networks.text_encoder,
            tokenizer=networks.tokenizer,
            unet=networks.unet,
            controlnet=networks.controlnets[control],
            scheduler=networks.make_scheduler("ddim"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._peer.set_progress_bar_config(disable=True)
        self._peer.to(networks.device)  # its float32 version waits in the CPU's memory
        if compiled:
            how = COMPILED[compiled][networks.device.type]
            make: Any = partial(torch.compile, dynamic=False, **how)
            if compiled == "openvino":
                make = converted
            for part in ("unet", "controlnet"):
                setattr(self._peer, part, make(getattr(self._peer, part)))
            vae.decoder = make(vae.decoder)

    def __call__(self, request: GenerationRequest, made: Made) -> None:
        """See Peer."""
        networks = self.networks
        (control,) = request.controls
        # The noise is handed in: drawn by diffusers in half precision, it would be another noise.
        height, width = (side // networks.downscale for side in control.image.shape[:2])
        seeds = image_seeds(request.seed, request.num_samples)
        noise, _ = seeded_noise(seeds, (networks.latent_channels, height, width))

        def stepped(_pipe: Any, step: int, _t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            made.stepped(step + 1, len(seeds))
            if step == request.steps - 1:
                made.latents.append(values["latents"].detach().float().cpu())
            return values

        self._peer(
            request.prompt,
            image=Image.fromarray(control.image),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            controlnet_conditioning_scale=control.strength,
            negative_prompt=request.negative_prompt,
            num_images_per_prompt=request.num_samples,
            latents=noise.to(networks.device, networks.dtype),
            callback_on_step_end=stepped,
            callback_on_step_end_tensor_inputs=["latents"],
        )

    def flops(self, request: GenerationRequest) -> tuple[float, float]:
        """Floating-point operations (two for each product and sum) of one step, and of all else.

        Counted in a run of two steps: the first step's count cannot be told from the text's.
        """
        # torch has no formula for the CPU's own attention.
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
        after: list[int] = []

        def stepped(
            _pipe: Any, _step: int, _t: Any, values: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            after.append(counter.get_total_flops())
            return values

        with counter:
            self._peer(
                request.prompt,
                image=Image.fromarray(request.controls[0].image),
                num_inference_steps=2,
                guidance_scale=request.guidance_scale,
                callback_on_step_end=stepped,
            )
        step = after[1] - after[0]
        return float(step), float(counter.get_total_flops() - 2 * step)


def _attention_flops(queries: Sequence[int], keys: Sequence[int], *_: object, **__: object) -> int:
    """Operations of both products, of the shapes (B, heads, N, width) and (B, heads, M, width)."""
    batch, heads, rows, width = queries
    return 4 * batch * heads * rows * keys[2] * width


def why_not_compiled() -> str:
    """Why torch.compile cannot take part; empty where it can."""
    if any(shutil.which(compiler) for compiler in COMPILERS):
        return ""
    return f"torch.compile needs a C++ compiler ({', '.join(COMPILERS)}), and there is none"


def why_not_openvino() -> str:
    """Why OpenVINO cannot take part; empty where it can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed"
    return ""


class PeakMemory:
    """How far memory rises while the block runs, in MB: on a CPU the process's resident set.

    What earlier runs freed is given back to the system first, or it would be used again unseen. On
    a GPU it is what torch allocates, and what CUDA graphs recorded in the block keep for their
    playing, which torch counts as free. Played later they seem to need nothing, so the peak of
    several runs is that of the first, which recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> "PeakMemory":
        self.megabytes = 0.0
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device) / 2**20
            self._graphs = _kept_for_graphs_mb()
            return self
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim is not None:
            trim(0)
        self._before = _resident_mb()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.megabytes = max(self.megabytes, _resident_mb() - self._before)

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            graphs = max(0.0, _kept_for_graphs_mb() - self._graphs)
            self.megabytes = peak - self._before + graphs
            return
        self._done.set()
        self._thread.join()
        self.megabytes = max(self.megabytes, _resident_mb() - self._before)


def _kept_for_graphs_mb() -> float:
    """Return what torch holds for CUDA graphs, and for nobody else, beyond what is allocated."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    pooled = [one for one in segments if tuple(one["segment_pool_id"]) != (0, 0)]
    return float(sum(one["total_size"] - one["allocated_size"] for one in pooled)) / 2**20


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def weights_mb(networks: Any) -> float:
    """Memory of all weights of loaded networks, in MB."""
    parts = (
        networks.text_encoder,
        networks.unet,
        networks.vae,
        *networks.controlnets.values(),
    )
    weights = {id(one): one for part in parts for one in part.parameters()}
    return float(sum(one.numel() * one.element_size() for one in weights.values())) / 2**20
