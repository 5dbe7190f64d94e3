"""From prompts and a control map to pictures: encode, sample, decode, and once more in float32."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.condition import ControlMap
from core.errors import DeviceUnavailable, SuiteError
from core.guidance import Guidance, residual_scales
from core.images import to_tensor
from core.networks import ControlInput, Networks
from core.progress import Run
from core.request import GenerationRequest
from core.sampling import denoise, seeded_noise

GPU_BATCH = 4
"""Images sampled together on a GPU: batch 1 leaves it idle between kernels, and each doubling
yields less; more would keep finished images from the user for longer. On a CPU a batch gains
nothing, so images come one by one."""


def batches(seeds: Sequence[int], device: torch.device) -> list[Sequence[int]]:
    """Split the seeds into what is sampled together; each batch is finished before the next."""
    size = 1 if device.type == "cpu" else GPU_BATCH
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


@dataclass
class Diffusion:
    """The making of one request's pictures with one model."""

    networks: Networks
    """Replaced by their float32 twin after a result that was not finite."""
    control: str
    """The ControlNet's name."""
    request: GenerationRequest
    control_map: ControlMap
    run: Run
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
        height, width = (side // networks.downscale for side in self.control_map.shape[:2])
        with run.stage("sample"):
            noise, generators = seeded_noise(seeds, (networks.latent_channels, height, width))
            scheduler = networks.make_scheduler(request.sampler)
            scheduler.set_timesteps(request.steps)
            latents = denoise(
                self._guidance(self._text).predict,
                scheduler,
                noise.to(networks.device),
                generators,
                request.eta,
                lambda step, clean: run.stepped(step, len(seeds), networks, clean),
            )
        if not torch.isfinite(latents).all():
            return None
        with run.stage("decode"):
            # One by one: decoding is where memory peaks.
            pictures = torch.cat([networks.decode(one[None]) for one in latents])
        if not torch.isfinite(pictures).all():
            return None
        return pictures

    def _guidance(self, text: Tensor) -> Guidance:
        """Return the steering for text embeddings (2, 77, C): negative, positive."""
        request = self.request
        scales = residual_scales(
            self.networks.residual_count(self.control), request.strength, request.guess_mode
        )
        hint = to_tensor(self.control_map).to(self.networks.device)
        return Guidance(
            networks=self.networks,
            steps=request.steps,
            positive=text[1:],
            negative=text[:1],
            controls=(ControlInput(self.control, hint, scales),),
            guidance_scale=request.guidance_scale,
            guess_mode=request.guess_mode,
            control_start=request.control_start,
            control_end=request.control_end,
        )
