"""The UNet's decoder beside a ControlNet: not connected to it, or trained with it.

Source: lllyasviel/ControlNet, docs/train.md, "Other options" (only_mid_control, sd_locked).
"""

from pathlib import Path
from typing import Any

from diffusers import ControlNetModel
from torch import Tensor, nn

from core.errors import BadInput
from training.base import Base
from training.weights import save_module


def keep_to_middle(control: ControlNetModel) -> None:
    """Let a ControlNet learn through the UNet's middle alone: its other outputs stay zero.

    Raises:
        BadInput: they are not zero, as of a trained one.
    """
    ends = control.controlnet_down_blocks
    if any(bool(one.any()) for one in ends.parameters()):
        raise BadInput(
            "--only-mid-control begins a ControlNet, and --start names one that is connected to "
            "the UNet's decoder already: leave either out."
        )
    for end in ends:
        end.requires_grad_(False)
        end.register_forward_pre_hook(_detached)  # no gradients are computed for a zero


def _detached(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.detach() for one in inputs)


def decoder_of(unet: Any) -> nn.ModuleDict:
    """Return what of a UNet comes after its middle."""
    parts = ("up_blocks", "conv_norm_out", "conv_out")
    return nn.ModuleDict({name: getattr(unet, name) for name in parts})


def save_model(base: Base, decoder: nn.Module, folder: Path, recipe: dict[str, Any]) -> None:
    """Write a base with another decoder as a folder in diffusers' layout, in fp16."""
    networks = base.load()  # from its files again: the frozen weights in use may be rounded
    decoder_of(networks.unet).load_state_dict(decoder.state_dict(), assign=True)
    for name in ("unet", "text_encoder", "vae"):
        save_module(getattr(networks, name), folder / name, recipe)
    networks.tokenizer.save_pretrained(folder / "tokenizer")
    base.scheduler.save_pretrained(folder / "scheduler")
