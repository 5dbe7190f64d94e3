"""Where the models are kept, and how a path is written in a message."""

import os
from collections.abc import Iterable
from pathlib import Path

MODELS = Path(__file__).resolve().parents[1]
"""The folder of the cards and of what is kept beside them."""
ROOT = MODELS.parent
ANNOTATORS = MODELS / "annotators"
"""The folder for the networks of annotators."""


def shown(path: Path) -> str:
    """Return a path for a message: from the repository on where it is inside it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


LISTING = "CONTROLLOOP_FILE_NAMES"
LISTINGS = LIST_NAMES, HIDE_NAMES = ("shown", "hidden")
"""Whether visitors are told which LoRAs and embeddings there are, when they ask for another."""


def in_folder(folder: Path, names: Iterable[str]) -> str:
    """Return where a file was sought and what is there, for a message, if visitors may know it."""
    if os.environ.get(LISTING) == HIDE_NAMES:
        return "on this server"
    return f"in {shown(folder)} (it has: {', '.join(names) or 'none yet'})"
