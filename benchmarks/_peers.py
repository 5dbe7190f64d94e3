"""The competitors of the speed benchmark: this project's pipeline, and variants of diffusers'.

Each generates a request's pictures, from prompt and map to 8-bit pixels, and records when each step
ended and the final latents.
"""

import copy
import ctypes
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._openvino import to_openvino
from core.condition import RGBImage
from core.diffusion import batches
from core.pipeline import Pipeline, image_seeds
from core.request import GenerationRequest, Progress
from core.sampling import seeded_noise
from models.engine.layers import held_bytes

COMPILERS = ("c++", "g++", "clang++")
COMPILE_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "inductor": {
        # Freezing lets it pack weights for oneDNN, its fastest mode on a CPU.
        "cpu": {"backend": "inductor", "options": {"freezing": True}},
        # With CUDA graphs, as diffusers' documentation recommends for a ControlNet.
        "cuda": {"mode": "reduce-overhead"},
    },
    # Also tries its own kernels for matrix products and convolutions: compiles for many minutes.
    "inductor_autotuned": {"cuda": {"mode": "max-autotune"}},
    "openvino": {"cpu": {}},
}
"""Compilers of the networks, with torch.compile's arguments for each kind of device."""


@dataclass
class Measurement:
    """The measurements of one request."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    """Above the memory in use before the request."""
    latents: list[Tensor] = field(default_factory=list)
    """The final latents, (B, C, h, w) of each batch, float32 on the CPU."""
    picture: RGBImage | None = None
    """The first."""
    on_gpu: bool = False
    _ends: list[tuple[int, int, Any]] = field(default_factory=list)
    """For each step: its number, its images, and the time of its end."""

    def end_step(self, step: int, images: int) -> None:
        """Record the end of a batch's step, counted from 1."""
        end: Any = time.perf_counter()
        if self.on_gpu:
            # An event, since Python runs ahead of the GPU, and waiting would slow it down.
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end.record()
        self._ends.append((step, images, end))

    @property
    def step_seconds(self) -> list[float]:
        """Seconds per image of each step but a batch's first, whose start is not recorded.

        On a GPU, read it after synchronising.
        """
        return [
            (before.elapsed_time(end) / 1000 if self.on_gpu else end - before) / images
            for (_, _, before), (step, images, end) in pairwise(self._ends)
            if step > 1
        ]


class Peer(Protocol):
    """A competitor."""

    networks: Any

    def weights_mb(self) -> float:
        """Memory of all its weights, in MB."""
        ...

    def __call__(self, request: GenerationRequest, measurement: Measurement) -> None:
        """Generate the pictures, and record each step and the final latents."""


class Ours:
    """This project's pipeline."""

    def __init__(self, networks: Any) -> None:
        self.networks = networks

    def weights_mb(self) -> float:
        """See Peer."""
        return weights_mb(self.networks)

    def __call__(self, request: GenerationRequest, measurement: Measurement) -> None:
        """See Peer."""
        # The benchmark's maps have the output's size already.
        height, width = request.controls[0].image.shape[:2]
        batch = len(batches(range(request.num_samples), self.networks, (width, height))[0])

        def on_progress(progress: Progress) -> None:
            if progress.stage == "sample" and progress.step:
                measurement.end_step(progress.step, batch)

        recorder: Any = _LatentsRecorder(self.networks, measurement)

        def load(
            _model: str, /, *_controls: str, few_step: bool = False, light: bool = False
        ) -> Any:
            return recorder

        measurement.picture = Pipeline(load).generate(request, on_progress).images[0]


