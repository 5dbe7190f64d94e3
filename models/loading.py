"""Builds networks from files: diffusers folders, single-file checkpoints, ControlNets alone.

Everything here takes local paths; nothing reaches for the network. Key names of single files are
translated by diffusers' own conversion functions; the result must fill every weight of the network,
or the file is refused.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import WeightsMismatch, WeightsMissing
from models.families import (
    BASE,
    CONTROLNET,
    MERGED,
    SD1_WIDTH,
    WIDTHS,
    Contents,
    identify,
    read_shapes,
    read_state,
    require,
)
from models.networks import fit_preview

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""Folders of a model in diffusers' layout."""


@dataclass(frozen=True, eq=False)
class Base:
    """A model without its ControlNets, on its device."""

    tokenizer: Any
    text_encoder: nn.Module
    unet: Any
    vae: nn.Module
    scheduler_config: dict[str, Any]
    preview_matrix: Tensor
    """Fitted to this autoencoder; see models.networks.fit_preview."""


@dataclass(frozen=True)
class Format:
    """Where the networks go and in which number format."""

    device: torch.device
    dtype: torch.dtype

    def place(self, module: nn.Module) -> nn.Module:
        """Return the module ready for inference.

        Convolutions run in channels-last order: measured 1.5 times as fast in float32 on a CPU.
        """
        module = module.to(self.device).eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dtype != self.dtype:
                parameter.data = parameter.data.to(self.dtype)
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return module


def weights_files(path: Path) -> dict[str, list[Path]]:
    """Return the files that loading this base reads, by part; a single file is its own part."""
    if path.is_file():
        return {"checkpoint": [path]}
    return {part: network_files(path / part)[0] for part in ("unet", "vae", "text_encoder")}


def network_files(folder: Path) -> tuple[list[Path], str | None]:
    """Return the weights of one network's folder (all shards of one kind) and their variant.

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
    raise WeightsMissing(f"There are no weights in {folder}: put a .safetensors file there.")


def inspect_base(path: Path, shape: Path) -> tuple[int, int]:
    """Check a base before any work; return its text width and latent channels.

    `shape` is the folder whose configs a single file is measured against.

    Raises:
        WeightsMissing: the path or a part of the folder is not there.
        WeightsMismatch: it is something else, or of another family.
    """
    if path.is_dir():
        return _inspect_base_folder(path)
    wanted = _read_json(shape / "unet" / "config.json")
    width, channels = int(wanted["cross_attention_dim"]), int(wanted["in_channels"])
    require(path.name, identify(read_shapes(path)), (BASE, MERGED), width, channels)
    return width, channels


def _inspect_base_folder(path: Path) -> tuple[int, int]:
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
        kind = _read_json(config).get("_class_name", "something else")
        raise WeightsMismatch(
            f"The folder {path.name} holds one network ({kind}): the folder of a whole model, "
            "with unet, vae and text_encoder in it, is needed."
        )
    for part in PARTS:
        if not (path / part).is_dir():
            raise WeightsMissing(f"The model folder {path} has no {part} folder: complete it.")
    unet = _read_json(path / "unet" / "config.json")
    width, channels = int(unet.get("cross_attention_dim", 0)), int(unet.get("in_channels", 0))
    if width in WIDTHS and width != SD1_WIDTH:
        raise WeightsMismatch(
            f"The folder {path.name} holds a {WIDTHS[width]} model: "
            "a Stable Diffusion 1.x model is needed."
        )
    if channels != int(_read_json(path / "vae" / "config.json").get("latent_channels", 0)):
        raise WeightsMismatch(
            f"The folder {path.name} holds a model for inpainting or editing, whose UNet takes "
            f"{channels} channels: a text-to-image model is needed."
        )
    return width, channels


def inspect_control(path: Path, text_width: int, in_channels: int) -> None:
    """Check a ControlNet before any work.

    Raises:
        WeightsMissing: the file, or the folder's config, is not there.
        WeightsMismatch: it is something else, or made for another base.
    """
    if not path.is_dir():
        contents = identify(read_shapes(path))
    else:
        config = _read_json(path / "config.json")
        kind = str(config.get("_class_name", "something else"))
        contents = Contents(
            CONTROLNET if kind == "ControlNetModel" else f"a {kind}",
            config.get("cross_attention_dim"),
            config.get("in_channels"),
        )
    require(path.name, contents, (CONTROLNET, MERGED), text_width, in_channels)


def load_base(path: Path, shape: Path, form: Format) -> Base:
    """Load a model folder, or a single file together with the configs and tokenizer in `shape`.

    Raises:
        WeightsMissing: a file that the model needs is not there.
        WeightsMismatch: the weights do not fill the networks.
    """
    from transformers import CLIPTokenizer

    folder = path if path.is_dir() else shape
    if (
        not (folder / "tokenizer" / "vocab.json").is_file()
        and not (folder / "tokenizer" / "tokenizer.json").is_file()
    ):
        raise WeightsMissing(
            f"The model folder {folder} has no tokenizer: put vocab.json and merges.txt, or "
            "tokenizer.json, into its folder tokenizer."
        )
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    scheduler_config = _read_json(folder / "scheduler" / "scheduler_config.json")
    if path.is_dir():
        text_encoder, unet, vae = _load_folder(path, form)
    else:
        text_encoder, unet, vae = _load_single_file(path, shape, form)
    text_encoder, unet, vae = (form.place(module) for module in (text_encoder, unet, vae))
    channels = int(_read_json(folder / "unet" / "config.json")["in_channels"])
    preview_matrix = fit_preview(vae, channels, form.device, form.dtype)
    return Base(tokenizer, text_encoder, unet, vae, scheduler_config, preview_matrix)


def load_control(path: Path, unet: Any, form: Format) -> nn.Module:
    """Load a ControlNet from a diffusers folder or a single file, for use beside `unet`.

    Raises:
        WeightsMismatch: the weights do not fill the network, or its blocks are not the UNet's.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    if path.is_dir():
        network = _from_folder(ControlNetModel, path, form)
        config: Any = network.config
        if list(config.block_out_channels) != list(unet.config.block_out_channels) or (
            config.layers_per_block != unet.config.layers_per_block
        ):
            raise WeightsMismatch(
                f"The ControlNet in {path.name} has other blocks than this model: "
                "choose one made for it."
            )
        return form.place(network)
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    state = read_state(path)
    with init_empty_weights():
        empty = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=_hint_channels(path, state),
            load_weights_from_unet=False,
        )
    return form.place(_fill(empty, convert_controlnet_checkpoint(state, empty.config), path))


