"""Turns a model's name, or the path of a checkpoint, into loaded networks.

One base is kept at a time, shared by the cards that use it: choosing another drops it, while a
running request keeps its own. With it at most one version with LoRAs is kept (that of the mode
preview is one), so that switching back and forth reads nothing again. ControlNets are kept, and the
least recently used dropped first. Loading is safe from any thread.
"""

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from core.errors import BadInput, SuiteError
from models.catalog import download
from models.catalog.cards import LCM, SAFETY, TAESD, Card
from models.catalog.lora_tags import Strengths, split
from models.catalog.paths import MODELS
from models.checkpoints import embeddings, folders, lora
from models.checkpoints.detect import MERGED, identify, read_shapes
from models.devices import choose_device, share_device
from models.engine.layers import can_be_light, held_bytes, lighten
from models.networks import DiffusersNetworks
from models.registry import Registry

if TYPE_CHECKING:
    from models.checkpoints.loading import Base, Placement

SAFETY_VARIABLE = "CONTROLLOOP_SAFETY_CHECKER"
BaseKey = tuple[Path, Path | None, Path | None, bool]
"""Identifies a loaded base: its path, that of its VAE if it lies elsewhere, and of its safety
checker if it is to be used, and whether it is light."""
CONTROL_BYTES = 2 * 2**30
"""Usual limit of the loaded ControlNets: two of Stable Diffusion 1.5's in half precision."""
ControlKey = tuple[Path, str, Path | None, bool]
"""Identifies a loaded ControlNet: its path, the order of its map's channels, the base added to it
if it is stored as a difference, and whether it is light."""
Loras = tuple[lora.Lora, ...]
ReadyKey = tuple[str, Loras, tuple[str, ...], bool]
"""Identifies what was handed out: card, LoRAs, ControlNets, and whether they are light."""
LIGHT_SHARE = 0.52
"""Of a ControlNet's memory in bfloat16, with its weights in 8 bits."""
NOT_LIGHT = (
    "The mode light has kernels for x86 processors with AVX2 on Linux, with GCC (g++) and the "
    "format bfloat16, and not for a GPU: please choose another mode."
)
KEPT_READY = 8
"""Combinations that are kept with their encoded prompts. Of ten conditions, three at a time, there
are hundreds, and small ControlNets all stay loaded."""
HASH_LENGTH = 10
"""Characters of a hash; as many as AUTOMATIC1111 prints, whose users compare them."""


