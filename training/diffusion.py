"""The noise schedule, the target and its weight, for the base model and the ControlNets alike."""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

MAX_WEIGHT = 5.0  # of the error in the picture, relative to pure noise


def make_scheduler() -> DDIMScheduler:
    """Diorama's schedule.

    Noisier at its end than Stable Diffusion's (beta 0.02 against 0.012), so that sampling may start
    from pure noise without greying the picture, and v-prediction (Salimans & Ho 2022), which stays
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
    """Draws timesteps and noise for latents (B, 4, h, w) and holds what the network must answer."""

    def __init__(
        self, scheduler: DDIMScheduler, latents: Tensor, generator: torch.Generator
    ) -> None:
        count = len(latents)
        # One timestep from each of `count` equal stretches: the same uniform law, with less noise
        # in the gradient.
        stretch = torch.rand(count, generator=generator) + torch.arange(count)
        drawn = (stretch / count * scheduler.config.num_train_timesteps).long()
        self.timesteps = drawn.to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        self.noisy = scheduler.add_noise(latents, noise, self.timesteps)
        self._wanted = scheduler.get_velocity(latents, noise, self.timesteps)
        alpha = scheduler.alphas_cumprod.to(latents.device)[self.timesteps]
        self._alpha = alpha.reshape(-1, 1, 1, 1)
        snr = alpha / (1 - alpha)
        # In terms of the picture a plain v loss weighs SNR + 1 (Salimans & Ho 2022), and Hang et
        # al. 2023 ("Min-SNR") cap it where noise is low. Their own weight, SNR alone, all but
        # skips the noisy half of the schedule, where colours and the edges' meaning are decided.
        self._weight = (snr + 1).clamp_max(MAX_WEIGHT) / (snr + 1)

    def loss(self, found: Tensor) -> Tensor:
        """The weighted mean square error of a v prediction (B, 4, h, w)."""
        error = (found.float() - self._wanted).square().mean((1, 2, 3))
        loss: Tensor = (self._weight * error).sum() / self._weight.sum()
        return loss

    def clean(self, found: Tensor) -> Tensor:
        """The latents (B, 4, h, w) that a v prediction takes for the clean ones."""
        clean: Tensor = self._alpha.sqrt() * self.noisy - (1 - self._alpha).sqrt() * found.float()
        return clean
