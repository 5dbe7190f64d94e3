"""Where finished pictures go, and that none is lost where the disk does not take it."""

import errno
import io
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from zipfile import ZipFile

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from apps.web import files
from apps.web.files import InMemory, RunFiles, save_whole, upload_folder
from apps.web.html import results
from core import marking
from core.condition import Condition
from core.metadata import read_settings
from core.request import GenerationResult
from tests.apps.web.html.test_results import _result

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("named", ["", "elsewhere"])
def test_the_upload_folder_is_gradios(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", named)
    assert upload_folder() == Path(get_upload_folder())


@pytest.fixture
def made(canny: Condition) -> GenerationResult:
    """Three images, each with its own pixels."""
    result = _result(canny, 20.0, 90.0, 50.0)
    images = tuple(np.full((64, 128, 3), 60 * k, np.uint8) for k in range(1, 4))
    return replace(result, images=images)


def _so_far(result: GenerationResult, count: int) -> GenerationResult:
    (control,) = result.controls
    few = replace(control, reextracted=control.reextracted[:count], scores=control.scores[:count])
    return replace(
        result, images=result.images[:count], seeds=result.seeds[:count], controls=(few,)
    )


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], None]:
    """Let a disk write half of a file and fail, where a function of the file's name is an error."""
    write = Path.write_bytes

    def on(fails: Callable[[str], Any]) -> None:
        def faulty(path: Path, data: bytes) -> int:
            error = fails(str(path))
            if error is None:
                return write(path, data)
            write(path, data[: len(data) // 2])
            raise error

        monkeypatch.setattr(Path, "write_bytes", faulty)

    return on


def _pixels(file: files.File) -> Any:
    return np.asarray(Image.open(io.BytesIO(file.png) if isinstance(file, InMemory) else file))


def test_each_image_is_written_when_it_is_done_and_once(
    made: GenerationResult, tmp_path: Path
) -> None:
    run = RunFiles(tmp_path / "cache", tmp_path / "keep")
    times = {}
    for count in (1, 2, 3):
        saved = run.save(_so_far(made, count))
        assert len(saved.images) == count == len(list((tmp_path / "keep").iterdir()))
        for file in saved.images:
            assert isinstance(file, Path)
            assert times.setdefault(file, file.stat().st_mtime_ns) == file.stat().st_mtime_ns
    assert not saved.note
    assert [read_settings(file)[0]["seed"] for file in times] == [7, 8, 9]
    assert len(list((tmp_path / "cache").iterdir())) == 1, "a run has one folder"


@pytest.mark.parametrize(
    ("error", "problem"), [(FULL, "is full"), (READ_ONLY, "cannot be written")]
)
def test_pictures_are_shown_whatever_the_disk_takes(
    made: GenerationResult, tmp_path: Path, error: OSError, problem: str, caplog: Any
) -> None:
    """Image 8 is lost, and the sheet and the archive: one sentence names them."""
    lost = ("-8.png", "contact-sheet", "zip")
    replaced = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if any(part in str(target) for part in lost):
            raise error
        return replaced(path, target)

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Path, "replace", refuse)
        (saved,) = save_whole([(made, RunFiles(tmp_path))])
    for file, image in zip(saved.images, made.images, strict=True):
        assert np.array_equal(_pixels(file), image)
    assert [isinstance(file, InMemory) for file in saved.images] == [False, True, False]
    assert saved.archive is None and isinstance(saved.sheet, InMemory)
    assert saved.note.startswith(f"The server's disk {problem}")
    assert "image 2, the contact sheet, the archive" in saved.note and "maps" not in saved.note
    page = results.results(made, saved)
    assert page.count('href="data:image/png;base64,') == 2 and saved.note in page
    assert str(error.strerror) in caplog.text
    assert not list(tmp_path.rglob("*.part")), "half a file would pass for a picture"


def test_without_any_room_all_are_shown(made: GenerationResult, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (saved,) = save_whole([(made, RunFiles(tmp_path / "file" / "cache"))])
    assert all(isinstance(file, InMemory) for file in saved.images)
    page = results.results(made, saved)
    assert page.count('class="cl-card"') == 3 and "gradio_api/file=" not in page
    assert page.count(saved.note) == 1


def test_a_full_disk_costs_the_copy_but_not_the_picture(
    made: GenerationResult, tmp_path: Path, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache, keep = tmp_path / "cache", tmp_path / "keep"
    broken(lambda path: FULL if str(keep) in path else None)
    with caplog.at_level(logging.ERROR):
        saved = RunFiles(cache, keep).save(made)
    assert saved.note.count("could be copied") == 1 and str(tmp_path) not in saved.note
    assert "No space left" in caplog.text and str(keep) in caplog.text
    assert all(isinstance(file, Path) and file.is_file() for file in saved.images)
    assert not list(keep.iterdir()), "half a file would pass for a picture"


@pytest.mark.parametrize("year", [1970, 2200])
def test_the_archive_is_there_whatever_the_clock_says(
    made: GenerationResult, tmp_path: Path, year: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The format has dates from 1980 to 2107 alone."""
    clock = SimpleNamespace(now=lambda: datetime(year, 1, 1))
    monkeypatch.setattr(files, "datetime", clock)
    (saved,) = save_whole([(made, RunFiles(tmp_path))])
    assert not saved.note and saved.archive
    with ZipFile(saved.archive) as archive:
        assert archive.testzip() is None
        for image in saved.images:
            assert isinstance(image, Path) and archive.read(image.name) == image.read_bytes()
        assert all(one.external_attr >> 16 == 0o644 for one in archive.infolist())


def test_where_the_cache_is_full_the_copy_is_kept(
    made: GenerationResult, tmp_path: Path, broken: Any
) -> None:
    cache, keep = tmp_path / "cache", tmp_path / "keep"
    broken(lambda path: FULL if str(cache) in path else None)
    RunFiles(cache, keep).save(made)
    kept = sorted(keep.iterdir(), key=lambda file: file.name.rpartition("-")[2])
    assert [
        np.array_equal(_pixels(file), image) for file, image in zip(kept, made.images, strict=True)
    ]
    assert [read_settings(file)[0]["seed"] for file in kept] == [7, 8, 9]


def test_settings_that_cannot_be_written_cost_no_picture(
    made: GenerationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.save_png

    def fails(target: Any, image: Any, result: GenerationResult, index: int) -> None:
        if index == 1:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        write(target, image, result, index)

    monkeypatch.setattr(files, "save_png", fails)
    saved = RunFiles(tmp_path).save(made)
    assert [np.array_equal(_pixels(f), i) for f, i in zip(saved.images, made.images, strict=True)]
    assert saved.note == "The settings could not be written into image 2."


ENDLESS = """
import sys
from pathlib import Path
import numpy as np
from apps.web.files import RunFiles, _png
noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
run = RunFiles(Path(sys.argv[1]))
for number in range(100_000):
    run.picture(f"{number}.png", "image", lambda: _png(noise))
    print(number, flush=True)
"""


def test_pictures_that_cannot_be_signed_are_shown_and_it_is_told_once(
    made: GenerationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def signed(self, *_: object) -> bytes:
            raise ConnectionError("the authority of the time is out of reach")

    monkeypatch.setattr(marking, "_marks", marking.Marks(signer=cast(Any, Refused())))
    saved = RunFiles(tmp_path).save(made, with_sheet=True)
    assert len(saved.images) == 3 and saved.note == marking.UNSIGNED


@pytest.mark.slow
def test_a_server_that_is_killed_while_saving_leaves_no_broken_picture(tmp_path: Path) -> None:
    for wait in (0.005, 0.02):
        command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None and running.stdout.readline()
            time.sleep(wait)
            running.kill()
    pictures = list(tmp_path.rglob("*.png"))
    assert len(pictures) >= 2
    for picture in pictures:
        Image.open(picture).load()
