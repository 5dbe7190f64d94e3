"""What the pipeline asks of a model: text encoder, UNet, ControlNets and autoencoder as one thing.

models/networks.py implements it on diffusers' modules; tests hand in small fakes. Every setting is
an argument: nothing is ever written on a network, so two requests cannot mix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ControlInput:
    """One ControlNet's part in a prediction."""

    name: str
    hint: Tensor
    """(1, 3, H, W) in [0, 1]."""
    scales: tuple[float, ...]
    """One weight per residual, shallowest encoder block first, the middle block last."""
    window: tuple[float, float] = (0.0, 1.0)
    """The part of the steps it acts in; the guidance leaves it out of the others."""


Residuals = tuple[Tensor, ...]
"""What ControlNets add to the UNet, shallowest first, the middle block last; empty for nothing.
Each has a row for every image, or where it depends on the text a row for every text and image."""


class Networks(Protocol):
    """A loaded model with its ControlNets, on one device."""

    @property
    def name(self) -> str:
        """The model's name, as the page and the report show it."""

    @property
    def device(self) -> torch.device:
        """Where predictions run."""

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""

    def max_batch(self, height: int, width: int) -> int:
        """Return how many images of this latent size should be sampled together, at least 1.

        No more than memory holds, and 1 where together is no faster than one by one.
        """

    @property
    def hashes(self) -> dict[str, str]:
        """Short SHA-256 of each weights file, by part."""

    def make_scheduler(self, sampler: str) -> Any:
        """Return a fresh diffusers scheduler made from the model's own config."""

    def fit_prompt(self, prompt: str) -> tuple[int, str]:
        """Return how many of the 75 tokens the prompt uses, and the text that did not fit."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings (B, 77, C)."""

    def residual_count(self, name: str) -> int:
        """Return how many residuals the named ControlNet adds (13 for SD 1.5)."""

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        texts: Tensor,
        controls: Sequence[ControlInput],
        residuals: Residuals = (),
    ) -> Tensor:
        """Return the UNet's raw output in float32, noise or velocity as the scheduler has it.

        For latents (B, C, h, w) and texts (T, 77, C) it has the shape (T * B, C, h, w): what each
        text says of every latent, all of the first text first. Residuals found before for as many
        texts are added to those of the controls. Work on a text or a hint may be kept for as long
        as the same tensor comes again, so neither is ever written on.
        """

    def predict_batched(self, questions: Sequence["Question"]) -> list[Tensor]:
        """Return what predict gives for each, made as one batch where they agree enough.

        Equal up to rounding. The questions may be put to other networks with the same UNet.
        """

    def residuals(
        self,
        latents: Tensor,
        timestep: Tensor,
        texts: Tensor,
        controls: Sequence[ControlInput],
    ) -> Residuals:
        """Return what the controls add in a prediction, scaled and summed, so that it can be kept.

        Handed to predict in the controls' place it gives, up to rounding, the same prediction.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 pictures (B, 3, H, W) in [-1, 1] from the scheduler's latents."""

    def preview(self, latents: Tensor) -> Tensor:
        """Return cheap small pictures (B, 3, h, w) in [-1, 1] from the scheduler's latents."""

    def in_float32(self) -> "Networks":
        """Return the same weights in float32, for the retry after a non-finite result."""

    def in_low_memory(self) -> "Networks":
        """Return the same weights, of which only those in use are on the device.

        The predictions are the same, made more slowly; nothing is to be made together with them.
        """


@dataclass(frozen=True, eq=False)
class Question:
    """One call of Networks.predict, for predict_batched."""

    networks: Networks
    latents: Tensor
    timestep: Tensor
    texts: Tensor
    controls: Sequence[ControlInput]
    residuals: Residuals = ()

    def alone(self) -> Tensor:
        """Return the prediction."""
        return self.networks.predict(
            self.latents, self.timestep, self.texts, self.controls, self.residuals
        )
