"""Modes: shortcuts that speed up a generation for a measured loss (benchmarks/modes.py).

Steps differ less and less from each other. So after the first few, which settle the layout, the
fast mode leaves out work:

- Guidance ends early: late steps run without the negative prompt, which halves their work
  (Kynkäänniemi et al. 2024, arXiv 2404.07724, find that they do not need it).
- The ControlNets run at every second predicted step only; between, their last residuals are added
  again (Li et al. 2023, "Faster Diffusion", arXiv 2312.09608, reuse the whole encoder).
- The networks predict at every second step only; between, the clean latents (x0), which move slowly
  and evenly, are extrapolated linearly. On Diorama, at the same cost, this is 6 dB nearer to the
  exact picture than caching the UNet's deep features (DeepCache, Ma et al. 2023, arXiv 2312.00858),
  and it needs no change of the forward pass.

The exact mode takes no shortcut. The light mode takes none either: it is for machines with little
memory, and has the networks' weights in 8 bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.networks import ControlInput, Networks, PredictCall, Residuals

FIRST_STEPS = 4
"""Steps at the beginning without shortcuts; a run of so few steps is exact."""
PREVIEW_STEPS = 4
"""As LCM-LoRA's authors advise; Diorama's LoRA is trained for as many."""


@dataclass(frozen=True)
class Shortcuts:
    """What a mode leaves out or decides; the defaults leave out nothing."""

    guidance_until: float = 1.0
    """Fraction of the steps, 0 to 1, after which the negative prompt is left out."""
    control_every: int = 1
    """The ControlNets run at one of so many predicted steps."""
    predict_every: int = 1
    """The networks predict at one of so many steps."""
    few_step: bool = False
    """Whether the model's few-step version runs: the base with its LCM-LoRA."""
    light: bool = False
    """Whether the weights of its large layers are in 8 bits: half the memory."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request that the mode overrides."""

    def uses_cfg(self, step: int, steps: int) -> bool:
        """Tell whether a step (from 0) uses classifier-free guidance."""
        return step < max(FIRST_STEPS, self.guidance_until * steps)

    def predicts(self, step: int, steps: int) -> bool:
        """Tell whether the networks predict at a step (from 0), as they always do at the last."""
        later = step - FIRST_STEPS + 1
        return later <= 0 or later % self.predict_every == 0 or step == steps - 1


MODES = {
    "exact": Shortcuts(),
    "fast": Shortcuts(guidance_until=0.65, control_every=2, predict_every=2),
    "preview": Shortcuts(
        few_step=True,
        settings={"steps": PREVIEW_STEPS, "sampler": "lcm", "guidance_scale": 1.0},
    ),
    "light": Shortcuts(light=True),
}
"""By the name that a request gives."""


class ResidualCache:
    """The ControlNets' last residuals, for the steps at which they do not run."""

    def __init__(self, networks: Networks, every: int) -> None:
        """Start empty; run the ControlNets at one of `every` predicted steps."""
        self._networks, self._every = networks, every
        self._controls: Sequence[ControlInput] = ()
        self._residuals: Residuals = ()
        self._uses = 0

    def at(self, call: PredictCall, step: int) -> Residuals:
        """Return the residuals of a call's controls at a step (from 0), computed or cached.

        They are computed anew when the controls change, as at the end of a control's window.
        """
        same = list(call.controls) == list(self._controls)  # compared by identity
        if not same or step < FIRST_STEPS or self._uses >= self._every:
            self._residuals = self._networks.control_residuals(call)
            self._controls, self._uses = call.controls, 0
        self._uses += 1
        # When guidance has ended, there is one text where there were two: the last.
        rows = len(call.texts) * len(call.latents)
        return tuple(residual[-rows:] for residual in self._residuals)


class X0Extrapolation:
    """A sampling.Predict that calls another at some steps and extrapolates x0 at the others."""

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor, int], Tensor],
        scheduler: Any,
        predicts: Callable[[int], bool],
    ) -> None:
        """Call `predict` where `predicts(step)`; `scheduler` has the noise schedule."""
        self._predict, self._scheduler, self._predicts = predict, scheduler, predicts
        self._last_two: list[tuple[float, Tensor]] = []
        """Timestep and clean latents of the last two predictions."""

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the noise or velocity, predicted or extrapolated, for latents (B, C, h, w)."""
        alpha = float(self._scheduler.alphas_cumprod[int(timestep)])
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        kind = self._scheduler.config.prediction_type
        if self._predicts(step) or len(self._last_two) < 2:
            output = self._predict(latents, timestep, step)
            if kind == "v_prediction":
                clean = signal * latents - noise * output
            else:
                clean = (latents - noise * output) / signal
            self._last_two = [*self._last_two[-1:], (float(timestep), clean)]
            return output
        (before, earlier), (last, later) = self._last_two
        clean = later + (later - earlier) * ((float(timestep) - last) / (last - before))
        epsilon = (latents - signal * clean) / noise
        return signal * epsilon - noise * clean if kind == "v_prediction" else epsilon
