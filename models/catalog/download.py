"""Downloads weights from the model hub at the pinned revision, or names exactly what is missing.

They go into the hub client's own cache. A partial file has a temporary name there, and the next try
resumes it; it is renamed once complete, so that it is never taken for a whole one.
"""

import errno
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar, cast

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
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from tqdm import tqdm

from core.errors import WeightsMissing
from models.catalog.cards import Source
from models.catalog.paths import shown

LOGGER = logging.getLogger(__name__)
LOGGER.addHandler(logging.NullHandler())  # without a log, the shell shows the error alone

Answer = TypeVar("Answer")
Watch = Callable[[int, int], None]
"""Called now and then with the bytes that are here and the total; raises to stop."""

HUB_SECONDS = 10
"""Timeout for the hub's answer, and between two pieces of a file."""
SILENT_SECONDS = 60
"""How long a hub that did not answer is not asked again: each missing file would wait anew."""
PIECE = 2**20
"""Bytes between two calls of `watch`: a tenth of a second at 100 Mbit/s."""
MAX_LOST = 5
"""A download fails after so many lost connections without a byte between them."""
PAUSE_S = 1.0
"""Seconds between a lost connection and the next try, and between checks of another's download."""
BUSY = (429, 500, 502, 503, 504)
"""HTTP statuses of a hub that is asked again."""
MAX_BUSY = 5
"""Tries of one question to a busy hub; between them PAUSE_S, doubled each time, or what it asks."""
LONGEST_PAUSE_S = 60
"""Of what a busy hub asks for."""
PART = ".part"
"""Suffix of a partial file."""
PARTIAL = 206
"""HTTP status for a requested range."""
SHA256_DIGITS = 64
"""Length of a large file's ETag, its SHA-256; a small file has the shorter git hash."""
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
"""Errors of a cache that is another user's, or on a disk that is only to be read."""

NETWORK_ERRORS = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
"""What the client raises: the error of its transport library, which differs between versions, and
the system's. Anything else is a bug of ours, and propagates."""
LOST = (NETWORK_ERRORS[0], ConnectionError, TimeoutError)
"""Errors of a broken connection, unless they are an answer of the hub."""
_last_silence = {"at": -float("inf")}
"""When the hub last did not answer, on the monotonic clock."""


class _Lost(ConnectionError):
    """The connection was lost MAX_LOST times."""


def fetch(source: Source, title: str, destination: Path, watch: Watch | None = None) -> Path:
    """Return the local folder of a source, downloaded unless it is in the cache.

    The error names the model by `title`, and `destination` as the folder to put files into by hand.

    Raises:
        WeightsMissing: a file is not in the cache and cannot be downloaded.
        Exception: what `watch` raises.
    """
    folder = snapshot(source)  # the cache first: a pinned revision never changes
    if not _missing(source, folder):
        return folder
    watch = watch or (lambda here, whole: None)
    try:
        _patiently(lambda: _reach_hub(source), lambda: watch(0, sum(source.files.values())))
        _download(source, watch)
        return folder
    except NETWORK_ERRORS as error:
        LOGGER.warning("%s was not fetched: %r", source.hub, error)
        problem, advice = _explain(error)
    missing = _missing(source, folder)
    # `destination` may hold some already: models/sd15 has the configs and the tokenizer.
    missing = {n: size for n, size in missing.items() if not (destination / n).is_file()} or missing
    *others, last = (f"{inside(source, n)} ({amount(size)})" for n, size in missing.items())
    files = f"{', '.join(others)} and {last}" if others else last
    raise WeightsMissing(
        f"{title} needs {files} of huggingface.co/{source.hub}, but {problem}: {advice}, "
        f"or put them into {shown(destination)}."
    )


@contextmanager
def shell_bar(title: str) -> Iterator[Watch]:
    """Yield a watch that draws a progress bar in the shell; no bar if nothing is downloaded."""
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
    return _missing(source, snapshot(source))


