"""Where finished pictures go: exact PNGs, the settings inside, in a folder the page may serve."""

import shutil
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from core.condition import Annotator, ControlMap
from core.png import save_png
from core.request import GenerationResult


@dataclass(frozen=True)
class SavedResult:
    """The files of one run; the tuples hold one entry per image, in the order made."""

    control_map: Path
    images: tuple[Path, ...]
    reextracted: tuple[Path, ...]
    shown_map: Path
    shown_reextracted: tuple[Path, ...]
    """As the annotator shows its maps to people; the same files where that is as they are."""

    def all(self) -> set[Path]:
        """Return every file once."""
        maps = (self.control_map, self.shown_map)
        return {*maps, *self.images, *self.reextracted, *self.shown_reextracted}


def save(
    result: GenerationResult, annotator: Annotator, cache: Path, keep: Path | None
) -> SavedResult:
    """Write a result's files into a new folder under `cache`; copy the images to `keep` too."""
    folder = cache / f"controlloop-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    name = result.condition_name
    control_map = _save_map(result.control_map, folder / f"{name}-control-map.png")
    images, found, shown = [], [], []
    for index, seed in enumerate(result.seeds):
        stem = f"{name}-{seed}"
        path = folder / f"{stem}.png"
        save_png(path, result.images[index], result, index)
        if keep is not None:
            _keep(path, keep)
        images.append(path)
        found.append(_save_map(result.reextracted[index], folder / f"{stem}-reextracted.png"))
        shown.append(_shown(result.reextracted[index], annotator, found[-1]))
    return SavedResult(
        control_map,
        tuple(images),
        tuple(found),
        _shown(result.control_map, annotator, control_map),
        tuple(shown),
    )


def _save_map(control_map: ControlMap, path: Path) -> Path:
    Image.fromarray(control_map).save(path)
    return path


def _shown(control_map: ControlMap, annotator: Annotator, saved: Path) -> Path:
    picture = annotator.preview(control_map)
    if np.array_equal(picture, control_map):
        return saved
    return _save_map(picture, saved.with_name(f"{saved.stem}-shown.png"))


def _keep(path: Path, folder: Path) -> None:
    """Copy a picture so that it appears whole or not at all, and never over another."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    target = folder / f"{stamp}-{uuid.uuid4().hex[:6]}-{path.name}"
    partial = target.with_suffix(".part")
    shutil.copyfile(path, partial)
    partial.replace(target)
