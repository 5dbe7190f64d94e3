"""The networks of a loaded model, on diffusers' and transformers' own modules.

Latents stay float32 outside: the scheduler's arithmetic loses a visible part of a picture in
bfloat16, so every cast to the networks' format happens in here, and every result is float32 again.
"""

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import BadInput
from core.networks import PredictCall, Residuals
from models.catalog.lora_tags import without_tags
from models.engine import batched
from models.engine.cuda_graph import CudaGraphForward, drop_all_graphs
from models.engine.kernels.build import has_kernels
from models.engine.offload import Offloader, offloader_of
from models.engine.unet import Forward, OnDevice
from models.engine.vae_decoder import decode_latents

TEXT_TOKENS = 77
"""CLIP's text length, start and end token included."""

KEPT_PROMPTS = 8
"""Encoded prompts that are kept, so that another image of the same prompt starts at once."""

GPU_TOGETHER, CPU_TOGETHER = 8, 4
"""Images that are sampled together at most; see core.diffusion.MOST_OF_A_REQUEST."""
CPU_ROOM = 64 * 2**20
"""Bytes that images sampled together on a CPU may need. Four of Diorama's take 0.43 s each, alone
0.60; Stable Diffusion's matrices are large enough from 256 pixels on."""

STEP_NUMBERS = 45
"""What a prediction needs beside the weights for each image of two texts: so many numbers for each
latent cell and channel of the first level. Measured with Stable Diffusion 1.5 on a CPU: 42 at 512
pixels, 44 at 256; not yet on a GPU."""
DECODE_NUMBERS = 8
"""What decoding needs for each pixel and channel of the decoder's last level; measured so: 7, and
by the tensors alive at once 6."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """A textual inversion embedding: vectors that stand in a prompt for its name."""

    name: str
    vectors: Tensor
    """(tokens, width) of the text encoder."""
    hash: str
    """Of its file; empty for one that a LoRA brings."""


PromptParts = tuple[str | Inversion, ...]

_TOKENIZER_LOCK = threading.Lock()
"""A fast tokenizer keeps its padding as state and panics when two threads call it at once."""


@dataclass(eq=False)
class DiffusersNetworks:
    """Implements core.networks.Networks; fields are only read after it is made."""

    name: str
    tokenizer: Any
    """transformers' CLIPTokenizer."""
    text_encoder: nn.Module
    unet: nn.Module
    vae: nn.Module
    """AutoencoderKL or AutoencoderTiny."""
    controlnets: Mapping[str, nn.Module]
    scheduler_config: Mapping[str, Any]
    preview_matrix: Tensor
    """(latent channels, 3), or one row more, which is then the bias."""
    hashes: dict[str, str]
    device: torch.device
    dtype: torch.dtype
    split_prompt: Callable[[str], PromptParts] = lambda prompt: (prompt,)
    """Finds the embeddings that a prompt names."""
    taesd: nn.Module | None = None
    """A tiny autoencoder of the same latents, for previews alone; without one the matrix serves."""

    offloader: Offloader | None = None
    """Who brings the parts to the device as they are used; on a GPU the GPU's own if none is given,
    on a CPU nobody."""
    low_memory: bool = False
    """Whether a part is sent home when another is used, room or not."""

    def __post_init__(self) -> None:
        if self.offloader is None and self.device.type != "cpu":
            self.offloader = offloader_of(self.device)
        # No bound methods: who keeps them would hold what holds it, and dropped networks would stay
        # in memory until the garbage collector comes, beside the next ones.
        self._on_device = partial(_on_device, self.offloader, self.low_memory)
        self._forward = Forward(self.unet, self.controlnets, self._on_device)
        self._step: Forward | CudaGraphForward = self._forward
        if self.device.type == "cuda" and self.offloader and not self.low_memory:
            self._step = CudaGraphForward(self._forward, partial(getattr, self.offloader, "gone"))
        parts = (self.tokenizer, self.text_encoder)
        self._encode = lru_cache(KEPT_PROMPTS)(
            partial(_encoded, *parts, self._on_device, self.device)
        )

    @property
    def vae_dtype(self) -> torch.dtype:
        """The VAE's number format; float32 in half-precision networks whose VAE overflowed."""
        return next(self.vae.parameters()).dtype

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(_config(self.unet).in_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""
        return int(2 ** (len(_config(self.vae).block_out_channels) - 1))

    def max_batch(self, height: int, width: int) -> int:
        """Return how many images of this latent size should be sampled together, at least 1.

        No more than memory holds beside the weights. On a CPU only where every kernel of ours runs:
        with them Diorama's pictures are the same to the bit, whatever is sampled with them.
        """
        if self.low_memory:
            return 1
        most, room = GPU_TOGETHER, 0.0
        if self.offloader is not None:
            room = self.offloader.room([self.unet, *self.controlnets.values()])
        elif self.device.type == "cpu" and self.dtype == torch.bfloat16 and has_kernels():
            most, room = CPU_TOGETHER, CPU_ROOM
        return int(max(1, min(most, room // _work(self.unet, height * width))))

    def make_scheduler(self, sampler: str) -> Any:
        """Return a fresh scheduler with this model's betas and prediction type.

        Leading spacing with offset 1 is the original's schedule (latent-diffusion's "uniform").
        LCM's takes its steps from the 50 that consistency models are trained on.

        Raises:
            BadInput: the sampler is not known.
        """
        if sampler == "lcm":
            from diffusers.schedulers.scheduling_lcm import LCMScheduler  # noqa: PLC0415 - as below

            return LCMScheduler.from_config(
                dict(self.scheduler_config), clip_sample=False, set_alpha_to_one=False
            )
        if sampler != "ddim":
            raise BadInput(f"The sampler '{sampler}' is not known: use ddim or lcm.")
        # Only here: diffusers takes seconds to import, and the store imports this module at once.
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # noqa: PLC0415

        return DDIMScheduler.from_config(
            dict(self.scheduler_config),
            timestep_spacing="leading",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        )

    def fit_prompt(self, prompt: str) -> tuple[int, str]:
        """Return how many of the 75 free tokens the prompt uses, and the text behind the last."""
        free, used = TEXT_TOKENS - 2, 0
        parts = self._parts(prompt)
        for index, part in enumerate(parts):
            starts = _token_starts(self.tokenizer, part)
            if used + len(starts) > free:
                rest = "".join(_text(one) for one in parts[index:])
                return free, rest[starts[free - used] :].strip()
            used += len(starts)
        return used, ""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return the last hidden states (B, 77, C), padded and cut as diffusers' pipelines do.

        Each call gives a tensor of its own, so that what is kept of it, which is much larger, goes
        with the request.
        """
        return self._encode(tuple(self._parts(prompt) for prompt in prompts)).clone()

    def prompt_hashes(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the short SHA-256 of each embedding's file that prompts name."""
        found = [
            one for prompt in prompts for one in self._parts(prompt) if not isinstance(one, str)
        ]
        return {f"embedding {one.name}": one.hash for one in found if one.hash}

    def _parts(self, prompt: str) -> PromptParts:
        return self.split_prompt(without_tags(prompt))

    def residual_count(self, name: str) -> int:
        """Return how many residuals the named ControlNet adds: its skips and the middle block."""
        skips: Any = self.controlnets[name].controlnet_down_blocks
        return len(skips) + 1

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

        Equal up to rounding. A batch shares the UNet, the timestep, the size and the number of
        texts.
        """
        batches: dict[Any, list[int]] = {}
        for index, (networks, call) in enumerate(calls):
            key = (networks.unet, call.timestep, len(call.texts), call.latents.shape[1:])
            batches.setdefault(key, []).append(index)
        results: dict[int, Tensor] = {}
        for indices in batches.values():
            if len(indices) == 1:
                networks, call = calls[indices[0]]
                results[indices[0]] = networks.predict(call)
                continue
            parts = [_on_own_device(*calls[index]) for index in indices]
            with self._on_device(self.unet, torch.cat([call.latents for _, call in parts])):
                found = batched.predict(parts)
            results |= {index: one.float() for index, one in zip(indices, found, strict=True)}
        return [results[index] for index in range(len(calls))]

    @torch.no_grad()
    def control_residuals(self, call: PredictCall) -> Residuals:
        """Return what the controls add to the UNet, in the networks' format; see predict."""
        return self._step.control_residuals(call.to(self.device, self.dtype))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 pictures (B, 3, H, W), nominally in [-1, 1]."""
        latents = latents.to(self.device)
        with self._on_device(self.vae, latents):
            return decode(self.vae, latents, self.vae_dtype)

    @torch.no_grad()
    def preview(self, latents: Tensor) -> Tensor:
        """Return pictures (B, 3, h, w) in [-1, 1], one pixel per latent cell.

        With a tiny autoencoder they are half as large as the result.
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

    def in_low_memory(self) -> "DiffusersNetworks":
        """Return the same networks, of which only the parts in use are on a GPU.

        On a CPU all stays where it is, but what was kept of prompts and maps.
        """
        drop_all_graphs()
        return replace(self, low_memory=True)

    def in_float32(self) -> "DiffusersNetworks":
        """Return a copy with the same weights in float32, or itself where they are already."""
        if self.dtype == torch.float32:
            return self
        return replace(
            self,
            text_encoder=_in_float32(self.text_encoder),
            unet=_in_float32(self.unet),
            vae=_in_float32(self.vae),
            controlnets={name: _in_float32(one) for name, one in self.controlnets.items()},
            taesd=_in_float32(self.taesd) if self.taesd is not None else None,
            dtype=torch.float32,
        )

    def with_vae_in_float32(self) -> "DiffusersNetworks":
        """Return the same networks with only the VAE in float32 (diffusers: upcast_vae)."""
        twin = copy.copy(self)  # not replace: what the forward pass has cached stays valid
        twin.vae = _in_float32(self.vae)
        return twin


def _on_device(
    offloader: Offloader | None, alone: bool, part: nn.Module, latents: Tensor | None = None
) -> AbstractContextManager[None]:
    """Have a part on its device, with room for what it does with latents (B, C, h, w)."""
    if offloader is None:
        return nullcontext()
    cells = latents.numel() // latents.shape[1] if latents is not None else 0
    return offloader.using(part, _work(part, cells) if cells else 0, alone)


def _work(part: nn.Module, cells: int) -> int:
    """Return the bytes that a part needs beside its weights, for so many latent cells."""
    widths = _config(part).block_out_channels
    if hasattr(part, "decoder"):
        pixels = cells * 4 ** (len(widths) - 1)
        numbers = DECODE_NUMBERS * pixels * widths[0]
    else:
        numbers = STEP_NUMBERS * 2 * cells * widths[0]
    return int(numbers * next(part.parameters()).itemsize)


def _on_own_device(networks: Any, call: PredictCall) -> tuple[Forward, PredictCall]:
    return networks._forward, call.to(networks.device, networks.dtype)


@torch.no_grad()
def _encoded(
    tokenizer: Any,
    text_encoder: nn.Module,
    on_device: OnDevice,
    device: torch.device,
    prompts: tuple[PromptParts, ...],
) -> Tensor:
    rows = [_token_row(tokenizer, parts) for parts in prompts]
    tokens = torch.tensor([row for row, _ in rows], device=device)
    with on_device(text_encoder):
        if any(vectors for _, vectors in rows):
            text_encoder = _with_vectors(text_encoder, [vectors for _, vectors in rows])
        embeddings: Tensor = text_encoder(tokens)[0]
    return embeddings


def _token_row(tokenizer: Any, parts: PromptParts) -> tuple[list[int], dict[int, Tensor]]:
    """Return a prompt's 77 tokens, and by position the vectors (width,) that take their place."""
    free = TEXT_TOKENS - 2
    tokens: list[int] = []
    vectors: dict[int, Tensor] = {}
    for part in parts:
        if isinstance(part, str):
            with _TOKENIZER_LOCK:
                tokens += tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        else:
            vectors |= {len(tokens) + 1 + index: one for index, one in enumerate(part.vectors)}
            tokens += [tokenizer.eos_token_id] * len(part.vectors)
    row = [tokenizer.bos_token_id, *tokens[:free], tokenizer.eos_token_id]
    row += [tokenizer.pad_token_id] * (TEXT_TOKENS - len(row))
    return row, {position: one for position, one in vectors.items() if position <= free}


def _token_starts(tokenizer: Any, part: str | Inversion) -> list[int]:
    """Return where each token of a part begins in its text."""
    if not isinstance(part, str):
        return [0] * len(part.vectors)
    with _TOKENIZER_LOCK:
        found = tokenizer(
            part, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
    return [start for start, _ in found["offset_mapping"]]


def _text(part: str | Inversion) -> str:
    return part if isinstance(part, str) else part.name


class _TokenVectors(nn.Module):
    """A text encoder's table of vectors, with others at some positions of each prompt."""

    def __init__(self, table: nn.Module, instead: Sequence[Mapping[int, Tensor]]) -> None:
        super().__init__()
        self.table = table
        self.instead = instead

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.table(tokens)
        for row, vectors in enumerate(self.instead):
            for position, vector in vectors.items():
                found[row, position] = vector.to(found)
        return found


def _with_vectors(network: nn.Module, instead: Sequence[Mapping[int, Tensor]]) -> nn.Module:
    """Return a copy of a text encoder that shares every weight, for these prompts only."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed: Any = copy.deepcopy(network, shared)
    changed.set_input_embeddings(_TokenVectors(changed.get_input_embeddings(), instead))
    copied: nn.Module = changed
    return copied


def _in_float32(part: nn.Module) -> nn.Module:
    """Return a copy in CPU memory, made without one in the first format."""
    weights = {
        id(one): nn.Parameter(one.to("cpu", torch.float32), requires_grad=False)
        for one in part.parameters()
    }
    return copy.deepcopy(part, weights)


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the autoencoder's float32 pictures (B, 3, H, W) of the scheduler's latents."""
    config = _config(vae)
    raw = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    return decode_latents(vae, raw.to(dtype)).float()


def _config(module: nn.Module) -> Any:
    return module.config
