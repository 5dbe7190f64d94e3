"""Fetches weights from the model hub at the pinned revision, or says exactly what is missing.

The hub client's own cache is used, which writes under a temporary name and renames when complete: a
half file is never taken for a whole one.
"""

import time
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from core.errors import WeightsMissing
from models.cards import Source
from models.families import shown

HUB_SECONDS = 10
"""How long the hub may take to answer at all."""
SILENT_SECONDS = 60
"""How long a hub that did not answer is not asked again, lest every missing file waits anew."""
_asked_in_vain = {"at": -float("inf")}
"""When that was, on the monotonic clock."""


def fetch(source: Source, title: str, destination: Path) -> Path:
    """Return the local folder of a source, from the cache or over the network.

    `title` names the model and `destination` the folder to fill by hand, both for the error.

    Raises:
        WeightsMissing: a file is not in the cache and cannot be fetched now.
    """
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    patterns = [prefix + name for name in source.files]
    folder: Path | None = None
    problem = ""
    for cached in (True, False):  # the cache first: a pinned revision never changes
        try:
            if not cached:
                _reach_hub(source)
            folder = Path(
                snapshot_download(
                    source.hub,
                    revision=source.revision,
                    allow_patterns=patterns,
                    local_files_only=cached,
                )
            )
        except LocalEntryNotFoundError:
            problem = "the hub cannot be reached"
        except (HfHubHTTPError, OSError) as error:
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        if folder and not _absent(source, folder / prefix):
            return folder / prefix
    absent = _absent(source, folder / prefix) if folder else dict(source.files)
    # The folder to fill may hold some already, as models/sd15 does the configs and the tokenizer.
    absent = {n: size for n, size in absent.items() if not (destination / n).is_file()} or absent
    largest = max(absent, key=lambda name: absent[name])
    others = f" and {len(absent) - 1} smaller file" if len(absent) > 1 else ""
    others += "s" if len(absent) > 2 else ""
    raise WeightsMissing(
        f"{title} needs {prefix}{largest} ({amount(absent[largest])}){others} of "
        f"huggingface.co/{source.hub}, but {problem}: connect and try again, or put them into "
        f"{shown(destination)}."
    )


def to_download(source: Source) -> dict[str, int]:
    """Return the files of a source that the client's cache lacks, with their sizes."""
    try:
        folder = snapshot_download(source.hub, revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return dict(source.files)
    return _absent(source, Path(folder) / source.subfolder)


def _reach_hub(source: Source) -> None:
    """Ask for the repository once, since a download tries again for half a minute before it fails.

    Raises:
        LocalEntryNotFoundError: the network or the hub does not answer, or did not a moment ago.
    """
    if time.monotonic() - _asked_in_vain["at"] < SILENT_SECONDS:
        raise LocalEntryNotFoundError("the hub could not be reached")
    try:
        HfApi().model_info(source.hub, revision=source.revision, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        raise
    except Exception as error:  # the client's transport library is an implementation detail
        _asked_in_vain["at"] = time.monotonic()
        raise LocalEntryNotFoundError("the hub cannot be reached") from error


def amount(size: int) -> str:
    """Return a size in bytes as people say it: 1.72 GB, 29 MB; 0 is a size that is not known."""
    if size == 0:
        return "its size is not known"
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _absent(source: Source, folder: Path) -> dict[str, int]:
    return {name: size for name, size in source.files.items() if not (folder / name).is_file()}
