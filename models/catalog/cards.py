"""The cards: what each model family is, where its weights come from, and what suits it.

A card is `models/<name>.toml`; the folder `models/<name>/` beside it holds what is kept locally, in
diffusers' layout, with each ControlNet as a folder `controlnet/<control>/` (a diffusers folder, or
one weights file of any name) or as a single file `controlnet/<control>.safetensors` (.pth, .ckpt).
In the same two ways it may hold the extras of a base: `lcm`, the LoRA that the mode preview merges
in, `taesd`, a tiny autoencoder that decodes the pictures shown while sampling, and
`safety_checker`, as a diffusers folder alone.
A card that only adds other ControlNets to a base has `base_of = "<name of that base's card>"`.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from core.errors import BadInput

Record = TypeVar("Record")

CONTROL_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
CHANNEL_ORDERS = ("", "rgb", "bgr")
INHERITED = ("prompts", "words", "styles", "min_resolution", "max_resolution", "defaults")
"""Fields that a card inherits from its base's card unless it has them itself."""
BASE_ONLY = ("base", "preview_matrix", "extras")
"""Fields of the base, which only its own card may have."""

LCM, TAESD, SAFETY = "lcm", "taesd", "safety_checker"
EXTRAS = {LCM: "mode preview", TAESD: "live preview", SAFETY: "safety check"}
"""Optional parts of a base, and what they are for."""


@dataclass(frozen=True)
class Source:
    """A folder of a hub repository."""

    hub: str
    """Repository, owner/name."""
    revision: str
    """Commit: the same card always means the same weights."""
    files: Mapping[str, int]
    """The files needed: path inside the folder, and size in bytes, 0 if unknown."""
    subfolder: str = ""
    licence: str = ""
    """Of these weights."""
    channel_order: str = ""
    """Order of the map's channels that a ControlNet was trained with, rgb or bgr; if empty its own
    config decides. Maps are RGB everywhere: the network reverses them (checkpoints/loading.py)."""
    preprocessor: str = ""
    """The preprocessor that a ControlNet's pages start with, by the annotator's name for it; the
    annotator's first if empty or unknown."""

    def __post_init__(self) -> None:
        """Refuse an unknown channel order.

        Raises:
            ValueError: it is none of CHANNEL_ORDERS.
        """
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order is '{self.channel_order}', it must be rgb or bgr")

    @property
    def single_file(self) -> str:
        """The one weights file that it consists of; empty for a folder in diffusers' layout."""
        names = list(self.files)
        return names[0] if len(names) == 1 and names[0].endswith(CONTROL_SUFFIXES) else ""


PROMPT = "{prompt}"
"""Where the prompt stands in a style."""


@dataclass(frozen=True)
class Style:
    """Words around a prompt, and words for the negative prompt."""

    prompt: str
    """With PROMPT once."""
    negative: str = ""

    def __post_init__(self) -> None:
        """Refuse a style without a place for the prompt.

        Raises:
            ValueError: PROMPT stands in it not once.
        """
        if self.prompt.count(PROMPT) != 1:
            raise ValueError(f"the style '{self.prompt}' must have {PROMPT} once")

    @property
    def before(self) -> str:
        """What stands before the prompt; it ends with a space, or is empty."""
        before = self.prompt.partition(PROMPT)[0].strip()
        return before and f"{before} "

    @property
    def after(self) -> str:
        """What stands behind the prompt, without the comma between."""
        return self.prompt.partition(PROMPT)[2].strip(" ,")


