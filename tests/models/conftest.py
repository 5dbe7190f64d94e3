"""What tests of the registry and the store share: a model on the hub, and one with its base."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import CARD

HUB_CARD = (
    CARD
    + """
[base]
hub = "someone/tiny"
revision = "0123456789012345678901234567890123456789"
[base.files]
"unet/diffusion_pytorch_model.safetensors" = 1500000000
"unet/config.json" = 700
[controls.canny]
hub = "someone/reward"
revision = "0123456789012345678901234567890123456789"
subfolder = "checkpoints/canny/controlnet"
[controls.canny.files]
"config.json" = 700
"diffusion_pytorch_model.safetensors" = 700000000
"""
)


OTHER_CARD = """
title = "Tiny with others"
blurb = "The same noise."
licence = "none"
base_of = "{base}"
[controls.canny]
hub = "someone/others"
revision = "0123456789012345678901234567890123456789"
channel_order = "bgr"
[controls.canny.files]
"canny_fp16.safetensors" = 700000000
"""


@pytest.fixture
def copy(models_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder of models, to be changed."""
    return shutil.copytree(models_folder, tmp_path / "models")


@pytest.fixture
def hub_cache(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache
