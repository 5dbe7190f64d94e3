"""A small base of Stable Diffusion's shape, and a folder to train on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks._shared import at_strength
from benchmarks.controllability import conditions_by_annotator
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store
from tests.tiny_networks import save_networks, tiny_controlnet, tiny_networks, tiny_unet

LEVELS = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1.5's, narrower."""


@pytest.fixture(scope="module")
def sd_base(tmp_path_factory):
    """A small base of Stable Diffusion's shape, with an AutoencoderKL, which predicts noise."""
    networks = tiny_networks()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks.unet = tiny_unet(**LEVELS)
        networks.controlnets = {"canny": tiny_controlnet(networks.unet)}
    return save_networks(networks, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures of noise with maps and captions."""
    place = tmp_path_factory.mktemp("pictures")
    rng, lines = np.random.default_rng(0), []
    for k, prompt in enumerate(("the red ball", "the ball")):
        for name in ("source", "target"):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{name}{k}.png")
        lines.append({"source": f"source{k}.png", "target": f"target{k}.png", "prompt": prompt})
    (place / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    return place


def draw_in_the_apps(base, saved, folder, place):
    """Draw the first map of a folder as the apps do, with a trained control put beside its base.

    Returns the networks, and the pictures at the strengths 0 and 1.
    """
    (place / "controlnet").mkdir(parents=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (place / part).symlink_to(base / part)
    (place / "controlnet" / "canny").symlink_to(saved)
    return draw_with(place, folder)


def draw_with(model, folder):
    """Draw the first map of a folder as the apps do, with a model's folder.

    Returns the networks, and the pictures at the strengths 0 and 1.
    """
    store = Store("cpu", "float32")
    request = GenerationRequest.single(
        conditions_by_annotator()["canny"],
        np.asarray(Image.open(folder / "target0.png")),
        model=str(model),
        image_resolution=256,
        steps=2,
        seed=1,
    )
    pictures = [
        Pipeline(store.load).generate(at_strength(request, strength)).images[0].astype(int)
        for strength in (0.0, 1.0)
    ]
    return store.load(str(model), "canny"), pictures
