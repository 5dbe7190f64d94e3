"""Knows which models there are and where their files are, fetching those that are missing.

Finding reads configs and headers of files, pickles among them, so this stands above `checkpoints`;
it builds no network.
"""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import BadInput, SuiteError, WeightsMissing
from core.request import Download
from models.catalog import download
from models.catalog.cards import (
    CHANNEL_ORDERS,
    CONTROL_SUFFIXES,
    EXTRAS,
    LCM,
    Card,
    Source,
    find_control,
    read_card,
)
from models.catalog.lora_tags import split
from models.catalog.paths import MODELS, shown
from models.checkpoints import folders
from models.checkpoints.adapters import inspect_adapter, is_adapter
from models.checkpoints.detect import (
    CHANNEL_ORDER,
    MERGED,
    identify,
    read_metadata,
    read_shapes,
)
from models.checkpoints.prediction import describe_prediction

MODEL_VARIABLE = "CONTROLLOOP_MODEL"
DEFAULT_MODEL = "diorama"
SD1_CARD = "sd15"
"""The card that a user's own Stable Diffusion 1.x checkpoint is shown and read with."""
V10_CARD = "sd15_v10"
"""The card of ControlNet 1.0, whose control_sd15_*.pth hold a base and a ControlNet in one file."""
VAE_FOLDER = "vae"
"""In a base's folder."""
LORA_FOLDER, EMBEDDINGS_FOLDER = "lora", "embeddings"
"""Beside the cards."""
FOLDER_CHANNEL_ORDER = "controlnet_conditioning_channel_order"
"""The key of a ControlNet folder's config.json for the order of its map's channels (diffusers)."""


@dataclass(frozen=True)
class Remote:
    """A part of a model that is not kept locally."""

    source: Source
    title: str
    """For messages."""
    folder: Path
    """Where users may put the files themselves."""

    def fetch(self, watch: download.Watch | None = None) -> Path:
        """Return the file or folder in the hub client's cache, downloaded if it is not there.

        Raises:
            WeightsMissing: it cannot be downloaded.
            Exception: what `watch` raises.
        """
        return download.fetch(self.source, self.title, self.folder, watch) / self.source.single_file


