"""The denoising loop: noise from seeds, then one scheduler step after the other.

Pure: the model is any callable, progress and cancelling leave through a callback. The schedules
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

    Each image owns a generator, which also draws its eta noise later: so no image depends on its
    place in the batch, and CPU noise is the same whatever device denoises it.
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
    """Denoise (B, C, h, w) along the scheduler's timesteps, already set; returns float32 latents.

    Everything but the model's own forward pass is float32, whatever the weights are. A scheduler
    that knows no eta, as LCM's, draws its noise anyway.
    """
    knows_eta = "eta" in inspect.signature(scheduler.step).parameters
    own: dict[str, Any] = {"eta": eta} if knows_eta else {}
    latents: Tensor = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        output = predict(scheduler.scale_model_input(latents, timestep), timestep, step)
        moved = scheduler.step(output, timestep, latents, generator=generators, **own)
        latents = moved.prev_sample
        after_step(step + 1, moved.pred_original_sample if knows_eta else moved.denoised)
    return latents
