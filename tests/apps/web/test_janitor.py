"""What is old is removed from the server's folder, whoever left it, and nothing that is in use."""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.web import janitor
from apps.web.janitor import Limits, OwnFolder, remove_partial_copies, sweeping
from core.files import PARTIAL

HOUR = 3600.0


def _run(folder: Path, name: str, size: int = 10) -> Path:
    """A run's folder with two files of half the size each."""
    (folder / name).mkdir()
    for file in ("image.png", "map.png"):
        (folder / name / file).write_bytes(bytes(size // 2))
    return folder / name


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass for the janitor."""
    now = [0.0]
    clock = time.time
    monkeypatch.setattr(janitor.time, "time", lambda: clock() + now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_what_is_older_than_the_limit_goes_with_its_folder(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    own = OwnFolder(tmp_path)
    old, upload = _run(own.path, "old"), own.path / "tmpabc"
    upload.touch()  # of an upload that was broken off
    later(23 * HOUR)
    own.sweep(Limits(hours=24))
    assert old.is_dir() and upload.is_file()
    later(2 * HOUR)
    own.sweep(Limits(hours=24))
    assert not old.exists() and not upload.exists()


def test_the_examples_stay(tmp_path: Path, later: Callable[[float], None]) -> None:
    own = OwnFolder(tmp_path)
    example = _run(own.path, "example") / "image.png"
    later(1000 * HOUR)
    own.sweep(Limits(hours=1), {example, Path("/elsewhere/x.png")})
    assert example.is_file()


@pytest.mark.slow
def test_the_oldest_go_first_until_the_rest_is_small_enough(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    own = OwnFolder(tmp_path)
    runs = []
    for name in ("c", "a", "d", "b"):  # not in the order of their names
        runs.append(_run(own.path, name, 400))
        time.sleep(0.02)
    (runs[0] / "map.png").write_bytes(bytes(200))  # has just got another file
    limits = Limits(gigabytes=1e-6)  # type: ignore[arg-type] # 1000 bytes
    own.sweep(limits)
    assert all(run.is_dir() for run in runs), "what is being written or fetched stays"
    later(janitor.RECENT_S + 1)
    own.sweep(limits)
    assert [run.is_dir() for run in runs] == [True, False, False, True]


def test_what_is_touched_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "RECENT_S", 0.2)
    own = OwnFolder(tmp_path)
    run, limits = _run(own.path, "run"), Limits(gigabytes=0)
    for _ in range(3):
        time.sleep(0.15)
        os.utime(run)
        own.sweep(limits)
        assert run.is_dir()
    time.sleep(0.3)
    own.sweep(limits)
    assert not run.exists()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=8), st.integers(0, 150))
def test_no_more_than_the_limit_stays_and_no_less_than_fits(sizes: list[int], most: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        own = OwnFolder(Path(folder))
        for number, size in enumerate(sizes):
            (own.path / str(number)).write_bytes(bytes(size))
        patch.setattr(janitor, "RECENT_S", -1)
        own.sweep(Limits(gigabytes=most / 1e9))  # type: ignore[arg-type]
        left = {file.name for file in own.path.iterdir()} - {janitor.LOCK}
        kept = [size for number, size in enumerate(sizes) if str(number) in left]
        gone = [size for number, size in enumerate(sizes) if str(number) not in left]
        assert sum(kept) <= most
        assert not gone or sum(kept) + max(gone) > most, "one more would have fitted"


HOLD = """
import sys, time
from pathlib import Path
from apps.web.janitor import OwnFolder
own = OwnFolder(Path(sys.argv[1]))
print(own.path, flush=True)
time.sleep(600)
"""


def test_a_running_servers_files_stay_and_a_killed_ones_go(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        run = _run(theirs, "theirs")
        own = OwnFolder(tmp_path)
        assert own.path != theirs
        later(30 * HOUR)
        own.sweep(Limits())
        assert run.is_dir()
    finally:
        other.kill()
        other.wait()
    own.sweep(Limits())
    assert not run.exists()


def test_a_restarted_server_goes_on_with_its_files(tmp_path: Path) -> None:
    before = OwnFolder(tmp_path)
    run, path = _run(before.path, "run"), before.path
    assert OwnFolder(tmp_path).path != path
    del before
    after = OwnFolder(tmp_path)
    assert after.path == path
    after.sweep(Limits())
    assert run.is_dir()


def test_a_folder_that_the_systems_cleaner_removed_is_made_again(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    own = OwnFolder(tmp_path / "controlloop")
    shutil.rmtree(tmp_path / "controlloop")
    own.sweep(Limits())
    old = _run(own.path, "old")
    later(30 * HOUR)
    own.sweep(Limits())
    assert own.path.is_dir() and not old.exists()


def test_a_file_that_cannot_be_removed_does_not_keep_the_others(
    tmp_path: Path,
    later: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = OwnFolder(tmp_path)
    runs = [_run(own.path, name) for name in "abc"]
    later(30 * HOUR)
    remove = janitor.shutil.rmtree

    def fails(path: Path) -> None:
        if path == runs[1]:
            raise PermissionError(13, "Permission denied")
        remove(path)

    monkeypatch.setattr(janitor.shutil, "rmtree", fails)
    with caplog.at_level(logging.ERROR):
        own.sweep(Limits())
    assert [run.exists() for run in runs] == [False, True, False] and str(runs[1]) in caplog.text


def test_a_link_is_removed_and_what_it_points_to_is_not(
    tmp_path: Path, later: Callable[[float], None]
) -> None:
    elsewhere = _run(tmp_path, "elsewhere")
    own = OwnFolder(tmp_path / "own")
    (own.path / "link").symlink_to(elsewhere)
    (_run(own.path, "run") / "link").symlink_to(elsewhere)
    later(30 * HOUR)
    own.sweep(Limits())
    assert [file.name for file in own.path.iterdir()] == [janitor.LOCK]
    assert len(list(elsewhere.iterdir())) == 2


def test_whatever_one_sweep_raises_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(janitor, "SWEEP_EVERY_S", 0.001)
    sweeps: list[Any] = []

    def work() -> None:
        sweeps.append(None)
        raise RuntimeError("set changed size during iteration")

    async def serve() -> None:
        async with sweeping(work):
            while len(sweeps) < 3:
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(serve(), 60))
    assert "set changed size" in caplog.text


def test_copies_that_were_cut_off_are_removed_and_pictures_are_not(tmp_path: Path) -> None:
    partial, fresh = (tmp_path / PARTIAL.format(name) for name in ("old", "fresh"))
    picture = tmp_path / "20260101-000000-abcdef-canny2image-5.png"
    for file in (partial, fresh, picture):
        file.touch()
    for file in (partial, picture):
        os.utime(file, (0, 0))
    remove_partial_copies(tmp_path)
    assert not partial.exists() and fresh.exists() and picture.exists()
