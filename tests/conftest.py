"""What several tests share: a small random model in memory, and the same one on disk."""

import gc
import os

# Before any library reads them: no test may reach for the network.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of torch beside threads of torch wait for each other; and how many run at a moment, and so
# the last bit of what torch's own operations compute, would depend on how busy the machine is.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from models.networks import DiffusersNetworks
    from models.store import Store

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


MOST_PROCESSES = 8
"""Each takes about 2 GB."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return no process of its own for single files or tests: they start at once, as does pdb."""
    if config.args_source is not config.ArgsSource.TESTPATHS:
        return 0
    return min(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        MOST_PROCESSES,
    )


def pytest_collection_finish() -> None:
    """Spare every later garbage collection the objects of the libraries."""
    gc.freeze()


@pytest.fixture(scope="session")
def networks() -> "DiffusersNetworks":
    """A small random model with a ControlNet named canny, float32 on the CPU."""
    # Here, because the process that only starts the others needs no torch.
    from tests.tiny_networks import tiny_networks

    return tiny_networks()


@pytest.fixture(scope="session")
def models_folder(networks: "DiffusersNetworks", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cards with the model `tiny`, and as `sd15` again, to read single files with.

    In diffusers' layout, the ControlNet named canny; only to be read.
    """
    from tests.tiny_networks import save_networks

    folder = tmp_path_factory.mktemp("models")
    for name in ("tiny", "sd15"):
        save_networks(networks, folder / name)
        (folder / f"{name}.toml").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def store(models_folder: Path) -> "Store":
    """A store of that folder, float32 on the CPU."""
    from models.store import Store

    return Store("cpu", "float32", models_folder)
