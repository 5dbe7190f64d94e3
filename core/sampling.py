"""The denoising loop: noise from seeds, then one scheduler step after another.

The model is any callable; progress and cancelling go through a callback. The schedules
(DDIM, Song et al. 2021, arXiv 2010.02502; LCM, Luo et al. 2023, arXiv 2310.04378) are diffusers'.

A picture is changed as SDEdit does (Meng et al. 2022, arXiv 2108.01073): its latents, noised to a
step, take the steps from there. With a mask the rest of the picture is put back after every step
(Avrahami et al. 2023, arXiv 2206.02779). Both give the latents of diffusers'
StableDiffusionControlNetImg2ImgPipeline and StableDiffusionControlNetInpaintPipeline.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, int], Tensor]
"""(latents, timestep, step from 0) -> the model's guided output, float32, shaped as the latents."""
AfterStep = Callable[[int, Tensor], None]
"""(finished steps, predicted clean latents); raises to stop."""


@dataclass(frozen=True, eq=False)
class KnownLatents:
    """The clean latents of a picture that is changed, and how much of it may change."""

    latents: Tensor
    """(B, C, h, w), float32."""
    strength: float
    """The denoising strength, 0..1; 1 starts from pure noise."""
    mask: Tensor | None = None
    """(1, 1, h, w), 1 where the picture may change and 0 elsewhere; None changes all of it."""


def steps_taken(steps: int, denoising_strength: float) -> int:
    """Return how many of the steps run, the last ones: diffusers' get_timesteps.

    At least one, for which diffusers has no answer, unless the strength is 0.
    """
    taken = min(int(steps * denoising_strength), steps)
    return max(taken, 1) if denoising_strength else 0


def seeded_noise(
    seeds: Sequence[int], shape: tuple[int, int, int]
) -> tuple[Tensor, list[torch.Generator]]:
    """Return noise (B, C, h, w) on the CPU, one image per seed, and the generators it came from.

    Each image has its own generator, which also draws its eta noise later: so no image depends on
    its place in the batch. CPU noise is the same for every device.
    """
    generators = seeded_generators(seeds)
    return drawn_noise(generators, shape), generators


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a generator for each seed, on the CPU."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def drawn_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Return noise (B, C, h, w) on the CPU, one image drawn from each generator."""
    # Said, as everywhere: while a model loads in another thread, torch's default is that model's.
    noise = [
        torch.randn((1, *shape), generator=generator, dtype=torch.float32)
        for generator in generators
    ]
    return torch.cat(noise)


def denoise(
    predict: Predict,
    scheduler: Any,
    noise: Tensor,
    generators: list[torch.Generator],
    eta: float,
    after_step: AfterStep,
    known: KnownLatents | None = None,
) -> Tensor:
    """Denoise (B, C, h, w) along the scheduler's timesteps, already set; return float32 latents.

    All but the model's forward pass is float32, whatever its weights are. A scheduler without eta,
    such as LCM's, always draws noise. With `known` only the steps of its strength are taken, and
    the model's steps are counted from the first of them.
    """
    has_eta = "eta" in inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"eta": eta} if has_eta else {}
    timesteps: Tensor = scheduler.timesteps
    latents: Tensor = noise * scheduler.init_noise_sigma
    if known is not None:
        timesteps = timesteps[len(timesteps) - steps_taken(len(timesteps), known.strength) :]
        if known.strength < 1:
            latents = _noised(known.latents, noise, timesteps[:1], scheduler)
    for step, timestep in enumerate(timesteps):
        output = predict(scheduler.scale_model_input(latents, timestep), timestep, step)
        result = scheduler.step(output, timestep, latents, generator=generators, **extra)
        latents = result.prev_sample
        clean: Tensor = result.pred_original_sample if has_eta else result.denoised
        if known is not None and known.mask is not None:
            kept = _noised(known.latents, noise, timesteps[step + 1 : step + 2], scheduler)
            latents = (1 - known.mask) * kept + known.mask * latents
            clean = (1 - known.mask) * known.latents + known.mask * clean
        after_step(step + 1, clean)
    return latents


def _noised(clean: Tensor, noise: Tensor, timestep: Tensor, scheduler: Any) -> Tensor:
    """Return clean latents noised to a timestep (1,), or as they are for an empty one.

    Ho et al. 2020, arXiv 2006.11239, equation 4. The scheduler's own add_noise would move its
    schedule to the latents' device, where every step then waits for it.
    """
    if not len(timestep):
        return clean
    alpha = scheduler.alphas_cumprod[timestep]
    noisy: Tensor = alpha.sqrt().to(clean) * clean + (1 - alpha).sqrt().to(clean) * noise
    return noisy
