"""The server's own folder of uploads and results, and the removal of what is old in it.

Gradio's cleaner deletes only what this process has noted in sets, which its threads change while it
reads them; here the folder itself is looked at, so that files of an earlier process go too.

A folder has numbered ones in it, and each running server holds the lock of one. A restarted server
takes the first that is free, most often its own, so that its visitors' results are still there.
"""

import asyncio
import contextlib
import itertools
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import anyio
from filelock import FileLock, Timeout

from core.files import PARTIAL

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 60
RECENT_S = 60
"""What is younger stays, however little room there is: it is being written or fetched."""
LOCK = ".lock"
LONGEST_COPY_S = 3600


@dataclass(frozen=True)
class Limits:
    """What may be kept of uploads and results."""

    hours: int = 24
    gigabytes: int = 10


class OwnFolder:
    """The first of a folder's numbered ones that no running server has; held until the end."""

    def __init__(self, folder: Path):
        """Make it and take its lock.

        Raises:
            OSError: it cannot be made.
        """
        for number in itertools.count():
            self.path = folder / str(number)
            self.path.mkdir(parents=True, exist_ok=True)
            if lock := _taken(self.path):
                self._lock = lock
                return

    def sweep(self, limits: Limits, kept: Collection[Path] = ()) -> None:
        """Remove what is too old, then the oldest until the rest is small enough.

        A run's files go together. `kept` are files in it that stay. What servers have left that
        run no longer goes by the same rule; the folders of running ones are not touched.
        """
        self.path.mkdir(parents=True, exist_ok=True)  # the system's cleaner may have removed it
        _sweep_one(self.path, limits, kept)
        for other in self.path.parent.iterdir():
            if other.name.isdecimal() and other != self.path and (lock := _taken(other)):
                try:
                    _sweep_one(other, limits, ())
                finally:
                    lock.release()


def _taken(folder: Path) -> FileLock | None:
    """Return the lock of a numbered folder, taken; None if a running server has it."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    changed: float
    """When it or anything in it was written or touched last, in Unix seconds."""


def _sweep_one(folder: Path, limits: Limits, kept: Collection[Path]) -> None:
    inside = (one.relative_to(folder) for one in kept if one.is_relative_to(folder))
    protected = {folder / LOCK, *(folder / one.parts[0] for one in inside)}
    entries = sorted(_entries(folder, protected), key=lambda one: one.changed)
    room = limits.gigabytes * 1e9 - sum(one.bytes for one in entries)
    now = time.time()
    for entry in entries:
        age = now - entry.changed
        if age > limits.hours * 3600 or (room < 0 and age > RECENT_S):
            _remove(entry.path)
            room += entry.bytes


def _entries(folder: Path, protected: Collection[Path]) -> Iterator[_Entry]:
    for path in folder.iterdir():
        if path in protected:
            continue
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found = [one.lstat() for one in (path, *path.rglob("*"))]
            # As Gradio: a copy keeps the time of its original, but not that of its inode.
            changed = max(one.st_ctime for one in found)
            yield _Entry(path, sum(one.st_size for one in found if S_ISREG(one.st_mode)), changed)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return  # by Gradio or by its owner
    except OSError as error:
        log.error("%s could not be removed: %s", path, error)


def remove_partial_copies(folder: Path) -> None:
    """Remove copies from the operator's folder that were cut off when a server was killed."""
    for partial in folder.glob(PARTIAL.format("*")):
        if time.time() - partial.lstat().st_mtime > LONGEST_COPY_S:
            _remove(partial)


@contextlib.asynccontextmanager
async def sweeping(work: Callable[[], None]) -> AsyncIterator[None]:
    """Call `work` in a thread now and once a minute, whatever it raises, until the server ends."""

    async def always() -> None:
        while True:
            try:
                await anyio.to_thread.run_sync(work)
            except Exception:
                log.exception("Old uploads and results could not be removed; trying again")
            await asyncio.sleep(SWEEP_EVERY_S)

    task = asyncio.create_task(always())
    try:
        yield
    finally:
        task.cancel()
