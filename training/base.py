"""The frozen base that a ControlNet is trained beside: Diorama or any Stable Diffusion 1.x.

What it predicts, from which noise, and how large its latents are, its own configs say.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from core.errors import BadInput
from models.checkpoints import folders, loading
from models.checkpoints.detect import SD1_WIDTH
from models.checkpoints.loading import CONVOLUTION_NDIM
from models.checkpoints.prediction import scheduler_changes
from models.networks import ddim_scheduler
from models.registry import Registry, has_base

UNKNOWN_INPUTS = (
    *("time_cond_proj_dim", "class_embed_type", "num_class_embeds"),
    *("addition_embed_type", "encoder_hid_dim_type"),
)
"""What the config of a UNet has where it takes more than latents, a timestep and a text, such as a
distilled LCM, which takes the guidance scale."""


class Networks(NamedTuple):
    """The networks of a base: as their files have them, on the CPU, until they are placed."""

    tokenizer: Any
    text_encoder: nn.Module
    unet: Any
    vae: Any

    def place(self, device: str, precision: torch.dtype, learning: nn.Module | None = None) -> None:
        """Freeze them on the device: the autoencoder in float32, the others in `precision`.

        A part that is `learning` stays in float32, and gets gradients.

        Each weight is copied once, straight from its file. That is then mapped no more: it would
        count as the process's memory for as long as a single weight is in use.
        """
        kinds = (self.unet, precision), (self.text_encoder, precision), (self.vae, torch.float32)
        kept = {id(one) for one in learning.parameters()} if learning else set()
        for network, dtype in kinds:
            for one in network.parameters():
                kind = torch.float32 if id(one) in kept else dtype
                one.data = one.data.to(device, kind, copy=True)
                if one.ndim == CONVOLUTION_NDIM:
                    one.data = one.data.contiguous(memory_format=torch.channels_last)
            network.to(device).eval().requires_grad_(False)
        if learning:
            learning.requires_grad_(True)


class Base:
    """A model named as everywhere: a card's name, or the path of a folder or a checkpoint.

    Raises:
        BadInput: there is no such model, or a ControlNet cannot be trained beside it.
        WeightsMissing, WeightsMismatch: it is incomplete, damaged or of another family.
    """

    def __init__(self, model: str) -> None:
        """Read configs and headers only."""
        self._model, self._registry = model, Registry()
        self.card = self._registry.card(model)
        folder, file = self.card.base_folder, self.card.file
        if has_base(self.card):
            folders.inspect_base(file or folder, folder)
        self._unet, vae = (
            folders.read_json(folder / one / "config.json") for one in ("unet", "vae")
        )
        config = folders.read_json(folder / "scheduler" / "scheduler_config.json")
        config |= scheduler_changes(file) if file else {}
        self._require_trainable(config)
        self.scheduler = ddim_scheduler(config)
        widths = vae.get("block_out_channels") or vae["decoder_block_out_channels"]
        self.downscale = int(2 ** (len(widths) - 1))
        """Pixels per latent cell along a side."""
        self.multiple = int(self.downscale * 2 ** (len(self._unet["block_out_channels"]) - 1))
        """Of which the sides of a picture are multiples, so that every level of the UNet halves."""
        self.is_sd1 = self._unet["cross_attention_dim"] == SD1_WIDTH
        """Whether it is of Stable Diffusion's size; Diorama is a hundredth of it."""

    def _require_trainable(self, scheduler: dict[str, Any]) -> None:
        kind = scheduler.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction") or "beta_schedule" not in scheduler:
            raise BadInput(
                f"The base {self._model} predicts neither noise nor velocity on a schedule of "
                "betas: choose a Stable Diffusion 1.x model."
            )
        more = [name for name in UNKNOWN_INPUTS if self._unet.get(name) is not None]
        if more:
            raise BadInput(
                f"The UNet of the base {self._model} takes a further input ({more[0]}), which no "
                "ControlNet of Stable Diffusion 1.x gets: choose the model that it was made from."
            )

    def size(self, asked: int | None) -> int:
        """Return the side of its pictures in pixels: as asked, or what the UNet was trained at.

        Raises:
            BadInput: it is not a multiple of `multiple`.
        """
        size = asked or int(self._unet["sample_size"]) * self.downscale
        if size % self.multiple:
            raise BadInput(f"--size must be a multiple of {self.multiple} for this base: {size}.")
        return size

    def find(self) -> Path:
        """Return the path of its weights, downloaded if they are not here.

        Raises:
            WeightsMissing: they cannot be downloaded.
        """
        return self._registry.find(self._model)[0]

    def load(self) -> Networks:
        """Return its networks.

        Raises:
            WeightsMissing, WeightsMismatch: a file is missing, or does not fill its network.
        """
        path, folder = self.find(), self.card.base_folder
        tokenizer = loading.load_tokenizer(path if path.is_dir() else folder)
        vae = self._registry.find_vae(self.card)
        return Networks(tokenizer, *loading.build_base(path, folder, vae))
