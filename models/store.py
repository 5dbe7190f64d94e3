"""Turns a model's name, or the path of a checkpoint, into loaded networks.

One base is kept at a time, and shared by the cards that use it: choosing another drops it, while a
running request keeps what it was given. Beside it stands at most one version of it with LoRAs, of
which the few-step version of the mode preview is one, so that going to and fro reads nothing anew.
ControlNets are kept, the least recently used dropped first. Loading is safe from any thread.
"""

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from core.errors import BadInput, WeightsMissing
from core.request import Download
from models.catalog import download
from models.catalog.cards import (
    CHANNEL_ORDERS,
    CONTROL_SUFFIXES,
    EXTRAS,
    LCM,
    TAESD,
    Card,
    Source,
    find_control,
    read_card,
)
from models.catalog.lora_tags import Strengths, split
from models.catalog.paths import MODELS, shown
from models.checkpoints import embeddings, folders, lora
from models.checkpoints.detect import CHANNEL_ORDER, MERGED, identify, read_metadata, read_shapes
from models.devices import choose_device
from models.networks import DiffusersNetworks

if TYPE_CHECKING:
    from models.checkpoints.loading import Base, Placement

__all__ = ["Card", "Store", "choose_device"]

MODEL_VARIABLE = "CONTROLLOOP_MODEL"
FIRST_MODEL = "diorama"
SD1_CARD = "sd15"
"""The card that a user's own Stable Diffusion 1.x checkpoint is shown and read with."""
V10_CARD = "sd15_v10"
"""The card of ControlNet 1.0, whose control_sd15_*.pth hold a base and a ControlNet in one file."""
CONTROL_BYTES = 2 * 2**30
"""How much of the ControlNets stays loaded: two of Stable Diffusion 1.5's in half precision."""
LORA_FOLDER, EMBEDDINGS_FOLDER = "lora", "embeddings"
"""Beside the cards."""
ControlKey = tuple[Path, str]
"""What a loaded ControlNet is kept under: its place, and the order of its map's channels."""
Loras = tuple[lora.Lora, ...]
ReadyKey = tuple[str, Loras, tuple[str, ...]]
"""What was handed out is found again by: card, LoRAs, ControlNets."""
KEPT_READY = 8
"""Combinations that are kept with what they have encoded; of ten conditions, three at a time, there
are hundreds, and small ControlNets all stay loaded."""
FOLDERS_ORDER = "controlnet_conditioning_channel_order"
"""diffusers' name for the order of a map's channels in the config of a ControlNet's folder."""
HASH_LENGTH = 10
"""Characters of a hash; as many as AUTOMATIC1111 prints, whose users compare them."""


