"""A batch of files that a visitor has sent to a page: pictures, captions, and ZIPs of both."""

import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

from apps.batch.folder import Batch, FolderRun
from apps.web.files import LARGEST_UPLOAD, LARGEST_UPLOAD_MB, upload_folder
from apps.web.jobs.request import path_in, uploaded
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import BadInput
from core.params import settings_of
from core.picture_folder import PictureFolder, read_folder
from core.pipeline import draw_seed
from core.request import SETTINGS, Progress

MOST_PICTURES = 100
MOST_FILES = 4 * MOST_PICTURES
"""With captions and what systems leave beside them."""
LARGEST_BATCH = 10 * LARGEST_UPLOAD
"""In bytes, of all files once they are unpacked."""
NO_PICTURES = "There are no pictures yet; please add several, or a ZIP of them."
CHUNK = 2**20
CANNOT_BE_UNPACKED = (BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
"""What Python raises for archives that are damaged, or compressed in a way that it cannot read."""


class UploadRun:
    """A FolderRun of uploaded files, with the interface of a Job."""

    def __init__(
        self,
        suite: Suite,
        condition: Condition,
        given: Mapping[str, Any],
        records: object,
        out: Path,
    ):
        """Check the raw values of a page, by field name, and Gradio's records of the files.

        Raises:
            SuiteError: there is no file, or a setting is out of bounds.
        """
        known = (SETTINGS.keys() | settings_of(condition.annotator.params)) - {"prompt", "edit"}
        settings = {
            name: value for name, value in given.items() if name in known and value is not None
        }
        if settings.get("seed", -1) == -1:
            settings["seed"] = draw_seed()
        if not isinstance(records, list) or not records:
            raise BadInput(NO_PICTURES)
        self._files = [Path(uploaded(path_in(record))) for record in records]
        self.out = out
        """The folder of the results."""
        self.finished = False
        self._run = FolderRun(suite, condition, out, settings, str(given["prompt"] or ""))

    def stop(self) -> None:
        """Stop within a step; finished pictures are kept. May be called in any thread."""
        self._run.stop()

    @property
    def stopped(self) -> bool:
        """Whether stop was called."""
        return self._run.stopped

    def run(self) -> Iterator[Batch | Progress | None]:
        """Make the images; yield as FolderRun.run.

        Raises:
            BadInput: there is no picture among the files, or there are too many.
        """
        try:
            # Where the janitor finds it if the server is killed.
            with tempfile.TemporaryDirectory(dir=upload_folder()) as folder:
                for report in self._run.run(pictures_of(self._files, Path(folder))):
                    os.utime(folder)  # in use, for the janitor
                    yield report
        finally:
            self.finished = True


def pictures_of(files: Sequence[Path], folder: Path) -> PictureFolder:
    """Put files into an empty folder, ZIPs unpacked, and read it; bad ones are named in `bad`.

    Raises:
        BadInput: there is no picture among them, or there are too many files or bytes.
    """
    space, bad = _Space(), dict[str, str]()
    for file in files:
        if file.suffix.lower() == ".zip":
            try:
                bad |= _unpack(file, folder, space)
            except CANNOT_BE_UNPACKED:
                bad[file.name] = "This ZIP is damaged; please pack it again."
        else:
            with file.open("rb") as source:
                space.take(source, _free_name(folder / file.name))
    try:
        found = read_folder(folder)
    except BadInput as error:
        if not bad:
            told = str(error).replace(f"{folder}/", "").replace(str(folder), "these files")
            raise BadInput(told) from error
        found = PictureFolder()
    if len(found.rows) > MOST_PICTURES:
        raise BadInput(
            f"These are {len(found.rows)} pictures; please send at most {MOST_PICTURES} at a time."
        )
    found.bad |= bad
    return found


class _Space:
    """What a batch may take on the disk."""

    def __init__(self) -> None:
        self._bytes, self._files = LARGEST_BATCH, MOST_FILES

    def take(self, source: BinaryIO | Any, target: Path) -> None:
        """Copy a file.

        Raises:
            BadInput: it is too large, or there is no more space.
        """
        self._files -= 1
        target.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with target.open("wb") as copy:
            # An archive's own word for a size may be wrong.
            while block := source.read(min(CHUNK, LARGEST_UPLOAD + 1 - size)):
                size += len(block)
                copy.write(block)
        self._bytes -= size
        if self._files < 0 or self._bytes < 0:
            raise BadInput(
                f"These are too many files: please send at most {MOST_PICTURES} pictures, and "
                f"{LARGEST_BATCH // 2**20} MB, at a time."
            )
        if size > LARGEST_UPLOAD:
            target.unlink()
            raise _TooLarge(f"It has more than {LARGEST_UPLOAD_MB} MB; please shrink it.")


class _TooLarge(BadInput):
    """One file is; the others may do."""


def _unpack(archive: Path, folder: Path, space: _Space) -> dict[str, str]:
    """Unpack a ZIP into a folder; return what is wrong with its files, by name."""
    bad = {}
    with ZipFile(archive) as opened:
        for member in opened.infolist():
            if member.is_dir():
                continue
            try:
                target = _inside(folder, member)
                with opened.open(member) as source:
                    space.take(source, target)
            except _TooLarge as error:
                bad[member.filename] = str(error)
            except (*CANNOT_BE_UNPACKED, OSError, ValueError):
                bad[member.filename] = "It cannot be unpacked; please pack it again."
            except RuntimeError:  # zipfile's, without a type of its own
                bad[member.filename] = "It is encrypted; please pack it without a password."
    return bad


def _inside(folder: Path, member: ZipInfo) -> Path:
    """Return where a member belongs; one that names a place outside stays inside.

    Raises:
        ValueError: it has no name.
    """
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    if not (names := [part for part in parts if part not in ("/", "//", "..")]):
        raise ValueError(member.filename)
    return _free_name(folder.joinpath(*names))


def _free_name(path: Path) -> Path:
    """Return a path, or it with a number: two cameras may both have an IMG_1.jpg."""
    number, free = 2, path
    while free.exists():
        free = path.with_stem(f"{path.stem} ({number})")
        number += 1
    return free
