"""Fetches weights from the model hub at the pinned revision, or says exactly what is missing.

They come into the hub client's own cache. What has come of a file lies there under a temporary
name, and the next try goes on behind it; once whole it is renamed, so that a half file is never
taken for a whole one.
"""

import errno
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from tqdm import tqdm

from core.errors import WeightsMissing
from models.catalog.cards import Source
from models.catalog.paths import shown

LOGGER = logging.getLogger(__name__)
LOGGER.addHandler(logging.NullHandler())  # a shell without a log is told in a sentence, once

Watch = Callable[[int, int], None]
"""Told the bytes that are here and those that there will be, now and then; raises to stop."""

HUB_SECONDS = 10
"""How long the hub may take to answer at all, and between two pieces of a file."""
SILENT_SECONDS = 60
"""How long a hub that did not answer is not asked again, lest every missing file waits anew."""
PIECE = 2**20
"""Bytes from one look at whether to stop to the next: a tenth of a second at 100 Mbit/s."""
LOST_AT_MOST = 5
"""Lost connections without a byte between them, after which a download is given up for now."""
PAUSE_S = 1.0
"""Between a lost connection and the next try, and between looks at another's download."""
PART = ".part"
"""Ends the name of a file of which not all has come."""
PARTIAL = 206
"""HTTP's answer where a part of a file was asked for, and is sent."""
SHA256_DIGITS = 64
"""Length of the tag of a large file, which is its hash; that of a small one is git's, shorter."""
FULL = (errno.ENOSPC, errno.EDQUOT)

NETWORK_ERRORS = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
"""What the client raises of its own: the error of its transport library, which differs from version
to version, and the system's. Anything else is a bug of ours, and rises."""
LOST = (NETWORK_ERRORS[0], ConnectionError, TimeoutError)
"""What a connection ends with that breaks off, unless it is an answer of the hub's."""
_asked_in_vain = {"at": -float("inf")}
"""When that was, on the monotonic clock."""


class _Lost(ConnectionError):
    """A connection broke off and did not come back."""


def fetch(source: Source, title: str, destination: Path, watch: Watch | None = None) -> Path:
    """Return the local folder of a source, from the cache or over the network.

    `title` names the model and `destination` the folder to fill by hand, both for the error.

    Raises:
        WeightsMissing: a file is not in the cache and cannot be fetched now.
        Exception: what `watch` raises.
    """
    folder = snapshot(source)  # the cache first: a pinned revision never changes
    if not _absent(source, folder):
        return folder
    try:
        _reach_hub(source)
        _download(source, watch or (lambda here, whole: None))
        return folder
    except NETWORK_ERRORS as error:
        LOGGER.warning("%s was not fetched.", source.hub, exc_info=True)
        problem, advice = _told(error)
    absent = _absent(source, folder)
    # The folder to fill may hold some already, as models/sd15 does the configs and the tokenizer.
    absent = {n: size for n, size in absent.items() if not (destination / n).is_file()} or absent
    *others, last = (f"{inside(source, n)} ({amount(size)})" for n, size in absent.items())
    files = f"{', '.join(others)} and {last}" if others else last
    raise WeightsMissing(
        f"{title} needs {files} of huggingface.co/{source.hub}, but {problem}: {advice}, "
        f"or put them into {shown(destination)}."
    )


@contextmanager
def shell_bar(title: str) -> Iterator[Watch]:
    """Give a watch that draws a bar in the shell: the bytes, their speed, and the time left.

    Where nothing comes there is no bar.
    """
    bar: tqdm | None = None

    def watch(here: int, whole: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=title, total=whole, initial=here, unit="B", unit_scale=True)
        bar.total = whole
        bar.update(here - bar.n)

    try:
        yield watch
    finally:
        if bar is not None:
            bar.close()


def to_download(source: Source) -> dict[str, int]:
    """Return the files of a source that the client's cache lacks, with their sizes."""
    return _absent(source, snapshot(source))


def _told(error: Exception) -> tuple[str, str]:
    """Return what is wrong in words, and what to do."""
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached", "connect and try again"
    if isinstance(error, LOST) and not isinstance(error, HfHubHTTPError):
        return "the connection was lost", "what has come is kept, so connect and try again"
    if isinstance(error, OSError) and error.errno in FULL:
        return "the disk is full", f"make room where {constants.HF_HUB_CACHE} is and try again"
    words = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
    return words, "connect and try again"


