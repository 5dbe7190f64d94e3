"""Files below a folder, names that differ only in how a system spells them, and whole writing."""

import os
import unicodedata
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from core.errors import BadInput

PARTIAL = ".controlloop-{}.part"
"""The name of a file that is being written."""
ESCAPED = "backslashreplace"
"""The `errors` of text that holds files' names: odd bytes are written as escapes, which JSON reads
back."""


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and in those below it, by path.

    Folders that are links are entered too, as people share a folder between programs, but each
    folder once: a link may lead back to a folder above it.
    """
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for parent, folders, names in os.walk(start):
                facts = Path(parent).stat()
                if (facts.st_dev, facts.st_ino) in entered:
                    folders.clear()
                    continue
                entered.add((facts.st_dev, facts.st_ino))
                found += (Path(parent, name) for name in names)
                links += (Path(parent, name) for name in folders if Path(parent, name).is_symlink())
        waiting = sorted(links)  # after all that is here itself
    return sorted(path for path in found if is_file(path))


def is_file(path: Path) -> bool:
    """Tell whether there is such a file; a name longer than the system allows is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def plain_name(name: str) -> str:
    """Return a name without what Windows and macOS do not tell apart.

    On Windows Cat.JPG is cat.jpg, and a Mac may write é as two characters, the letter and its
    accent (NFD), where other systems write one (NFC).
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file that a path of another system, from `folder` on, names; None if none does.

    Where none has just this name, one whose plain_name is the same is taken if it is the only one.
    """
    path = folder
    for part in Path(name).parts:
        exact = path / part
        if not os.path.lexists(exact) and path.is_dir():
            alike = _by_plain_name(path, path.stat().st_mtime_ns).get(plain_name(part), [])
            exact = path / alike[0] if len(alike) == 1 else exact
        path = exact
    return path if is_file(path) else None


@lru_cache(maxsize=4)
def _by_plain_name(folder: Path, changed: int) -> dict[str, list[str]]:
    """Return a folder's names by plain name; listed once while the folder is unchanged."""
    names: dict[str, list[str]] = {}
    for path in folder.iterdir():
        names.setdefault(plain_name(path.name), []).append(path.name)
    return names


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file under another name, then give it its own, in place of any other.

    So no file is broken where the program is killed, and a link is replaced, not followed.

    Raises:
        OSError: as `write`; nothing is left of the file.
    """
    partial = target.with_name(PARTIAL.format(uuid.uuid4().hex))
    try:
        write(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file to be written, by its name from a folder of results on.

    Raises:
        BadInput: a link there leads elsewhere, where something may be overwritten.
    """
    path = folder
    for part in Path(name).parts:
        path /= part
        if path.is_symlink():
            raise BadInput(
                f"{path} is a symbolic link, and results are not written through one: please "
                "delete it, or choose another folder."
            )
    return path
