"""From prompts, control maps and perhaps a picture to pictures: encode, sample, decode.

Where half precision overflows it is done again in float32, where memory runs out with less of it.
"""

import gc
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.batching import Batcher
from core.condition import ControlMap
from core.errors import DeviceUnavailable, SuiteError
from core.guidance import (
    CONTROL_MODES,
    MORE_CONTROL,
    ControlMode,
    Guidance,
    adapter_scales,
    residual_scales,
)
from core.images import to_picture_tensor, to_tensor
from core.memory import OUT_OF_MEMORY, is_out_of_memory, release_cached_memory
from core.modes import MODES, X0Extrapolation
from core.networks import ControlInput, EncodedPicture, Networks
from core.original import Original
from core.progress import ProgressReporter
from core.request import ControlRequest, GenerationRequest
from core.sampling import KnownLatents, Predict, denoise, drawn_noise, seeded_generators

LOGGER = logging.getLogger(__name__)

MAX_BATCH_OF_REQUEST = 4
"""Images of one request that are sampled as one batch. One image does not fill a GPU, but each
doubling gains less, and the user waits longer for the first images. core.batching joins the images
of several requests."""
FEWER = "Memory ran out with {} images at once, so they were made one by one."
SAMPLED_IN_FLOAT32 = (
    "The result had NaN or infinite values in {}, so the image was made again in float32."
)
DECODED_IN_FLOAT32 = (
    "The decoded image had NaN or infinite values in {}, so it was decoded again in float32."
)
ENCODED_IN_FLOAT32 = (
    "The latents of the picture had NaN or infinite values in {}, so it was encoded again in "
    "float32."
)
MASK_TOO_FINE = (
    "The mask is too fine for the model, which works on squares of {} pixels, so nothing changed: "
    "please paint over a larger part."
)
LOW_MEMORY = (
    "Memory ran out, so the rest was made with as little of it as possible, which takes longer; "
    "the pictures are the same."
)


