"""Detectors trained by others, fetched and loaded when first used.

controlnet-aux imports far more than the one detector that is used, and a failure there must not
take the other apps down: so it is imported late, and a failure becomes one sentence.
"""

import importlib
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.condition import ControlMap, Preprocessor, RGBImage
from core.errors import SuiteError
from core.images import resize_map
from models.catalog.cards import Source
from models.catalog.download import Watch, amount, fetch
from models.catalog.paths import ANNOTATORS
from models.devices import shared_device

FOLDER = ANNOTATORS
"""Weights put here by hand are used instead of the hub's."""
HUB, REVISION = "lllyasviel/Annotators", "982e7edaec38759d914a963c48c4726685de7d96"
_LOAD_LOCK = threading.Lock()
"""Held while a detector loads: a second request for the same waits instead of loading it again, and
transformers replaces parts of torch for the whole process while it loads."""
INFERENCE_LOCK = threading.Lock()
"""Held while a detector runs: several at once would each take memory on the device, and code that
is not ours may not be thread-safe."""

DISPLAY_NAMES = {
    "LineartAnime": "Lineart anime",
    "Midas": "MiDaS",
    "Openpose": "OpenPose",
    "PidiNet": "PiDiNet",
}
"""Of detectors whose class names are spelt differently."""

Files = tuple[tuple[str, int], ...]
"""Weights files: (name, size in bytes)."""
Draw = Callable[[RGBImage, Any], ControlMap]


def detector_preprocessor(
    name: str, draw: Draw, detector: tuple[str, Files], terms: str = "", help_text: str = ""
) -> Preprocessor:
    """Return the preprocessor that draws with load_detector(*detector).

    `terms` are the licence terms of its weights.
    """
    needs = _needs(sum(size for _, size in detector[1]), terms)
    return Preprocessor(name, draw, needs, help_text, partial(fetch_detector, *detector))


def transformer_preprocessor(
    name: str, draw: Draw, model: tuple[str, str, str, int], terms: str = ""
) -> Preprocessor:
    """Return the preprocessor that draws with load_transformer(*model)."""
    return Preprocessor(
        name, draw, _needs(model[3], terms), fetch=partial(fetch_transformer, *model)
    )


def _needs(size: int, terms: str) -> str:
    return ", ".join(filter(None, [f"{amount(size)} from the hub", terms]))


@contextmanager
def readable_import_errors(name: str, failures: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn a missing package into one sentence; detectors also import while they run.

    Raises:
        SuiteError: in place of an ImportError or one of `failures`.
    """
    caught: tuple[type[Exception], ...] = (ImportError, *failures)
    try:
        yield
    except caught as error:
        raise SuiteError(
            f"{_display_name(name)} needs controlnet-aux, which cannot be used here ({error}); "
            "install requirements.txt again or choose another preprocessor."
        ) from error


def _display_name(name: str) -> str:
    """Return the usual name of a detector class: HED, not HEDdetector."""
    plain = re.sub("[Dd]etector$", "", name)
    return DISPLAY_NAMES.get(plain, plain)


def fetch_detector(name: str, files: Files, watch: Watch | None = None) -> Path:
    """Return the folder with the weights of a controlnet-aux detector, given its class name.

    It is FOLDER if they are all there, else they are fetched from the hub.

    Raises:
        WeightsMissing: they are not in FOLDER, and the hub cannot be reached.
        SuiteError: controlnet-aux cannot be imported, so the weights would be useless.
        Exception: what `watch` raises.
    """
    _detector_class(name)
    if all((FOLDER / file).is_file() for file, _ in files):
        return FOLDER
    return fetch(Source(HUB, REVISION, dict(files)), _display_name(name), FOLDER, watch)


def load_detector(name: str, files: Files) -> Any:
    """Return that detector on the process's device (models/devices.py).

    Run it under INFERENCE_LOCK.

    Raises:
        WeightsMissing, SuiteError: as fetch_detector.
    """
    folder = fetch_detector(name, files)
    with _LOAD_LOCK:
        return _detector(name, folder, shared_device())


@lru_cache(maxsize=2)
def _detector(name: str, folder: Path, device: torch.device) -> Any:
    return _detector_class(name).from_pretrained(str(folder)).to(device)


def _detector_class(name: str) -> Any:
    # mediapipe 1 lacks an attribute that controlnet-aux reads at import.
    with readable_import_errors(name, (AttributeError,)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about optional parts that are not used here
        return getattr(importlib.import_module("controlnet_aux"), name)


def run_detector(detector: Any, image: RGBImage, **options: Any) -> ControlMap:
    """Return the map that a controlnet-aux detector draws of a picture, at the picture's size.

    The detector resizes to multiples of 64 pixels; the pipeline's pictures are such already.
    """
    short = min(image.shape[:2])
    with INFERENCE_LOCK, readable_import_errors(type(detector).__name__):
        drawn = detector(
            image, detect_resolution=short, image_resolution=short, output_type="np", **options
        )
    size = (image.shape[1], image.shape[0])
    return resize_map(np.asarray(drawn, np.uint8), size, "linear")


def fetch_transformer(
    kind: str, hub: str, revision: str, weights_size: int, watch: Watch | None = None
) -> Path:
    """Return the folder of a transformers model; `kind` is the class load_transformer uses.

    It is the folder of the repository's name in FOLDER if there is one, else the hub's.

    Raises:
        WeightsMissing: it is not in FOLDER, and the hub cannot be reached.
        Exception: what `watch` raises.
    """
    folder = FOLDER / hub.split("/")[1]
    if (folder / "config.json").is_file():
        return folder
    files = {
        "model.safetensors": weights_size,
        "config.json": 1000,
        "preprocessor_config.json": 500,
    }
    return fetch(Source(hub, revision, files), hub.split("/")[1], folder, watch)


def load_transformer(kind: str, hub: str, revision: str, weights_size: int) -> tuple[Any, Any]:
    """Return (processor, network) of a transformers class such as AutoModelForDepthEstimation.

    Run them under INFERENCE_LOCK.

    Raises:
        WeightsMissing: as fetch_transformer.
    """
    folder = fetch_transformer(kind, hub, revision, weights_size)
    with _LOAD_LOCK:
        return _transformer(kind, folder, shared_device())


@lru_cache(maxsize=2)
def _transformer(kind: str, folder: Path, device: torch.device) -> tuple[Any, Any]:
    import transformers  # noqa: PLC0415 - it takes seconds, and the page must answer before

    network = getattr(transformers, kind).from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor, network.to(device).eval()
