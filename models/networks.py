"""The networks of a loaded model, on diffusers' and transformers' own modules.

Latents are float32 outside this module: in bfloat16 the scheduler's arithmetic would visibly harm a
picture. Every cast to the networks' format happens here, and every result is float32 again.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.condition import RGBImage
from core.errors import BadInput
from core.networks import EncodedPicture, PredictCall, Residuals
from models.catalog.lora_tags import without_tags
from models.engine import batched
from models.engine.cuda_graph import CudaGraphForward, drop_all_graphs
from models.engine.kernels.build import has_kernels
from models.engine.layers import in_float32, to_be_run
from models.engine.offload import Offloader, offloader_of
from models.engine.unet import Forward, is_adapter, takes_guidance_scale
from models.engine.vae_decoder import decode_latents
from models.text import Inversion, PromptParts, encode_text, fit_prompt
from models.threads import fit_threads

KEPT_PROMPTS = 8
"""Encoded prompts cached by each model: another image of the same prompt starts at once."""

GPU_MAX_BATCH, CPU_MAX_BATCH = 8, 4
"""Images sampled as one batch; see core.diffusion.MAX_BATCH_OF_REQUEST."""
CPU_BATCH_BYTES = 64 * 2**20
"""Working memory that a batch on a CPU may need. Four of Diorama's images take 0.43 s each, one
alone 0.60; Stable Diffusion's matrices are large enough from 256 pixels on."""

STEP_NUMBERS = 45
"""Working memory of a prediction with two texts: so many numbers for each image, latent cell and
channel of the first level. Measured with Stable Diffusion 1.5 on a CPU: 42 at 512 pixels, 44 at
256; not yet on a GPU."""
DECODE_NUMBERS = 8
"""Working memory of decoding: so many numbers for each pixel and channel of the decoder's last
level. Measured: 7; by the tensors alive at once: 6."""

Result = TypeVar("Result")


