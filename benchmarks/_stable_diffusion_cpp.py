"""stable-diffusion.cpp as a competitor on a CPU, through stable-diffusion-cpp-python.

It gets the same weights, in a checkpoint under the original's names, and the same noise: its random
numbers "cpu" are torch's. It has no DDIM from the leading timesteps, as the application's, but one
from the trailing ones, of as many steps.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks._ldm_layout import base_state, control_state
from benchmarks._peers import Measurement, resident_mb
from core.request import GenerationRequest

MODULE, PACKAGE = "stable_diffusion_cpp", "stable-diffusion-cpp-python"
KINDS = {"stable_diffusion_cpp_f16": "f16", "stable_diffusion_cpp_q8_0": "q8_0"}
"""Its formats of weights, by the competitor's name."""
BEYOND = {"avx2": "AVX512", "avx512": "AVX512_VNNI"}
"""What it must be built without, to be compared at a level of benchmarks.speed."""


def build() -> str:
    """Its version, and the instructions that it was built for, as far as it tells."""
    facts = import_module(MODULE).sd_get_system_info().decode()
    used = [one.strip(" |\n").removesuffix(" = 1") for one in facts.split("|") if " = 1" in one]
    return " ".join([PACKAGE, version(PACKAGE), *(one.split()[-1] for one in used)])


def why_no_cpp(is_sd1: bool, level: str | None) -> str:
    """Why it cannot be used for a model, at a level of instructions; empty if it can."""
    if not is_sd1:
        return "it runs Stable Diffusion, not this model"
    if find_spec(MODULE) is None:
        return f"{PACKAGE} is not installed"
    if not level:
        return ""
    if level not in BEYOND:
        return "it does not tell whether it was built for better instructions"
    better = BEYOND[level] in build().split()
    return f"it was built with {BEYOND[level]}, which {level} has not" if better else ""


def write_checkpoints(networks: Any, control: str, folder: Path) -> tuple[Path, Path]:
    """Write a base and a ControlNet in float16, as their original repositories do."""
    parts = (networks.unet, networks.vae, networks.text_encoder)
    states = (
        base_state(*(one.state_dict() for one in parts)),
        control_state(networks.controlnets[control].state_dict()),
    )
    base, own = folder / "base.safetensors", folder / "control.safetensors"
    for state, path in zip(states, (base, own), strict=True):
        save_file(_in_float16(state), path)
    return base, own


def _in_float16(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: one.half().contiguous() if one.is_floating_point() else one
        for name, one in state.items()
    }


class StableDiffusionCpp:
    """stable-diffusion.cpp on checkpoints, with weights of one of its kinds."""

    def __init__(self, networks: Any, base: Path, control: Path, kind: str) -> None:
        """`networks` are those that the checkpoints hold."""
        self.networks = networks
        before = resident_mb()
        self._model = import_module(MODULE).StableDiffusion(
            model_path=str(base),
            control_net_path=str(control),
            wtype=kind,
            rng_type="cpu",
            sampler_rng_type="cpu",
            n_threads=torch.get_num_threads(),
            diffusion_flash_attn=True,  # by its documentation faster, and less memory
            verbose=False,
        )
        self._weights_mb = resident_mb() - before

    def weights_mb(self) -> float:
        """See Peer."""
        return self._weights_mb

    def __call__(self, request: GenerationRequest, measurement: Measurement) -> None:
        """See Peer; it does not give its latents."""
        (control,) = request.controls
        height, width = control.image.shape[:2]
        pictures = self._model.generate_image(
            request.prompt,
            request.negative_prompt,
            width=width,
            height=height,
            cfg_scale=request.guidance_scale,
            sample_method="ddim_trailing",
            sample_steps=request.steps,
            seed=request.seed,
            batch_count=request.num_samples,
            control_image=Image.fromarray(control.image),
            control_strength=control.strength,
            progress_callback=lambda step, _steps, _seconds: measurement.end_step(step, 1),
        )
        measurement.picture = np.asarray(pictures[0].convert("RGB"))
