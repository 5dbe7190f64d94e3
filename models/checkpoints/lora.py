"""LoRA files: small changes of a base's weights, merged into a copy of its networks.

A prompt asks for them as in AUTOMATIC1111, `<lora:name:0.8>`, a model's name followed by such tags
is the model with them, and the files lie in the folder `lora` beside the cards. A merged weight is
W + weight * alpha / rank * up @ down. The networks of the base are never written on, since others
may be using them: what a LoRA changes is new, all else is shared.

Sources: Hu et al. 2021, "LoRA"; the key names of kohya-ss/sd-scripts (networks/lora.py), LyCORIS
(LoCon, with its middle factor) and diffusers (PEFT's and the two before).
"""

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from core.errors import BadInput, WeightsMismatch, WeightsMissing
from models.catalog.cards import CONTROL_SUFFIXES
from models.catalog.lora_tags import TAG
from models.catalog.paths import shown
from models.checkpoints.detect import LORA, identify, read_shapes, read_state, require

STRONGEST = 10.0
"""No LoRA means anything beyond; sliders of other tools end at 1 or 2."""

_FACTOR = re.compile(
    r"(?P<place>.+?)(\.(?P<alpha>alpha)"
    r"|[._]lora(_linear_layer)?[._](?P<factor>up|down|mid|A|B)(\.default)?\.weight)$"
)
_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
}
"""Which network a key speaks of, by its beginning; of none, the UNet."""
_NO_NUMBER = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_METADATA = "lora_adapter_metadata"
"""Where diffusers writes PEFT's settings, alpha among them, as JSON."""


@dataclass(frozen=True)
class Lora:
    """A LoRA that is here, and how strongly it is asked for."""

    tag: str
    """As in the prompt; empty for one that a mode brings."""
    name: str
    weight: float
    path: Path
    changed: int
    """When the file was last written, in nanoseconds: another file is another LoRA."""


@dataclass(frozen=True, eq=False)
class Change:
    """What one LoRA adds to one weight: scale * up @ down, or up @ mid @ down."""

    up: Tensor
    """(out, rank), perhaps with two sides of 1 behind."""
    down: Tensor
    """(rank, in), or (rank, in, kernel, kernel); with mid its sides are 1."""
    mid: Tensor | None
    """(rank, rank, kernel, kernel)."""
    scale: float

    def added(self, weight: Tensor) -> Tensor:
        """Return the difference in float32, in the shape and on the device of `weight`.

        Raises:
            RuntimeError: the factors have another shape.
        """
        up, down = (f.to(weight.device, torch.float32).flatten(1) for f in (self.up, self.down))
        if self.mid is None:
            product = up @ down
        else:
            mid = self.mid.to(weight.device, torch.float32)
            product = torch.einsum("or,rskl,si->oikl", up, mid, down)
        return self.scale * product.reshape(weight.shape)


Changes = dict[str, dict[str, list[Change]]]
"""By network (unet, text_encoder), then by the layer's name in it."""