class Store:
    """The models of a folder of cards, loaded on one device.

    Raises:
        BadInput: a malformed device, format, card or environment variable.
        DeviceUnavailable: the device asked for is not there.
    """

    def __init__(
        self, device: str | None = None, dtype: str | None = None, folder: Path = MODELS
    ) -> None:
        """Read the cards in `folder` and choose a device (see choose_device); load nothing."""
        self.device, self.dtype, self.device_note = choose_device(device, dtype)
        self._folder = folder
        self._lock = threading.RLock()
        self._cards = {path.stem: read_card(path) for path in sorted(folder.glob("*.toml"))}
        self._base: tuple[Path, Base] | None = None
        self._merged: tuple[Loras, tuple[nn.Module, nn.Module]] | None = None
        self._controls: OrderedDict[ControlKey, nn.Module] = OrderedDict()
        self._ready: OrderedDict[ReadyKey, tuple[DiffusersNetworks, list[ControlKey]]]
        self._ready = OrderedDict()
        self._hashes: dict[tuple[str, int, int], str] = {}

    def cards(self) -> list[Card]:
        """Return every card, those of checkpoints named by path last."""
        with self._lock:
            return list(self._cards.values())

    @property
    def lora_folder(self) -> Path:
        """Where LoRA files are looked for."""
        return self._folder / LORA_FOLDER

    @property
    def embeddings_folder(self) -> Path:
        """Where textual inversion files are looked for."""
        return self._folder / EMBEDDINGS_FOLDER

    def default_model(self) -> str:
        """Return the model named by CONTROLLOOP_MODEL, else Diorama.

        Raises:
            BadInput: the variable names neither a card nor a path.
        """
        asked = os.environ.get(MODEL_VARIABLE)
        if not asked:
            return FIRST_MODEL
        try:
            return self.card(asked).name
        except (BadInput, WeightsMissing) as error:
            raise BadInput(f"{MODEL_VARIABLE}: {error}") from error

    def card(self, model: str) -> Card:
        """Return the card of a name, or make and keep one for the path of a checkpoint.

        A folder's own card is the TOML file of its name beside it; anything else is shown as
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
            card = self._card_of_path(path)
            if card.name in self._cards:
                card = replace(card, name=str(path))
            self._cards[card.name] = card
            self._offer_other_controls(card)
            return card

    def find(self, model: str, control: str = "") -> tuple[Path, Path | None]:
        """Return where the base and the named ControlNet are, fetched where they are not here.

        Files are checked by their headers and configs; nothing is built from them.

        Raises:
            As load.
        """
        card = self.card(model)
        if control:
            self.require_control(card, control)  # before its base is downloaded for nothing
        base_path = self._find_base(card)
        unet_config = folders.inspect_base(base_path, card.base_folder)
        control_path = self._find_control(card, control) if control else None
        if control_path:
            folders.inspect_control(control_path, unet_config)
        return base_path, control_path

    def fetch(
        self,
        model: str,
        *controls: str,
        watch: Callable[[Download], None],
        few_step: bool = False,
        extras: Iterable[str] = (),
    ) -> None:
        """Bring here what `load` would fetch, and EXTRAS, all of it measured together.

        `watch` is called with what has come, unless nothing is missing; what it raises, rises.

        Raises:
            WeightsMissing: it cannot be fetched.
            BadInput, WeightsMismatch: as load.
        """
        card = self.card(split(model)[0])
        for control in controls:
            self.require_control(card, control)
        if few_step:
            self.require_few_step(card)
        sources = self._sources(card, controls, [*extras, LCM] if few_step else extras)
        wanted = [one for one in sources if download.to_download(one[0])]
        sizes = [sum(download.to_download(source).values()) for source, _, _ in wanted]
        for index, (source, title, place) in enumerate(wanted):

            def told(here: int, whole: int, index: int = index) -> None:
                sizes[index] = whole
                watch(Download(card.title, sum(sizes[:index]) + here, sum(sizes)))

            download.fetch(source, title, place, told)

    def _sources(
        self, card: Card, controls: Iterable[str], extras: Iterable[str] = ()
    ) -> list[tuple[Source, str, Path]]:
        """Return where the base, ControlNets and extras come from that are not kept here.

        With what each is called, and the folder for who fills it by hand.
        """
        found = []
        if card.base and not card.file and not _has_weights(card.base_folder):
            found.append((card.base, card.title, card.base_folder))
        for control in dict.fromkeys(controls):
            if self.local_control(card, control) is None:
                place = card.folder / "controlnet" / control
                title = f"{card.title}'s {control} control"
                found.append((card.controls[control], title, place))
        return found + [
            self._extra_source(card, one) for one in extras if self.local_extra(card, one) is None
        ]

    def require_control(self, card: Card, control: str) -> None:
        """Refuse a ControlNet that a model does not know.

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
        """Refuse the mode preview for a model that has no LoRA for it.

        Raises:
            WeightsMissing: there is none, here or in its card.
        """
        if LCM not in card.extras and self.local_extra(card, LCM) is None:
            raise WeightsMissing(
                f"{card.title} has no LCM-LoRA, which the mode preview needs: choose another mode, "
                f"or put one at {shown(card.base_folder / LCM)}.safetensors."
            )

    def local_extra(self, card: Card, name: str) -> Path | None:
        """Return the folder or file of one of EXTRAS that is kept here.

        A Stable Diffusion 1.x of the user's own that has none takes that kept for the card's base.
        """
        local, sd1 = card.local_extra(name), self._cards.get(SD1_CARD)
        if local or sd1 is None or name not in card.extras or card.extras != sd1.extras:
            return local
        return sd1.local_extra(name)

    def find_extra(self, card: Card, name: str) -> Path:
        """Return where one of EXTRAS that the card knows is, fetched where it is not here.

        Raises:
            WeightsMissing: it cannot be fetched.
        """
        local = self.local_extra(card, name)
        if local:
            return local
        source, title, place = self._extra_source(card, name)
        return download.fetch(source, title, place) / source.single_file

    def _extra_source(self, card: Card, name: str) -> tuple[Source, str, Path]:
        return card.extras[name], f"{card.title}'s {EXTRAS[name]}", card.base_folder / name

    def local_control(self, card: Card, control: str) -> Path | None:
        """Return the folder or file of a ControlNet that is here: the user's own before the card's.

        A single file may have some for itself, in the folder of its name beside it. A merged
        checkpoint brings its own; the name of its file says which (control_sd15_canny), or names
        none, and then it serves as the one that is asked for. The cards that offer another family
        of ControlNets for it are chosen for those, and keep to them.

        Raises:
            WeightsMissing, WeightsMismatch: the user's checkpoint is no file to read.
        """
        sd1 = self._cards.get(SD1_CARD)
        if card.file and sd1 and card.folder == sd1.folder:
            own = find_control(card.file.with_suffix(""), control)
            if own:
                return own
            named = [name for name in card.control_names() if name in card.file.stem.lower()]
            if (control in named or not named) and identify(read_shapes(card.file)).kind == MERGED:
                return card.file
        return card.local_control(control)

    def load(self, model: str, *controls: str, few_step: bool = False) -> DiffusersNetworks:
        """Return the model's networks, with the ControlNets that are named.

        LoRA tags may follow its name: "sd15 <lora:style:0.8>"; `few_step` asks for its version for
        few steps, with its LCM-LoRA too. Files are checked before anything is built from them.
        Waits while another thread loads.

        Raises:
            BadInput: there is no such model, or a LoRA's weight is no number.
            WeightsMissing: a file is not here and cannot be fetched.
            WeightsMismatch: a file is of another family, or damaged.
        """
        model, tags = split(model)
        card, loras = self.card(model), lora.find(tags, self.lora_folder)
        if few_step:
            loras = (*loras, self._lcm(card))
        ready = (card.name, loras, controls)
        with self._lock:
            if ready in self._ready:
                networks, used = self._ready[ready]
                self._ready.move_to_end(ready)
                for key in used:
                    self._controls.move_to_end(key)
                return networks
        # Not under the lock: a download may take long, and others may have what they need.
        keys: dict[str, ControlKey] = {}
        for control in controls or ("",):
            base_path, path = self.find(model, control)
            if path:
                keys[control] = (path, self._channel_order(card, control, path))
        with self._lock:
            networks = self._build(card, base_path, keys, loras)
            self._ready[ready] = (networks, list(keys.values()))
            if len(self._ready) > KEPT_READY:
                self._ready.popitem(last=False)
            return networks

    def _lcm(self, card: Card) -> lora.Lora:
        """Return the LoRA of the few-step version, which no tag names; fetched if not here.

        Raises:
            WeightsMissing: there is none, or it cannot be fetched.
        """
        self.require_few_step(card)
        path = self.find_extra(card, LCM)
        return lora.Lora("", LCM, Strengths(), path, path.stat().st_mtime_ns)

    def _with_taesd(self, card: Card, base: "Base", placement: "Placement") -> "Base":
        """Return the base with a tiny autoencoder for live previews, where one is here."""
        from models.checkpoints import loading  # noqa: PLC0415 - as in _build

        source = card.extras.get(TAESD)
        if self.local_extra(card, TAESD) is None and (
            source is None or download.to_download(source)
        ):
            return base
        return replace(base, taesd=loading.load_taesd(self.find_extra(card, TAESD), placement))

    def _card_of_path(self, path: Path) -> Card:
        own = path.with_suffix(".toml")
        if path.is_dir() and own.is_file():
            return read_card(own)
        if SD1_CARD not in self._cards:
            raise BadInput(f"There is no card {SD1_CARD} to read the checkpoint {path.name} with.")
        card = replace(
            self._cards[SD1_CARD],
            name=path.stem,
            title=path.stem,
            blurb=f"Your own Stable Diffusion 1.x model, {path.name}.",
            licence="see where it came from",
            base=None,
        )
        if path.is_dir():
            return replace(card, folder=path, base_folder=path)
        return replace(card, file=path)

    def _offer_other_controls(self, card: Card) -> None:
        """Make a card with each other family of ControlNets for a Stable Diffusion 1.x of a path.

        `card` is what _card_of_path returned; a folder with a card of its own gets no others.
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

    def _find_base(self, card: Card) -> Path:
        for source, title, place in self._sources(card, ()):
            return download.fetch(source, title, place)
        return card.file or card.base_folder

    def _find_control(self, card: Card, control: str) -> Path:
        local = self.local_control(card, control)
        if local:
            return local
        *_, (source, title, place) = self._sources(card, [control])
        return download.fetch(source, title, place) / source.single_file

    def _channel_order(self, card: Card, control: str, path: Path) -> str:
        """Return the order of the map's channels: the file's own word, else its family's.

        Wherever it lies, a merged file is ControlNet 1.0's.
        """
        said = _said_order(path)
        if said:
            return said
        merged = path.is_file() and identify(read_shapes(path)).kind == MERGED
        family = self._cards.get(V10_CARD) if merged else card
        return family.channel_order(control) if family else ""

    def channel_order_of(self, path: Path) -> str:
        """Return the order of a ControlNet's map's channels by its path alone; "" if not known.

        A card's own, kept here or in the hub client's cache, is known by its place, and a merged
        file by its name.
        """
        with self._lock:
            for card in self._cards.values():
                for control, source in card.controls.items():
                    kept = card.folder / "controlnet"
                    places = (kept / control, *(kept / f"{control}{s}" for s in CONTROL_SUFFIXES))
                    if any(path.is_relative_to(p) for p in (*places, download.snapshot(source))):
                        return self._channel_order(card, control, path)
            v10 = self._cards.get(V10_CARD)
        named = [one for one in v10.controls if one in path.stem.lower()] if v10 else []
        if path.is_dir():
            order = folders.read_json(path / "config.json").get(FOLDERS_ORDER)
            return "bgr" if order == "bgr" else ""
        if v10 and named and identify(read_shapes(path)).kind == MERGED:
            return v10.channel_order(named[0])
        return _said_order(path)

    def _build(
        self, card: Card, base_path: Path, keys: dict[str, ControlKey], loras: Loras
    ) -> DiffusersNetworks:
        # Only here: it imports diffusers, which takes seconds in which the server already answers.
        from models.checkpoints import loading  # noqa: PLC0415

        placement = loading.Placement(self.device, self.dtype)
        if self._base is None or self._base[0] != base_path:
            self._base = self._merged = None  # dropped before the next is loaded: two may not fit
            self._forget()
            base = loading.load_base(base_path, card.base_folder, placement)
            self._base = (base_path, self._with_taesd(card, base, placement))
        base = self._base[1]
        text_encoder, unet = self._with_loras(base, loras)
        hashes = {
            part: self._hash(files) for part, files in folders.weights_files(base_path).items()
        }
        hashes |= {
            f"lora {one.name}" if one.tag else one.name: self._hash([one.path]) for one in loras
        }
        controlnets = {}
        for control, key in keys.items():
            control_path, order = key
            if key not in self._controls:
                self._make_room(_parameters(control_path) * self.dtype.itemsize, keys.values())
                self._controls[key] = loading.load_control(
                    control_path, base.unet, placement, order
                )
            controlnets[control] = self._controls[key]
            files = [control_path]
            if control_path.is_dir():
                files = folders.network_files(control_path)[0]
            hashes[f"controlnet {control}"] = self._hash(files)
            self._controls.move_to_end(key)
        self._drop_controls(but=max(len(keys), 1))
        preview_matrix = base.preview_matrix
        if card.preview_matrix:
            preview_matrix = torch.tensor(
                card.preview_matrix, dtype=torch.float32, device=self.device
            )
        tags = tuple(one.tag for one in loras if one.tag)
        text_config: Any = text_encoder.config
        width = int(text_config.hidden_size)
        return DiffusersNetworks(
            name=" ".join([card.name, *tags]),
            tokenizer=base.tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            vae=base.vae,
            controlnets=controlnets,
            scheduler_config=base.scheduler_config,
            preview_matrix=preview_matrix,
            hashes=hashes,
            device=self.device,
            dtype=self.dtype,
            split_prompt=partial(
                embeddings.split_prompt, self.embeddings_folder, embeddings.bundled(loras), width
            ),
            taesd=base.taesd,
        )

    def _with_loras(self, base: "Base", loras: Loras) -> tuple[nn.Module, nn.Module]:
        """Return the base's text encoder and UNet with LoRAs, of which the latest are kept."""
        if not loras:
            return base.text_encoder, base.unet
        if self._merged is None or self._merged[0] != loras:
            self._merged = None
            self._forget()
            self._merged = (loras, lora.merge(base.text_encoder, base.unet, loras))
        return self._merged[1]

    def _make_room(self, size: int, needed: Iterable[ControlKey]) -> None:
        """Drop the least recently used that so many bytes more leave no room for, but none needed.

        Before these are loaded, so that memory never holds one more than it must.
        """
        for key in [key for key in self._controls if key not in needed]:
            if _bytes(self._controls.values()) + size <= CONTROL_BYTES:
                return
            del self._controls[key]
            self._forget()

    def _drop_controls(self, but: int) -> None:
        """Drop the least recently used beyond CONTROL_BYTES, but none of so many latest."""
        while len(self._controls) > but and _bytes(self._controls.values()) > CONTROL_BYTES:
            self._controls.popitem(last=False)
            self._forget()

    def _forget(self) -> None:
        """Let go of what was handed out, so that what has been dropped can be freed."""
        self._ready.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _hash(self, files: list[Path]) -> str:
        """Return the short SHA-256 of the files' bytes in order; each file is read once."""
        parts = []
        for file in files:
            facts = file.stat()
            key = (str(file), facts.st_size, facts.st_mtime_ns)
            if key not in self._hashes:
                with file.open("rb") as stream:
                    self._hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            parts.append(self._hashes[key])
        whole = parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()
        return whole[:HASH_LENGTH]


def _exists(path: Path) -> bool:
    """Tell whether it is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def _said_order(path: Path) -> str:
    """Return what a ControlNet's single file says of the order of its map's channels."""
    order = read_metadata(path).get(CHANNEL_ORDER, "") if path.is_file() else ""
    return order if order in CHANNEL_ORDERS else ""


def _parameters(path: Path) -> int:
    """Count a ControlNet's parameters by the headers of its files."""
    files = folders.network_files(path)[0] if path.is_dir() else [path]
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    if identify(shapes).kind == MERGED:
        shapes = {n: shape for n, shape in shapes.items() if n.startswith("control_model.")}
    return sum(math.prod(shape) for shape in shapes.values())


def _has_weights(base: Path) -> bool:
    try:
        folders.weights_files(base)
    except WeightsMissing:
        return False
    return True


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(
        parameter.numel() * parameter.element_size()
        for module in modules
        for parameter in module.parameters()
    )