class _LatentsRecorder:
    """Networks that record the latents they decode."""

    def __init__(self, networks: Any, measurement: Measurement) -> None:
        self._networks, self._measurement = networks, measurement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w), and keep a float32 copy of them."""
        self._measurement.latents.append(latents.detach().float().cpu())
        pictures: Tensor = self._networks.decode(latents)
        return pictures


class Diffusers:
    """StableDiffusionControlNetPipeline on the modules of `networks`.

    With `compiled`, a key of COMPILE_OPTIONS, UNet, ControlNet and decoder are compiled for fixed
    shapes.
    """

    def __init__(self, networks: Any, control: str, compiled: str | None = None) -> None:
        from diffusers import StableDiffusionControlNetPipeline  # noqa: PLC0415 - seconds to import

        self.networks = networks
        # A copy, because its decoder is replaced.
        vae = copy.deepcopy(networks.vae) if compiled else networks.vae
        self._pipeline: Any = StableDiffusionControlNetPipeline(
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
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.to(networks.device)  # in_float32() leaves them in the CPU's memory
        if compiled:
            options = COMPILE_OPTIONS[compiled][networks.device.type]
            compile_: Any = partial(torch.compile, dynamic=False, **options)
            if compiled == "openvino":
                compile_ = to_openvino
            for part in ("unet", "controlnet"):
                setattr(self._pipeline, part, compile_(getattr(self._pipeline, part)))
            vae.decoder = compile_(vae.decoder)

    def weights_mb(self) -> float:
        """See Peer."""
        return weights_mb(self.networks)

    def trailing_picture(self, request: GenerationRequest) -> RGBImage:
        """The picture by DDIM from the trailing timesteps, down to no noise at all."""
        usual = self._pipeline.scheduler
        self._pipeline.scheduler = type(usual).from_config(
            usual.config, timestep_spacing="trailing", set_alpha_to_one=True
        )
        try:
            return self._generate(request, lambda _pipe, _step, _t, values: values)
        finally:
            self._pipeline.scheduler = usual

    def __call__(self, request: GenerationRequest, measurement: Measurement) -> None:
        """See Peer."""
        images = request.num_samples

        def on_step(_pipe: Any, step: int, _t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            measurement.end_step(step + 1, images)
            if step == request.steps - 1:
                measurement.latents.append(values["latents"].detach().float().cpu())
            return values

        measurement.picture = self._generate(request, on_step)

    def _generate(self, request: GenerationRequest, on_step: Callable[..., Any]) -> RGBImage:
        """Return the first picture."""
        networks = self.networks
        (control,) = request.controls
        # Our own noise: diffusers would draw it in half precision, and differently.
        height, width = (side // networks.downscale for side in control.image.shape[:2])
        seeds = image_seeds(request.seed, request.num_samples)
        noise, _ = seeded_noise(seeds, (networks.latent_channels, height, width))
        made = self._pipeline(
            request.prompt,
            image=Image.fromarray(control.image),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            controlnet_conditioning_scale=control.strength,
            negative_prompt=request.negative_prompt,
            num_images_per_prompt=request.num_samples,
            latents=noise.to(networks.device, networks.dtype),
            callback_on_step_end=on_step,
            callback_on_step_end_tensor_inputs=["latents"],
        )
        return np.asarray(made.images[0])

    def flops(self, request: GenerationRequest) -> tuple[float, float]:
        """Floating-point operations of one step, and of the rest; a multiply-add counts as two.

        Counted in a run of two steps, since the first step's count includes the text encoder's.
        """
        # torch has no formula for the CPU's own attention.
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        counter = FlopCounterMode(display=False, custom_mapping={attention: _attention_flops})
        totals: list[int] = []

        def on_step(
            _pipe: Any, _step: int, _t: Any, values: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            totals.append(counter.get_total_flops())
            return values

        with counter:
            self._pipeline(
                request.prompt,
                image=Image.fromarray(request.controls[0].image),
                num_inference_steps=2,
                guidance_scale=request.guidance_scale,
                callback_on_step_end=on_step,
            )
        step = totals[1] - totals[0]
        return float(step), float(counter.get_total_flops() - 2 * step)


def _attention_flops(queries: Sequence[int], keys: Sequence[int], *_: object, **__: object) -> int:
    """Operations of attention's two matrix products: shapes (B, heads, N, width), (…, M, width)."""
    batch, heads, rows, width = queries
    return 4 * batch * heads * rows * keys[2] * width


def why_not_compiled() -> str:
    """Why torch.compile cannot be used; empty if it can."""
    if any(shutil.which(compiler) for compiler in COMPILERS):
        return ""
    return f"torch.compile needs a C++ compiler ({', '.join(COMPILERS)})"


def why_not_openvino() -> str:
    """Why OpenVINO cannot be used; empty if it can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed"
    return ""


class PeakMemory:
    """The increase in memory while the block runs, in MB.

    On a CPU it is the process's resident set; memory freed earlier is returned to the system first,
    or its reuse would not be counted. On a GPU it is torch's allocations, plus what CUDA graphs
    captured in the block keep for replay, which torch counts as free. Replays seem to need nothing,
    so of several runs the first, which captured, has the peak.
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
        self._before = resident_mb()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.megabytes = max(self.megabytes, resident_mb() - self._before)

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            graphs = max(0.0, _kept_for_graphs_mb() - self._graphs)
            self.megabytes = peak - self._before + graphs
            return
        self._done.set()
        self._thread.join()
        self.megabytes = max(self.megabytes, resident_mb() - self._before)


def _kept_for_graphs_mb() -> float:
    """Memory reserved in CUDA graphs' pools beyond what is allocated, in MB."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    pooled = [s for s in segments if tuple(s["segment_pool_id"]) != (0, 0)]
    return float(sum(s["total_size"] - s["allocated_size"] for s in pooled)) / 2**20


def resident_mb() -> float:
    """The process's memory, in MB."""
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
    weights = {id(p): p for part in parts for p in part.parameters()}
    return sum(held_bytes(p) for p in weights.values()) / 2**20
