"""Finished images as lossless PNGs with their settings, in a folder that Gradio serves."""

import errno
import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np

from apps.web.limits import RequestLimits
from apps.web.sheet import Tile, drawn_sheet
from core.condition import Annotator, ControlMap, RGBImage
from core.files import write_whole
from core.marking import write_marked
from core.metadata import save_png
from core.png_chunks import write_png
from core.provenance import COMPOSITE, source_type_of
from core.request import ControlResult, GenerationResult

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)

LARGEST_UPLOAD_MB = RequestLimits.read().max_upload_mb
LARGEST_UPLOAD = LARGEST_UPLOAD_MB * 2**20
"""In bytes, of a picture's file."""

NOT_COPIED = (
    "Not every image could be copied to the server's folder; save here what you want to keep."
)
NOT_SAVED = (
    "The server's disk {problem}, so these are kept on this page alone: {lost}; save what you want "
    "to keep."
)
FIRST_ZIP_TIME, LAST_ZIP_TIME = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
READABLE = 0o644
"""Unix permissions."""
NO_SETTINGS = "The settings could not be written into image {}."


@dataclass(frozen=True)
class InMemory:
    """A PNG that could not be written, for the page that shows it."""

    name: str
    png: bytes


File = Path | InMemory


@dataclass(frozen=True)
class SavedMaps:
    """The files of one control's maps; tuples have one entry per image."""

    control_map: File
    reextracted: tuple[File, ...]
    shown_map: File
    shown_reextracted: tuple[File, ...]
    """The two above as the page shows them: their previews, or the same files if they are their own
    preview."""


@dataclass(frozen=True)
class SavedResult:
    """The files of one run."""

    images: tuple[File, ...]
    """In the result's order."""
    maps: tuple[SavedMaps, ...]
    """One for each control, in the result's order."""
    note: str = ""
    """What went wrong while saving, for the page; "" if nothing did."""
    sheet: File | None = None
    """All images on one picture."""
    archive: Path | None = None
    """A ZIP of the images, maps, sheet and report."""


def upload_folder() -> Path:
    """Return the folder in which Gradio keeps uploads and from which it serves files.

    As gradio.utils.get_upload_folder, without loading Gradio.
    """
    return Path(
        os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio").resolve()
    )


class RunFiles:
    """The files of one run in a folder of its own, each written as soon as there is its picture.

    What the disk does not take stays in memory, and `note` says so: no picture is lost for it.
    """

    def __init__(self, cache: Path, keep: Path | None = None) -> None:
        """Write nothing yet; the images are also copied to `keep`."""
        self._cache, self._keep = cache, keep
        self._folder: Path | None = None
        self._files: dict[str, File] = {}
        self._lost: dict[str, str] = {}
        """What could not be written, in words, with the reason."""
        self._others: dict[str, None] = {}
        """Further sentences for the note, each once."""

    @property
    def note(self) -> str:
        """What went wrong so far, for the user; "" if nothing did."""
        notes = list(self._others)
        if self._lost:
            problem = next(iter(self._lost.values()))
            notes.insert(0, NOT_SAVED.format(problem=problem, lost=", ".join(self._lost)))
        return " ".join(notes)

    def save(self, result: GenerationResult, with_sheet: bool = False) -> SavedResult:
        """Write what is not written yet of a result, which may have got more images since."""
        names = [control.condition.name for control in result.controls]
        images = tuple(
            self._image(f"{'-'.join(names)}-{seed}.png", result, index)
            for index, seed in enumerate(result.seeds)
        )
        maps = []
        for number, (name, control) in enumerate(zip(names, result.controls, strict=True), start=1):
            stem = f"{name}-{number}" if names.count(name) > 1 else name
            maps.append(self._maps(control, result.seeds, stem))
        sheet = None
        if with_sheet and len(result.images) > 1:
            sheet = self.picture(
                "contact-sheet.png",
                "the contact sheet",
                lambda: self._marked(contact_sheet(result), COMPOSITE, result.model),
            )
        return SavedResult(images, tuple(maps), self.note, sheet)

    def save_map(
        self, control_map: ControlMap, annotator: Annotator, stem: str
    ) -> tuple[File, File]:
        """Write a map and its preview; return both files, the same if the map is its preview.

        Neither is marked as made by a machine: core/provenance.py says why.
        """
        file = self.picture(f"{stem}.png", "the maps", lambda: _png(control_map))
        shown = annotator.preview(control_map)
        if np.array_equal(shown, control_map):
            return file, file
        return file, self.picture(f"{stem}-shown.png", "the maps", lambda: _png(shown))

    def picture(self, name: str, what: str, encode: Callable[[], bytes]) -> File:
        """Return the file of a picture, written unless it is there; `what` it is, for the note."""
        if name not in self._files:
            png = encode()
            path = self._write(name, what, lambda path: path.write_bytes(png))
            self._files[name] = path or InMemory(name, png)
        return self._files[name]

    def archive(
        self, name: str, files: Mapping[str, File], reports: Mapping[str, Mapping[str, Any]]
    ) -> Path | None:
        """Write a ZIP of files and of reports as JSON, by their names in it; None if it fails."""
        return self._write(name, "the archive", lambda path: _zip(path, files, reports))

    def _image(self, name: str, result: GenerationResult, index: int) -> File:
        is_new = name not in self._files
        what = f"image {index + 1}"
        file = self.picture(name, what, lambda: self._encoded(result, index))
        if is_new:
            self._tell(keep_copies([file], self._keep))
        return file

    def _encoded(self, result: GenerationResult, index: int) -> bytes:
        memory = io.BytesIO()
        try:
            self._tell(save_png(memory, result.images[index], result, index))
        except Exception:
            log.exception("The settings could not be written")
            self._tell(NO_SETTINGS.format(index + 1))
            return self._marked(result.images[index], source_type_of(result.request), result.model)
        return memory.getvalue()

    def _marked(self, picture: RGBImage, source_type: str, system: str) -> bytes:
        memory = io.BytesIO()
        self._tell(write_marked(memory, picture, source_type, system))
        return memory.getvalue()

    def _tell(self, note: str) -> None:
        if note:
            self._others[note] = None

    def _maps(self, control: ControlResult, seeds: Sequence[int], stem: str) -> SavedMaps:
        annotator = control.condition.annotator
        control_map, shown_map = self.save_map(
            control.control_map, annotator, f"{stem}-control-map"
        )
        found = [
            self.save_map(reextracted, annotator, f"{stem}-{seed}-reextracted")
            for seed, reextracted in zip(seeds, control.reextracted, strict=True)
        ]
        return SavedMaps(
            control_map,
            reextracted=tuple(file for file, _ in found),
            shown_map=shown_map,
            shown_reextracted=tuple(shown for _, shown in found),
        )

    def _write(self, name: str, what: str, write: Callable[[Path], object]) -> Path | None:
        """Write a file of the run's folder; note the failure and return None if it cannot be."""
        try:
            if self._folder is None:
                self._folder = new_folder(self._cache)
            self._folder.mkdir(exist_ok=True)  # the janitor may have needed the room
            path = self._folder / name
            write_whole(path, write)
        except OSError as error:
            log.error("%s could not be written: %s", name, error)
            self._lost[what] = "is full" if error.errno in FULL else "cannot be written to"
            return None
        return path