def available(folder: Path) -> dict[str, Path]:
    """Return the LoRA files of a folder and those below it by name, without reading them."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in CONTROL_SUFFIXES)
    return {path.stem: path for path in files}


def find(tags: Sequence[str], folder: Path) -> tuple[Lora, ...]:
    """Return the LoRAs that tags ask for.

    Raises:
        BadInput: a weight is no number, or a very large one.
        WeightsMissing: there is no file of a name.
    """
    here = available(folder) if tags else {}
    found = []
    for tag in tags:
        name, said = re.fullmatch(TAG, tag).groups()  # type: ignore[union-attr]
        try:
            weight = float(said) if said else 1.0
        except ValueError:
            weight = math.nan
        if not abs(weight) <= STRONGEST:
            raise BadInput(
                f"In {tag} the weight must be a number from -{STRONGEST:g} to {STRONGEST:g}, "
                f"as in <lora:{name}:0.8>."
            )
        if name not in here:
            known = ", ".join(here) or "none yet"
            raise WeightsMissing(
                f"There is no LoRA '{name}' in {shown(folder)} (it has: {known}): put "
                f"{name}.safetensors there, or take {tag} out of the prompt."
            )
        changed = here[name].stat().st_mtime_ns
        found.append(Lora(tag, name, weight, here[name], changed))
    return tuple(found)


def merge(
    text_encoder: nn.Module, unet: nn.Module, loras: Sequence[Lora]
) -> tuple[nn.Module, nn.Module]:
    """Return the text encoder and the UNet with LoRAs merged in; those given stay as they are.

    Raises:
        WeightsMissing: a file is gone.
        WeightsMismatch: a file is damaged, no LoRA, or not wholly one of this model.
    """
    changes: Changes = {"text_encoder": {}, "unet": {}}
    layers = {"text_encoder": _layers(text_encoder), "unet": _layers(unet)}
    config: Any = unet.config
    for lora in loras:
        for (network, layer), change in _read(lora, layers, config).items():
            changes[network].setdefault(layer, []).append(change)
    try:
        return (
            _changed(text_encoder, changes["text_encoder"]),
            _changed(unet, changes["unet"]),
        )
    except (IndexError, RuntimeError) as error:  # too few sides, or of another size
        names = " or ".join(lora.path.name for lora in loras)
        raise WeightsMismatch(
            f"{names} changes weights of other sizes than this model's: choose a LoRA made for it."
        ) from error


def _read(
    lora: Lora, layers: Mapping[str, Mapping[str, str]], unet: Mapping[str, Any]
) -> dict[tuple[str, str], Change]:
    """Return a file's changes by network and layer name; all that it holds must have a place."""
    contents = identify(read_shapes(lora.path))
    width = int(unet["cross_attention_dim"])
    if contents.kind != LORA or contents.text_width:
        require(lora.path.name, contents, (LORA,), width, contents.in_channels)
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    homeless = []
    for key, tensor in read_state(lora.path).items():
        match = _FACTOR.fullmatch(key)
        network, place = _place(match["place"]) if match else ("", "")
        layer = layers.get(network, {}).get(place)
        if match is None or layer is None:
            homeless.append(key)
            continue
        part = match["alpha"] or {"A": "down", "B": "up"}.get(match["factor"], match["factor"])
        parts.setdefault((network, layer), {})[part] = tensor
    homeless += [layer for (_, layer), found in parts.items() if not {"up", "down"} <= found.keys()]
    if homeless:
        raise WeightsMismatch(
            f"{lora.path.name} holds {len(homeless)} weights that have no place in this model, "
            f"such as {homeless[0]}: choose a LoRA made for it."
        )
    settings = _peft_settings(lora.path)
    changes = {}
    for (network, layer), found in parts.items():
        try:
            scale = lora.weight * _scale(found, settings, network, layer)
        # Alpha may be a tensor of any shape, or anything that JSON has.
        except (*_NO_NUMBER, RuntimeError) as error:
            raise _damaged(lora, layer) from error
        if not math.isfinite(scale):
            raise _damaged(lora, layer)
        changes[network, layer] = Change(found["up"], found["down"], found.get("mid"), scale)
    return changes


def _scale(
    found: Mapping[str, Tensor], settings: Mapping[str, Any], network: str, layer: str
) -> float:
    """Return alpha / rank of one layer; a file that says no alpha means the rank by it."""
    rank = found["down"].shape[0]
    alpha = found.get("alpha", settings.get(f"{network}.lora_alpha", rank))
    alpha = settings.get(f"{network}.alpha_pattern", {}).get(layer, alpha)
    return float(alpha) / (math.sqrt(rank) if settings.get(f"{network}.use_rslora") else rank)


def _damaged(lora: Lora, layer: str) -> WeightsMismatch:
    return WeightsMismatch(
        f"{lora.path.name} says no usable strength (alpha) for {layer}: the file is damaged or was "
        "made wrongly; fetch it again, or take another."
    )


def _place(place: str) -> tuple[str, str]:
    """Return the network that a key's beginning names, and the layer as _layers spells it."""
    prefix = next((p for p in _PREFIXES if place.startswith(p)), "")
    network = _PREFIXES.get(prefix, "unet")
    flat = place.removeprefix(prefix).replace(".processor.", ".").replace(".", "_")
    if flat.endswith("_to_out"):  # diffusers', until its 0.22
        flat += "_0"
    return network, flat.removeprefix("text_model_")


def _layers(network: nn.Module) -> dict[str, str]:
    """Return the names of the layers with a LoRA-able weight, by their names as kohya spells them.

    transformers had a level text_model in a text encoder until 5.6: with and without is the same.
    """
    return {
        name.replace(".", "_").removeprefix("text_model_"): name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def _changed(network: nn.Module, changes: Mapping[str, Sequence[Change]]) -> nn.Module:
    """Return a network with changes: a copy that shares every weight that stays."""
    if not changes:
        return network
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed = copy.deepcopy(network, shared)
    for name, added in changes.items():
        layer: Any = changed.get_submodule(name)
        weight = layer.weight
        total = weight.to(torch.float32, copy=True)
        for change in added:
            total += change.added(weight)
        merged = torch.empty_like(weight).copy_(total)
        layer.weight = nn.Parameter(merged, requires_grad=False)
    return changed


def _peft_settings(path: Path) -> dict[str, Any]:
    """Return the settings that diffusers stores with PEFT's factors; none in other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_METADATA, "{}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}