class Store:
    """Loads the models of a registry on one device, and keeps the latest.

    Raises:
        BadInput: a malformed device, format, card or environment variable.
        DeviceUnavailable: the requested device is not in this machine.
    """

    def __init__(
        self,
        device: str | None = None,
        dtype: str | None = None,
        folder: Path = MODELS,
        most_control_bytes: int = CONTROL_BYTES,
        safety_checker: bool | None = None,
    ) -> None:
        """Read the cards in `folder`; choose a device (see choose_device), for annotators too.

        ControlNets that nobody uses are dropped to keep all of them within `most_control_bytes`.
        With `safety_checker` models are loaded with theirs; None reads the environment variable
        CONTROLLOOP_SAFETY_CHECKER.
        """
        self.safety_checker = _is_asked_for() if safety_checker is None else safety_checker
        self.most_control_bytes = most_control_bytes
        self.device, self.dtype, self.device_note = choose_device(device, dtype)
        share_device(self.device)
        self.registry = Registry(folder)
        self._lock = threading.RLock()
        self._base: tuple[BaseKey, Base] | None = None
        self._merged: tuple[Loras, tuple[nn.Module, nn.Module]] | None = None
        self._controls: OrderedDict[ControlKey, nn.Module] = OrderedDict()
        self._loaded_controls: WeakValueDictionary[ControlKey, nn.Module] = WeakValueDictionary()
        """Those that are kept, and those that only running requests still use."""
        self._ready: OrderedDict[ReadyKey, tuple[DiffusersNetworks, list[ControlKey]]]
        self._ready = OrderedDict()
        self._hashes: dict[tuple[str, int, int], str] = {}

    def load(
        self, model: str, *controls: str, few_step: bool = False, light: bool = False
    ) -> DiffusersNetworks:
        """Return the model's networks with the named ControlNets.

        LoRA tags may follow its name: "sd15 <lora:style:0.8>"; `few_step` adds its LCM-LoRA.
        `light` ones have the weights of their large layers in 8 bits. Files are checked before
        anything is built from them. Waits while another thread loads.

        Raises:
            BadInput: there is no such model, a LoRA's weight is not a number, or nothing here runs
                light networks.
            WeightsMissing: a file is not here and cannot be downloaded.
            WeightsMismatch: a file is of another family, or damaged.
        """
        model, tags = split(model)
        card, loras = self.registry.card(model), lora.find(tags, self.registry.lora_folder)
        if few_step:
            loras = (*loras, self._lcm(card))
        if light:
            self._require_light()
        ready = (card.name, loras, controls, light)
        with self._lock:
            if ready in self._ready:
                networks, used = self._ready[ready]
                self._ready.move_to_end(ready)
                for key in used:
                    self._controls.move_to_end(key)
                return networks
        # Not under the lock: a download may take long, and other threads may need none.
        base_path, keys = self._find(card, controls, light)
        vae_path = self.registry.find_vae(card)
        checker = self.registry.find_extra(card, SAFETY) if self._is_checked(card) else None
        with self._lock:
            networks = self._build(card, (base_path, vae_path, checker, light), keys, loras)
            self._ready[ready] = (networks, list(keys.values()))
            if len(self._ready) > KEPT_READY:
                self._ready.popitem(last=False)
            return networks

    def _require_light(self) -> None:
        if not can_be_light(self.device, self.dtype):
            raise BadInput(NOT_LIGHT)

    def _find(
        self, card: Card, controls: Iterable[str], light: bool
    ) -> tuple[Path, dict[str, ControlKey]]:
        """Return the paths of a base and its ControlNets, downloaded if necessary."""
        keys: dict[str, ControlKey] = {}
        for control in controls or ("",):
            base_path, path = self.registry.find(card.name, control)
            if path:
                order = self.registry.channel_order(card, control, path)
                added = base_path if folders.is_difference(path) else None
                keys[control] = (path, order, added, light)
        return base_path, keys

    def control_bytes(
        self, model: str, *controls: str, light: bool = False
    ) -> dict[ControlKey, int]:
        """Return how many bytes each of the ControlNets of `load` takes once it is loaded.

        Raises:
            SuiteError: as load.
        """
        _, keys = self._find(self.registry.card(split(model)[0]), controls, light)
        return {key: self._control_bytes(key) for key in keys.values()}

    def _control_bytes(self, key: ControlKey) -> int:
        path, *_, light = key
        share = LIGHT_SHARE if light else 1
        return int(_parameter_count(path) * self.dtype.itemsize * share)

    def extras(self, model: str) -> list[str]:
        """Return those of EXTRAS that load reads whatever the mode: the safety checker, or none.

        Raises:
            BadInput: there is no such model.
        """
        return [SAFETY] if self._is_checked(self.registry.card(split(model)[0])) else []

    def safety_note(self) -> str:
        """Return a sentence for the log that names the models that are not checked, if asked for.

        "" if none is to be checked, or all are.
        """
        names = [card.name for card in self.registry.cards() if not self._is_checked(card)]
        if not self.safety_checker or not names:
            return ""
        return (
            f"{SAFETY_VARIABLE} is on, but these models have no safety checker, so their pictures "
            f"are not checked: {', '.join(names)}."
        )

    def _is_checked(self, card: Card) -> bool:
        return self.safety_checker and self.registry.has_extra(card, SAFETY)

    def hashes(self, model: str, *controls: str) -> dict[str, str]:
        """Return the hashes that networks of `load` have, of the files that are here.

        What is missing, or damaged, is left out; nothing is downloaded or loaded.

        Raises:
            BadInput: there is no such model.
        """
        model, tags = split(model)
        card = self.registry.card(model)
        found: dict[str, str] = {}
        for control in ("", *filter(card.has_control, controls)):
            remotes = self.registry.remotes(card, filter(None, [control]))
            if any(download.to_download(one.source) for one in remotes):
                continue
            with suppress(SuiteError):
                base, path = self.registry.find(model, control)
                vae = self.registry.find_vae(card)
                found |= self._hashes_of(base, vae, {control: path} if path else {}, ())
        for tag in tags:
            with suppress(SuiteError):
                loras = lora.find([tag], self.registry.lora_folder)
                found |= {f"lora {one.name}": self._hash([one.path]) for one in loras}
        return found

    def _hashes_of(
        self, base: Path, vae: Path | None, controls: Mapping[str, Path], loras: Loras
    ) -> dict[str, str]:
        """Return the hash of each weights file, by part; `vae` is one that lies elsewhere."""
        hashes = {part: self._hash(files) for part, files in folders.weights_files(base).items()}
        for one in loras:
            hashes[f"lora {one.name}" if one.tag else one.name] = self._hash([one.path])
        networks = {f"controlnet {name}": path for name, path in controls.items()}
        for part, path in (networks | ({"vae": vae} if vae else {})).items():
            files = folders.network_files(path)[0] if path.is_dir() else [path]
            hashes[part] = self._hash(files)
        return hashes

    def _lcm(self, card: Card) -> lora.Lora:
        """Return the LoRA of the few-step version, which no tag names; downloaded if necessary.

        Raises:
            WeightsMissing: there is none, or it cannot be downloaded.
        """
        self.registry.require_few_step(card)
        path = self.registry.find_extra(card, LCM)
        return lora.Lora("", LCM, Strengths(), path, path.stat().st_mtime_ns)

    def _with_taesd(self, card: Card, base: "Base", placement: "Placement") -> "Base":
        """Return the base with a tiny autoencoder for live previews, if one is here."""
        from models.checkpoints import loading  # noqa: PLC0415 - as in _build

        source = card.extras.get(TAESD)
        if self.registry.local_extra(card, TAESD) is None and (
            source is None or download.to_download(source)
        ):
            return base
        path = self.registry.find_extra(card, TAESD)
        return replace(base, taesd=loading.load_taesd(path, placement))

    def _build(
        self,
        card: Card,
        base_key: BaseKey,
        keys: dict[str, ControlKey],
        loras: Loras,
    ) -> DiffusersNetworks:
        """Return the networks of a base and ControlNets."""
        # Only here: it imports diffusers, which takes seconds, and the server must answer before.
        from models.checkpoints import loading  # noqa: PLC0415

        base_path, vae_path, checker_path, light = base_key
        placement = loading.Placement(self.device, self.dtype, light=light)
        if self._base is None or self._base[0] != base_key:
            self._base = self._merged = None  # before the next is loaded: two may not fit
            self._forget()
            base = loading.load_base(base_path, card.base_folder, placement, vae_path)
            base = _with_safety_checker(base, checker_path, placement)
            self._base = (base_key, self._with_taesd(card, base, placement))
        base = self._base[1]
        text_encoder, unet = self._with_loras(base, loras, light)
        controls = {name: key[0] for name, key in keys.items()}
        hashes = self._hashes_of(base_path, vae_path, controls, loras)
        controlnets = {}
        for control, key in keys.items():
            control_path, order, *_ = key
            controlnet = self._loaded_controls.get(key)
            if controlnet is None:
                self._make_room(self._control_bytes(key), keys.values())
                controlnet = loading.load_control(control_path, base.unet, placement, order)
            self._controls[key] = self._loaded_controls[key] = controlnets[control] = controlnet
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
                embeddings.split_prompt,
                self.registry.embeddings_folder,
                embeddings.bundled(loras),
                width,
            ),
            taesd=base.taesd,
            safety_checker=base.safety_checker,
        )

    def _with_loras(self, base: "Base", loras: Loras, light: bool) -> tuple[nn.Module, nn.Module]:
        """Return the base's text encoder and UNet with LoRAs; the latest are kept."""
        if not loras:
            return base.text_encoder, base.unet
        if self._merged is None or self._merged[0] != loras:
            self._merged = None
            self._forget()
            merged = lora.merge(base.text_encoder, base.unet, loras)
            if light:
                for network in merged:
                    lighten(network)  # what they changed
            self._merged = (loras, merged)
        return self._merged[1]

    def _make_room(self, size: int, needed: Iterable[ControlKey]) -> None:
        """Drop the least recently used until `size` bytes more fit, but none that is needed.

        Called before a ControlNet is loaded, so that memory never holds one more than it must.
        Those that running requests use count too, though dropping one frees nothing yet.
        """
        for key in [key for key in self._controls if key not in needed]:
            if _bytes(self._loaded_controls.values()) + size <= self.most_control_bytes:
                return
            del self._controls[key]
            self._forget()

    def _drop_controls(self, but: int) -> None:
        """Drop the least recently used beyond the limit, but none of the `but` latest."""
        while (
            len(self._controls) > but
            and _bytes(self._loaded_controls.values()) > self.most_control_bytes
        ):
            self._controls.popitem(last=False)
            self._forget()

    def _forget(self) -> None:
        """Forget the networks handed out, so that dropped ones can be freed."""
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


def _is_asked_for(variables: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment asks for safety checkers.

    Raises:
        BadInput: the value is neither on nor off.
    """
    value = variables.get(SAFETY_VARIABLE) or "off"
    if value not in ("on", "off"):
        raise BadInput(f"{SAFETY_VARIABLE} is {value!r}; it must be on or off.")
    return value == "on"


def _with_safety_checker(base: "Base", path: Path | None, placement: "Placement") -> "Base":
    if path is None:
        return base
    from models.checkpoints import safety  # noqa: PLC0415 - as in _build

    return replace(base, safety_checker=safety.load_safety_checker(path, placement))


def _parameter_count(path: Path) -> int:
    """Count a ControlNet's parameters from the headers of its files."""
    files = folders.network_files(path)[0] if path.is_dir() else [path]
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    if identify(shapes).kind == MERGED:
        shapes = {n: shape for n, shape in shapes.items() if n.startswith("control_model.")}
    return sum(math.prod(shape) for shape in shapes.values())


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(held_bytes(parameter) for module in modules for parameter in module.parameters())
