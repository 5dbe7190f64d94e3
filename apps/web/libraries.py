"""Whether the libraries here are those that requirements.txt names; told at the start."""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

log = logging.getLogger(__name__)

PINS = Path(__file__).resolve().parents[2] / "requirements.txt"
MEND = "run pip install -r requirements.txt"
OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
"""Packages that all install the module cv2, each over the others' files."""


def check_libraries(pins: Path = PINS, installed: Callable[[str], str] = version) -> None:
    """Refuse libraries of another major version, and a torchvision built for another torch.

    Any other difference is one line in the log, and so are two packages that install one module.
    Nothing is imported: that would take seconds.

    Raises:
        SystemExit: the message is one line that names the libraries and what to do.
    """
    wanted = dict(re.findall(r"^([\w-]+)\S*==(\S+)$", pins.read_text(encoding="utf-8"), re.M))
    here = {name: found for name in wanted if (found := _found(name, installed))}
    wrong = [
        f"{name} {here[name]} is installed, where {Version(pin).major} is needed"
        for name, pin in wanted.items()
        if name in here and Version(here[name]).major != Version(pin).major
    ]
    wrong += _torchvision(here)
    if wrong:
        sys.exit(f"Libraries do not fit: {'; '.join(wrong)}. Please {MEND}.")
    other = [
        f"{name} {here.get(name, 'is missing')} (tested with {pin})"
        for name, pin in wanted.items()
        if name not in here or Version(here[name]).public != pin
    ]
    if other:
        log.warning("Other libraries than those that were tested: %s", ", ".join(other))
    opencv = [name for name in OPENCV if _found(name, installed)]
    if len(opencv) > 1:
        log.warning(
            "%s are installed, and each overwrites the others' cv2: pip uninstall all of them, "
            "then %s",
            " and ".join(opencv),
            MEND,
        )


def load_torchvision() -> None:
    """Load torchvision, as transformers will; say in the log if that fails."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001 - its own libraries raise what they like
        reason = " ".join(str(error).split())
        log.error("torchvision cannot be loaded, so models may fail (%s): %s.", reason, MEND)


def _found(name: str, installed: Callable[[str], str]) -> str:
    """Return the version of a library; "" without it."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return ""


def _torchvision(here: Mapping[str, str]) -> list[str]:
    """Return why torchvision cannot be loaded beside torch, whose operators it extends, if so."""
    if not {"torch", "torchvision"} <= here.keys():
        return []
    for text in requires("torchvision") or ():
        needed = Requirement(text)
        if needed.name == "torch" and not needed.specifier.contains(
            here["torch"], prereleases=True
        ):
            return [
                f"torchvision {here['torchvision']} needs torch {needed.specifier}, and "
                f"{here['torch']} is installed"
            ]
    return []
