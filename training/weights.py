"""Writes trained networks in diffusers' and transformers' own formats.

In half precision, with the recipe inside the files.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

LARGEST_FILE = "9500KB"  # hosts refuse files above 10 MB without LFS


def commit() -> str:
    """The commit the weights were made from, with a + where the tree had changes.

    "unknown" outside a repository.
    """
    try:
        text = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(
            text, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save_module(module: nn.Module, folder: Path, recipe: dict[str, Any]) -> None:
    """Saves a diffusers or transformers module as fp16 shards below 10 MB, the recipe in each."""
    half = module.to("cpu", torch.float16)
    half.save_pretrained(folder, max_shard_size=LARGEST_FILE, safe_serialization=True)  # type: ignore[operator]
    described = {
        key: str(value) if isinstance(value, Path) else value for key, value in recipe.items()
    }
    annotate(folder, recipe=described, commit=commit())
    module.float()


def annotate(folder: Path, **facts: Any) -> None:
    """Adds facts (JSON values) to the `controlloop` metadata of a folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        known = json.loads(metadata.get("controlloop", "{}"))
        metadata["controlloop"] = json.dumps(known | facts)
        metadata.setdefault("format", "pt")
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata)
        part.rename(path)


def facts(folder: Path) -> dict[str, Any]:
    """What the first weights file of a folder says about how it was made."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {}).get("controlloop", "{}"))
            return found
    return {}