def _load_folder(path: Path, form: Format) -> tuple[nn.Module, nn.Module, nn.Module]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    autoencoders = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    kind = str(_read_json(path / "vae" / "config.json").get("_class_name"))
    if kind not in autoencoders:
        raise WeightsMismatch(
            f"The autoencoder in {path / 'vae'} is of the class {kind}: "
            f"it must be {' or '.join(autoencoders)}."
        )
    return (
        _from_folder(CLIPTextModel, path / "text_encoder", form),
        _from_folder(UNet2DConditionModel, path / "unet", form),
        _from_folder(autoencoders[kind], path / "vae", form),
    )


def _from_folder(network: Any, folder: Path, form: Format) -> nn.Module:
    files, variant = network_files(folder)
    for file in files:
        read_shapes(file)  # names a damaged file, or a pickle with code, better than the library
    try:
        module, report = network.from_pretrained(
            folder,
            dtype=form.dtype,
            variant=variant,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsMismatch(
            f"The weights in {folder} do not fit their config.json: {_first_line(error)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsMismatch(
            f"The weights in {folder} are incomplete, {missing[0]} is missing: download them again."
        )
    loaded: nn.Module = module
    return loaded


def _load_single_file(
    path: Path, shape: Path, form: Format
) -> tuple[nn.Module, nn.Module, nn.Module]:
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    state = read_state(path)
    unet_config = _read_json(shape / "unet" / "config.json")
    vae_config = _read_json(shape / "vae" / "config.json")
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(unet_config)
        vae = AutoencoderKL.from_config(vae_config)
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(shape / "text_encoder"))
    # transformers >= 5.6 has no text_model level; old files also store a table of positions.
    text_state = {
        key.removeprefix("text_model."): tensor
        for key, tensor in convert_ldm_clip_checkpoint(state).items()
        if not key.endswith("position_ids")
    }
    return (
        _fill(text_encoder, text_state, path),
        _fill(unet, convert_ldm_unet_checkpoint(state, unet_config), path),
        _fill(vae, convert_ldm_vae_checkpoint(state, vae_config), path),
    )


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Give an empty network its weights; all must be there, in the right shapes."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, shape in wanted.items():
        found = state.get(name)
        if found is None:
            raise WeightsMismatch(
                f"{path.name} is incomplete, {type(module).__name__}'s {name} is missing: "
                "choose another file."
            )
        if tuple(found.shape) != shape:
            raise WeightsMismatch(
                f"{path.name} does not fit: {type(module).__name__}'s {name} has the shape "
                f"{tuple(found.shape)} where {shape} is needed."
            )
    module.load_state_dict({name: state[name] for name in wanted}, assign=True)
    return module


def _hint_channels(path: Path, state: Iterable[str]) -> tuple[int, ...]:
    """Read the widths of the hint encoder from a ControlNet's single file, either layout."""
    tensors: Any = state
    names = [f"control_model.input_hint_block.{index}.weight" for index in (0, 4, 8, 12)]
    for layout in (
        names,
        [name.removeprefix("control_model.") for name in names],
        [
            f"controlnet_cond_embedding.{part}.weight"
            for part in ("conv_in", "blocks.1", "blocks.3", "blocks.5")
        ],
    ):
        if all(name in tensors for name in layout):
            return tuple(int(tensors[name].shape[0]) for name in layout)
    raise WeightsMismatch(
        f"{path.name} is incomplete, its hint encoder is missing: choose another file."
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsMissing(f"The model folder {path.parent} has no {path.name}: complete it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsMismatch(f"{path} is damaged: download it again.") from error
    if not isinstance(content, dict):
        raise WeightsMismatch(f"{path} is damaged: download it again.")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
