"""The cards: what each model family is, where its weights come from, and what suits it.

A card is `models/<name>.toml`; the folder `models/<name>/` beside it holds what is kept locally, in
diffusers' layout, with each ControlNet as a folder `controlnet/<control>/` or as a single file
`controlnet/<control>.safetensors` (or .pth, .ckpt).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from core.errors import BadInput

CONTROL_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Source:
    """A folder of a hub repository."""

    hub: str
    """Repository, owner/name."""
    revision: str
    """Commit, so that the same card always means the same weights."""
    files: Mapping[str, int]
    """What is needed of it: path inside the folder, and its size in bytes."""
    subfolder: str = ""


@dataclass(frozen=True)
class Card:
    """Facts about one model family; see the TOML files for examples."""

    name: str
    title: str
    blurb: str
    """What it is and what it cannot do, for the page."""
    licence: str
    folder: Path
    """What is kept locally; for a single-file base, the configs and tokenizer it is read with."""
    prompts: tuple[str, ...]
    """Example prompts in the model's own words."""
    min_resolution: int
    max_resolution: int
    """Short side in pixels between which it makes sense."""
    preview_matrix: tuple[tuple[float, ...], ...] = ()
    """Latent to RGB in [-1, 1]: a row per latent channel, and perhaps one more, the bias; without
    one it is fitted to the decoder when that is loaded."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """GenerationRequest fields whose default this model changes."""
    base: Source | None = None
    """Where the base comes from when it is not here."""
    controls: Mapping[str, Source] = field(default_factory=dict)
    """Where each ControlNet comes from when it is not here."""
    file: Path | None = None
    """The single-file base, where a user's checkpoint stands in for the card's own."""

    def local_control(self, control: str) -> Path | None:
        """Return the folder or file of a ControlNet kept beside this model."""
        folder = self.folder / "controlnet"
        if (folder / control / "config.json").is_file():
            return folder / control
        for suffix in CONTROL_SUFFIXES:
            if (folder / f"{control}{suffix}").is_file():
                return folder / f"{control}{suffix}"
        return None

    def has_control(self, control: str) -> bool:
        """Tell whether this model knows where to find the named ControlNet."""
        return control in self.controls or self.local_control(control) is not None

    def control_names(self) -> list[str]:
        """Return every ControlNet this model knows, in alphabetical order."""
        local = {path.stem for path in (self.folder / "controlnet").glob("*")}
        return sorted(self.controls.keys() | {name for name in local if self.has_control(name)})


def read_card(path: Path) -> Card:
    """Return the card in a TOML file.

    Raises:
        BadInput: it is no TOML, or a field is missing, unknown or of the wrong form.
    """
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"The model card {path.name} is no valid TOML: {error}.") from error
    _check_fields(Card, facts, path, ("name", "folder", "file"))
    try:
        facts["preview_matrix"] = tuple(
            tuple(map(float, row)) for row in facts.get("preview_matrix", ())
        )
        facts["prompts"] = tuple(map(str, facts["prompts"]))
        if "base" in facts:
            facts["base"] = _source(facts["base"], path)
        facts["controls"] = {
            name: _source(source, path) for name, source in facts.get("controls", {}).items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"The model card {path.name} has a malformed value: {error}.") from error
    return Card(name=path.stem, folder=path.with_suffix(""), **facts)


def _source(facts: dict[str, Any], path: Path) -> Source:
    _check_fields(Source, facts, path, ())
    return Source(**facts)


def _check_fields(record: type, facts: dict[str, Any], path: Path, given: tuple[str, ...]) -> None:
    known = {f.name: f for f in fields(record) if f.name not in given}
    unknown = facts.keys() - known.keys()
    missing = {
        name
        for name, f in known.items()
        if f.default is MISSING and f.default_factory is MISSING and name not in facts
    }
    if unknown:
        raise BadInput(f"The model card {path.name} has an unknown field {sorted(unknown)[0]}.")
    if missing:
        raise BadInput(f"The model card {path.name} lacks the field {sorted(missing)[0]}.")
