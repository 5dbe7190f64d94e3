"""The UNet's decoder beside a ControlNet: not connected to it, or trained with it.

Source: lllyasviel/ControlNet, docs/train.md, "Other options" (only_mid_control, sd_locked).
"""

import shutil
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel
from torch import Tensor, nn

from training.base import Base
from training.weights import save_module


def keep_to_middle(control: ControlNetModel) -> None:
    """Connect a ControlNet to the UNet's middle alone: its other outputs are zero, and stay so."""
    for one in control.controlnet_down_blocks:
        nn.init.zeros_(one.weight)
        nn.init.zeros_(one.bias)
        one.requires_grad_(False)
        one.register_forward_pre_hook(_detached)  # no gradients are computed for a zero


def _detached(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.detach() for one in inputs)


def decoder_of(unet: Any) -> nn.ModuleDict:
    """Return what of a UNet comes behind its middle."""
    return nn.ModuleDict(
        {name: getattr(unet, name) for name in ("up_blocks", "conv_norm_out", "conv_out")}
    )


def save_model(base: Base, decoder: nn.Module, folder: Path, recipe: dict[str, Any]) -> None:
    """Write a base with another decoder as a folder in diffusers' layout, in fp16."""
    networks = base.load()  # as its files have them: the frozen ones in use may be rounded
    decoder_of(networks.unet.float()).load_state_dict(decoder.state_dict())
    for name in ("unet", "text_encoder", "vae"):
        save_module(getattr(networks, name), folder / name, recipe)
    networks.tokenizer.save_pretrained(folder / "tokenizer")
    base.scheduler.save_pretrained(folder / "scheduler")


def keep_card(base: Base, folder: Path) -> None:
    """Copy the card of Diorama beside a model made from it, as the TOML file of its name.

    One of Stable Diffusion's size needs none: it is shown as a checkpoint of one's own.
    """
    card = base.card.base_folder.with_suffix(".toml")
    if card.is_file() and not base.is_sd1:
        shutil.copy(card, folder.with_suffix(".toml"))
