"""The full-size detectors of controlnet-aux, fetched and loaded when one is first used.

Its import draws in far more than one detector, and what fails there must not take the other apps
down; so it happens here, late, and its failure is one sentence.
"""

import importlib
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import SuiteError
from models.cards import Source
from models.devices import choose_device
from models.hub import fetch

FOLDER = Path(__file__).resolve().parents[1] / "models" / "annotators"
"""Where weights may be put by hand."""
HUB, REVISION = "lllyasviel/Annotators", "982e7edaec38759d914a963c48c4726685de7d96"


@lru_cache(maxsize=2)
def load_detector(name: str, file: str, size: int) -> Any:
    """Return controlnet-aux's detector of a class name, with its weights, on the best device.

    `file` and its `size` in bytes name the weights, taken from FOLDER if they are there.

    Raises:
        WeightsMissing: they are not, and the hub cannot be reached.
        SuiteError: controlnet-aux cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optional parts that are not used here
            detector = getattr(importlib.import_module("controlnet_aux"), name)
    except (ImportError, AttributeError) as error:
        raise SuiteError(
            f"{name} needs controlnet-aux, which cannot be used here ({error}); "
            "install requirements.txt again or choose another preprocessor."
        ) from error
    folder = FOLDER
    if not (folder / file).is_file():
        folder = fetch(Source(HUB, REVISION, {file: size}), name, FOLDER)
    return detector.from_pretrained(str(folder)).to(choose_device()[0])
