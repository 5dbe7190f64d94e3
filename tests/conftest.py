"""What several tests share: a small random model in memory, and the same one on disk."""

import gc
import os

# Before any library reads them: no test may reach for the network.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

from models.networks import DiffusersNetworks
from models.store import Store
from tests.tiny_networks import save_networks, tiny_networks

CARD = """
title = "Tiny"
blurb = "Random weights: it draws noise."
licence = "none"
prompts = ["the red ball"]
min_resolution = 64
max_resolution = 256
[defaults]
image_resolution = 256
steps = 2
"""


def pytest_collection_finish() -> None:
    """Spare every later garbage collection the objects of the libraries."""
    gc.freeze()


@pytest.fixture(scope="session")
def networks() -> DiffusersNetworks:
    """A small random model with a ControlNet named canny, float32 on the CPU."""
    return tiny_networks()


@pytest.fixture(scope="session")
def models_folder(networks: DiffusersNetworks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cards with the model `tiny`, and as `sd15` again, to read single files with.

    In diffusers' layout, the ControlNet named canny; only to be read.
    """
    folder = tmp_path_factory.mktemp("models")
    for name in ("tiny", "sd15"):
        save_networks(networks, folder / name)
        (folder / f"{name}.toml").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def store(models_folder: Path) -> Store:
    """A store of that folder, float32 on the CPU."""
    return Store("cpu", "float32", models_folder)
