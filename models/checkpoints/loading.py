"""Builds networks from files: diffusers folders, single-file checkpoints, ControlNets alone.

Importing this module takes seconds, for diffusers and transformers, so the store does it at its
first load. All paths are local; nothing is downloaded. Key names of single files are translated by
diffusers' own conversion functions; a file that does not fill every weight of a network is refused.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedModel

from core.errors import WeightsMismatch, WeightsMissing
from core.memory import free_bytes
from models.catalog.paths import shown
from models.checkpoints.adapters import adapter_config, is_adapter, with_diffusers_names
from models.checkpoints.detect import DIFFERENCE, EMA, read_shapes, read_state
from models.checkpoints.folders import network_files, read_json
from models.checkpoints.prediction import scheduler_changes
from models.engine.layers import is_light, lighten
from models.networks import decode

CONVERSIONS = "diffusers.loaders.single_file_utils"
"""diffusers' module that translates key names."""
CONVOLUTION_NDIM = 4
PATCHES, PATCH_CELLS = 64, 4
"""A preview is fitted on so many squares of so many latent cells a side: about the work of decoding
one 256-pixel picture."""


@dataclass(frozen=True, eq=False)
class Base:
    """A model without its ControlNets, on its device."""

    tokenizer: Any
    text_encoder: nn.Module
    unet: Any
    vae: nn.Module
    scheduler_config: dict[str, Any]
    preview_matrix: Tensor
    """Fitted to this autoencoder; see fit_preview."""
    taesd: nn.Module | None = None
    """A tiny autoencoder of the same latents, if there is one locally."""
    safety_checker: nn.Module | None = None
    """See safety.py; only if the operator asks for it."""


@dataclass(frozen=True)
class Placement:
    """The networks' device and number format."""

    device: torch.device
    dtype: torch.dtype
    free: Callable[[torch.device], float] = free_bytes
    """Free memory of a device, in bytes."""
    light: bool = False
    """Whether the weights of large layers are in 8 bits; see layers.lighten."""

    def place(self, module: nn.Module) -> nn.Module:
        """Return the module ready for inference.

        It is on the device if there is room; else engine/offload.py moves it there when it is used.
        Convolutions are channels-last: measured 1.5 times as fast in float32 on a CPU.
        """
        if self.light:
            lighten(module)
        for parameter in module.parameters():
            if is_light(parameter):
                continue
            if parameter.dtype != self.dtype:
                parameter.data = parameter.data.to(self.dtype)
            if parameter.ndim == CONVOLUTION_NDIM:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self.free(self.device) > sum(one.nbytes for one in module.parameters()):
            module = module.to(self.device)
        return module.eval().requires_grad_(False)


Read = Callable[[Path], dict[str, Tensor]]
"""Reads a file's tensors, or only their shapes."""


def read_on_meta(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors without their values, on the meta device.

    Raises:
        WeightsMissing, WeightsMismatch: as read_shapes.
    """
    return {
        name: torch.empty(shape, dtype=torch.float32, device="meta")
        for name, shape in read_shapes(path).items()
    }


def load_base(
    path: Path, config_dir: Path, placement: Placement, vae_path: Path | None = None
) -> Base:
    """Load a model folder, or a single file with the configs and tokenizer in `config_dir`.

    `vae_path` is the folder or file of a VAE that replaces a single file's own.

    Raises:
        WeightsMissing: a file that the model needs does not exist.
        WeightsMismatch: the weights do not fill the networks.
    """
    folder = path if path.is_dir() else config_dir
    tokenizer = load_tokenizer(folder)
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    if path.is_file():
        scheduler_config |= scheduler_changes(path)
    text_encoder, unet, vae = build_base(path, config_dir, vae_path)
    text_encoder, vae, unet = (placement.place(module) for module in (text_encoder, vae, unet))
    channels = int(read_json(folder / "unet" / "config.json")["in_channels"])
    device = next(vae.parameters()).device  # the CPU if there was no room
    preview_matrix = fit_preview(vae, channels, device, placement.dtype).to(placement.device)
    return Base(tokenizer, text_encoder, unet, vae, scheduler_config, preview_matrix)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder.

    Raises:
        WeightsMissing: it has none.
    """
    if (
        not (folder / "tokenizer" / "vocab.json").is_file()
        and not (folder / "tokenizer" / "tokenizer.json").is_file()
    ):
        raise WeightsMissing(
            f"The model folder {shown(folder)} has no tokenizer: put vocab.json and merges.txt, or "
            "tokenizer.json, into its folder tokenizer."
        )
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def build_base(
    path: Path, config_dir: Path, vae_path: Path | None = None
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a base's text encoder, UNet and VAE, on the CPU in the files' number format.

    Raises:
        WeightsMissing, WeightsMismatch: as load_base.
    """
    read = lru_cache(1)(read_state)  # a single file holds all three
    text_encoder, unet = build_text_and_unet(path, config_dir, read)
    return text_encoder, unet, build_vae(vae_path or path, config_dir, read)


def build_text_and_unet(
    path: Path, config_dir: Path, read: Read = read_state
) -> tuple[nn.Module, nn.Module]:
    """Return a base's text encoder and UNet, as build_base.

    With `read_on_meta` they have no weights, but what cannot be loaded is refused all the same.
    """
    if path.is_dir():
        return (
            load_network(CLIPTextModel, path / "text_encoder", read),
            load_network(UNet2DConditionModel, path / "unet", read),
        )
    state = {name: weight for name, weight in read(path).items() if not name.startswith(EMA)}
    text_encoder, unet = empty_networks(config_dir)
    convert = _untyped(CONVERSIONS)
    return (
        _fill(text_encoder, convert.convert_ldm_clip_checkpoint(state), path),
        _fill(unet, convert.convert_ldm_unet_checkpoint(state, unet.config), path),
    )


def build_vae(path: Path, config_dir: Path, read: Read = read_state) -> nn.Module:
    """Return the VAE of a base, or one alone, as build_text_and_unet.

    `path` is a base's folder or file, a VAE's folder, or a file with the original's or diffusers'
    names.
    """
    if (path / "vae").is_dir():
        path = path / "vae"
    if path.is_dir():
        return _load_vae_folder(path, read)
    state = read(path)
    config = read_json(config_dir / "vae" / "config.json")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    if not any(name.startswith("decoder.up_blocks.") for name in state):
        state = _untyped(CONVERSIONS).convert_ldm_vae_checkpoint(state, config)
    return _fill(vae, state, path)


def empty_networks(config_dir: Path) -> tuple[Any, Any]:
    """Return the text encoder and UNet that the configs in a folder describe, without weights."""
    with torch.device("meta"):
        return (
            CLIPTextModel(CLIPTextConfig.from_pretrained(config_dir / "text_encoder")),
            UNet2DConditionModel.from_config(read_json(config_dir / "unet" / "config.json")),
        )


def _load_vae_folder(folder: Path, read: Read) -> nn.Module:
    autoencoders = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    kind = str(read_json(folder / "config.json").get("_class_name"))
    if kind not in autoencoders:
        raise WeightsMismatch(
            f"The autoencoder in {shown(folder)} is of the class {kind}: "
            f"it must be {' or '.join(autoencoders)}."
        )
    network: nn.Module = load_network(autoencoders[kind], folder, read)
    return network


def fit_preview(vae: nn.Module, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (channels + 1, 3) that best predicts the decoder's colours, bias last.

    Fitted by least squares on flat patches of random latents, which the scheduler's latents
    resemble in scale.
    """
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(PATCHES, channels, generator=generator, dtype=torch.float32)
    latents = colours[:, :, None, None].expand(-1, -1, PATCH_CELLS, PATCH_CELLS)
    pictures = decode(vae, latents.to(device), dtype).cpu().clamp(-1, 1)
    inputs = torch.cat([colours, torch.ones_like(colours[:, :1])], dim=1)
    matrix: Tensor = torch.linalg.lstsq(inputs, pictures.mean(dim=(2, 3))).solution
    return matrix.to(device)


def load_control(path: Path, unet: Any, placement: Placement, channel_order: str = "") -> nn.Module:
    """Load a ControlNet or a T2I-Adapter from a folder or a single file, for use beside `unet`.

    With `channel_order` "bgr" the network reverses the channels of the RGB maps it gets, as by
    diffusers' config switch; "" leaves it to the folder's config, and to RGB for a single file.
    If the file is a difference, the encoder of `unet` is added to it.

    Raises:
        WeightsMismatch: the weights do not fill the network.
    """
    network = build_control(path, unet)
    if channel_order and isinstance(network, ControlNetModel):
        # Set, not toggled: right whatever the folder's config says.
        network.register_to_config(controlnet_conditioning_channel_order=channel_order)
    return placement.place(network)


def load_taesd(path: Path, placement: Placement) -> nn.Module:
    """Load a tiny autoencoder from a diffusers folder, or from one file with diffusers' key names.

    Raises:
        WeightsMismatch: the weights do not fill the network.
    """
    if path.is_dir():
        return placement.place(load_network(AutoencoderTiny, path))
    with torch.device("meta"):
        empty = AutoencoderTiny()
    return placement.place(_fill(empty, read_state(path), path))


def load_network(kind: Any, folder: Path, read: Read = read_state, *, alone: bool = False) -> Any:
    """Load one network from its folder in diffusers' layout: on the CPU, in the files' dtype.

    `kind` is its class, a ModelMixin of diffusers or a PreTrainedModel of transformers. With
    `alone` the files may hold nothing else: methods that add parts to a ControlNet would run
    without them, and follow a map worse. Unlike from_pretrained this patches nothing in the
    process, so that several threads may build networks at once.

    Raises:
        WeightsMissing: the folder has no config or no weights.
        WeightsMismatch: the weights do not fill the network, or are more than its own.
    """
    files, _ = network_files(folder)
    state = {name: weight for file in files for name, weight in read(file).items()}
    try:
        with torch.device("meta"):
            if issubclass(kind, PreTrainedModel):
                empty = kind(kind.config_class.from_pretrained(folder))
            else:
                empty = kind.from_config(read_json(folder / "config.json"))
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsMismatch(
            f"{shown(folder / 'config.json')} does not describe a {kind.__name__}: "
            f"{_first_sentence(error)}"
        ) from error
    known = empty.state_dict().keys()
    if alone and (more := next((name for name in state if name not in known), "")):
        raise WeightsMismatch(
            f"{shown(folder)} is more than a {kind.__name__}: it has weights named {more}, which "
            "cannot run here. Please choose another."
        )
    return _fill(empty, state, folder)


def build_control(path: Path, unet: Any, read: Read = read_state) -> Any:
    """Return a ControlNet, or a T2I-Adapter, for use beside `unet`, as build_base.

    Raises:
        WeightsMissing, WeightsMismatch: as load_control.
    """
    if is_adapter(path):
        return _build_adapter(path, unet, read)
    if path.is_dir():
        return load_network(ControlNetModel, path, read, alone=True)
    state = read(path)
    with torch.device("meta"):
        empty = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=_hint_channels(path, state),
            load_weights_from_unet=False,
        )
    is_difference = state.pop(DIFFERENCE, None) is not None
    converted = _untyped(CONVERSIONS).convert_controlnet_checkpoint(state, empty.config)
    network = _fill(empty, converted, path)
    if is_difference:
        _add_encoder(network, unet)
    return network


def _build_adapter(path: Path, unet: Any, read: Read) -> Any:
    if path.is_dir():
        return load_network(T2IAdapter, path, read)
    with torch.device("meta"):
        empty = T2IAdapter.from_config(adapter_config(path, unet.config))
    return _fill(empty, with_diffusers_names(read(path), unet.config), path)


def _add_encoder(control: nn.Module, unet: nn.Module) -> None:
    """Add a UNet's weights to a ControlNet's of the same names, in float32."""
    base = dict(unet.named_parameters())
    for name, parameter in control.named_parameters():
        if name in base:
            parameter.data = parameter.float() + base[name].to(parameter.device, torch.float32)


def _untyped(module: str) -> Any:
    """Import a module that has no type annotations."""
    return importlib.import_module(module)


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Give a network on the meta device its weights; none may be missing or of another shape."""
    if isinstance(module, PreTrainedModel):
        # transformers >= 5.6 has no text_model level, and one level of vision_model.
        state = {
            name.removeprefix("text_model.").replace("vision_model." * 2, "vision_model."): weight
            for name, weight in state.items()
        }
        for part in module.modules():
            if hasattr(part, "position_ids"):
                # Computed in the constructor, where it has no value on the meta device; in no file.
                positions: Any = part.position_embedding
                part.position_ids = torch.arange(positions.num_embeddings).expand(1, -1)
    if hasattr(module, "_fix_state_dict_keys_on_load"):  # a VAE from before diffusers 0.17
        state = dict(state)
        renaming: Any = module
        renaming._fix_state_dict_keys_on_load(state)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, shape in wanted.items():
        weight = state.get(name)
        if weight is None:
            raise WeightsMismatch(
                f"{shown(path)} is incomplete, {name} is missing: download it again, or choose "
                "another."
            )
        if tuple(weight.shape) != shape:
            raise WeightsMismatch(
                f"{shown(path)} does not fit: {type(module).__name__}'s {name} has the shape "
                f"{tuple(weight.shape)} where {shape} is needed."
            )
    module.load_state_dict({name: state[name] for name in wanted}, assign=True)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        has_value = not tensor.is_meta or (name in wanted and state[name].is_meta)
        assert has_value, f"{type(module).__name__}'s {name} has no value"
    return module


def _hint_channels(path: Path, state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the widths of the hint encoder in a ControlNet's single file, in any layout."""
    names = [f"control_model.input_hint_block.{index}.weight" for index in (0, 4, 8, 12)]
    for layout in (
        names,
        [name.removeprefix("control_model.") for name in names],
        [
            f"controlnet_cond_embedding.{part}.weight"
            for part in ("conv_in", "blocks.1", "blocks.3", "blocks.5")
        ],
    ):
        if all(name in state for name in layout):
            return tuple(int(state[name].shape[0]) for name in layout)
    raise WeightsMismatch(
        f"{path.name} is incomplete, its hint encoder is missing: choose another file."
    )


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".") + "."
