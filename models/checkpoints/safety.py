"""The safety checker of Stable Diffusion 1.x, which a card may name: diffusers' own network.

It compares a picture with the CLIP embeddings of 17 concepts of sexual content. It sees finished
pictures alone, and errs both ways. Source: Rombach et al., CompVis/stable-diffusion-safety-checker;
what it misses: Rando et al., "Red-Teaming the Stable Diffusion Safety Filter" (2022).

Loaded only where the operator asks for it: importing this module takes a second more.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPImageProcessor

from core.condition import RGBImage
from core.errors import WeightsMismatch, WeightsMissing
from models.catalog.paths import shown
from models.checkpoints.loading import Placement, load_network

BLACK_IMAGE = "diffusers.pipelines.stable_diffusion.safety_checker"
"""The logger that says of each unsafe picture that a black one is returned: here none is."""


class SafetyChecker(nn.Module):
    """Tells which pictures are unsafe, by the network's own thresholds."""

    def __init__(self, network: Any) -> None:
        """Take the network; pictures are prepared as CLIP's, at the size that its config has."""
        super().__init__()
        self.network = network
        side = network.config.vision_config.image_size
        self._processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    def forward(self, images: Sequence[RGBImage]) -> list[bool]:
        """Return whether each picture is held to be unsafe; the pictures stay as they are."""
        weight = next(self.network.parameters())
        found = self._processor(
            list(images), input_data_format="channels_last", return_tensors="pt"
        )
        pixels = found.pixel_values.to(weight.device, weight.dtype)
        _, unsafe = self.network(clip_input=pixels, images=list(images))
        return [bool(one) for one in unsafe]


def load_safety_checker(path: Path, placement: Placement) -> nn.Module:
    """Load a safety checker from its folder in diffusers' layout.

    It is in the base's format, but in float32 beside a base in bfloat16.

    Raises:
        WeightsMissing: it is no folder, or lacks a file.
        WeightsMismatch: the weights do not fill the network, or are not finite.
    """
    if not path.is_dir():
        raise WeightsMissing(
            f"The safety checker {shown(path)} lacks its config.json: put both into a folder "
            "safety_checker."
        )
    logging.getLogger(BLACK_IMAGE).setLevel(logging.ERROR)
    if placement.dtype == torch.bfloat16:
        # Its scores are compared to the third decimal, which bfloat16 does not have at 0.2.
        placement = replace(placement, dtype=torch.float32)
    network = load_network(StableDiffusionSafetyChecker, path)
    checker = placement.place(SafetyChecker(network))
    # A comparison with NaN is false: it would hold every picture to be safe.
    if not all(bool(torch.isfinite(one).all()) for one in checker.parameters()):
        raise WeightsMismatch(
            f"{shown(path)} is damaged, it has no finite numbers: download it again."
        )
    return checker
