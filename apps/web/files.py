"""Finished images as lossless PNGs with their settings, in a folder that Gradio serves."""

import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from PIL import Image

from apps.web.janitor import PARTIAL
from apps.web.sheet import Tile, drawn_sheet
from core.condition import Annotator, ControlMap, RGBImage
from core.metadata import save_png
from core.png_chunks import write_png
from core.provenance import COMPOSITE, mark
from core.request import ControlResult, GenerationResult

log = logging.getLogger(__name__)

LARGEST_UPLOAD_MB = 30
LARGEST_UPLOAD = LARGEST_UPLOAD_MB * 2**20
"""In bytes, of a picture's file."""

NOT_KEPT = (
    "Not every image could be copied to the server's folder; save here what you want to keep."
)


@dataclass(frozen=True)
class SavedMaps:
    """The files of one control's maps; tuples have one entry per image."""

    control_map: Path
    reextracted: tuple[Path, ...]
    shown_map: Path
    shown_reextracted: tuple[Path, ...]
    """The two above as the page shows them: their previews, or the same files if they are their own
    preview."""


@dataclass(frozen=True)
class SavedResult:
    """The files of one run."""

    images: tuple[Path, ...]
    """In the result's order."""
    maps: tuple[SavedMaps, ...]
    """One for each control, in the result's order."""
    note: str = ""
    """What went wrong while saving, for the page; "" if nothing did."""
    sheet: Path | None = None
    """All images on one picture."""
    archive: Path | None = None
    """A ZIP of the images, maps, sheet and report."""

    def all(self) -> set[Path]:
        """Return all files, each once."""
        found = {*self.images}
        for maps in self.maps:
            found |= {maps.control_map, maps.shown_map}
            found |= {*maps.reextracted, *maps.shown_reextracted}
        return found | {path for path in (self.sheet, self.archive) if path}


def upload_folder() -> Path:
    """Return the folder in which Gradio keeps uploads and from which it serves files.

    As gradio.utils.get_upload_folder, without loading Gradio.
    """
    return Path(
        os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio").resolve()
    )


def save(result: GenerationResult, cache: Path, keep: Path | None) -> SavedResult:
    """Write a result's files into a new folder under `cache`, and copy the images to `keep`.

    A copy that fails is logged and noted, so that a full disk does not lose the images.
    """
    folder = new_folder(cache)
    names = [control.condition.name for control in result.controls]
    images = []
    for index, seed in enumerate(result.seeds):
        path = folder / f"{'-'.join(names)}-{seed}.png"
        save_png(path, result.images[index], result, index)
        images.append(path)
    note = keep_copies(images, keep)
    maps = []
    for number, (name, control) in enumerate(zip(names, result.controls, strict=True), start=1):
        stem = f"{name}-{number}" if names.count(name) > 1 else name
        maps.append(_save_maps(control, result.seeds, folder, stem))
    return SavedResult(tuple(images), tuple(maps), note)


def save_whole(results: Sequence[tuple[GenerationResult, SavedResult]]) -> list[SavedResult]:
    """Add a contact sheet to each result of several images, and one archive of all to the first.

    Of two models' results, each has a folder of its own in the archive, named by its model.
    """
    with_sheets: list[SavedResult] = []
    files: dict[str, Path] = {}
    reports: dict[str, dict[str, Any]] = {}
    for result, without_sheet in results:
        saved = _with_sheet(result, without_sheet)
        with_sheets.append(saved)
        folder = f"{result.model}/" if len(results) > 1 else ""
        maps = [path for one in saved.maps for path in (one.control_map, *one.reextracted)]
        kept = [*saved.images, *maps, *([saved.sheet] if saved.sheet else [])]
        files |= {f"{folder}{path.name}": path for path in kept}
        names = [path.name for path in saved.images]
        reports[f"{folder}report.json"] = result.report() | {"files": names}
    archive = with_sheets[0].images[0].with_name("controlloop.zip")
    write_archive(archive, files, reports)
    return [replace(with_sheets[0], archive=archive), *with_sheets[1:]]


def _with_sheet(result: GenerationResult, saved: SavedResult) -> SavedResult:
    if len(result.images) == 1:
        return saved
    sheet = saved.images[0].with_name("contact-sheet.png")
    write_png(sheet, contact_sheet(result), mark(COMPOSITE, result.model))
    return replace(saved, sheet=sheet)


def write_archive(
    archive: Path, files: Mapping[str, Path], reports: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write a ZIP of files and of reports as JSON, both by their names in it."""
    with ZipFile(archive, "w") as opened:  # stored: PNGs are compressed already
        for name, path in files.items():
            opened.write(path, name)
        for name, report in reports.items():
            opened.writestr(name, json.dumps(report, indent=2, ensure_ascii=False))


SHEET_COLUMNS = 4
"""Pictures in a row of a contact sheet."""


def contact_sheet(result: GenerationResult) -> RGBImage:
    """Return the control maps and all images on one picture, with each one's score and seed."""
    cells = [
        (control.condition.title, control.condition.annotator.preview(control.control_map))
        for control in result.controls
    ]
    cells += [
        (f"{headline:.0f} / 100, seed {seed}", image)
        for headline, seed, image in zip(result.headlines, result.seeds, result.images, strict=True)
    ]
    columns = min(SHEET_COLUMNS, len(cells))
    tiles = {
        (index % columns, index // columns): Tile(picture, label)
        for index, (label, picture) in enumerate(cells)
    }
    return drawn_sheet(tiles, (columns, -(-len(cells) // columns)))


def _save_maps(control: ControlResult, seeds: Sequence[int], folder: Path, stem: str) -> SavedMaps:
    annotator = control.condition.annotator
    control_map, shown_map = save_map(
        control.control_map, annotator, folder / f"{stem}-control-map.png"
    )
    files_and_previews = [
        save_map(reextracted, annotator, folder / f"{stem}-{seed}-reextracted.png")
        for seed, reextracted in zip(seeds, control.reextracted, strict=True)
    ]
    return SavedMaps(
        control_map,
        reextracted=tuple(file for file, _ in files_and_previews),
        shown_map=shown_map,
        shown_reextracted=tuple(preview for _, preview in files_and_previews),
    )


def new_folder(cache: Path) -> Path:
    """Make a folder for the files of one run."""
    folder = cache / f"controlloop-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder


def save_map(control_map: ControlMap, annotator: Annotator, path: Path) -> tuple[Path, Path]:
    """Write a map and its preview; return both files, the same if the map is its preview.

    Neither is marked as made by a machine: core/provenance.py says why.
    """
    Image.fromarray(control_map).save(path)
    picture = annotator.preview(control_map)
    if np.array_equal(picture, control_map):
        return path, path
    shown = path.with_name(f"{path.stem}-shown.png")
    Image.fromarray(picture).save(shown)
    return path, shown


def keep_copies(images: Sequence[Path], keep: Path | None) -> str:
    """Copy images to the folder `keep`, if there is one; return a note if that failed."""
    note = ""
    if keep is None:
        return note
    for path in images:
        try:
            _keep(path, keep)
        except OSError as error:
            log.error("%s could not be copied to %s: %s", path.name, keep, error)
            note = NOT_KEPT
    return note


def _keep(path: Path, folder: Path) -> None:
    """Copy a picture atomically and under a name of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    target = folder / f"{stamp}-{uuid.uuid4().hex[:6]}-{path.name}"
    partial = folder / PARTIAL.format(uuid.uuid4().hex)
    try:
        shutil.copyfile(path, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
