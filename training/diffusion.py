"""Diorama's noise schedule; the training target and loss weight of any base and its ControlNets."""

from typing import Self

import torch
from diffusers import DDIMScheduler
from torch import Tensor

MAX_WEIGHT = 5.0  # of the error in the clean latents, relative to its weight at pure noise


def make_scheduler() -> DDIMScheduler:
    """Diorama's schedule.

    It ends noisier than Stable Diffusion's (beta 0.02, not 0.012), so that sampling can start from
    pure noise without greying the picture, and uses v-prediction (Salimans & Ho 2022), which stays
    well conditioned there.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


class NoisyTarget:
    """Latents (B, 4, h, w) with noise at their timesteps, and the loss of a prediction."""

    def __init__(
        self, scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> None:
        """Add noise of the latents' shape; the scheduler's prediction type decides the target."""
        self._scheduler, self._latents, self._noise = scheduler, latents, noise
        self.timesteps = timesteps
        """(B,), from 0 to the schedule's last."""
        self.noisy = scheduler.add_noise(latents, noise, self.timesteps)
        alpha = scheduler.alphas_cumprod.to(latents.device)[self.timesteps]
        self._alpha = alpha.reshape(-1, 1, 1, 1)
        self._predicts_noise = scheduler.config.prediction_type == "epsilon"
        if self._predicts_noise:  # Stable Diffusion's plain loss: every timestep weighs the same
            self.target, self._weight = noise, torch.ones_like(alpha)
            return
        self.target = scheduler.get_velocity(latents, noise, self.timesteps)
        snr = alpha / (1 - alpha)
        # A plain v loss weighs the error in the clean latents by SNR + 1 (Salimans & Ho 2022); it
        # is capped at low noise, as in Min-SNR (Hang et al. 2023). Min-SNR's own weight, SNR alone,
        # nearly skips the noisy half of the schedule, where colours and layout are decided.
        self._weight = (snr + 1).clamp_max(MAX_WEIGHT) / (snr + 1)

    @classmethod
    def drawn(cls, scheduler: DDIMScheduler, latents: Tensor, generator: torch.Generator) -> Self:
        """Draw noise, and timesteps in ascending order."""
        count = len(latents)
        # Stratified: one timestep from each of `count` equal intervals. Still uniform, with a less
        # noisy gradient.
        strata = torch.rand(count, generator=generator) + torch.arange(count)
        timesteps = (strata / count * scheduler.config.num_train_timesteps).long()
        noise = torch.randn(latents.shape, generator=generator)
        return cls(scheduler, latents, noise.to(latents.device), timesteps.to(latents.device))

    def later(self, rows: Tensor, steps: int) -> Self:
        """Return these rows with the same noise, `steps` timesteps later but not after the last."""
        last = self._scheduler.config.num_train_timesteps - 1
        timesteps = (self.timesteps[rows] + steps).clamp_max(last)
        return type(self)(self._scheduler, self._latents[rows], self._noise[rows], timesteps)

    def errors(self, prediction: Tensor) -> Tensor:
        """The weighted squared errors (B,) of a prediction (B, 4, h, w)."""
        error = (prediction.float() - self.target).square().mean((1, 2, 3))
        return self._weight * error

    def loss(self, prediction: Tensor) -> Tensor:
        """The weighted mean squared error of a prediction (B, 4, h, w)."""
        loss: Tensor = self.errors(prediction).sum() / self._weight.sum()
        return loss

    def clean(self, prediction: Tensor) -> Tensor:
        """The clean latents (B, 4, h, w) that a prediction implies."""
        signal, noise = self._alpha.sqrt(), (1 - self._alpha).sqrt()
        if self._predicts_noise:
            denoised: Tensor = (self.noisy - noise * prediction.float()) / signal
            return denoised
        clean: Tensor = signal * self.noisy - noise * prediction.float()
        return clean
