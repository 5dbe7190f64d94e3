"""Trained networks as float16 files in their libraries' formats, with the recipe as metadata."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

MAX_SHARD_SIZE = "9500KB"  # Git hosts refuse files above 10 MB without LFS
SMALL = 100_000_000  # bytes; larger ones belong into no Git repository


def git_commit() -> str:
    """The current Git commit, with a + if the tree has changes; "unknown" outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save_module(module: nn.Module, folder: Path, recipe: dict[str, Any]) -> None:
    """Save a diffusers or transformers module in fp16, the recipe in the metadata of each file.

    A small one is cut into files below 10 MB. The module stays as it is.
    """
    copies: dict[int, torch.Tensor] = {
        id(one): nn.Parameter(one.detach().to("cpu", torch.float16), requires_grad=False)
        for one in module.parameters()
    }
    size = sum(one.nbytes for one in copies.values())
    for one in module.buffers():
        copies[id(one)] = one.to("cpu", torch.float16 if one.is_floating_point() else one.dtype)
    half = copy.deepcopy(module, copies)
    shards = MAX_SHARD_SIZE if size < SMALL else "10GB"
    half.save_pretrained(folder, max_shard_size=shards, safe_serialization=True)  # type: ignore[operator]
    if isinstance(module, AutoencoderTiny):  # it writes this key, and warns when reading it
        file = folder / "config.json"
        config = json.loads(file.read_text())
        config.pop("block_out_channels", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    add_metadata(folder, recipe=json_recipe(recipe), commit=git_commit())


def json_recipe(options: dict[str, Any]) -> dict[str, Any]:
    """A command's options as JSON values: paths become strings."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}


def add_metadata(folder: Path, **values: Any) -> None:
    """Add values to the metadata of a folder's safetensors files.

    The format's metadata are strings: ours are one, under `controlloop`, a JSON object.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        known = json.loads(metadata.get("controlloop", "{}"))
        metadata["controlloop"] = json.dumps(known | values)
        metadata.setdefault("format", "pt")
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata)
        part.rename(path)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The `controlloop` metadata of a folder's first weights file; empty if there is none."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {}).get("controlloop", "{}"))
            return metadata
    return {}
