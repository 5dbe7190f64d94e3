"""Finds the weights in diffusers' folders and single files, and refuses those that do not fit.

Only configs and headers are read, so that a wrong file is refused before any work.
"""

import json
import re
from pathlib import Path
from typing import Any

from core.errors import WeightsMismatch, WeightsMissing
from models.catalog.cards import CONTROL_SUFFIXES
from models.catalog.paths import shown
from models.checkpoints.detect import (
    BASE,
    CONTROLNET,
    MERGED,
    SD1_WIDTH,
    TEXT_ENCODER,
    VAE,
    WIDTHS,
    Contents,
    identify,
    read_shapes,
    require,
)

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""Folders in a model's folder in diffusers' layout."""


def weights_files(path: Path) -> dict[str, list[Path]]:
    """Return the files that loading a base reads, by part; a single file is the one part."""
    if path.is_file():
        return {"checkpoint": [path]}
    return {part: network_files(path / part)[0] for part in ("unet", "vae", "text_encoder")}


def network_files(folder: Path) -> tuple[list[Path], str | None]:
    """Return the weights files of one network's folder (all shards of one kind) and their variant.

    Raises:
        WeightsMissing: there are none.
    """
    names = sorted(file.name for file in folder.glob("*"))
    for suffix in ("safetensors", "bin"):
        for variant in (None, "fp16"):
            middle = rf"\.{variant}" if variant else ""
            wanted = rf"(diffusion_pytorch_|pytorch_)?model{middle}(-\d+-of-\d+)?\.{suffix}"
            files = [folder / name for name in names if re.fullmatch(wanted, name)]
            if files:
                return files, variant
    raise WeightsMissing(f"There are no weights in {shown(folder)}: put a .safetensors file there.")


def inspect_base(path: Path, config_dir: Path) -> dict[str, Any]:
    """Check a base before any work; return the config of its UNet.

    A single file is checked against the configs in the folder `config_dir`.

    Raises:
        WeightsMissing: the path, or a part of the folder, does not exist.
        WeightsMismatch: it is something else, or of another family.
    """
    if path.is_dir():
        return _inspect_base_folder(path)
    unet = read_json(config_dir / "unet" / "config.json")
    _require(path, identify(read_shapes(path)), (BASE, MERGED), unet)
    if not has_part(path, TEXT_ENCODER):
        raise WeightsMismatch(
            f"{path.name} has no text encoder ({TEXT_ENCODER}…): choose a whole checkpoint."
        )
    return unet


def has_part(checkpoint: Path, part: str) -> bool:
    """Tell whether a single file has weights whose names begin so: VAE, TEXT_ENCODER or EMA."""
    return any(key.startswith(part) for key in read_shapes(checkpoint))


def lacks_vae(checkpoint: Path) -> bool:
    """Tell whether a single file is a base without a VAE."""
    is_base = identify(read_shapes(checkpoint)).kind in (BASE, MERGED)
    return is_base and not has_part(checkpoint, VAE)


def vae_beside(checkpoint: Path) -> Path | None:
    """Return the VAE that belongs to a single file by its name, as in AUTOMATIC1111."""
    files = (checkpoint.with_suffix(f".vae{suffix}") for suffix in CONTROL_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _inspect_base_folder(path: Path) -> dict[str, Any]:
    for part, family in (
        ("transformer", "a transformer model such as Stable Diffusion 3 or Flux"),
        ("text_encoder_2", "a Stable Diffusion XL model"),
    ):
        if (path / part).is_dir():
            raise WeightsMismatch(
                f"The folder {path.name} holds {family}: a Stable Diffusion 1.x model is needed."
            )
    config = path / "config.json"
    if config.is_file():
        kind = read_json(config).get("_class_name", "something else")
        raise WeightsMismatch(
            f"The folder {path.name} holds one network ({kind}): the folder of a whole model, "
            "with unet, vae and text_encoder in it, is needed."
        )
    for part in PARTS:
        if not (path / part).is_dir():
            raise WeightsMissing(
                f"The model folder {shown(path)} has no {part} folder: complete it."
            )
    unet = read_json(path / "unet" / "config.json")
    width, channels = int(unet.get("cross_attention_dim", 0)), int(unet.get("in_channels", 0))
    if width in WIDTHS and width != SD1_WIDTH:
        raise WeightsMismatch(
            f"The folder {path.name} holds a {WIDTHS[width]} model: "
            "a Stable Diffusion 1.x model is needed."
        )
    if channels != int(read_json(path / "vae" / "config.json").get("latent_channels", 0)):
        raise WeightsMismatch(
            f"The folder {path.name} holds a model for inpainting or editing, whose UNet takes "
            f"{channels} channels: a text-to-image model is needed."
        )
    return unet


def inspect_control(path: Path, unet: dict[str, Any]) -> None:
    """Check a ControlNet before any work, against the config of the UNet that it is for.

    Raises:
        WeightsMissing: the file, or the folder's config, does not exist.
        WeightsMismatch: it is something else, or made for another base.
    """
    other_blocks = WeightsMismatch(
        f"The ControlNet in {shown(path)} has other blocks than this model's UNet: "
        "choose one made for it."
    )
    if not path.is_dir():
        _require(path, identify(read_shapes(path)), (CONTROLNET, MERGED), unet)
        if unet.get("mid_block_type", "") is None:
            raise other_blocks
        return
    config = read_json(path / "config.json")
    kind = str(config.get("_class_name", "something else"))
    kind = CONTROLNET if kind == "ControlNetModel" else f"a {kind}"
    contents = Contents(kind, config.get("cross_attention_dim"), config.get("in_channels"))
    _require(path, contents, (CONTROLNET,), unet)
    if any(
        config.get(name) != unet.get(name) for name in ("block_out_channels", "layers_per_block")
    ):
        raise other_blocks


def is_difference(path: Path) -> bool:
    """Tell whether a ControlNet is a file to whose weights the base's are to be added."""
    return path.is_file() and identify(read_shapes(path)).is_difference


def _require(path: Path, contents: Contents, kinds: tuple[str, ...], unet: dict[str, Any]) -> None:
    width, channels = int(unet["cross_attention_dim"]), int(unet["in_channels"])
    require(path.name, contents, kinds, width, channels)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: it holds something else.
    """
    if not path.is_file():
        raise WeightsMissing(f"The folder {shown(path.parent)} has no {path.name}: complete it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsMismatch(f"{shown(path)} is damaged: download it again.") from error
    if not isinstance(content, dict):
        raise WeightsMismatch(f"{shown(path)} is damaged: download it again.")
    return content
