"""The pipeline's interface to a model: text encoder, UNet, ControlNets and VAE behind one protocol.

models/networks.py implements it with diffusers' modules; tests pass small fakes. Every setting is
an argument: nothing is ever written to a network, so two requests cannot mix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from core.condition import RGBImage


@dataclass(frozen=True, eq=False)
class ControlInput:
    """One ControlNet's or T2I-Adapter's input to a prediction."""

    name: str
    hint: Tensor
    """(1, 3, H, W) in [0, 1]."""
    scales: tuple[float, ...]
    """One per residual, shallowest skip first, the middle block last."""
    window: tuple[float, float] = (0.0, 1.0)
    """The fraction of the steps in which it acts; guidance leaves it out of the others."""
    prompt_half_only: bool = False
    """Whether guidance leaves it out of the negative prompt's half."""
    is_adapter: bool = False
    """Whether it is a T2I-Adapter: its features are added to the levels of the UNet's own encoder,
    shallowest first, and are the same in every step."""


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """What a VAE's encoder makes of a picture: the normal distribution of its latents."""

    mean: Tensor
    """(1, C, h, w), float32, scaled as the scheduler's latents."""
    std: Tensor | None
    """The same; None for an encoder that gives the latents themselves, as a tiny one does."""


Residuals = tuple[Tensor, ...]
"""What ControlNets add to the UNet's skips, shallowest first, the middle block last; empty for
none. Each has B rows, or T * B where it depends on the text (see PredictCall)."""


@dataclass(frozen=True, eq=False)
class PredictCall:
    """The input of one prediction: T texts on each of B latents.

    What depends on both has T * B rows, all latents of the first text first. Networks cache what
    they compute of `texts` and of a control's hint by the tensor's identity, so neither may be
    written to.
    """

    latents: Tensor
    """(B, C, h, w)."""
    timestep: float
    """0 to 999, 999 being the noisiest."""
    texts: Tensor
    """Text embeddings (T, 77 * chunks, D)."""
    controls: Sequence[ControlInput] = ()
    residuals: Residuals = ()
    """Added to those of the controls."""
    guidance_scale: float | None = None
    """For a UNet that takes it as an input (Networks.takes_guidance_scale)."""

    @property
    def active_controls(self) -> list[ControlInput]:
        """The ControlNets with a scale other than 0; the others are never evaluated."""
        return [one for one in self.controls if any(one.scales) and not one.is_adapter]

    @property
    def active_adapters(self) -> list[ControlInput]:
        """The T2I-Adapters with a scale other than 0."""
        return [one for one in self.controls if any(one.scales) and one.is_adapter]

    def to(self, device: torch.device, dtype: torch.dtype) -> "PredictCall":
        """Return the call with latents and texts on a device, in a number format."""
        latents, texts = (one.to(device, dtype) for one in (self.latents, self.texts))
        return replace(self, latents=latents, texts=texts)


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
        """The number format of the weights."""

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's number format."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""

    def max_batch(self, height: int, width: int) -> int:
        """Return how many images of this latent size to sample as one batch, at least 1.

        No more than fit in memory, and 1 where a batch is not faster than one by one.
        """

    @property
    def takes_guidance_scale(self) -> bool:
        """Whether the UNet has the guidance scale as an input, as a distilled LCM does.

        Such a model has learned what guidance does: it is given the prompt alone.
        """

    @property
    def checks_safety(self) -> bool:
        """Whether a safety checker is to see every picture before anybody does."""

    @property
    def hashes(self) -> dict[str, str]:
        """Short SHA-256 of each weights file, by part."""

    def make_scheduler(self, sampler: str) -> Any:
        """Return a fresh diffusers scheduler made from the model's own config."""

    def fit_prompt(self, prompt: str) -> tuple[int, str]:
        """Return how many tokens of the prompt are read, and the text that is not."""

    def prompt_hashes(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the short SHA-256 of each file that words of the prompts name, by what it is."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings (B, 77 * chunks, D), all with as many chunks as the longest needs."""

    def is_adapter(self, name: str) -> bool:
        """Tell whether the named control is a T2I-Adapter."""

    def residual_count(self, name: str) -> int:
        """Return how many residuals the named ControlNet adds (13 for SD 1.5; an adapter 4)."""

    def predict(self, call: PredictCall) -> Tensor:
        """Return the UNet's raw output (T * B, C, h, w) in float32: noise or velocity."""

    def predict_batched(self, calls: Sequence[tuple["Networks", PredictCall]]) -> list[Tensor]:
        """Return what each networks' predict gives for its call, batched where the calls allow it.

        Equal up to rounding. The networks may be others with the same UNet.
        """

    def control_residuals(self, call: PredictCall) -> Residuals:
        """Return what ControlNets add in a prediction, scaled and summed, so that it can be kept.

        Given as a call's `residuals` instead of them, it gives the same prediction up to rounding.
        """

    def control_residuals_batched(
        self, calls: Sequence[tuple["Networks", PredictCall]]
    ) -> list[Residuals]:
        """Return what each networks' control_residuals gives for its call, as predict_batched."""

    def encode(self, picture: Tensor) -> EncodedPicture:
        """Return the latents of a picture (1, 3, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 pictures (B, 3, H, W) in [-1, 1] from the scheduler's latents."""

    def preview(self, latents: Tensor) -> Tensor:
        """Return cheap small pictures (B, 3, h, w) in [-1, 1] from the scheduler's latents."""

    def unsafe(self, images: Sequence[RGBImage]) -> list[bool]:
        """Return which pictures the safety checker holds to be unsafe; none without one."""

    def in_float32(self) -> "Networks":
        """Return the same weights in float32, for the retry after latents that are not finite."""

    def with_vae_in_float32(self) -> "Networks":
        """Return the same networks with only the VAE's weights in float32 (see vae_dtype)."""

    def in_low_memory(self) -> "Networks":
        """Return the same weights, of which only those in use are on the device.

        Predictions are the same, but slower; `max_batch` is 1.
        """
