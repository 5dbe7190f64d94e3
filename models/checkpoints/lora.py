"""LoRA files: small changes of a base's weights, merged into a copy of its networks.

Prompts name them in tags (catalog/lora_tags.py); the files are in the folder `lora` beside the
cards. lora_kinds.py computes what a file adds to a weight, lora_names.py finds the layers by their
names in it. The base's networks are never modified, since other requests may be using them: a
changed weight is new, the rest is shared. Several LoRAs of one weight add up, each computed alone.
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
from torch import Tensor, nn

from core.errors import BadInput, SuiteError, WeightsMismatch, WeightsMissing
from core.files import files_below, plain_name
from models.catalog.cards import CONTROL_SUFFIXES
from models.catalog.lora_tags import BLOCKS, Strengths, read_tag
from models.catalog.paths import in_folder
from models.checkpoints.detect import (
    LORA,
    identify,
    read_metadata,
    read_shapes,
    read_state,
    require,
)
from models.checkpoints.lora_kinds import BIASES, KINDS, Change, Kind, Parts, first_ranks
from models.checkpoints.lora_names import block_of, find_layer, layers_of, split_key

BUNDLED = "bundle_emb."
"""Prefix of the keys of textual inversion embeddings in a LoRA file; see embeddings.py."""
_INNER_NAME = "ss_output_name"
"""Metadata key of kohya's trainer for the file's original name."""
_GENERIC_STEMS = ("adapter_model", "pytorch_lora_weights")
"""PEFT's and diffusers' name of every file; its folder has the name that counts."""
_METADATA = "lora_adapter_metadata"
"""Metadata key of diffusers for PEFT's settings (alpha is one) as JSON."""
_ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's own file of these settings, beside the weights."""
_NOT_A_NUMBER = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    re.error,
)
_SLOW_PATTERN = re.compile(r"\)[*+{]|([*+{].*){4}|.{200}")
"""Regular expressions that may take exponential time to match: a file may hold any."""


@dataclass(frozen=True)
class Lora:
    """A local LoRA file and its strengths in a prompt."""

    tag: str
    """As in the prompt; empty for a mode's LoRA."""
    name: str
    strengths: Strengths
    path: Path
    changed: int
    """The file's modification time in nanoseconds: a changed file is another LoRA."""

    @property
    def weight(self) -> float:
        """The tag's first number."""
        return self.strengths.weight


Place = tuple[str, str]
"""A network (unet, text_encoder) and a layer's name in it."""
Changes = dict[Place, list[Change]]


def available(folder: Path) -> dict[str, Path]:
    """Return the LoRA files in a folder and its subfolders by name, without reading them.

    The name is the file's, or its path if several have that name.
    """
    files = _files(folder)
    short = [_short_name(path) for path in files.values()]
    return {
        name if short.count(_short_name(path)) > 1 else _short_name(path): path
        for name, path in files.items()
    }


def find(tags: Sequence[str], folder: Path) -> tuple[Lora, ...]:
    """Return the LoRAs that tags name.

    Raises:
        BadInput: a tag cannot be read, or several files have its name.
        WeightsMissing: there is no file of a name.
    """
    files = _files(folder) if tags else {}
    found = []
    for tag in tags:
        name, strengths = read_tag(tag)
        path = _find_file(tag, name, files, folder)
        found.append(Lora(tag, name, strengths, path, path.stat().st_mtime_ns))
    return tuple(found)


def _files(folder: Path) -> dict[str, Path]:
    """Return the LoRA files by their path in the folder without suffix; safetensors win."""
    files = [path for path in files_below(folder) if path.suffix.lower() in CONTROL_SUFFIXES]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _short_name(path: Path) -> str:
    return path.parent.name if path.stem in _GENERIC_STEMS else path.stem


