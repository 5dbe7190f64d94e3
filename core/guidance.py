"""Guidance: how the prompt, the negative prompt and the control maps are weighted.

Sources: classifier-free guidance, Ho and Salimans 2022 (arXiv 2207.12598); guess mode,
lllyasviel/ControlNet gradio_canny2image.py and cldm/ddim_hacked.py; control modes, the same of one
control, scripts/hook.py of Mikubill/sd-webui-controlnet (soft_injection and cfg_injection); control
window, diffusers' StableDiffusionControlNetPipeline.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from core.modes import ResidualCache, Shortcuts
from core.networks import ControlInput, Networks, PredictCall

GUESS_DECAY = 0.825
"""Guess mode multiplies each shallower residual by this once more: of SD 1.5's 13 (12 skips and the
middle block) the shallowest, which fix the finest detail, keep a tenth, so that the model is freer
without a prompt. The number is v1.0's."""

ADAPTER_RAMP = (0.25, 0.62, 0.825, 1.0)
"""The same of a T2I-Adapter's four features, sd-webui-controlnet's."""


@dataclass(frozen=True)
class ControlMode:
    """How a control is weighed against the prompt; the defaults change nothing."""

    soft: bool = False
    """Whether its residuals are scaled by residual_scales' ramp (there: soft_injection)."""
    prompt_half_only: bool = False
    """Whether it is left out of the negative prompt's half, so that guidance enlarges what it does
    (there: cfg_injection)."""


BALANCED, MORE_PROMPT, MORE_CONTROL = "balanced", "more prompt", "more control"
CONTROL_MODES = {
    BALANCED: ControlMode(),
    MORE_PROMPT: ControlMode(soft=True),
    MORE_CONTROL: ControlMode(soft=True, prompt_half_only=True),
}
"""By the name that a request gives. sd-webui-controlnet calls them Balanced, My prompt is more
important, and ControlNet is more important; the last is guess mode for one control."""


def residual_scales(count: int, strength: float, soft: bool) -> tuple[float, ...]:
    """Return a scale per residual, shallowest first: equal, or if soft rising to the last.

    As guess mode and the control modes scale them: strength * 0.825 ** (12 - i) for SD 1.5's 13.

    Example:
        >>> [round(scale, 3) for scale in residual_scales(3, 1.0, soft=True)]
        [0.681, 0.825, 1.0]
    """
    decay = GUESS_DECAY if soft else 1.0
    return tuple(strength * decay ** (count - 1 - index) for index in range(count))


def adapter_scales(count: int, strength: float, soft: bool) -> tuple[float, ...]:
    """Return a scale per feature of a T2I-Adapter, shallowest first, as residual_scales."""
    ramp = ADAPTER_RAMP[-count:] if soft else (1.0,) * count
    return tuple(strength * scale for scale in ramp)


def in_window(step: int, steps: int, start: float, end: float) -> bool:
    """Tell whether control acts at a step (from 0), which must lie wholly inside the window."""
    return step / steps >= start and (step + 1) / steps <= end


def acts(steps: int, start: float, end: float) -> bool:
    """Tell whether control acts at any of the steps."""
    return any(in_window(step, steps, start, end) for step in range(steps))


@dataclass(frozen=True, eq=False)
class Guidance:
    """Classifier-free guidance with controls, for one batch; `predict` is a sampling.Predict."""

    networks: Networks
    steps: int
    texts: Tensor
    """Embeddings (2, 77 * chunks, D): the negative prompt, the prompt."""
    controls: Sequence[ControlInput]
    """Hints (1, 3, H, W). One whose scales are all 0 is never evaluated."""
    guidance_scale: float
    shortcuts: Shortcuts = field(default_factory=Shortcuts)

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the guided output, float32, for latents (B, C, h, w)."""
        own = self.networks.takes_guidance_scale
        # At scale 1 the negative half cancels out.
        guided = not own and self.guidance_scale != 1 and self.shortcuts.uses_cfg(step, self.steps)
        texts = self.texts if guided else self._positive
        call = PredictCall(
            latents,
            float(timestep),
            texts,
            self._active(step),
            guidance_scale=self.guidance_scale if own else None,
        )
        if not guided:
            return self._controlled(call, step)
        in_both = [control for control in call.controls if not control.prompt_half_only]
        if len(in_both) < len(call.controls):
            without = replace(call, texts=self._negative, controls=in_both)
            unconditional = self._controlled(without, step, "negative")
            conditional = self._controlled(replace(call, texts=self._positive), step)
        else:
            unconditional, conditional = self._controlled(call, step).chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _controlled(self, call: PredictCall, step: int, half: str = "") -> Tensor:
        if call.active_controls and self.shortcuts.control_every > 1:
            residuals = self._residual_caches[half].at(call, step)
            call = replace(call, controls=call.active_adapters, residuals=residuals)
        return self.networks.predict(call)

    @cached_property
    def _residual_caches(self) -> dict[str, ResidualCache]:
        """One for the negative prompt's half if it has fewer controls, and one for the rest."""
        return defaultdict(lambda: ResidualCache(self.networks, self.shortcuts.control_every))

    # Cached, because networks recognise a text by the tensor's identity.

    @cached_property
    def _negative(self) -> Tensor:
        return self.texts[:1]

    @cached_property
    def _positive(self) -> Tensor:
        return self.texts[1:]

    def _active(self, step: int) -> Sequence[ControlInput]:
        return [
            control
            for control in self.controls
            if any(control.scales) and in_window(step, self.steps, *control.window)
        ]
