"""The denoising loop: noise from seeds, then one scheduler step after another.

The model is any callable; progress and cancelling go through a callback. The schedules
(DDIM, Song et al. 2021, arXiv 2010.02502; LCM, Luo et al. 2023, arXiv 2310.04378) are diffusers'.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, int], Tensor]
"""(latents, timestep, step from 0) -> the model's guided output, float32, shaped as the latents."""
AfterStep = Callable[[int, Tensor], None]
"""(finished steps, predicted clean latents); raises to stop."""


def seeded_noise(
    seeds: Sequence[int], shape: tuple[int, int, int]
) -> tuple[Tensor, list[torch.Generator]]:
    """Return noise (B, C, h, w) on the CPU, one image per seed, and the generators it came from.

    Each image has its own generator, which also draws its eta noise later: so no image depends on
    its place in the batch. CPU noise is the same for every device.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    # Said, as everywhere: while a model loads in another thread, torch's default is that model's.
    noise = [
        torch.randn((1, *shape), generator=generator, dtype=torch.float32)
        for generator in generators
    ]
    return torch.cat(noise), generators


def denoise(
    predict: Predict,
    scheduler: Any,
    noise: Tensor,
    generators: list[torch.Generator],
    eta: float,
    after_step: AfterStep,
) -> Tensor:
    """Denoise (B, C, h, w) along the scheduler's timesteps, already set; return float32 latents.

    All but the model's forward pass is float32, whatever its weights are. A scheduler without eta,
    such as LCM's, always draws noise.
    """
    has_eta = "eta" in inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"eta": eta} if has_eta else {}
    latents: Tensor = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        output = predict(scheduler.scale_model_input(latents, timestep), timestep, step)
        result = scheduler.step(output, timestep, latents, generator=generators, **extra)
        latents = result.prev_sample
        after_step(step + 1, result.pred_original_sample if has_eta else result.denoised)
    return latents
