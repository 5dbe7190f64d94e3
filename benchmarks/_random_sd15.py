"""Stable Diffusion 1.5 and its ControlNets at full size with random weights: no hub, no downloads.

Speed and rounding do not ask what the weights say, as long as every layer gives numbers of ordinary
size; quality and control cannot be measured with these.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.catalog.paths import MODELS
from models.checkpoints.folders import read_json
from models.checkpoints.loading import Placement
from models.networks import DiffusersNetworks

SHAPE = MODELS / "sd15"
"""Configs and tokenizer, without weights."""
ZERO_GAIN = 0.3
"""Standard deviation of what a ControlNet's zero convolutions add, relative to what they see. Left
at zero they would add nothing, and every measure of the ControlNet's work would pass."""
BIAS = 0.02
POOL = 4_000_037
"""Random numbers that all weights are taken from, beginning anywhere: to draw each of 1.4 billion
takes longer than a picture. A prime, so that no two rows of a weight are the same."""


def random_networks(
    controls: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    shape: Path = SHAPE,
    seed: int = 0,
) -> DiffusersNetworks:
    """Networks built from the configs in `shape`, with a ControlNet for each name.

    The same seed gives the same weights. They are made in `dtype` at once: float32 beside it would
    need three times the memory; and on the device, as a GPU fills them in no time.
    """
    placement = Placement(device, dtype)
    text_config = CLIPTextConfig.from_pretrained(shape / "text_encoder")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(text_config).to(dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(read_json(shape / "unet" / "config.json"))
        vae: Any = AutoencoderKL.from_config(read_json(shape / "vae" / "config.json"))
        controlnets: dict[str, Any] = {
            name: ControlNetModel.from_unet(unet, load_weights_from_unet=False) for name in controls
        }
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(POOL, generator=generator).to(device)
    for network in (unet, vae, *controlnets.values()):
        _fill(network.to(dtype).to_empty(device=device), pool, generator)
    return DiffusersNetworks(
        name="sd15-random",
        tokenizer=CLIPTokenizer.from_pretrained(shape / "tokenizer", local_files_only=True),
        text_encoder=placement.place(text_encoder),
        unet=placement.place(unet),
        vae=placement.place(vae),
        controlnets={name: placement.place(network) for name, network in controlnets.items()},
        scheduler_config=read_json(shape / "scheduler" / "scheduler_config.json"),
        preview_matrix=torch.eye(4, 3, device=device),
        hashes={},
        device=device,
        dtype=dtype,
    )


@torch.no_grad()
def _fill(network: nn.Module, pool: Tensor, generator: torch.Generator) -> None:
    """Weights that keep the size of what they see; norms as they start in training."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias"):
            parameter.fill_(1)
            continue
        gain = ZERO_GAIN if name.startswith(("controlnet_down", "controlnet_mid")) else 1.0
        deviation = gain / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else BIAS
        begin = int(torch.randint(len(pool), (), generator=generator))
        rest = parameter.view(-1)
        while len(rest):
            taken = pool[begin : begin + len(rest)]
            rest[: len(taken)] = taken * deviation
            rest, begin = rest[len(taken) :], 0
