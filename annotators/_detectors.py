"""Full-size detectors from elsewhere, fetched and loaded when one is first used.

controlnet-aux's import draws in far more than one detector, and what fails there must not take the
other apps down; so it happens here, late, and its failure is one sentence.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from core.condition import ControlMap, RGBImage
from core.errors import SuiteError
from core.images import resize_map
from models.cards import Source
from models.devices import choose_device
from models.hub import amount, fetch

FOLDER = Path(__file__).resolve().parents[1] / "models" / "annotators"
"""Where weights may be put by hand."""
HUB, REVISION = "lllyasviel/Annotators", "982e7edaec38759d914a963c48c4726685de7d96"


def from_hub(size: int) -> str:
    """Return what a preprocessor with weights of `size` bytes needs, in words."""
    return f"{amount(size)} from the hub"


@contextmanager
def plain_import_errors(name: str) -> Iterator[None]:
    """Say in a sentence that a package is missing, be it when a detector is loaded or when it runs.

    Raises:
        SuiteError: in an ImportError's place.
    """
    try:
        yield
    except ImportError as error:
        raise SuiteError(
            f"{name} needs controlnet-aux, which cannot be used here ({error}); "
            "install requirements.txt again or choose another preprocessor."
        ) from error


@lru_cache(maxsize=2)
def load_detector(name: str, *files: tuple[str, int]) -> Any:
    """Return controlnet-aux's detector of a class name, with its weights, on the best device.

    `files` are the names and sizes in bytes of the weights, taken from FOLDER if they are there.

    Raises:
        WeightsMissing: they are not, and the hub cannot be reached.
        SuiteError: controlnet-aux cannot be imported.
    """
    with plain_import_errors(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional parts that are not used here
        detector = getattr(importlib.import_module("controlnet_aux"), name, None)
        if detector is None:
            raise ImportError(f"it has no {name}")
    folder = FOLDER
    if not all((folder / file).is_file() for file, _ in files):
        folder = fetch(Source(HUB, REVISION, dict(files)), name, FOLDER)
    return detector.from_pretrained(str(folder)).to(choose_device()[0])


def run_detector(detector: Any, image: RGBImage, **options: Any) -> ControlMap:
    """Return the map that a controlnet-aux detector draws of a picture, at the picture's size.

    It fits the picture to a grid of 64 pixels for itself; within the pipeline it already is.
    """
    short = min(image.shape[:2])
    with plain_import_errors(type(detector).__name__):
        found = detector(
            image, detect_resolution=short, image_resolution=short, output_type="np", **options
        )
    size = (image.shape[1], image.shape[0])
    return resize_map(np.asarray(found, np.uint8), size, "linear")


@lru_cache(maxsize=2)
def load_transformer(kind: str, hub: str, revision: str, weights_size: int) -> tuple[Any, Any]:
    """Return (processor, network) of a transformers model such as AutoModelForDepthEstimation.

    Taken from a folder of FOLDER with the repository's own name if it is there, else from the hub.

    Raises:
        WeightsMissing: it is neither here nor to be had.
    """
    folder = FOLDER / hub.split("/")[1]
    if not (folder / "config.json").is_file():
        files = {
            "model.safetensors": weights_size,
            "config.json": 1000,
            "preprocessor_config.json": 500,
        }
        folder = fetch(Source(hub, revision, files), hub.split("/")[1], folder)
    network = getattr(transformers, kind).from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor, network.to(choose_device()[0]).eval()