def _explain(error: Exception) -> tuple[str, str]:
    """Return what is wrong and what to do, in words."""
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached", "connect and try again"
    if isinstance(error, LOST) and not isinstance(error, HfHubHTTPError):
        return "the connection was lost", "what has come is kept, so connect and try again"
    if isinstance(error, OSError) and error.errno in FULL:
        return "the disk is full", f"make room where {constants.HF_HUB_CACHE} is and try again"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        problem = f"{error.filename or constants.HF_HUB_CACHE} cannot be written to or read"
        return problem, "set HF_HOME to a folder of your own and try again"
    if isinstance(error, HfHubHTTPError) and (told := _explain_refusal(error)):
        return told
    words = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
    return words, "connect and try again"


def _explain_refusal(error: HfHubHTTPError) -> tuple[str, str] | None:
    """Return the same of an answer of the hub; None for one that says itself what is wrong."""
    status = _status(error)
    if status in BUSY:
        return f"the hub is too busy (HTTP {status})", "try again in a few minutes"
    if isinstance(error, GatedRepoError) or status == HTTPStatus.FORBIDDEN:
        problem = f"the hub does not give it to everybody (HTTP {status})"
        return problem, "accept its terms on its page there, log in with `hf auth login`, try again"
    missing = EntryNotFoundError | RepositoryNotFoundError | RevisionNotFoundError
    if isinstance(error, missing) or status == HTTPStatus.NOT_FOUND:
        problem = f"the hub does not have it, or not for everybody (HTTP {status})"
        return problem, "log in with `hf auth login` if it is private, choose another model"
    if status == HTTPStatus.UNAUTHORIZED:
        problem = f"the hub does not accept this machine's token (HTTP {status})"
        return problem, "log in again with `hf auth login`"
    return None


def _status(error: HfHubHTTPError) -> int:
    response = getattr(error, "response", None)  # an error without an answer has none
    return int(response.status_code) if response is not None else 0


def _patiently(ask: Callable[[], Answer], report: Callable[[], None]) -> Answer:
    """Return what `ask` returns, which is called again while the hub is too busy to answer.

    `report` is called in between; what it raises ends the wait.

    Raises:
        HfHubHTTPError: it stays too busy, or refuses.
    """
    for tries in range(1, MAX_BUSY + 1):
        try:
            return ask()
        except HfHubHTTPError as error:
            if _status(error) not in BUSY or tries == MAX_BUSY:
                raise
            asked = str(error.response.headers.get("Retry-After", ""))
            LOGGER.warning("The hub is too busy: %r", error)
        pause = float(asked) if asked.isdecimal() else PAUSE_S * 2**tries
        until = time.monotonic() + min(pause, LONGEST_PAUSE_S)
        while time.monotonic() < until:
            report()
            time.sleep(PAUSE_S)
    raise AssertionError("the last try returns or raises")


def _reach_hub(source: Source) -> None:
    """Request the repository once: a download would retry for half a minute before it fails.

    Raises:
        LocalEntryNotFoundError: the hub does not answer, or did not a moment ago.
        HfHubHTTPError: it refuses, or has no such repository.
        OSError: the proxy cannot be used, or a file of the client not be read.
    """
    try:
        get_session()  # which reads the variables of proxies
    except Exception as error:  # of the client's transport library, which differs between versions
        reason = " ".join(str(error).split()).rstrip(".")
        raise OSError(
            f"the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used ({reason})"
        ) from error
    if time.monotonic() - _last_silence["at"] < SILENT_SECONDS:
        raise LocalEntryNotFoundError("the hub could not be reached")
    try:
        HfApi().model_info(source.hub, revision=source.revision, timeout=HUB_SECONDS)
    except (HfHubHTTPError, PermissionError):
        raise
    except NETWORK_ERRORS as error:
        LOGGER.warning("The hub does not answer: %r", error)
        _last_silence["at"] = time.monotonic()
        raise LocalEntryNotFoundError("the hub cannot be reached") from error


