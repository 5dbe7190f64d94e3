"""From prompts and control maps to pictures: encode, sample, decode, and once more in float32."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.batching import Batcher
from core.condition import ControlMap
from core.errors import DeviceUnavailable, SuiteError
from core.guidance import Guidance, residual_scales
from core.images import to_tensor
from core.networks import ControlInput, Networks
from core.progress import Run
from core.request import ControlRequest, GenerationRequest
from core.sampling import Predict, denoise, seeded_noise
from core.shortcuts import MODES, Foretelling

GPU_BATCH = 4
"""Images sampled together on a GPU: batch 1 leaves it idle between kernels, and each doubling
yields less; more would keep finished images from the user for longer. On a CPU a batch gains
little, so images come one by one; those of several requests meet in core.batching."""


def batches(seeds: Sequence[int], device: torch.device) -> list[Sequence[int]]:
    """Split the seeds into what is sampled together; each batch is finished before the next."""
    size = 1 if device.type == "cpu" else GPU_BATCH
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


@dataclass(frozen=True, eq=False)
class Steering:
    """One control, ready to steer."""

    control: str
    """The ControlNet's name."""
    control_map: ControlMap
    """At output size."""
    asked: ControlRequest


@dataclass
class Diffusion:
    """The making of one request's pictures with one model."""

    networks: Networks
    """Replaced by their float32 twin after a result that was not finite."""
    request: GenerationRequest
    steered_by: Sequence[Steering]
    """At least one."""
    run: Run
    batcher: Batcher = field(default_factory=Batcher)
    _text: Tensor | None = None
    """Embeddings (2, 77, C) of the negative prompt and the prompt, once they are needed."""

    def pictures(self, seeds: Sequence[int]) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1], all finite, one per seed.

        Half precision can overflow. Then the same seeds are tried again in float32, and the rest of
        the request stays there.

        Raises:
            SuiteError: not finite even in float32, or the device is out of memory.
        """
        try:
            pictures = self._attempt(seeds)
            if pictures is None and self.networks.dtype != torch.float32:
                dtype = str(self.networks.dtype).removeprefix("torch.")
                self.run.warnings.append(
                    f"The result was not finite in {dtype}, so it was made again in float32."
                )
                self.networks, self._text = self.networks.in_float32(), None
                pictures = self._attempt(seeds)
        except torch.OutOfMemoryError as error:
            raise DeviceUnavailable(
                f"The device ({self.networks.device}) ran out of memory; please choose a smaller "
                "image resolution."
            ) from error
        if pictures is None:
            raise SuiteError(
                "The model gave values that are not numbers, even in float32; please lower the "
                "guidance scale or the control strength, or check the weights file."
            )
        return pictures

    @torch.inference_mode()
    def _attempt(self, seeds: Sequence[int]) -> Tensor | None:
        """Encode, sample and decode; None if anything came out that is not finite."""
        networks, request, run = self.networks, self.request, self.run
        run.stop_if_cancelled()
        if self._text is None:
            with run.stage("text"):
                prompts = [request.negative_prompt, request.full_prompt]
                self._text = networks.encode_text(prompts)
        size = self.steered_by[0].control_map.shape[:2]
        height, width = (side // networks.downscale for side in size)
        with (
            self.batcher.turn(networks, self._kind(size), len(seeds), run.waiting) as shared,
            run.stage("sample"),
        ):
            noise, generators = seeded_noise(seeds, (networks.latent_channels, height, width))
            scheduler = networks.make_scheduler(request.sampler)
            scheduler.set_timesteps(request.steps)
            latents = denoise(
                self._predict(shared, self._text, scheduler),
                scheduler,
                noise.to(networks.device),
                generators,
                request.eta,
                lambda step, clean: run.stepped(step, len(seeds), networks, clean),
            )
        if not torch.isfinite(latents).all():
            return None
        with run.stage("decode"), self.batcher.decoding:
            # One by one: decoding is where memory peaks.
            pictures = torch.cat([networks.decode(one[None]) for one in latents])
        if not torch.isfinite(pictures).all():
            return None
        return pictures

    def _kind(self, size: Sequence[int]) -> Hashable:
        """Return what requests must agree in to share a turn: the steps they take, and on what."""
        request = self.request
        unguided = request.guidance_scale == 1
        steps = (request.steps, request.sampler, request.mode, request.guess_mode, unguided)
        return (request.model, self.networks.dtype, tuple(size), *steps)

    def _predict(self, networks: Networks, text: Tensor, scheduler: Any) -> Predict:
        """Return the steered model for text embeddings (2, 77, C): negative, positive."""
        steps, shortcuts = self.request.steps, MODES[self.request.mode]
        guidance = Guidance(
            networks=networks,
            steps=steps,
            texts=text,
            controls=[self._control_input(one) for one in self.steered_by],
            guidance_scale=self.request.guidance_scale,
            guess_mode=self.request.guess_mode,
            shortcuts=shortcuts,
        )
        if shortcuts.answer_every == 1:
            return guidance.predict
        asks = partial(shortcuts.asks, steps=steps)
        return Foretelling(guidance.predict, scheduler, asks).predict

    def _control_input(self, steering: Steering) -> ControlInput:
        networks, asked = self.networks, steering.asked
        return ControlInput(
            steering.control,
            hint=to_tensor(steering.control_map).to(networks.device),
            scales=residual_scales(
                networks.residual_count(steering.control), asked.strength, self.request.guess_mode
            ),
            window=(asked.control_start, asked.control_end),
        )
