"""Stable Diffusion 1.5 and its ControlNets at full size with random weights: no downloads.

Speed, memory and rounding can be measured with them, as long as activations keep a normal scale;
quality and control cannot. As a folder in float16, 2.1 GB, like the hub's:

    python -m benchmarks._random_sd15 runs/sd15-random
"""

import argparse
import math
import shutil
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

CONFIGS = MODELS / "sd15"
"""Configs and tokenizer, without weights."""
ZERO_GAIN = 0.3
"""Gain of a ControlNet's zero convolutions. At zero they would add nothing, and an error in the
ControlNet would never be noticed."""
BIAS = 0.02
POOL_SIZE = 4_000_037
"""Number of random values that all weights are copied from, at random offsets: drawing each of 1.4
billion takes longer than a picture. A prime, so that no two rows of a weight are equal."""


def random_networks(
    controls: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    configs: Path = CONFIGS,
    seed: int = 0,
    light: bool = False,
) -> DiffusersNetworks:
    """Networks built from a folder of configs, with a ControlNet for each name.

    The same seed gives the same weights, which `light` ones have in 8 bits. They are created in
    `dtype`, as float32 first would need three times the memory, and on the device, as a GPU fills
    them fastest.
    """
    placement = Placement(device, dtype, light=light)
    text_config = CLIPTextConfig.from_pretrained(configs / "text_encoder")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(text_config).to(dtype)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(read_json(configs / "unet" / "config.json"))
        vae: Any = AutoencoderKL.from_config(read_json(configs / "vae" / "config.json"))
        controlnets: dict[str, Any] = {
            name: ControlNetModel.from_unet(unet, load_weights_from_unet=False) for name in controls
        }
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(POOL_SIZE, generator=generator).to(device)
    for network in (unet, vae, *controlnets.values()):
        _fill(network.to(dtype).to_empty(device=device), pool, generator)
        placement.place(network)
    return DiffusersNetworks(
        name="sd15-random",
        tokenizer=CLIPTokenizer.from_pretrained(configs / "tokenizer", local_files_only=True),
        text_encoder=placement.place(text_encoder),
        unet=unet,
        vae=vae,
        controlnets=controlnets,
        scheduler_config=read_json(configs / "scheduler" / "scheduler_config.json"),
        preview_matrix=torch.eye(4, 3, device=device),
        hashes={},
        device=device,
        dtype=dtype,
    )


@torch.no_grad()
def _fill(network: nn.Module, pool: Tensor, generator: torch.Generator) -> None:
    """Random weights that preserve the scale of their input; norms as initialised for training."""
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


def save(folder: Path, configs: Path = CONFIGS) -> None:
    """Write a base without ControlNets in diffusers' layout."""
    networks = random_networks([], torch.device("cpu"), torch.float16, configs)
    for part in ("text_encoder", "unet", "vae"):
        getattr(networks, part).save_pretrained(folder / part)
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(configs / part, folder / part, dirs_exist_ok=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    save(parser.parse_args().folder)


if __name__ == "__main__":
    main()
