"""A run's log: log.jsonl, and TensorBoard's event files beside it where that is installed."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FILE = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log of a run's folder, in order; none if it has no log."""
    file = folder / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Log:
    """Appends to the log of a run's folder.

    What was logged after the step that a run resumes at is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        file = folder / FILE
        if file.exists():
            *lines, _ = file.read_text().split("\n")  # the last is empty, or was cut off
            kept = (f"{line}\n" for line in lines if step and json.loads(line)["step"] <= step)
            file.write_text("".join(kept))
        self._file = file.open("a")
        self._events: Any = None
        if find_spec("tensorboard"):
            writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
            # TensorBoard hides what earlier files have of the purged step and later ones.
            self._events = writer(str(folder), purge_step=step + 1 if step else 0)

    def write(self, step: int, values: dict[str, Any], pictures: dict[str, Path]) -> None:
        """Log numbers by name; `pictures` are files, for TensorBoard alone."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is None:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        for name, path in pictures.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._events.add_image(name, pixels, step, dataformats="HWC")
        self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()
