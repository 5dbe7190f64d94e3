"""Reads T2I-Adapters, which stand where a ControlNet may.

An adapter is a small network of its own: from a control map it makes one picture of features for
each level of the UNet's encoder, once for all steps. Source: Mou et al. 2023, arXiv 2302.08453; the
names of the original's files are those of TencentARC/T2I-Adapter, ldm/modules/encoders/adapter.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from core.errors import WeightsMismatch
from models.catalog.paths import shown
from models.checkpoints.detect import ADAPTER, identify, read_shapes
from models.checkpoints.folders import network_files, read_json

CLASS = "T2IAdapter"
"""diffusers' name, in a folder's config."""
FULL, LIGHT = "full_adapter", "light_adapter"
"""diffusers' names of the two kinds for Stable Diffusion 1.x."""
DOWNSCALE = 8
"""Pixels along a side that an adapter reads as one cell: as many as a latent has."""
OLDER_LAYERS = (".skep.", ".down_opt.op.")
"""In the names of layers that only adapters from before the published ones have."""
FIRST_LEVEL = re.compile(r"adapter\.body\.0\.resnets\.\d+\.block1\.weight")
"""Names of the blocks of an adapter's first level, as many as each level has."""

Value = TypeVar("Value")


def is_adapter(path: Path) -> bool:
    """Tell whether a file or folder of weights is a T2I-Adapter.

    Raises:
        WeightsMissing, WeightsMismatch: it cannot be read.
    """
    if path.is_dir():
        return read_json(path / "config.json").get("_class_name") == CLASS
    return identify(read_shapes(path)).kind == ADAPTER


def inspect_adapter(path: Path, unet: Mapping[str, Any]) -> None:
    """Check an adapter before any work, against the config of the UNet that it is for.

    Raises:
        WeightsMissing: the folder has no weights.
        WeightsMismatch: it is for another model, such as SDXL.
    """
    if path.is_dir():
        network_files(path)
    config = adapter_config(path, unet)
    channels, kind = config["channels"], config["adapter_type"]
    widths = list(channels) if isinstance(channels, list | tuple) else []
    if kind == LIGHT:
        widths += widths[-1:]
    is_built_alike = kind in (FULL, LIGHT) and config["downscale_factor"] == DOWNSCALE
    if not is_built_alike or widths != list(unet["block_out_channels"]):
        raise WeightsMismatch(
            f"The T2I-Adapter in {shown(path)} was made for a model of another build: choose one "
            "made for this one."
        )


def adapter_config(path: Path, unet: Mapping[str, Any]) -> dict[str, Any]:
    """Return diffusers' config of an adapter, a single file's from its tensors' shapes.

    Raises:
        WeightsMismatch: the file's tensors are those of no adapter.
    """
    usual = {"in_channels": 3, "channels": (320, 640, 1280, 1280), "num_res_blocks": 2}
    usual |= {"downscale_factor": DOWNSCALE, "adapter_type": FULL}
    if path.is_dir():
        return usual | read_json(path / "config.json")
    shapes = with_diffusers_names(read_shapes(path), unet)
    is_light = "adapter.conv_in.weight" not in shapes
    first = "adapter.body.0.in_conv.weight" if is_light else "adapter.conv_in.weight"
    last = "out_conv" if is_light else "resnets.0.block1"
    levels = len(unet["block_out_channels"]) - is_light  # a light one repeats its last width
    try:
        return usual | {
            "in_channels": shapes[first][1] // DOWNSCALE**2,
            "channels": [shapes[f"adapter.body.{k}.{last}.weight"][0] for k in range(levels)],
            "num_res_blocks": sum(
                bool(re.match(r"adapter\.body\.0\.resnets\.\d+\.block1\.w", name))
                for name in shapes
            ),
            "adapter_type": LIGHT if is_light else FULL,
        }
    except KeyError as error:
        raise WeightsMismatch(
            f"{shown(path)} has other layers than a T2I-Adapter for this model ({error.args[0]} is "
            "missing): choose one made for it."
        ) from error


def with_diffusers_names(named: Mapping[str, Value], unet: Mapping[str, Any]) -> dict[str, Value]:
    """Return a single file's tensors, or their shapes, by diffusers' names.

    The original counts the blocks of all levels through; `unet` says how many levels there are.

    Raises:
        WeightsMismatch: it is of an older build.
    """
    older = next((name for name in named if any(one in name for one in OLDER_LAYERS)), "")
    if older:
        raise WeightsMismatch(
            f"This T2I-Adapter is of a build that is not known here ({older}): choose another."
        )
    if any(name.startswith("adapter.") for name in named):
        return dict(named)
    blocks = [int(match[1]) for name in named if (match := re.match(r"body\.(\d+)\.", name))]
    a_level = (max(blocks, default=0) + 1) // len(unet["block_out_channels"])
    is_light = "conv_in.weight" not in named

    def renamed(name: str) -> str:
        match = re.fullmatch(r"body\.(\d+)\.(.+)", name)
        if match is None:
            return f"adapter.{name}"
        block, rest = int(match[1]), match[2]
        if is_light:
            return f"adapter.body.{block}.{re.sub('^body', 'resnets', rest)}"
        level, at = divmod(block, max(a_level, 1))
        inside = rest if rest.startswith("in_conv.") else f"resnets.{at}.{rest}"
        return f"adapter.body.{level}.{inside}"

    return {renamed(name): value for name, value in named.items()}
