"""Where the models are kept, and how a path is written in a message."""

from pathlib import Path

MODELS = Path(__file__).resolve().parents[1]
"""The folder of the cards and of what is kept beside them."""
ROOT = MODELS.parent
ANNOTATORS = MODELS / "annotators"
"""The folder for the networks of annotators."""


def shown(path: Path) -> str:
    """Return a path for a message: from the repository on where it is inside it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