def _download(source: Source, watch: Watch) -> None:
    """Download the missing files into the cache one by one, the small ones first.

    Raises:
        _Lost: the connection was lost.
        Exception: one of NETWORK_ERRORS if hub or disk refuse, or what `watch` raises.
    """
    sizes = dict(sorted(to_download(source).items(), key=lambda one: one[1]))
    begun = sum(_size(part) for part in _repository(source).glob(f"blobs/*{PART}"))
    if sum(sizes.values()) - begun > shutil.disk_usage(_nearest(_repository(source))).free:
        raise OSError(errno.ENOSPC, "there is no room for the download")
    before = 0
    for name, roughly in sizes.items():
        path = inside(source, name)
        url = hf_hub_url(source.hub, path, revision=source.revision)

        def report(here: int, before: int = before) -> None:
            watch(before + here, max(sum(sizes.values()), before + here))

        facts = _patiently(
            partial(get_hf_file_metadata, url, timeout=HUB_SECONDS), partial(report, 0)
        )
        sizes[name] = facts.size or roughly

        blob = _repository(source) / "blobs" / str(facts.etag)
        _receive_in_turn(url, blob, facts.size, report)
        hf_hub_download(source.hub, path, revision=source.revision)  # only links the blob
        before += facts.size or roughly


def _receive_in_turn(url: str, blob: Path, size: int | None, report: Callable[[int], None]) -> None:
    """Download a file, or report its progress while another thread or process does."""
    part = blob.with_name(blob.name + PART)
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(part.with_name(f"{part.name}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=PAUSE_S)
        except Timeout:
            report(_size(part))
    try:
        if not blob.is_file():
            _receive(url, part, size, report)
            _refuse_damaged(part, blob.name)
            part.replace(blob)
    finally:
        lock.release()


def _receive(url: str, part: Path, size: int | None, report: Callable[[int], None]) -> None:
    """Resume a file until it is complete, over lost connections too.

    Raises:
        _Lost: MAX_LOST tries brought no byte.
    """
    tries = 0
    while True:
        here = _size(part)
        if size is not None and here > size:
            part.unlink()
            continue
        report(here)
        if here == size:
            return
        try:
            _patiently(lambda: _stream(url, part, report), lambda: report(_size(part)))
            if size is None:
                return
        except HfHubHTTPError:
            raise
        except LOST as error:
            LOGGER.warning("%s broke off: %r", url, error)
        tries = 0 if _size(part) > here else tries + 1
        if tries == MAX_LOST:
            raise _Lost
        if _size(part) != size:
            time.sleep(PAUSE_S)


def _stream(url: str, part: Path, report: Callable[[int], None]) -> None:
    """Append the rest of a file; what has arrived is kept, however this ends."""
    here = _size(part)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if here:
        headers["Range"] = f"bytes={here}-"
    with get_session().stream("GET", url, headers=headers, timeout=HUB_SECONDS) as response:
        hf_raise_for_status(response)
        if response.status_code != PARTIAL:  # the whole file, although a range was requested
            here = 0
        with part.open("ab" if here else "wb") as file:
            for piece in response.iter_bytes(PIECE):
                file.write(piece)
                here += len(piece)
                report(here)


def _refuse_damaged(part: Path, tag: str) -> None:
    """Delete a large file that differs from the hash in its ETag."""
    if len(tag) != SHA256_DIGITS:
        return
    with part.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == tag:
            return
    part.unlink()
    raise OSError("the download was damaged, and deleted")


def amount(size: int) -> str:
    """Return a size in bytes in words: 1.72 GB, 29 MB; 0 is an unknown size."""
    if size == 0:
        return "its size is not known"
    if size < 1e6:
        return f"{max(1, round(size / 1e3))} kB"
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{round(size / 1e6)} MB"


def _repository(source: Source) -> Path:
    """Return the folder of a repository in the hub client's cache."""
    return Path(constants.HF_HUB_CACHE) / f"models--{source.hub.replace('/', '--')}"


def snapshot(source: Source) -> Path:
    """Return the folder of a source in the hub client's cache, whether it exists or not."""
    return _repository(source) / "snapshots" / source.revision / source.subfolder


def inside(source: Source, name: str) -> str:
    """Return a file's path in its repository."""
    return f"{source.subfolder}/{name}" if source.subfolder else name


def _missing(source: Source, folder: Path) -> dict[str, int]:
    return {name: size for name, size in source.files.items() if not _is_here(folder / name)}


def _is_here(file: Path) -> bool:
    """Tell whether there is such a file; what is in another user's cache is not here."""
    try:
        return file.is_file()
    except PermissionError:
        return False


def _size(file: Path) -> int:
    return file.stat().st_size if _is_here(file) else 0


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest parent that exists."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())