def _find_file(tag: str, name: str, files: Mapping[str, Path], folder: Path) -> Path:
    """Return the file of a name: its path, its file name, or its original name."""
    wanted = name.replace("\\", "/")
    for suffix in CONTROL_SUFFIXES:
        wanted = wanted.removesuffix(suffix)
    plain = plain_name(wanted)
    for name_of, key in (
        (lambda place: place, wanted),
        (lambda place: _short_name(files[place]), wanted),
        (plain_name, plain),
        (lambda place: plain_name(_short_name(files[place])), plain),
        (lambda place: plain_name(_inner_name(files[place])), plain),
    ):
        places = [place for place in files if name_of(place) == key]
        if len(places) > 1:
            raise BadInput(
                f"There are {len(places)} LoRAs '{name}', {' and '.join(places)}: write which you "
                f"mean, as in <lora:{places[0]}:1>."
            )
        if places:
            return files[places[0]]
    raise WeightsMissing(
        f"There is no LoRA '{name}' {in_folder(folder, available(folder))}: put "
        f"{name}.safetensors there, or take {tag} out of the prompt."
    )


def _inner_name(path: Path) -> str:
    try:
        return str(read_metadata(path).get(_INNER_NAME, ""))
    except SuiteError:  # a damaged file has no name, and is not the one sought
        return ""


def merge(
    text_encoder: nn.Module, unet: nn.Module, loras: Sequence[Lora]
) -> tuple[nn.Module, nn.Module]:
    """Return the text encoder and the UNet with LoRAs merged in; the arguments stay unchanged.

    Raises:
        WeightsMissing: a file no longer exists.
        WeightsMismatch: a file is damaged, not a LoRA, or not wholly for this model.
    """
    networks = {"text_encoder": text_encoder, "unet": unet}
    layers = layers_of(text_encoder, unet)
    changes: Changes = {}
    for lora in loras:
        for place, change in _read(lora, layers, networks).items():
            changes.setdefault(place, []).append(change)
    try:
        return _changed("text_encoder", text_encoder, changes), _changed("unet", unet, changes)
    except (IndexError, RuntimeError) as error:  # too few dimensions, or other sizes
        names = " or ".join(lora.path.name for lora in loras)
        raise WeightsMismatch(
            f"{names} changes weights of other sizes than this model's: choose a LoRA made for it."
        ) from error


def _read(
    lora: Lora, layers: Mapping[str, Place], networks: Mapping[str, nn.Module]
) -> dict[Place, Change]:
    """Return a file's changes by layer; every key must belong to one."""
    contents = identify(read_shapes(lora.path))
    config: Any = networks["unet"].config
    width = int(config.cross_attention_dim)
    if contents.kind != LORA or contents.text_width:
        require(lora.path.name, contents, (LORA,), width, contents.in_channels)
    found = _by_layer(lora.path, layers)
    settings = _peft_settings(lora.path)
    factors = dict(zip(BLOCKS, lora.strengths.blocks, strict=True))
    changes = {}
    for place, parts in found.items():
        layer: Any = networks[place[0]].get_submodule(place[1])
        kind = next((kind for kind in KINDS if kind.fits(parts)), None)
        if kind is None or (layer.bias is None and parts.keys() & BIASES):
            raise _unplaced_error(lora.path, [place[1]])
        try:
            scale = _scale(kind, parts, layer.weight, settings, place)
        # Alpha may be a tensor of any shape, or any JSON value.
        except _NOT_A_NUMBER as error:
            raise _damaged(lora, place[1]) from error
        if not math.isfinite(scale):
            raise _damaged(lora, place[1])
        strength = getattr(lora.strengths, place[0])
        strength *= factors.get(block_of(place, int(config.layers_per_block)), 1.0)
        changes[place] = Change(
            kind, first_ranks(kind, parts, lora.strengths.ranks), scale, strength
        )
    return changes


