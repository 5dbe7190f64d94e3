"""A ControlNet or T2I-Adapter that `training.train_control` has made, measured where it lies."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadInput
from models.catalog.cards import Card
from models.catalog.paths import MODELS
from models.checkpoints.adapters import CLASS
from models.checkpoints.folders import read_json
from models.registry import Registry
from training.weights import read_metadata

BEST = "best"
"""Folder of a run's best weights."""
KINDS = ("ControlNetModel", CLASS)
"""diffusers' names of what may stand beside a base."""
FOLDER = MODELS
"""Of the cards of the bases."""


@dataclass(frozen=True)
class Trained:
    """A trained ControlNet."""

    folder: Path
    base: str
    """Name of a card, or a path."""
    condition: str
    """Name of the annotator of its maps."""


def find_trained(model: str) -> Trained | None:
    """The ControlNet in a folder of train_control's --save or --out; None for any other model.

    Raises:
        BadInput: It was made by another program, or the run has saved no weights.
    """
    for folder in (Path(model), Path(model, BEST)):
        config = folder / "config.json"
        if config.is_file() and read_json(config).get("_class_name") in KINDS:
            recipe = read_metadata(folder).get("recipe", {})
            if "condition" not in recipe:
                raise BadInput(
                    f"{folder} does not say what it was trained for: put it beside its base, as "
                    "`python -m models check` says, and name the base."
                )
            return Trained(folder, recipe.get("base", "diorama"), recipe["condition"])
    if Path(model, "checkpoint.pt").is_file():
        raise BadInput(
            f"{model} has no weights to measure: train with --validation, or name the folder of "
            "--save."
        )
    return None


class TrainedRegistry(Registry):
    """The cards as they are, but one ControlNet of theirs is the trained one."""

    def __init__(self, trained: Trained, names: Collection[str]) -> None:
        """`names` are those that it is asked for by."""
        super().__init__(FOLDER)
        self._trained, self._names = trained, names

    def local_control(self, card: Card, control: str) -> Path | None:
        """Return the trained ControlNet, or as Registry does."""
        return (
            self._trained.folder if control in self._names else super().local_control(card, control)
        )