@dataclass(frozen=True)
class Card:
    """Facts about one model family; see the TOML files for examples."""

    name: str
    title: str
    blurb: str
    """What it is and what it cannot do, for the page."""
    licence: str
    folder: Path
    """Local files: its ControlNets, and its base if it has its own."""
    base_folder: Path
    """Folder of the base, this card's or that of the card in `base_of`; for a single-file base, the
    folder of its configs and tokenizer."""
    prompts: tuple[str, ...]
    """Example prompts in the model's own words."""
    min_resolution: int
    max_resolution: int
    """Bounds of a picture's short side in pixels, for good results."""
    preview_matrix: tuple[tuple[float, ...], ...] = ()
    """Latent to RGB in [-1, 1]: a row per latent channel, and optionally one more, the bias; fitted
    to the decoder at loading if empty."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """GenerationRequest fields whose default this model changes."""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Words and phrases by group: all that the model knows, if these are few; else empty."""
    styles: Mapping[str, "Style"] = field(default_factory=dict)
    """What the page's choice of a style fills into the prompts, by its name there."""
    base_of: str = ""
    """Name of the card whose base this one uses; empty for a base of its own."""
    base: Source | None = None
    """Where the base is downloaded from if it is not local."""
    controls: Mapping[str, Source] = field(default_factory=dict)
    """Where each ControlNet is downloaded from if it is not local."""
    extras: Mapping[str, Source] = field(default_factory=dict)
    """Where each of EXTRAS is downloaded from if it is not local."""
    references: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By annotator, the mean headline score without control and of the autoencoder's own
    reconstructions, as benchmarks.controllability has measured them."""
    file: Path | None = None
    """The user's single-file checkpoint, if it replaces the card's own base."""

    def local_control(self, control: str) -> Path | None:
        """Return the folder or file of a ControlNet kept beside this model."""
        return find_control(self.folder, control)

    def local_extra(self, name: str) -> Path | None:
        """Return the folder or file of one of EXTRAS kept beside the base."""
        return find_network(self.base_folder, name)

    def has_control(self, control: str) -> bool:
        """Tell whether this model knows where to find the named ControlNet."""
        return control in self.controls or self.local_control(control) is not None

    def channel_order(self, control: str) -> str:
        """Return the channel order that the card has for a ControlNet, wherever its weights are."""
        return self.controls[control].channel_order if control in self.controls else ""

    def preprocessor(self, control: str) -> str:
        """Return the preprocessor that the card has for a ControlNet."""
        return self.controls[control].preprocessor if control in self.controls else ""

    @property
    def classes(self) -> tuple[int, ...]:
        """The ADE20K indices of all that it was trained to draw, by its own annotator's config.

        Empty for a base without an annotator of its own.
        """
        config = self.base_folder / "annotator" / "config.json"
        if self.file or not config.is_file():
            return ()
        return tuple(json.loads(config.read_text(encoding="utf-8"))["classes"])

    def control_names(self) -> list[str]:
        """Return every ControlNet this model knows, in alphabetical order."""
        local = {path.stem for path in (self.folder / "controlnet").glob("*")}
        return sorted(self.controls.keys() | {name for name in local if self.has_control(name)})


def find_control(model: Path, control: str) -> Path | None:
    """Return the folder or file of a ControlNet kept in a model's folder."""
    return find_network(model / "controlnet", control)


def find_network(folder: Path, name: str) -> Path | None:
    """Return a network's folder or file: `name`/, or `name` with a suffix."""
    if (folder / name / "config.json").is_file():
        return folder / name
    files = [f for f in (folder / name).glob("*") if f.suffix in CONTROL_SUFFIXES]
    if len(files) == 1:
        return files[0]
    for suffix in CONTROL_SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    return None


def read_card(path: Path) -> Card:
    """Return the card in a TOML file.

    Raises:
        BadInput: it, or the card of its base, is not valid TOML, or a field is missing, unknown or
            malformed.
    """
    facts = _read_toml(path)
    base_folder = path.with_suffix("")
    if facts.get("base_of"):
        facts, base_folder = _with_base(facts, path)
    _check_fields(Card, facts, path, ("name", "folder", "base_folder", "file"))
    try:
        facts["preview_matrix"] = tuple(
            tuple(map(float, row)) for row in facts.get("preview_matrix", ())
        )
        facts["prompts"] = tuple(map(str, facts["prompts"]))
        facts["words"] = {
            group: tuple(map(str, words)) for group, words in facts.get("words", {}).items()
        }
        facts["references"] = {
            name: (float(without), float(at_best))
            for name, (without, at_best) in facts.get("references", {}).items()
        }
        facts["styles"] = {
            name: _record(Style, style, path) for name, style in facts.get("styles", {}).items()
        }
        if "base" in facts:
            facts["base"] = _record(Source, facts["base"], path)
        for kind in ("controls", "extras"):
            facts[kind] = {
                name: _record(Source, source, path) for name, source in facts.get(kind, {}).items()
            }
        for name in facts["extras"].keys() - EXTRAS.keys():
            raise ValueError(f"there is no extra '{name}', it must be {' or '.join(EXTRAS)}")
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"The model card {path.name} has a malformed value: {error}.") from error
    return Card(name=path.stem, folder=path.with_suffix(""), base_folder=base_folder, **facts)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"The model card {path.name} is not valid TOML: {error}.") from error


def _with_base(facts: dict[str, Any], path: Path) -> tuple[dict[str, Any], Path]:
    """Return the card's fields completed from its base's card, and the base's folder."""
    name = str(facts["base_of"])
    other = {card.stem: card for card in path.parent.glob("*.toml")}.get(name)
    if other is None:
        raise BadInput(f"The model card {path.name} uses the base of {name}, which has no card.")
    theirs = _read_toml(other)
    if theirs.get("base_of"):
        raise BadInput(
            f"The model card {path.name} uses the base of {name}, which has none of its own: "
            f"name {theirs['base_of']} instead."
        )
    for field_name in BASE_ONLY:
        if field_name in facts:
            raise BadInput(
                f"The model card {path.name} uses the base of {name} and cannot have the field "
                f"{field_name}: it belongs in {other.name}."
            )
    given = {key: theirs[key] for key in (*INHERITED, *BASE_ONLY) if key in theirs}
    return given | facts, other.with_suffix("")


def _record(record: type[Record], facts: dict[str, Any], path: Path) -> Record:
    _check_fields(record, facts, path, ())
    return record(**facts)


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