def _by_layer(path: Path, layers: Mapping[str, Place]) -> dict[Place, dict[str, Tensor]]:
    """Return a file's tensors by layer, then by part."""
    found: dict[Place, dict[str, Tensor]] = {}
    unplaced = []
    for key, tensor in read_state(path).items():
        split = split_key(key)
        place = find_layer(split[0], layers) if split else None
        if split and place:
            # It would spread through the network, and the base be told of in its stead.
            if split[1] != "alpha" and not torch.isfinite(tensor.float()).all():
                raise WeightsMismatch(
                    f"{path.name} holds NaN or infinite numbers, as in {key}: its training failed, "
                    "or the file is damaged; choose another."
                )
            found.setdefault(place, {})[split[1]] = tensor
        elif not key.startswith(BUNDLED):
            unplaced.append(key)
    if unplaced:
        raise _unplaced_error(path, unplaced)
    return found


def _unplaced_error(path: Path, names: Sequence[str]) -> WeightsMismatch:
    return WeightsMismatch(
        f"{path.name} holds {len(names)} weights that have no place in this model, "
        f"such as {names[0]}: choose a LoRA made for it."
    )


def _scale(
    kind: Kind, parts: Parts, weight: Tensor, settings: Mapping[str, Any], place: Place
) -> float:
    """Return alpha / rank of one layer; without an alpha it is the rank."""
    network, layer = place

    def setting(name: str, otherwise: Any) -> Any:
        return settings.get(f"{network}.{name}", settings.get(name, otherwise))

    rank = kind.rank(parts, weight)
    if rank is None:  # a LoKr of two whole matrices, which PEFT scales too
        rank = _for_layer(setting("rank_pattern", {}), layer, setting("r", None))
        if not parts.keys() & {"lokr_w1", "lokr_w2"} or rank is None:
            return 1.0
    alpha = parts.get("alpha")
    if alpha is None:
        alpha = setting("lora_alpha", setting("alpha", rank))
        alpha = _for_layer(setting("alpha_pattern", {}), layer, alpha)
    return float(alpha) / (math.sqrt(rank) if setting("use_rslora", False) else float(rank))


def _for_layer(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """Return a layer's setting, by its name, the end of it, or a regular expression.

    Source: PEFT (utils/other.py, get_pattern_key).
    """
    for pattern, value in patterns.items():
        if _SLOW_PATTERN.search(pattern):
            raise ValueError(f"{pattern} is not a pattern of layer names")
        if any(
            re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (layer, f"text_model.{layer}")
        ):
            return value
    return otherwise


def _damaged(lora: Lora, layer: str) -> WeightsMismatch:
    return WeightsMismatch(
        f"{lora.path.name} has no usable strength (alpha) for {layer}: the file is damaged; "
        "download it again, or choose another."
    )


def _changed(name: str, network: nn.Module, changes: Changes) -> nn.Module:
    """Return a changed copy of a network, which shares every other weight with it."""
    ours = {layer: added for (where, layer), added in changes.items() if where == name}
    if not ours:
        return network
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed = copy.deepcopy(network, shared)
    for place, added in ours.items():
        layer: Any = changed.get_submodule(place)
        weight = _sum(layer.weight, [change.added(layer.weight) for change in added])
        bias = layer.bias
        if bias is not None:
            bias = _sum(bias, [change.added_bias(bias) for change in added])
        layer.weight, layer.bias = weight, bias
    return changed


def _sum(parameter: nn.Parameter, added: Sequence[Tensor | None]) -> nn.Parameter:
    """Return a parameter plus differences, added in float32; itself if there are none."""
    differences = [difference for difference in added if difference is not None]
    if not differences:
        return parameter
    total = parameter.to(torch.float32, copy=True)
    for difference in differences:
        total += difference
    return nn.Parameter(torch.empty_like(parameter).copy_(total), requires_grad=False)


def _peft_settings(path: Path) -> dict[str, Any]:
    """Return the settings that PEFT or diffusers stored; none for other files."""
    beside = path.with_name(_ADAPTER_CONFIG)
    try:
        text = read_metadata(path).get(_METADATA, "")
        if not text and path.stem in _GENERIC_STEMS and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        settings = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}
