"""Moves a ControlNet from Stable Diffusion 1.5 to a community base: control + base - SD 1.5.

A ControlNet starts as a copy of its base's encoder, so the difference that a community base learned
since is added to that copy. The zero convolutions and the hint encoder have no counterpart in a
base and stay. `python -m models transfer CONTROL BASE SD15 OUT` writes the result. Without it a
ControlNet works on such a base too, but less well.

Source: tool_transfer_control.py of ControlNet v1.0 (and its issue 13).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from core.errors import BadInput, WeightsMismatch
from models.catalog.paths import shown
from models.checkpoints.detect import CHANNEL_ORDER, read_state
from models.checkpoints.folders import inspect_control, is_difference, network_files
from models.checkpoints.loading import CONVERSIONS

State = dict[str, Tensor]
"""Weights in diffusers' names."""


def transferred(control: Mapping[str, Tensor | None], base: State, sd15: State) -> State:
    """Return the ControlNet's weights moved to another base, in their own number formats.

    Raises:
        WeightsMismatch: a weight is missing, or has another shape in one of them.
    """
    moved: State = {}
    for name, weight in control.items():
        if weight is None:  # diffusers' conversion did not find it
            raise WeightsMismatch(f"The ControlNet is incomplete, {name} is missing.")
        moved[name] = weight
        if name in base or name in sd15:
            others = [unet.get(name) for unet in (base, sd15)]
            if any(other is None or other.shape != weight.shape for other in others):
                raise WeightsMismatch(
                    f"{name} has different shapes in the ControlNet and the bases: "
                    "all three must be of Stable Diffusion 1.x."
                )
            moved[name] = (weight.float() + (base[name].float() - sd15[name].float())).to(weight)
    return moved


def transfer(
    control: Path,
    base: Path,
    sd15: Path,
    unet: Mapping[str, Any],
    out: Path,
    channel_order: str = "",
) -> None:
    """Write the ControlNet moved to `base` into `out`, a new safetensors file.

    `unet` is the config of the bases' UNet. `channel_order` is that of the ControlNet's map, and
    goes into the file's metadata, where models.registry finds it.

    Raises:
        BadInput: `out` cannot be written, or the ControlNet is a difference, which fits any base.
        WeightsMissing, WeightsMismatch: a file is missing, damaged, or of another family.
    """
    if out.suffix != ".safetensors" or out.exists() or not out.parent.is_dir():
        raise BadInput(
            f"{shown(out)} cannot be written: name a new .safetensors file in an existing folder."
        )
    inspect_control(control, dict(unet))
    if is_difference(control):
        raise BadInput(
            f"{control.name} is stored as its difference from a base, and the base in use is added "
            "when it is loaded: use it as it is."
        )
    convert = importlib.import_module(CONVERSIONS)
    files = network_files(control)[0] if control.is_dir() else [control]
    moved = transferred(
        convert.convert_controlnet_checkpoint(_state(files), unet),
        _unet_state(base, unet),
        _unet_state(sd15, unet),
    )
    unfinished = out.with_suffix(".part")
    try:
        save_file(
            {name: weight.contiguous() for name, weight in moved.items()},
            unfinished,
            {
                "format": "pt",
                "transfer": f"{control.name} + {base.name} - {sd15.name}",
                CHANNEL_ORDER: channel_order,
            },
        )
        unfinished.replace(out)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{shown(out)} cannot be written: {error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _unet_state(path: Path, unet: Mapping[str, Any]) -> State:
    if path.is_dir():
        return _state(network_files(path / "unet")[0])
    convert = importlib.import_module(CONVERSIONS)
    state: State = convert.convert_ldm_unet_checkpoint(read_state(path), unet)
    return state


def _state(files: list[Path]) -> State:
    return {name: weight for file in files for name, weight in read_state(file).items()}
