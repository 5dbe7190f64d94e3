"""Modes: what may be left out of a generation for a measured loss (benchmarks/modes.py).

The fast mode shortens the steps. They differ less and less from each other, so behind the first
few, which settle the layout:

- guidance may end early: the prompt alone then speaks, without the second half of the work
  (Kynkäänniemi et al. 2024, arXiv 2404.07724, find that the late steps do not need it);
- the ControlNets may rest at every second step asked: what they found last is added again (Li et
  al. 2023, "Faster Diffusion", arXiv 2312.09608, do so with the whole encoder);
- the networks may be asked at every second step only: what they take for the clean picture moves
  slowly and evenly, so between it is continued in a straight line. On Diorama, at the same work,
  this is 6 dB nearer to the exact picture than keeping the UNet's deep features (DeepCache, Ma et
  al. 2023, arXiv 2312.00858) and needs no other way through the networks.

The exact mode takes none of these.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.networks import ControlInput, Networks, PredictCall, Residuals

FIRST_STEPS = 4
"""Steps at the beginning that are never shortened; so a run of so few is the exact one."""
PREVIEW_STEPS = 4
"""Of the preview mode; LCM-LoRA's authors advise 4, and Diorama's is made for so many."""


@dataclass(frozen=True)
class Shortcuts:
    """What is left out; the defaults leave out nothing."""

    guidance_until: float = 1.0
    """Part of the steps, 0 to 1, behind which the negative prompt is no longer asked."""
    control_every: int = 1
    """Of so many steps asked, the ControlNets run at one."""
    answer_every: int = 1
    """Of so many steps, the networks are asked at one."""
    few_step: bool = False
    """Whether the model's few-step version runs: the base with its LCM-LoRA."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that the mode decides, whatever was asked for."""

    def uses_cfg(self, step: int, steps: int) -> bool:
        """Tell whether both prompts are asked at a step (from 0)."""
        return step < max(FIRST_STEPS, self.guidance_until * steps)

    def asks(self, step: int, steps: int) -> bool:
        """Tell whether the networks are asked at a step (from 0); the last step always asks."""
        behind = step - FIRST_STEPS + 1
        return behind <= 0 or behind % self.answer_every == 0 or step == steps - 1


MODES = {
    "exact": Shortcuts(),
    "fast": Shortcuts(guidance_until=0.65, control_every=2, answer_every=2),
    "preview": Shortcuts(
        few_step=True,
        settings={"steps": PREVIEW_STEPS, "sampler": "lcm", "guidance_scale": 1.0},
    ),
}
"""The named choices of a request."""


class ResidualCache:
    """What the ControlNets found last, for the steps at which they rest."""

    def __init__(self, networks: Networks, every: int) -> None:
        """Keep nothing yet; run the ControlNets at one of `every` steps asked."""
        self._networks, self._every = networks, every
        self._controls: Sequence[ControlInput] = ()
        self._residuals: Residuals = ()
        self._uses = 0

    def at(self, call: PredictCall, step: int) -> Residuals:
        """Return the residuals of a call's controls at a step (from 0), computed now or before.

        Other controls than last time, as a control's window brings them, are computed anew.
        """
        known = list(call.controls) == list(self._controls)  # the very same: compared by identity
        if not known or step < FIRST_STEPS or self._uses >= self._every:
            self._residuals = self._networks.control_residuals(call)
            self._controls, self._uses = call.controls, 0
        self._uses += 1
        # Once guidance has ended there is one text, the last, where there were two.
        rows = len(call.texts) * len(call.latents)
        return tuple(residual[-rows:] for residual in self._residuals)


class X0Extrapolation:
    """A model as the sampler wants it that asks another at some steps and foretells the others."""

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor, int], Tensor],
        scheduler: Any,
        asks: Callable[[int], bool],
    ) -> None:
        """Ask `predict` where `asks(step)`; the scheduler says what its answers mean."""
        self._predict, self._scheduler, self._asks = predict, scheduler, asks
        self._known: list[tuple[float, Tensor]] = []
        """Timestep and clean latents of the last two answers."""

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the answer, asked for or foretold, float32, for latents (B, C, h, w)."""
        alpha = float(self._scheduler.alphas_cumprod[int(timestep)])
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        kind = self._scheduler.config.prediction_type
        if self._asks(step) or len(self._known) < 2:
            answer = self._predict(latents, timestep, step)
            if kind == "v_prediction":
                clean = signal * latents - noise * answer
            else:
                clean = (latents - noise * answer) / signal
            self._known = [*self._known[-1:], (float(timestep), clean)]
            return answer
        (before, earlier), (last, later) = self._known
        clean = later + (later - earlier) * ((float(timestep) - last) / (last - before))
        error = (latents - signal * clean) / noise
        return signal * error - noise * clean if kind == "v_prediction" else error
