"""Where finished pictures go: exact PNGs, the settings inside, in a folder the page may serve."""

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from core.condition import Annotator, ControlMap
from core.metadata import save_png
from core.request import ControlResult, GenerationResult

log = logging.getLogger(__name__)

NOT_KEPT = (
    "The server's folder did not take a copy of every image: save here what you want to keep."
)


@dataclass(frozen=True)
class SavedMaps:
    """The files of one control's maps; the tuples hold one entry per image, in the order made."""

    control_map: Path
    reextracted: tuple[Path, ...]
    shown_map: Path
    shown_reextracted: tuple[Path, ...]
    """As the annotator shows its maps to people; the same files where that is as they are."""


@dataclass(frozen=True)
class SavedResult:
    """The files of one run."""

    images: tuple[Path, ...]
    """In the order made."""
    maps: tuple[SavedMaps, ...]
    """One for each control, in the result's order."""
    note: str = ""
    """What went wrong on the way, for the page; empty where nothing did."""

    def all(self) -> set[Path]:
        """Return every file once."""
        found = {*self.images}
        for maps in self.maps:
            found |= {maps.control_map, maps.shown_map}
            found |= {*maps.reextracted, *maps.shown_reextracted}
        return found


def upload_folder() -> Path:
    """Return where Gradio keeps uploads, and serves what is saved for the page.

    The same as gradio.utils.get_upload_folder, without loading Gradio.
    """
    return Path(
        os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio").resolve()
    )


def save(result: GenerationResult, cache: Path, keep: Path | None) -> SavedResult:
    """Write a result's files into a new folder under `cache`; copy the images to `keep` too.

    A copy that fails is logged and noted: the pictures themselves are not lost to a full disk.
    """
    folder = new_folder(cache)
    names = [control.condition.name for control in result.controls]
    images = []
    note = ""
    for index, seed in enumerate(result.seeds):
        path = folder / f"{'-'.join(names)}-{seed}.png"
        save_png(path, result.images[index], result, index)
        if keep is not None:
            try:
                _keep(path, keep)
            except OSError:
                log.exception("%s could not be copied to %s", path.name, keep)
                note = NOT_KEPT
        images.append(path)
    maps = []
    for number, (name, control) in enumerate(zip(names, result.controls, strict=True), start=1):
        stem = f"{name}-{number}" if names.count(name) > 1 else name
        maps.append(_save_maps(control, result.seeds, folder, stem))
    return SavedResult(tuple(images), tuple(maps), note)


def _save_maps(control: ControlResult, seeds: Sequence[int], folder: Path, stem: str) -> SavedMaps:
    annotator = control.condition.annotator
    wanted, shown_wanted = save_map(
        control.control_map, annotator, folder / f"{stem}-control-map.png"
    )
    pairs = [
        save_map(found, annotator, folder / f"{stem}-{seed}-reextracted.png")
        for seed, found in zip(seeds, control.reextracted, strict=True)
    ]
    found, shown = (tuple(pair[i] for pair in pairs) for i in (0, 1))
    return SavedMaps(wanted, found, shown_wanted, shown)


def new_folder(cache: Path) -> Path:
    """Make a folder for the files of one run."""
    folder = cache / f"controlloop-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder


def save_map(control_map: ControlMap, annotator: Annotator, path: Path) -> tuple[Path, Path]:
    """Write a map; return its file and the one to show, the same where it is shown as it is."""
    Image.fromarray(control_map).save(path)
    picture = annotator.preview(control_map)
    if np.array_equal(picture, control_map):
        return path, path
    shown = path.with_name(f"{path.stem}-shown.png")
    Image.fromarray(picture).save(shown)
    return path, shown


def _keep(path: Path, folder: Path) -> None:
    """Copy a picture so that it appears whole or not at all, and never over another."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    target = folder / f"{stamp}-{uuid.uuid4().hex[:6]}-{path.name}"
    partial = target.with_suffix(".part")
    try:
        shutil.copyfile(path, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