@dataclass(eq=False)
class DiffusersNetworks:
    """Implements core.networks.Networks; immutable once made, but for caches."""

    name: str
    tokenizer: Any
    """transformers' CLIPTokenizer."""
    text_encoder: nn.Module
    unet: Any
    """UNet2DConditionModel."""
    vae: Any
    """AutoencoderKL or AutoencoderTiny."""
    controlnets: Mapping[str, nn.Module]
    """ControlNetModel or T2IAdapter each."""
    scheduler_config: Mapping[str, Any]
    preview_matrix: Tensor
    """(latent channels, 3), RGB in [-1, 1]; a further row is a bias."""
    hashes: dict[str, str]
    device: torch.device
    dtype: torch.dtype
    split_prompt: Callable[[str], PromptParts] = lambda prompt: (prompt,)
    """Finds the embeddings that a prompt names."""
    taesd: nn.Module | None = None
    """A tiny autoencoder for the same latents, used for previews instead of the matrix."""
    safety_checker: nn.Module | None = None
    """A SafetyChecker, if the operator asks for one."""

    offloader: Offloader | None = None
    """Loads the parts onto the device as they are used. By default a GPU's shared one, on a CPU
    none."""
    low_memory: bool = False
    """Whether using a part offloads all others, even if there is room."""

    def __post_init__(self) -> None:
        if self.offloader is None and self.device.type != "cpu":
            self.offloader = offloader_of(self.device)
        # Partials, not bound methods: these would be reference cycles, and dropped networks would
        # stay in memory beside the next ones until the garbage collector runs.
        self._on_device = partial(_on_device, self.offloader, self.low_memory)
        self._forward = Forward(self.unet, self.controlnets, self._on_device)
        self._step: Forward | CudaGraphForward = self._forward
        if self.device.type == "cuda" and self.offloader and not self.low_memory:
            self._step = CudaGraphForward(
                self._forward, partial(getattr, self.offloader, "offload_count")
            )
        parts = (self.tokenizer, self.text_encoder)
        self._encode_text = lru_cache(KEPT_PROMPTS)(
            partial(encode_text, *parts, self._on_device, self.device)
        )

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's number format; float32 in half-precision networks whose VAE overflowed."""
        dtype: torch.dtype = next(self.vae.parameters()).dtype
        return dtype

    @property
    def takes_guidance_scale(self) -> bool:
        """Whether the UNet has the guidance scale as an input, as a distilled LCM does."""
        return takes_guidance_scale(self.unet)

    @property
    def checks_safety(self) -> bool:
        """Whether a safety checker is to see every picture before anybody does."""
        return self.safety_checker is not None

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.unet.config.in_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def max_batch(self, height: int, width: int) -> int:
        """Return how many images of this latent size to sample as one batch, at least 1.

        No more than memory holds beside the weights. On a CPU more than 1 only with our own
        kernels: these make Diorama's pictures the same to the bit in any batch.
        """
        if self.low_memory:
            return 1
        most, free = GPU_MAX_BATCH, 0.0
        if self.offloader is not None:
            free = self.offloader.free_with([self.unet, *self.controlnets.values()])
        elif self.device.type == "cpu" and self.dtype == torch.bfloat16 and has_kernels():
            most, free = CPU_MAX_BATCH, CPU_BATCH_BYTES
        return int(max(1, min(most, free // workspace_bytes(self.unet, height * width))))

    def make_scheduler(self, sampler: str) -> Any:
        """Return a fresh scheduler with this model's betas and prediction type.

        For DDIM leading spacing with offset 1, the original's schedule (latent-diffusion's
        "uniform"), unless the model's config asks for trailing: its first step is then at the last
        timestep, which models with zero terminal SNR need. LCM's takes its steps from the 50 that
        consistency models are trained on.

        Raises:
            BadInput: the sampler is not known.
        """
        if sampler == "lcm":
            from diffusers.schedulers.scheduling_lcm import LCMScheduler  # noqa: PLC0415 - see below

            return LCMScheduler.from_config(
                dict(self.scheduler_config), clip_sample=False, set_alpha_to_one=False
            )
        if sampler != "ddim":
            raise BadInput(f"The sampler '{sampler}' is not known: use ddim or lcm.")
        return ddim_scheduler(self.scheduler_config)

    def fit_prompt(self, prompt: str) -> tuple[int, str]:
        """Return how many tokens of the prompt are read, and the text that is not."""
        return fit_prompt(self.tokenizer, self._parts(prompt))

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return the last hidden states (B, 77 * chunks, D); models/text.py has the rules.

        Each call returns a new tensor, so that what Forward caches for it, which is much larger, is
        freed with the request.
        """
        return self._encode_text(tuple(self._parts(prompt) for prompt in prompts)).clone()

    def prompt_hashes(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the short SHA-256 of each embedding's file that prompts name."""
        inversions = [
            one for prompt in prompts for one in self._parts(prompt) if isinstance(one, Inversion)
        ]
        return {f"embedding {one.name}": one.hash for one in inversions if one.hash}

    def _parts(self, prompt: str) -> PromptParts:
        return self.split_prompt(without_tags(prompt))

    def is_adapter(self, name: str) -> bool:
        """Tell whether the named control is a T2I-Adapter."""
        return is_adapter(self.controlnets[name])

    def residual_count(self, name: str) -> int:
        """Return how many residuals a ControlNet adds: its skips and the middle block.

        For a T2I-Adapter the number of its features.
        """
        control: Any = self.controlnets[name]
        if self.is_adapter(name):
            return len(control.adapter.body)
        return len(control.controlnet_down_blocks) + 1

    @torch.no_grad()
    def predict(self, call: PredictCall) -> Tensor:
        """Return the UNet's raw output (T * B, C, h, w) in float32.

        Each ControlNet's residuals are multiplied by its scales and summed over the ControlNets; a
        control whose scales are all zero is not run.
        """
        call = call.to(self.device, self.dtype)
        with self._on_device(self.unet, call.latents):
            return self._step(call).float()

    @torch.no_grad()
    def predict_batched(self, calls: Sequence[tuple[Any, PredictCall]]) -> list[Tensor]:
        """Return what each networks' predict gives for its call, batched where the calls allow it.

        Equal up to rounding. A batch shares the UNet, the timestep, the UNet's guidance scale, the
        size, and the number of texts and of their chunks.
        """
        results = self._batched(calls, batched.predict, lambda one, call: one.predict(call))
        return [result.float() for result in results]

    @torch.no_grad()
    def control_residuals(self, call: PredictCall) -> Residuals:
        """Return what the controls add to the UNet, in the networks' format; see predict."""
        return self._step.control_residuals(call.to(self.device, self.dtype))

    @torch.no_grad()
    def control_residuals_batched(
        self, calls: Sequence[tuple[Any, PredictCall]]
    ) -> list[Residuals]:
        """Return what each networks' control_residuals gives for its call, as predict_batched."""
        return self._batched(
            calls, batched.control_residuals, lambda one, call: one.control_residuals(call)
        )

    def _batched(
        self,
        calls: Sequence[tuple[Any, PredictCall]],
        together: Callable[[Sequence[tuple[Forward, PredictCall]]], Sequence[Result]],
        alone: Callable[[Any, PredictCall], Result],
    ) -> list[Result]:
        """Return each call's result, with those `together` that can share a batch."""
        batches: dict[Any, list[int]] = {}
        for index, (networks, call) in enumerate(calls):
            moment = (call.timestep, call.guidance_scale)
            key = (networks.unet, *moment, call.texts.shape, call.latents.shape[1:])
            batches.setdefault(key, []).append(index)
        results: dict[int, Result] = {}
        for indices in batches.values():
            if len(indices) == 1:
                results[indices[0]] = alone(*calls[indices[0]])
                continue
            parts = [_for_batch(*calls[index]) for index in indices]
            with self._on_device(self.unet, torch.cat([call.latents for _, call in parts])):
                found = together(parts)
            results |= dict(zip(indices, found, strict=True))
        return [results[index] for index in range(len(calls))]

    @torch.no_grad()
    def encode(self, picture: Tensor) -> EncodedPicture:
        """Return the latents of a picture (1, 3, H, W) in [-1, 1], as the scheduler has them."""
        picture = picture.to(self.device)
        cells = picture[:, :, :: self.downscale, :: self.downscale]
        with self._on_device(self.vae, cells):
            return encode(self.vae, picture, self.vae_dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 pictures (B, 3, H, W), nominally in [-1, 1]."""
        latents = latents.to(self.device)
        with self._on_device(self.vae, latents):
            return decode(self.vae, latents, self.vae_dtype)

    @torch.no_grad()
    def preview(self, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, h, w) in [-1, 1], one pixel per latent cell.

        With a tiny autoencoder they are half as large as the result along a side.
        """
        if self.taesd is not None:
            latents = latents.to(self.device)
            with self._on_device(self.taesd, latents):
                pictures = decode(self.taesd, latents, self.dtype)
            return functional.avg_pool2d(pictures, 2).clamp(-1, 1)
        matrix = self.preview_matrix.to(latents.device)
        weights, bias = matrix[: self.latent_channels], matrix[self.latent_channels :].sum(0)
        pictures = torch.einsum("bchw,cr->brhw", latents.float(), weights)
        return (pictures + bias[:, None, None]).clamp(-1, 1)

    @torch.no_grad()
    def unsafe(self, images: Sequence[RGBImage]) -> list[bool]:
        """Return which pictures the safety checker holds to be unsafe; none without one."""
        if self.safety_checker is None:
            return [False] * len(images)
        with self._on_device(self.safety_checker):
            found: list[bool] = self.safety_checker(images)
        return found

    def in_low_memory(self) -> "DiffusersNetworks":
        """Return the same networks, of which only the parts in use are on the GPU.

        On a CPU this frees only the caches of prompts and hints.
        """
        drop_all_graphs()
        return replace(self, low_memory=True)

    def in_float32(self) -> "DiffusersNetworks":
        """Return a copy with the same weights in float32, or itself if they are already."""
        if self.dtype == torch.float32:
            return self
        return replace(
            self,
            text_encoder=in_float32(self.text_encoder),
            unet=in_float32(self.unet),
            vae=in_float32(self.vae),
            controlnets={name: in_float32(one) for name, one in self.controlnets.items()},
            taesd=in_float32(self.taesd) if self.taesd is not None else None,
            dtype=torch.float32,
        )

    def with_vae_in_float32(self) -> "DiffusersNetworks":
        """Return the same networks with only the VAE in float32 (diffusers: upcast_vae)."""
        twin = copy.copy(self)  # not replace: what the forward pass has cached stays valid
        twin.vae = in_float32(self.vae)
        return twin


def ddim_scheduler(config: Mapping[str, Any]) -> Any:
    """Return diffusers' DDIM with a model's betas and prediction type, as make_scheduler says."""
    # Imported here, because diffusers takes seconds to import.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # noqa: PLC0415

    if config.get("timestep_spacing") == "trailing":
        return DDIMScheduler.from_config(dict(config), clip_sample=False)
    return DDIMScheduler.from_config(
        dict(config),
        timestep_spacing="leading",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def _on_device(
    offloader: Offloader | None, alone: bool, part: nn.Module, latents: Tensor | None = None
) -> AbstractContextManager[None]:
    """Have a part on its device, with memory free for its work on latents (B, C, h, w).

    On a CPU, have as many threads as suit the moment.
    """
    if offloader is None:
        fit_threads()
        return nullcontext()
    cells = latents.numel() // latents.shape[1] if latents is not None else 0
    return offloader.using(part, workspace_bytes(part, cells) if cells else 0, alone)


def workspace_bytes(part: Any, cells: int) -> int:
    """Return the bytes of working memory that a UNet, ControlNet or VAE needs for latent cells."""
    widths = part.config.block_out_channels
    if hasattr(part, "decoder"):
        pixels = cells * 4 ** (len(widths) - 1)
        numbers = DECODE_NUMBERS * pixels * widths[0]
    else:
        numbers = STEP_NUMBERS * 2 * cells * widths[0]
    return int(numbers * next(part.parameters()).itemsize)


def _for_batch(networks: Any, call: PredictCall) -> tuple[Forward, PredictCall]:
    return networks._forward, call.to(networks.device, networks.dtype)


@torch.no_grad()
def decode(vae: Any, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the autoencoder's float32 pictures (B, 3, H, W) of the scheduler's latents."""
    return decode_latents(vae, raw_latents(vae, latents).to(dtype)).float()


def raw_latents(vae: Any, latents: Tensor) -> Tensor:
    """Return the autoencoder's own latents of the scheduler's, which are scaled."""
    config = vae.config
    raw: Tensor = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    return raw


@torch.no_grad()
def encode(vae: Any, picture: Tensor, dtype: torch.dtype) -> EncodedPicture:
    """Return an autoencoder's latents of a picture (1, 3, H, W) in [-1, 1]."""
    config = vae.config
    shift = config.get("shift_factor") or 0.0
    faster: Any = to_be_run(vae)
    dtype = torch.float32 if faster is not vae else dtype
    found = faster.encode(picture.to(dtype, memory_format=torch.channels_last))
    if not hasattr(found, "latent_dist"):  # a tiny one
        return EncodedPicture((found.latents.float() - shift) * config.scaling_factor, None)
    normal = found.latent_dist
    return EncodedPicture(
        (normal.mean.float() - shift) * config.scaling_factor,
        normal.std.float() * config.scaling_factor,
    )
