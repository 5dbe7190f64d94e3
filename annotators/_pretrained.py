"""Full-size detectors from elsewhere, fetched and loaded when one is first used.

controlnet-aux's import draws in far more than one detector, and what fails there must not take the
other apps down; so it happens here, late, and its failure is one sentence.
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
import transformers

from core.condition import ControlMap, Preprocessor, RGBImage
from core.errors import SuiteError
from core.images import resize_map
from models.catalog.cards import Source
from models.catalog.download import Watch, amount, fetch
from models.catalog.paths import MODELS
from models.devices import LOADING, choose_device

FOLDER = MODELS / "annotators"
"""Where weights may be put by hand."""
HUB, REVISION = "lllyasviel/Annotators", "982e7edaec38759d914a963c48c4726685de7d96"
IN_TURN = threading.Lock()
"""Held while a detector looks at a picture: many at once would each take its memory on the device,
and what is not ours may not bear it."""

NAMES = {
    "LineartAnime": "Lineart anime",
    "Midas": "MiDaS",
    "Openpose": "OpenPose",
    "PidiNet": "PiDiNet",
}
"""Of detectors whose classes are spelt otherwise."""

Files = tuple[tuple[str, int], ...]
"""Names of weights, with their sizes in bytes."""
Draw = Callable[[RGBImage, Any], ControlMap]


def by_detector(
    name: str, draw: Draw, detector: tuple[str, Files], terms: str = "", told: str = ""
) -> Preprocessor:
    """Return the preprocessor that draws by load_detector(*detector).

    `terms` are those of its weights, `told` is its help.
    """
    needs = _from_hub(sum(size for _, size in detector[1]), terms)
    return Preprocessor(name, draw, needs, told, partial(fetch_detector, *detector))


def by_transformer(
    name: str, draw: Draw, model: tuple[str, str, str, int], terms: str = ""
) -> Preprocessor:
    """Return the preprocessor that draws by load_transformer(*model)."""
    return Preprocessor(
        name, draw, _from_hub(model[3], terms), fetch=partial(fetch_transformer, *model)
    )


def _from_hub(size: int, terms: str) -> str:
    return ", ".join(filter(None, [f"{amount(size)} from the hub", terms]))


@contextmanager
def plain_import_errors(name: str, failures: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Say in a sentence that a package is missing, be it when a detector is loaded or when it runs.

    Raises:
        SuiteError: in the place of an ImportError or one of `failures`.
    """
    caught: tuple[type[Exception], ...] = (ImportError, *failures)
    try:
        yield
    except caught as error:
        raise SuiteError(
            f"{_known(name)} needs controlnet-aux, which cannot be used here ({error}); "
            "install requirements.txt again or choose another preprocessor."
        ) from error


def _known(name: str) -> str:
    """Return what people call one of controlnet-aux's detectors: HED, not HEDdetector."""
    plain = re.sub("[Dd]etector$", "", name)
    return NAMES.get(plain, plain)


def fetch_detector(name: str, files: Files, watch: Watch | None = None) -> Path:
    """Return the folder with the weights of controlnet-aux's detector of a class name.

    They are taken from FOLDER if they are there.

    Raises:
        WeightsMissing: they are not, and the hub cannot be reached.
        SuiteError: controlnet-aux cannot be imported, so that they would be of no use.
        Exception: what `watch` raises.
    """
    _class_of(name)
    if all((FOLDER / file).is_file() for file, _ in files):
        return FOLDER
    return fetch(Source(HUB, REVISION, dict(files)), _known(name), FOLDER, watch)


def load_detector(name: str, files: Files) -> Any:
    """Return that detector with its weights on the best device; hold IN_TURN while it is used.

    Raises:
        WeightsMissing, SuiteError: as fetch_detector.
    """
    folder = fetch_detector(name, files)
    with LOADING:  # and who asks for the same meanwhile waits, instead of loading it again
        return _detector(name, folder)


@lru_cache(maxsize=2)
def _detector(name: str, folder: Path) -> Any:
    return _class_of(name).from_pretrained(str(folder)).to(choose_device()[0])


def _class_of(name: str) -> Any:
    # mediapipe 1 lacks what controlnet-aux takes from it, which ends in an AttributeError.
    with plain_import_errors(name, (AttributeError,)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional parts that are not used here
        return getattr(importlib.import_module("controlnet_aux"), name)


def run_detector(detector: Any, image: RGBImage, **options: Any) -> ControlMap:
    """Return the map that a controlnet-aux detector draws of a picture, at the picture's size.

    It fits the picture to a grid of 64 pixels for itself; within the pipeline it already is.
    """
    short = min(image.shape[:2])
    with IN_TURN, plain_import_errors(type(detector).__name__):
        found = detector(
            image, detect_resolution=short, image_resolution=short, output_type="np", **options
        )
    size = (image.shape[1], image.shape[0])
    return resize_map(np.asarray(found, np.uint8), size, "linear")


def fetch_transformer(
    kind: str, hub: str, revision: str, weights_size: int, watch: Watch | None = None
) -> Path:
    """Return the folder of a transformers model; its `kind` is how load_transformer reads it.

    That of the repository's own name in FOLDER if it is there, else from the hub.

    Raises:
        WeightsMissing: it is neither here nor to be had.
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
    """Return (processor, network) of a transformers model such as AutoModelForDepthEstimation.

    Hold IN_TURN while they are used.

    Raises:
        WeightsMissing: as fetch_transformer.
    """
    folder = fetch_transformer(kind, hub, revision, weights_size)
    with LOADING:  # and who asks for the same meanwhile waits, instead of loading it again
        return _transformer(kind, folder)


@lru_cache(maxsize=2)
def _transformer(kind: str, folder: Path) -> tuple[Any, Any]:
    network = getattr(transformers, kind).from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor, network.to(choose_device()[0]).eval()
