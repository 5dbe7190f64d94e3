"""One file per kind of control map: it draws the map, and scores how well two maps agree."""

import importlib
from pathlib import Path

from core.condition import Annotator
from core.errors import BadInput


def annotator_names() -> list[str]:
    """Return every annotator's name: each file here is one, unless it starts with an underscore."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return sorted(file.stem for file in files)


def find_annotator(name: str) -> Annotator:
    """Return the annotator of this name.

    Raises:
        BadInput: there is none; the message lists all names.
    """
    if name not in annotator_names():
        raise BadInput(
            f"There is no condition {name!r}; there are: {', '.join(annotator_names())}."
        )
    annotator: Annotator = importlib.import_module(f"annotators.{name}").ANNOTATOR
    return annotator