class Registry:
    """The cards of a folder, and the files they stand for. Safe to use from any thread.

    Raises:
        BadInput: a malformed card.
    """

    def __init__(self, folder: Path = MODELS) -> None:
        """Read the cards in `folder`; look at no weights."""
        self.lora_folder = folder / LORA_FOLDER
        self.embeddings_folder = folder / EMBEDDINGS_FOLDER
        self._lock = threading.RLock()
        self._cards = {path.stem: read_card(path) for path in sorted(folder.glob("*.toml"))}

    def cards(self) -> list[Card]:
        """Return every card, those of checkpoints named by path last."""
        with self._lock:
            return list(self._cards.values())

    def default_model(self) -> str:
        """Return the model named by CONTROLLOOP_MODEL, else Diorama.

        Raises:
            BadInput: the variable names neither a card nor a path.
        """
        model = os.environ.get(MODEL_VARIABLE)
        if not model:
            return DEFAULT_MODEL
        try:
            return self.card(model).name
        except (BadInput, WeightsMissing) as error:
            raise BadInput(f"{MODEL_VARIABLE}: {error}") from error

    def card(self, model: str) -> Card:
        """Return the card of a name; the path of a checkpoint gets a card, which is kept.

        A folder's own card is the TOML file of its name beside it; any other checkpoint is shown as
        Stable Diffusion 1.x, once more for each card with other ControlNets for that base.

        Raises:
            BadInput: no card has this name and no file or folder this path.
        """
        with self._lock:
            if model in self._cards:
                return self._cards[model]
            path = Path(model)
            if not model.strip() or not _exists(path):
                raise BadInput(
                    f"There is no model '{model}': choose {', '.join(self._cards)}, "
                    "or give the path of a checkpoint."
                )
            path = path.resolve()
            for card in self._cards.values():
                if path == (card.file or card.folder).resolve():
                    return card
            card = self.card_of_path(path)
            if card.name in self._cards:
                card = replace(card, name=str(path))
            self._cards[card.name] = card
            self._offer_other_controls(card)
            return card

    def card_of_path(self, path: Path) -> Card:
        """Return the card of a checkpoint named by path, without offering it.

        Raises:
            BadInput: a malformed card, or none to read the checkpoint with.
        """
        own = path.with_name(f"{path.name}.toml")  # a folder's name may have a dot
        if path.is_dir() and own.is_file():
            return read_card(own)
        if SD1_CARD not in self._cards:
            raise BadInput(f"There is no card {SD1_CARD} to read the checkpoint {path.name} with.")
        own_model = f"Your own Stable Diffusion 1.x model, {path.name}."
        card = replace(
            self._cards[SD1_CARD],
            name=path.stem,
            title=path.stem,
            blurb=" ".join([own_model, *self.notes(path)]),
            licence="see where it came from",
            base=None,
        )
        if path.is_dir():
            return replace(card, folder=path, base_folder=path)
        return replace(card, file=path)

    def notes(self, path: Path) -> list[str]:
        """Return sentences on what a user's checkpoint lacks or asks for."""
        notes = []
        beside = folders.vae_beside(path) if path.is_file() else None
        try:
            if beside:
                notes.append(f"It is used with the VAE beside it, {beside.name}.")
            elif path.is_file() and folders.lacks_vae(path):
                title = self._cards[SD1_CARD].title
                notes.append(f"It has no VAE of its own and is used with that of {title}.")
            notes.append(describe_prediction(path))
        except SuiteError:  # told when it is loaded
            return []
        return [note for note in notes if note]

    def _offer_other_controls(self, card: Card) -> None:
        """Add a card for each other family of ControlNets that fits a user's SD 1.x checkpoint.

        `card` is what card_of_path returned; a folder with a card of its own gets no others.
        """
        sd1 = self._cards.get(SD1_CARD)
        if sd1 is None or card.controls is not sd1.controls:
            return
        for other in [one for one in self._cards.values() if one.base_of == SD1_CARD]:
            name = f"{card.name}+{other.name}"
            self._cards[name] = replace(
                other,
                name=name,
                title=other.title.replace(sd1.title, card.title),
                blurb=card.blurb,
                licence=card.licence,
                base_of="",
                base=None,
                base_folder=card.base_folder,
                file=card.file,
            )

    def find(self, model: str, control: str = "") -> tuple[Path, Path | None]:
        """Return the paths of the base and the named ControlNet, downloaded if necessary.

        Files are checked by their headers and configs; no network is built.

        Raises:
            BadInput: there is no such model.
            WeightsMissing: a file is not here and cannot be downloaded.
            WeightsMismatch: a file is of another family, or damaged.
        """
        card = self.card(model)
        if control:
            self.require_control(card, control)  # before its base is downloaded in vain
        base = card.file or card.base_folder
        if card.base and not has_base(card):
            base = Remote(card.base, card.title, card.base_folder).fetch()
        unet_config = folders.inspect_base(base, card.base_folder)
        if not control:
            return base, None
        path = self.local_control(card, control) or self._remote_control(card, control).fetch()
        inspect = inspect_adapter if is_adapter(path) else folders.inspect_control
        inspect(path, unet_config)
        return base, path

    def find_vae(self, card: Card) -> Path | None:
        """Return the VAE that replaces a single file's own or missing one, a folder or a file.

        That is the one named after the file beside it, else that of the card's base, downloaded if
        necessary. None if the base has its own.

        Raises:
            WeightsMissing: it cannot be downloaded.
            WeightsMismatch: the single file is damaged.
        """
        if _lacks_vae(card) and self.local_vae(card) is None:
            return self._remote_vae(card).fetch() / VAE_FOLDER
        return self.local_vae(card)

    def local_vae(self, card: Card) -> Path | None:
        """Return such a VAE if it is here; None if the base has its own, or it is to download.

        Raises:
            WeightsMismatch: the single file is damaged.
        """
        beside = folders.vae_beside(card.file) if card.file else None
        if beside or not _lacks_vae(card):
            return beside
        folder = card.base_folder / VAE_FOLDER
        try:
            folders.network_files(folder)
        except WeightsMissing:
            return None
        return folder

    def _remote_vae(self, card: Card) -> Remote:
        base = self._cards[SD1_CARD].base
        folder = card.base_folder / VAE_FOLDER
        if base is None:
            raise WeightsMissing(
                f"{card.title} has no VAE (first_stage_model): put one into {shown(folder)}."
            )
        files = {n: size for n, size in base.files.items() if n.startswith(f"{VAE_FOLDER}/")}
        return Remote(replace(base, files=files), f"{card.title}'s VAE", card.base_folder)

    def find_extra(self, card: Card, name: str) -> Path:
        """Return the path of one of EXTRAS that the card knows, downloaded if necessary.

        Raises:
            WeightsMissing: it cannot be downloaded.
        """
        return self.local_extra(card, name) or self._remote_extra(card, name).fetch()

    def fetch(
        self,
        model: str,
        *controls: str,
        watch: Callable[[Download], None],
        few_step: bool = False,
        extras: Iterable[str] = (),
    ) -> None:
        """Download what Store.load would need, and `extras`, with one progress for all of it.

        `watch` is not called if nothing is missing; an exception that it raises stops the download.

        Raises:
            WeightsMissing: a file cannot be downloaded.
            BadInput, WeightsMismatch: as find.
        """
        card = self.card(split(model)[0])
        for control in controls:
            self.require_control(card, control)
        if few_step:
            self.require_few_step(card)
        remotes = self.remotes(card, controls, [*extras, LCM] if few_step else extras)
        remotes = [one for one in remotes if download.to_download(one.source)]
        sizes = [sum(download.to_download(one.source).values()) for one in remotes]
        for index, remote in enumerate(remotes):

            def report(done: int, size: int, index: int = index) -> None:
                sizes[index] = size
                watch(Download(card.title, sum(sizes[:index]) + done, sum(sizes)))

            remote.fetch(report)

    def remotes(
        self, card: Card, controls: Iterable[str] = (), extras: Iterable[str] = ()
    ) -> list[Remote]:
        """Return those of a model's base, ControlNets and extras that are not kept locally."""
        remotes = []
        if card.base and not has_base(card):
            remotes.append(Remote(card.base, card.title, card.base_folder))
        if _lacks_vae(card) and self.local_vae(card) is None:
            remotes.append(self._remote_vae(card))
        for control in dict.fromkeys(controls):
            if self.local_control(card, control) is None:
                remotes.append(self._remote_control(card, control))
        for name in extras:
            if self.local_extra(card, name) is None:
                remotes.append(self._remote_extra(card, name))
        return remotes

    def _remote_control(self, card: Card, control: str) -> Remote:
        folder = card.folder / "controlnet" / control
        return Remote(card.controls[control], f"{card.title}'s {control} control", folder)

    def _remote_extra(self, card: Card, name: str) -> Remote:
        title = f"{card.title}'s {EXTRAS[name]}"
        return Remote(card.extras[name], title, card.base_folder / name)

    def require_control(self, card: Card, control: str) -> None:
        """Refuse a ControlNet that a model does not have.

        Raises:
            WeightsMissing: there is none of this name; the message lists those there are.
        """
        if not card.has_control(control) and self.local_control(card, control) is None:
            known = ", ".join(card.control_names()) or "none yet"
            raise WeightsMissing(
                f"{card.title} has no ControlNet '{control}' (it has: {known}): choose another "
                f"model, or put one into {shown(card.folder / 'controlnet' / control)}."
            )

    def require_few_step(self, card: Card) -> None:
        """Refuse the mode preview for a model without an LCM-LoRA.

        Raises:
            WeightsMissing: there is none, here or in its card.
        """
        if not self.has_extra(card, LCM):
            raise WeightsMissing(
                f"{card.title} has no LCM-LoRA, which the mode preview needs: choose another mode, "
                f"or put one at {shown(card.base_folder / LCM)}.safetensors."
            )

    def has_extra(self, card: Card, name: str) -> bool:
        """Tell whether a model knows where to find one of EXTRAS."""
        return name in card.extras or self.local_extra(card, name) is not None

    def local_extra(self, card: Card, name: str) -> Path | None:
        """Return the local folder or file of one of EXTRAS.

        A user's Stable Diffusion 1.x checkpoint that has none takes that of Stable Diffusion 1.5.
        """
        local, sd1 = card.local_extra(name), self._cards.get(SD1_CARD)
        if local or sd1 is None or name not in card.extras or card.extras != sd1.extras:
            return local
        return sd1.local_extra(name)

    def local_control(self, card: Card, control: str) -> Path | None:
        """Return the local folder or file of a ControlNet: the user's own before the card's.

        A single-file checkpoint may have its own, in the folder of its name beside it. A merged
        checkpoint contains one; the name of its file says which (control_sd15_canny), or names
        none, and then it serves as any. Cards that offer another family of ControlNets for it are
        chosen for that family, and keep to it.

        Raises:
            WeightsMissing, WeightsMismatch: the user's checkpoint cannot be read.
        """
        sd1 = self._cards.get(SD1_CARD)
        if card.file and sd1 and card.folder == sd1.folder:
            own = find_control(card.file.with_suffix(""), control)
            if own:
                return own
            named = [name for name in card.control_names() if name in card.file.stem.lower()]
            if (control in named or not named) and _is_merged(card.file):
                return card.file
        return card.local_control(control)

    def channel_order(self, card: Card, control: str, path: Path) -> str:
        """Return the order of the map's channels: what the file says, else what its card says.

        A merged file is of ControlNet 1.0, wherever it lies.
        """
        order = _channel_order_in(path)
        if order:
            return order
        merged = path.is_file() and _is_merged(path)
        family = self._cards.get(V10_CARD) if merged else card
        return family.channel_order(control) if family else ""

    def channel_order_of(self, path: Path) -> str:
        """Return the order of a ControlNet's map's channels by its path alone; "" if unknown.

        A card's own, kept here or in the hub client's cache, is recognised by its place, and a
        merged file by its name.
        """
        for card in self.cards():
            for control, source in card.controls.items():
                kept = card.folder / "controlnet"
                places = (kept / control, *(kept / f"{control}{s}" for s in CONTROL_SUFFIXES))
                if any(path.is_relative_to(p) for p in (*places, download.snapshot(source))):
                    return self.channel_order(card, control, path)
        v10 = self._cards.get(V10_CARD)
        named = [one for one in v10.controls if one in path.stem.lower()] if v10 else []
        if path.is_dir():
            order = folders.read_json(path / "config.json").get(FOLDER_CHANNEL_ORDER)
            return "bgr" if order == "bgr" else ""
        if v10 and named and _is_merged(path):
            return v10.channel_order(named[0])
        return _channel_order_in(path)


def _lacks_vae(card: Card) -> bool:
    """Tell whether a card's base is a single file without a VAE."""
    return card.file is not None and folders.lacks_vae(card.file)


def has_base(card: Card) -> bool:
    """Tell whether the weights of a card's base are kept locally."""
    if card.file:
        return True
    try:
        folders.weights_files(card.base_folder)
    except WeightsMissing:
        return False
    return True


def _exists(path: Path) -> bool:
    """Tell whether it is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def _is_merged(path: Path) -> bool:
    return identify(read_shapes(path)).kind == MERGED


def _channel_order_in(path: Path) -> str:
    """Return the channel order in the metadata of a ControlNet's single file, "" without one."""
    order = read_metadata(path).get(CHANNEL_ORDER, "") if path.is_file() else ""
    return order if order in CHANNEL_ORDERS else ""
