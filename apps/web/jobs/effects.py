"""Which settings do nothing beside the values of others, and why."""

from collections.abc import Mapping
from typing import Any

from core.modes import MODES

DECIDING = ("mode", "sampler", "guidance_scale")
"""The settings whose values decide it."""
DEPENDENT = ("steps", "sampler", "guidance_scale", "eta", "negative_prompt")
"""Those that may have no effect."""


def without_effect(values: Mapping[str, Any]) -> dict[str, str]:
    """Return those of DEPENDENT that have no effect, each with the reason.

    `values` are those of DECIDING, by name.
    """
    mode = MODES.get(values["mode"], MODES["exact"])
    fixed = mode.settings
    idle = {name: f"The mode {values['mode']} sets it to {fixed[name]}." for name in fixed}
    used = {**values, **fixed}
    if used["sampler"] != "ddim":
        idle["eta"] = f"The sampler {used['sampler']} has none."
    if used["guidance_scale"] == 1:
        idle["negative_prompt"] = "It has no effect at guidance scale 1."
    return idle