def save_whole(runs: Sequence[tuple[GenerationResult, RunFiles]]) -> list[SavedResult]:
    """Save results, each of several images with a contact sheet, the first with an archive of all.

    Of two models' results, each has a folder of its own in the archive, named by its model.
    """
    whole: list[SavedResult] = []
    files: dict[str, File] = {}
    reports: dict[str, dict[str, Any]] = {}
    for result, run in runs:
        saved = run.save(result, with_sheet=True)
        whole.append(saved)
        folder = f"{result.model}/" if len(runs) > 1 else ""
        maps = [file for one in saved.maps for file in (one.control_map, *one.reextracted)]
        kept = [*saved.images, *maps, *([saved.sheet] if saved.sheet else [])]
        files |= {f"{folder}{file.name}": file for file in kept}
        names = [file.name for file in saved.images]
        reports[f"{folder}report.json"] = result.report() | {"files": names}
    first = runs[0][1]
    archive = first.archive("controlloop.zip", files, reports)
    return [replace(whole[0], archive=archive, note=first.note), *whole[1:]]


SHEET_COLUMNS = 4
"""Pictures in a row of a contact sheet."""


def contact_sheet(result: GenerationResult) -> RGBImage:
    """Return the control maps and all images on one picture, with each one's score and seed."""
    cells = [
        (control.condition.title, control.condition.annotator.preview(control.control_map))
        for control in result.controls
    ]
    cells += [
        (
            f"{'no score' if result.asks_for_nothing else f'{headline:.0f} / 100'}, seed {seed}",
            image,
        )
        for headline, seed, image in zip(result.headlines, result.seeds, result.images, strict=True)
    ]
    columns = min(SHEET_COLUMNS, len(cells))
    tiles = {
        (index % columns, index // columns): Tile(picture, label)
        for index, (label, picture) in enumerate(cells)
    }
    return drawn_sheet(tiles, (columns, -(-len(cells) // columns)))


def new_folder(cache: Path) -> Path:
    """Make a folder for the files of one run."""
    folder = cache / f"controlloop-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder


def _png(picture: RGBImage) -> bytes:
    memory = io.BytesIO()
    write_png(memory, picture, {})
    return memory.getvalue()


def keep_copies(images: Sequence[File], keep: Path | None) -> str:
    """Copy images to the folder `keep`, if there is one; return a note if that failed."""
    note = ""
    if keep is None:
        return note
    for image in images:
        png = image.png if isinstance(image, InMemory) else image.read_bytes()
        try:
            _copy(png, keep, image.name)
        except OSError as error:
            log.error("%s could not be copied to %s: %s", image.name, keep, error)
            note = NOT_COPIED
    return note


def _copy(png: bytes, folder: Path, name: str) -> None:
    """Write a picture under a name of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    target = folder / f"{stamp}-{uuid.uuid4().hex[:6]}-{name}"
    write_whole(target, lambda path: path.write_bytes(png))


def write_archive(
    archive: Path, files: Mapping[str, File], reports: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write a ZIP of files and of reports as JSON, both by their names in it.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(archive, lambda path: _zip(path, files, reports))


def _zip(target: Path, files: Mapping[str, File], reports: Mapping[str, Mapping[str, Any]]) -> None:
    with ZipFile(target, "w") as opened:  # stored: PNGs are compressed already
        for name, file in files.items():
            content = file.png if isinstance(file, InMemory) else file.read_bytes()
            opened.writestr(_entry(name), content)
        for name, report in reports.items():
            opened.writestr(_entry(name), json.dumps(report, indent=2, ensure_ascii=False))


def _entry(name: str) -> ZipInfo:
    """Return the head of a ZIP's file, dated now, or as near as the format has it.

    A machine without a clock of its own begins in 1970, where zipfile raises ValueError.
    """
    now = datetime.now().timetuple()[:6]
    entry = ZipInfo(name, min(max(now, FIRST_ZIP_TIME), LAST_ZIP_TIME))
    entry.external_attr = READABLE << 16  # a ZipInfo's own default lets nobody read the file
    return entry