def batches(seeds: Sequence[int], networks: Networks, size: tuple[int, int]) -> list[Sequence[int]]:
    """Split the seeds into batches, each of which is finished before the next.

    `size` is (width, height) in pixels. No image depends on the others of its batch: the split
    affects only rounding.
    """
    width, height = (side // networks.downscale for side in size)
    most = min(MAX_BATCH_OF_REQUEST, networks.max_batch(height, width))
    return [seeds[start : start + most] for start in range(0, len(seeds), most)]


def is_guided(networks: Networks, request: GenerationRequest) -> bool:
    """Tell whether the negative prompt has an effect."""
    return request.guidance_scale != 1 and not networks.takes_guidance_scale


@dataclass(frozen=True, eq=False)
class ControlTrack:
    """One control and its map at output size."""

    control: ControlRequest
    control_map: ControlMap


@dataclass
class Diffusion:
    """Makes one request's pictures with one model."""

    networks: Networks
    """Replaced by a copy in float32 (of the VAE alone if only decoding overflowed), and by one that
    needs little memory after it ran out."""
    request: GenerationRequest
    tracks: Sequence[ControlTrack]
    """At least one."""
    reporter: ProgressReporter
    batcher: Batcher = field(default_factory=Batcher)
    original: Original | None = None
    """The picture that is changed; None starts from noise."""
    _encoded: EncodedPicture | None = None
    """The original's latents, once encoded."""
    _text: Tensor | None = None
    """Embeddings (2, 77 * chunks, D) of the negative prompt and the prompt, once encoded."""
    _one_by_one: bool = False
    """Whether memory ran out with several images at once."""
    _low_memory: bool = False
    """Whether it ran out with one."""

    def pictures(self, seeds: Sequence[int]) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1], all finite, one per seed.

        If memory runs out, the same seeds are tried again one by one, then with low-memory
        networks; the rest of the request stays with what worked.

        Raises:
            SuiteError: not finite even in float32, or too little memory even for one image.
        """
        if self._one_by_one and len(seeds) > 1:
            return torch.cat([self.pictures([seed]) for seed in seeds])
        try:
            return self._finite(seeds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            LOGGER.warning("Memory ran out with %d images at once: %s", len(seeds), str(error))
        # Outside the except block, which would keep the attempt's tensors in memory.
        gc.collect()
        release_cached_memory()
        if len(seeds) > 1:
            self._one_by_one = True
            self.reporter.warn(FEWER.format(len(seeds)))
        elif not self._low_memory:
            self._low_memory = True
            self.reporter.warn(LOW_MEMORY)
            self.networks = self.networks.in_low_memory()
        else:
            raise DeviceUnavailable(OUT_OF_MEMORY)
        return self.pictures(seeds)

    def _finite(self, seeds: Sequence[int]) -> Tensor:
        """Return pictures as above, if memory suffices.

        If half precision overflows, the same seeds are tried again in float32, and the rest of the
        request stays there.
        """
        pictures = self._attempt(seeds)
        if pictures is None and self.networks.dtype != torch.float32:
            self.reporter.warn(SAMPLED_IN_FLOAT32.format(_name(self.networks.dtype)))
            self.networks = self.networks.in_float32()
            self._text = self._encoded = None
            pictures = self._attempt(seeds)
        if pictures is None:
            raise SuiteError(
                "The model gave NaN or infinite values, even in float32; please lower the guidance "
                "scale or the control strength, or check the weights file."
            )
        return pictures

    def _attempt(self, seeds: Sequence[int]) -> Tensor | None:
        """Sample and decode; None if the result is not finite.

        If the latents are finite, only the VAE overflowed: it decodes them again in float32.
        """
        latents = self._sample(seeds)
        if not torch.isfinite(latents).all():
            return None
        pictures = self._decode(latents)
        if not torch.isfinite(pictures).all() and self.networks.vae_dtype != torch.float32:
            self.reporter.warn(DECODED_IN_FLOAT32.format(_name(self.networks.vae_dtype)))
            self.networks = self.networks.with_vae_in_float32()
            pictures = self._decode(latents)
        return pictures if torch.isfinite(pictures).all() else None

    @torch.inference_mode()
    def _sample(self, seeds: Sequence[int]) -> Tensor:
        """Encode the prompts, once, and return latents (B, C, h, w), one per seed."""
        networks, request, reporter = self.networks, self.request, self.reporter
        reporter.stop_if_cancelled()
        if self._text is None:
            with reporter.stage("text"):
                # Without effect it must not lengthen the prompt either.
                negative = request.negative_prompt if is_guided(networks, request) else ""
                prompts = [negative, request.full_prompt]
                self._text = networks.encode_text(prompts)
        self._encode()
        networks = self.networks
        size = self.tracks[0].control_map.shape[:2]
        height, width = (side // networks.downscale for side in size)
        with (
            self.batcher.lease(
                networks,
                self._lease_key(size),
                len(seeds),
                reporter.waiting,
                networks.max_batch(height, width),
            ) as shared,
            reporter.stage("sample"),
        ):
            generators = seeded_generators(seeds)
            known = self._known(generators)
            noise = drawn_noise(generators, (networks.latent_channels, height, width))
            if known and known.mask is not None and self._encoded and self._encoded.std is not None:
                # For other UNets diffusers' pipeline encodes the masked picture too, here for
                # nothing, but its draw moves the generators.
                drawn_noise(generators, noise.shape[1:])
            scheduler = networks.make_scheduler(request.sampler)
            scheduler.set_timesteps(request.steps)
            return denoise(
                self._predict(shared, self._text, scheduler),
                scheduler,
                noise.to(networks.device),
                generators,
                request.eta,
                lambda step, clean: reporter.stepped(step, len(seeds), networks, clean),
                known,
            )

    @torch.inference_mode()
    def _encode(self) -> None:
        """Encode the original, once; in float32 if half precision overflows.

        Raises:
            SuiteError: its latents are not finite even so.
        """
        if self.original is None or self._encoded is not None:
            return
        picture = to_picture_tensor(self.original.picture)
        with self.reporter.stage("encode"), self.batcher.decoding:
            encoded = self.networks.encode(picture)
            if not _finite(encoded) and self.networks.vae_dtype != torch.float32:
                self.reporter.warn(ENCODED_IN_FLOAT32.format(_name(self.networks.vae_dtype)))
                self.networks = self.networks.with_vae_in_float32()
                encoded = self.networks.encode(picture)
        if not _finite(encoded):
            raise SuiteError(
                "The model's autoencoder gave NaN or infinite values for the picture, even in "
                "float32; please check the weights file."
            )
        self._encoded = encoded
        cells = self.original.latent_mask(self.networks.downscale)
        if cells is not None and not cells.any():
            self.reporter.warn(MASK_TOO_FINE.format(self.networks.downscale))

    def _known(self, generators: list[torch.Generator]) -> KnownLatents | None:
        """Return the original's latents, one for each generator; None without an original."""
        if self.original is None or self._encoded is None:
            return None
        latents, std = self._encoded.mean, self._encoded.std
        if std is not None:
            noise = drawn_noise(generators, latents.shape[1:])
            latents = latents + std * noise.to(latents.device)
        mask = self.original.latent_mask(self.networks.downscale)
        return KnownLatents(
            latents.expand(len(generators), -1, -1, -1),
            self.request.denoising_strength,
            mask.to(latents.device) if mask is not None else None,
        )

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> Tensor:
        with self.reporter.stage("decode"), self.batcher.decoding:
            # One by one: decoding is where memory peaks.
            return torch.cat([self.networks.decode(one[None]) for one in latents])

    def _lease_key(self, size: Sequence[int]) -> Hashable:
        """Return what requests must have in common to share a lease: the model and the steps."""
        request, scale = self.request, self.request.guidance_scale
        guidance = scale if self.networks.takes_guidance_scale else scale != 1
        halves_differ = any(self._control_mode(one).prompt_half_only for one in self.tracks)
        steps: tuple[Hashable, ...] = (request.steps, request.steps_taken, request.sampler)
        steps += (request.mode, halves_differ, guidance)
        return (request.model, self.networks.dtype, tuple(size), *steps)

    def _predict(self, networks: Networks, text: Tensor, scheduler: Any) -> Predict:
        """Return the guided model for text embeddings (2, 77 * chunks, D): negative, positive."""
        steps, shortcuts = self.request.steps_taken, MODES[self.request.mode]
        guidance = Guidance(
            networks=networks,
            steps=steps,
            texts=text,
            controls=[self._control_input(one) for one in self.tracks],
            guidance_scale=self.request.guidance_scale,
            shortcuts=shortcuts,
        )
        if shortcuts.predict_every == 1:
            return guidance.predict
        predicts = partial(shortcuts.predicts, steps=steps)
        return X0Extrapolation(guidance.predict, scheduler, predicts).predict

    def _control_input(self, track: ControlTrack) -> ControlInput:
        networks, control = self.networks, track.control
        name, mode = control.condition.weights, self._control_mode(track)
        is_adapter = networks.is_adapter(name)
        scales_of = adapter_scales if is_adapter else residual_scales
        return ControlInput(
            name,
            hint=to_tensor(track.control_map).to(networks.device),
            scales=scales_of(networks.residual_count(name), control.strength, mode.soft),
            window=(control.control_start, control.control_end),
            prompt_half_only=mode.prompt_half_only,
            is_adapter=is_adapter,
        )

    def _control_mode(self, track: ControlTrack) -> ControlMode:
        """Return a control's mode; guess mode is "more control" for all."""
        name = MORE_CONTROL if self.request.guess_mode else track.control.control_mode
        return CONTROL_MODES[name]


def _finite(encoded: EncodedPicture) -> bool:
    parts = (encoded.mean, encoded.std)
    return all(bool(torch.isfinite(one).all()) for one in parts if one is not None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
