"""A picture, a condition and a fake model whose output is known: it paints the control map."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn import functional

from core.condition import Annotator, Condition, Preprocessor, Score
from core.networks import EncodedPicture
from core.params import bounded, checked
from core.pipeline import Pipeline


@dataclass
class FakeNetworks:
    """Predicts the noise between the latents and the control map, with a little of the seed left.

    Faults to inject: from call `broken_at` predictions are NaN, or `broken_encode` or
    `broken_decode` gives infinity; in float32 only if `broken_for_good`. Copies share the lists, so
    these count for all.
    """

    name: str = "fake"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    latent_channels: int = 3
    downscale: int = 8
    float32_vae: bool = False
    hashes: dict = field(default_factory=lambda: {"unet": "abc123"})
    largest_batch: int = 1
    """What max_batch returns."""
    low_memory: bool = False
    broken_at: int | None = None
    broken_decode: bool = False
    broken_encode: bool = False
    broken_for_good: bool = False
    calls: list = field(default_factory=list)
    control_calls: list = field(default_factory=list)
    """Timesteps at which residuals were asked for apart."""
    copied_to_float32: list = field(default_factory=list)
    unsafe_images: list | None = None
    """What a safety checker says of the images, in their order; None is none."""
    checked: list = field(default_factory=list)
    """The images that it was given."""

    def make_scheduler(self, sampler):
        assert sampler == "ddim"
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        )

    def max_batch(self, height, width):
        return self.largest_batch

    def fit_prompt(self, prompt):
        words = prompt.split()
        return min(len(words), 600), " ".join(words[600:])

    def prompt_hashes(self, prompts):
        return {}

    def encode_text(self, prompts):
        return torch.tensor([float(len(p)) for p in prompts])[:, None, None].expand(-1, 77, 4)

    def is_adapter(self, name):
        return False

    def residual_count(self, name):
        assert name == "weights-name"
        return 13

    @property
    def vae_dtype(self):
        return torch.float32 if self.float32_vae else self.dtype

    takes_guidance_scale = False

    @property
    def checks_safety(self):
        return self.unsafe_images is not None

    def unsafe(self, images):
        self.checked += images
        return [self.unsafe_images.pop(0) for _ in images]

    def _faulty(self, dtype):
        return self.broken_for_good or dtype != torch.float32

    def control_residuals(self, call):
        self.control_calls.append(call.timestep)
        return (self._wanted(torch.cat([call.latents] * len(call.texts)), call.controls),)

    def _wanted(self, latents, controls):
        wanted = torch.zeros_like(latents)
        for control in controls:
            assert control.hint.shape[0] == 1
            wanted += (
                functional.avg_pool2d(control.hint, self.downscale) * control.scales[-1] * 2 - 1
            )
        return wanted

    def predict(self, call):
        latents = torch.cat([call.latents] * len(call.texts))
        texts, scales = call.texts[:, 0, 0].tolist(), [one.scales for one in call.controls]
        self.calls.append((call.timestep, texts, scales))
        if (
            self.broken_at is not None
            and len(self.calls) > self.broken_at
            and self._faulty(self.dtype)
        ):
            return torch.full_like(latents, float("nan"))
        wanted = sum(call.residuals, self._wanted(latents, call.controls))
        alpha = self.make_scheduler("ddim").alphas_cumprod[int(call.timestep)]
        clean = wanted + 0.01 * torch.tanh(latents)
        return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    def encode(self, picture):
        if self.broken_encode and self._faulty(self.vae_dtype):
            return EncodedPicture(torch.full((1, 3, 8, 8), float("inf")), None)
        return EncodedPicture(functional.avg_pool2d(picture, self.downscale), None)

    def decode(self, latents):
        if self.broken_decode and self._faulty(self.vae_dtype):
            return torch.full((len(latents), 3, 8, 8), float("inf"))
        latents = torch.nan_to_num(latents).clamp(-1, 1)  # a real decoder may hide it just so
        return functional.interpolate(latents, scale_factor=self.downscale, mode="nearest")

    def preview(self, latents):
        return latents.clamp(-1, 1)

    def in_float32(self):
        self.copied_to_float32.append("all")
        return replace(self, dtype=torch.float32)

    def with_vae_in_float32(self):
        self.copied_to_float32.append("vae")
        return replace(self, float32_vae=True)

    def in_low_memory(self):
        return replace(self, low_memory=True)


@dataclass(frozen=True)
class ThresholdParams:
    level: int = bounded(127, 0, 254, 1, "Level")

    def __post_init__(self):
        checked(self)


def draw_bright(image, params):
    return np.where(image > params.level, 255, 0).astype(np.uint8)


def same_pixels(wanted, found):
    same = float((wanted == found).mean())
    return Score(100 * same, "same", {"same": same})


@pytest.fixture
def condition():
    """An invented condition: bright pixels. Nothing in core may depend on a real one."""
    annotator = Annotator(
        name="bright",
        preprocessors=(
            Preprocessor("Bright", draw_bright),
            Preprocessor("Dark", lambda image, params: 255 - draw_bright(image, params)),
        ),
        params=ThresholdParams,
        score=same_pixels,
        interpolation="nearest",
        empty_message="Nothing bright was found.",
    )
    return Condition("bright2image", "Bright", "", annotator, weights="weights-name")


@pytest.fixture
def image():
    """Left half dark, right half white; 256 pixels, so nothing is resized at resolution 256."""
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:, 128:] = 255
    return picture


@pytest.fixture
def networks():
    return FakeNetworks()


@pytest.fixture
def pipeline(networks):
    def load(model, control, few_step, light):
        assert (model, control) == ("diorama", "weights-name")
        return networks

    return Pipeline(load)