def _reach_hub(source: Source) -> None:
    """Ask for the repository once, since a download tries again for half a minute before it fails.

    Raises:
        LocalEntryNotFoundError: the network or the hub does not answer, or did not a moment ago.
        HfHubHTTPError: it answers that there is none.
    """
    if time.monotonic() - _asked_in_vain["at"] < SILENT_SECONDS:
        raise LocalEntryNotFoundError("the hub could not be reached")
    try:
        HfApi().model_info(source.hub, revision=source.revision, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        raise
    except NETWORK_ERRORS as error:
        LOGGER.warning("The hub does not answer: %r", error)
        _asked_in_vain["at"] = time.monotonic()
        raise LocalEntryNotFoundError("the hub cannot be reached") from error


def _download(source: Source, watch: Watch) -> None:
    """Bring the absent files into the cache, one after the other, the small ones first.

    Raises:
        _Lost: the connection broke off.
        Exception: one of NETWORK_ERRORS where hub or disk refuse, or what `watch` raises.
    """
    sizes = dict(sorted(to_download(source).items(), key=lambda one: one[1]))
    begun = sum(_size(part) for part in _repository(source).glob(f"blobs/*{PART}"))
    if sum(sizes.values()) - begun > shutil.disk_usage(_nearest(_repository(source))).free:
        raise OSError(errno.ENOSPC, "there is no room for what would come")
    before = 0
    for name, roughly in sizes.items():
        path = inside(source, name)
        url = hf_hub_url(source.hub, path, revision=source.revision)
        facts = get_hf_file_metadata(url, timeout=HUB_SECONDS)
        sizes[name] = facts.size or roughly

        def told(here: int, before: int = before) -> None:
            watch(before + here, max(sum(sizes.values()), before + here))

        blob = _repository(source) / "blobs" / str(facts.etag)
        _receive_in_turn(url, blob, facts.size, told)
        hf_hub_download(source.hub, path, revision=source.revision)  # only puts it in its place
        before += facts.size or roughly


def _receive_in_turn(url: str, blob: Path, size: int | None, told: Callable[[int], None]) -> None:
    """Bring a file, or wait while another thread or process does, reporting what has come."""
    part = blob.with_name(blob.name + PART)
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(part.with_name(f"{part.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=PAUSE_S)
        except Timeout:
            told(_size(part))
    try:
        if not blob.is_file():
            _receive(url, part, size, told)
            _refuse_damaged(part, blob.name)
            part.replace(blob)
    finally:
        lock.release()


def _receive(url: str, part: Path, size: int | None, told: Callable[[int], None]) -> None:
    """Go on with a file until all of it is there, also over lost connections.

    Raises:
        _Lost: not a byte came in LOST_AT_MOST tries.
    """
    tries = 0
    while True:
        here = _size(part)
        if size is not None and here > size:
            part.unlink()
            continue
        told(here)
        if here == size:
            return
        try:
            _stream(url, part, told)
            if size is None:
                return
        except HfHubHTTPError:
            raise
        except LOST as error:
            LOGGER.warning("%s broke off: %r", url, error)
        tries = 0 if _size(part) > here else tries + 1
        if tries == LOST_AT_MOST:
            raise _Lost
        if _size(part) != size:
            time.sleep(PAUSE_S)


def _stream(url: str, part: Path, told: Callable[[int], None]) -> None:
    """Add to a file what the hub has beyond it; what has come stays, however this ends."""
    here = _size(part)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
    with get_session().stream("GET", url, headers=headers, timeout=HUB_SECONDS) as response:
        hf_raise_for_status(response)
        if response.status_code != PARTIAL:  # the whole file, asked for or not
            here = 0
        with part.open("ab" if here else "wb") as file:
            for piece in response.iter_bytes(PIECE):
                file.write(piece)
                here += len(piece)
                told(here)


def _refuse_damaged(part: Path, tag: str) -> None:
    """Throw away what differs from the hash that a large file is kept under."""
    if len(tag) != SHA256_DIGITS:
        return
    with part.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == tag:
            return
    part.unlink()
    raise OSError("what came was damaged, and thrown away")


def amount(size: int) -> str:
    """Return a size in bytes as people say it: 1.72 GB, 29 MB; 0 is a size that is not known."""
    if size == 0:
        return "its size is not known"
    if size < 1e6:
        return f"{max(1, round(size / 1e3))} kB"
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{round(size / 1e6)} MB"


def _repository(source: Source) -> Path:
    """Return the folder of a repository in the hub client's cache."""
    return Path(constants.HF_HUB_CACHE) / f"models--{source.hub.replace('/', '--')}"


def snapshot(source: Source) -> Path:
    """Return the folder of a source in the hub client's cache, there or not."""
    return _repository(source) / "snapshots" / source.revision / source.subfolder


def inside(source: Source, name: str) -> str:
    """Return a file's path in its repository."""
    return f"{source.subfolder}/{name}" if source.subfolder else name


def _absent(source: Source, folder: Path) -> dict[str, int]:
    return {name: size for name, size in source.files.items() if not (folder / name).is_file()}


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _nearest(folder: Path) -> Path:
    """Return the folder, or the first one above it that is there."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())
