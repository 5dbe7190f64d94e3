"""Identifies a weights file by its header, before anything is built from it.

Only the header of a safetensors file is read; a pickle is read without running any code in it
(pickles.py). A file's format is what its bytes say, whatever its suffix. The key names are those of
the original repositories (CompVis latent-diffusion, lllyasviel/ControlNet) and of diffusers.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.errors import WeightsMismatch, WeightsMissing
from models.catalog.paths import shown
from models.checkpoints.pickles import Inert, read_pickle

Shapes = Mapping[str, tuple[int, ...]]

MAX_HEADER = 100 * 2**20
"""Bytes; safetensors' own limit."""

LENGTH_BYTES = 8
"""Size of the header's length at the start of a safetensors file, little-endian."""
UTF8_BOM = b"\xef\xbb\xbf"
"""Some servers and editors put it before text."""

KEPT_HEADERS = 16
"""Files whose shapes are kept in memory: some thousand names each."""

CHANNEL_ORDER = "channel_order"
"""Metadata key of a ControlNet's safetensors file for the order of its map's channels."""

INVERSION = "string_to_param"
"""Key of the vectors in AUTOMATIC1111's pickles of textual inversion embeddings."""
NESTED = 4
"""A checkpoint's weights lie at most so many keys `state_dict` deep."""

SCALES = (".scale_weight", ".weight_scale")
"""Ends of the keys of a float8 weight's scale, ComfyUI's and diffusers'."""
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

SD1_WIDTH = 768
WIDTHS = {
    SD1_WIDTH: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
"""Model family by the width of its text embeddings (columns of attn2.to_k)."""

BASE = "a base checkpoint"
CONTROLNET = "a ControlNet"
ADAPTER = "a T2I-Adapter"
LORA = "a LoRA"
EMBEDDING = "a textual inversion embedding"
AUTOENCODER = "an autoencoder alone"
MERGED = "a base checkpoint with a ControlNet inside"
"""ControlNet 1.0's layout: control_sd15_canny.pth serves as either."""

_KEY_PATTERNS = (
    ("a Control-LoRA", r"^lora_controlnet$"),
    ("a ControlNet-LLLite", r"^lllite_"),
    ("an IP-Adapter", r"^(image_proj|ip_adapter)\."),
    ("a LyCORIS of a kind that is not merged here (IA3, OFT)", r"\.on_input$|\.oft_(blocks|diag)"),
    (
        LORA,
        r"lora_(up|down|unet|te|A|B)\b|lora_(unet|te)\d?[_.]"
        r"|[._]lora\.(up|down)\.|\.lora_linear_layer\."  # diffusers' own
        r"|\.(hada_w1|lokr_w1)|\.(w_norm|b_norm|diff|diff_b)$|\.a1\.weight$",  # LyCORIS's
    ),
    (EMBEDDING, r"^(emb_params|string_to_param(\..+)?|clip_[lg])$"),
    ("a T2I-Adapter for style, which reads a picture and no map", r"^style_embedding$"),
    (ADAPTER, r"^(adapter\.)?body\.\d+\."),
    (
        CONTROLNET,
        r"^(control_model\.)?(input_hint_block\.0\.|controlnet_cond_embedding\.conv_in\.)",
    ),
    ("a Flux checkpoint", r"(^|\.)double_blocks\.\d+\."),
    ("a Stable Diffusion 3 checkpoint", r"(^|\.)joint_blocks\.\d+\."),
    (BASE, r"^model\.diffusion_model\.input_blocks\."),
    ("a base checkpoint of averaged weights alone (model_ema), not of the plain", r"^model_ema\."),
    ("an AnimateDiff motion module", r"motion_modules\."),
    ("a UNet alone", r"^(input_blocks|down_blocks)\.0\."),
    (AUTOENCODER, r"^(first_stage_model\.)?decoder\.conv_in\."),
    ("a tiny autoencoder alone", r"^(first_stage_model\.)?decoder\.layers\.0\."),
    ("a text encoder alone", r"(^|\.)text_model\.|^embeddings\.token_embedding\."),
)
"""Kinds of files and a pattern of their keys; the first that matches decides."""

VAE, TEXT_ENCODER, EMA = "first_stage_model.", "cond_stage_model.", "model_ema."
"""Beginnings of keys in a single-file base: the parts beside its UNet, and averages of the UNet's
weights, which only training needs."""
DIFFERENCE = "difference"
"""Key that marks a ControlNet whose encoder is stored minus its base's (extract_controlnet_diff.py
of sd-webui-controlnet)."""

_MERGED_KEYS = ("model.diffusion_model.", "control_model.")
_TEXT_KEY = re.compile(
    r"attn2\.to_k\.weight$|attn2[._](processor\.)?to_k"
    r"([._]lora[._](down|A)(\.\w+)?\.weight|\.hada_w1_b|\.diff|\.b2\.weight)$"
)
_FIRST_CONVOLUTION = re.compile(r"(^|\.)(input_blocks\.0\.0|conv_in)\.weight$")


@dataclass(frozen=True)
class Contents:
    """What was recognised in a file or folder."""

    kind: str
    """BASE, CONTROLNET, MERGED, ADAPTER, LORA, EMBEDDING, AUTOENCODER, or a phrase for another."""
    text_width: int | None
    """Width of the text embeddings it attends to; None without cross-attention."""
    in_channels: int | None
    """Input channels of its UNet: 4, or 9 for inpainting, 8 for instruct-pix2pix."""
    is_difference: bool = False
    """Whether it is a ControlNet to whose encoder that of the base in use is to be added."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return each tensor's shape, reading as little of the file as possible.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: it is truncated, not a weights file, or a pickle that would run code.
    """
    _require_weights_file(path)
    facts = path.stat()
    return dict(_read_shapes(path, facts.st_mtime_ns, facts.st_size))


@lru_cache(KEPT_HEADERS)
def _read_shapes(path: Path, changed: int, size: int) -> Shapes:
    """Return the shapes; the same object as long as the file is unchanged."""
    if not _is_safetensors(path):
        return {key: tuple(tensor.shape) for key, tensor in _unpickled(path, True).items()}
    header = _safetensors_header(path)
    return {key: tuple(facts["shape"]) for key, facts in header.items() if key != "__metadata__"}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other formats.

    Raises:
        WeightsMissing, WeightsMismatch: as read_shapes.
    """
    _require_weights_file(path)
    if not _is_safetensors(path):
        return {}
    metadata = _safetensors_header(path).get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the file's tensors, memory-mapped if its format allows it.

    Raises:
        WeightsMissing, WeightsMismatch: as read_shapes.
    """
    _require_weights_file(path)
    if _is_safetensors(path):
        _safetensors_header(path)
        return scaled(load_file(path))
    return scaled(_unpickled(path))


def scaled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with its float8 weights multiplied by the scales that are stored beside them.

    ComfyUI ("fp8 scaled") and diffusers' quantisers store one for each layer, or for each output.
    """
    whole = dict(state)
    for key, scale in state.items():
        layer = next((key.removesuffix(end) for end in SCALES if key.endswith(end)), "")
        weight = state.get(f"{layer}.weight")
        if weight is not None and weight.dtype in FLOAT8:
            factor = scale.float().reshape(-1, *[1] * (weight.ndim - 1))
            whole[f"{layer}.weight"] = weight.float() * factor
    return whole


def _unpickled(path: Path, shapes_only: bool = False) -> dict[str, Tensor]:
    """Return the named tensors of a pickle, however deep they lie."""
    content = read_pickle(path, shapes_only)
    for _ in range(NESTED):
        inner = _item(content, "state_dict")
        content = inner if isinstance(inner, dict) else content
    vectors = _item(content, INVERSION)
    if isinstance(vectors, Inert) and isinstance(vectors.state, dict):  # a ParameterDict
        vectors = _item(vectors.state, "_parameters")
    if isinstance(vectors, dict):
        content = {f"{INVERSION}.{name}": value for name, value in dict.items(vectors)}
    if not isinstance(content, dict):
        raise WeightsMismatch(f"{path.name} holds no named tensors: choose another file.")
    if isinstance(content, Inert) and not content:
        raise WeightsMismatch(
            f"{path.name} is a pickled object of the class {type(content).__name__}, not named "
            "weights: choose another file, or save its state_dict."
        )
    found = _tensors(content)
    if not found:  # as in an IP-Adapter's .bin: {"image_proj": {...}, "ip_adapter": {...}}
        parts = [(key, part) for key, part in dict.items(content) if isinstance(part, dict)]
        found = {
            f"{key}.{name}": one for key, part in parts for name, one in _tensors(part).items()
        }
    return found


def _tensors(content: dict[Any, Any]) -> dict[str, Tensor]:
    named = dict.items(content)
    return {str(key): value for key, value in named if isinstance(value, Tensor)}


def _item(content: Any, key: str) -> Any:
    """Return an item of a pickled dict, or None; its own method may be hidden by the pickle."""
    return dict.get(content, key) if isinstance(content, dict) else None


def identify(shapes: Shapes) -> Contents:
    """Return what tensors of these names and shapes belong to."""
    kind = "a file of an unknown kind"
    if all(any(key.startswith(prefix) for key in shapes) for prefix in _MERGED_KEYS):
        kind = MERGED
    else:
        for name, pattern in _KEY_PATTERNS:
            if any(re.search(pattern, key) for key in shapes):
                kind = name
                break
    widths = [shape[1] for key, shape in shapes.items() if _TEXT_KEY.search(key) and shape[1:]]
    channels = [
        shape[1]
        for key, shape in shapes.items()
        if _FIRST_CONVOLUTION.search(key) and "cond" not in key and "stage" not in key
    ]
    return Contents(
        kind,
        widths[0] if widths else None,
        channels[0] if channels else None,
        is_difference=kind == CONTROLNET and DIFFERENCE in shapes,
    )


def describe(contents: Contents) -> str:
    """Return the contents in words, with the model family if its width is known."""
    family = WIDTHS.get(contents.text_width or 0)
    what = f"{contents.kind} ({family})" if family else contents.kind
    return f"{what}, stored as its difference from a base" if contents.is_difference else what


def require(
    name: str, contents: Contents, kinds: tuple[str, ...], text_width: int, in_channels: int | None
) -> None:
    """Refuse contents that do not fit, in one sentence.

    Raises:
        WeightsMismatch: another kind of file, another family, or other latents.
    """
    wanted = f"{kinds[0]} ({WIDTHS.get(text_width, f'text width {text_width}')})"
    if contents.kind not in kinds:
        raise WeightsMismatch(f"{name} is {describe(contents)}: {wanted} is needed here.")
    if contents.text_width != text_width:
        description = describe(contents)
        if contents.text_width not in WIDTHS:
            description += f" (text width {contents.text_width or 'unknown'})"
        raise WeightsMismatch(f"{name} is {description}: {wanted} is needed here.")
    if contents.in_channels != in_channels:
        special = {9: " made for inpainting", 8: " made for instruct-pix2pix"}
        raise WeightsMismatch(
            f"{name} is {contents.kind}{special.get(contents.in_channels or 0, '')} that takes "
            f"{contents.in_channels} channels: one that takes {in_channels}, as for text to image, "
            "is needed here."
        )


def _require_weights_file(path: Path) -> None:
    """Refuse a missing file, and common downloads that are something else."""
    if not path.is_file():
        raise WeightsMissing(f"There is no weights file {shown(path)}: check the path.")
    with path.open("rb") as file:
        start = file.read(256)
    if _begins_as_safetensors(start):
        return  # whatever its header's length spells
    start = start.removeprefix(UTF8_BOM).lstrip()
    for magic, what in (
        (b"<", "a web page, probably a login or error page saved as weights"),
        (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull to get the weights"),
        (b"GGUF", "a GGUF file, quantised for other programs"),
    ):
        if start[: len(magic)].lower() == magic.lower():
            raise WeightsMismatch(f"{path.name} is {what}: download the file itself again.")
    if not start:
        raise WeightsMismatch(f"{path.name} is empty: download it again.")


def _is_safetensors(path: Path) -> bool:
    """Tell whether a file is one by its first bytes, or must be one by its suffix."""
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES + 1)
    return path.suffix == ".safetensors" or _begins_as_safetensors(start)


def _begins_as_safetensors(start: bytes) -> bool:
    """Tell whether a file begins with a length below MAX_HEADER and the JSON object after it.

    The length's own bytes may spell anything: 19280 is "PK", as a zip begins, 15392 is " <".
    """
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    return length <= MAX_HEADER and start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Return the JSON header, after checking that the file has the length that follows from it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(LENGTH_BYTES + 1)
        length = int.from_bytes(first[:LENGTH_BYTES], "little")
        if first[:2] in (b"PK", b"\x80\x02") and not _begins_as_safetensors(first):
            raise WeightsMismatch(
                f"{path.name} is a pickle named .safetensors: rename it to .ckpt if you trust it."
            )
        if length > MAX_HEADER or LENGTH_BYTES + length > size:
            raise WeightsMismatch(
                f"{path.name} is truncated, or not a safetensors file: download it again."
            )
        file.seek(LENGTH_BYTES)
        text = file.read(length)
    try:
        header = json.loads(text)
        end = max(
            facts["data_offsets"][1] for key, facts in header.items() if key != "__metadata__"
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsMismatch(
            f"{path.name} has a damaged safetensors header: download it again."
        ) from error
    if LENGTH_BYTES + length + end != size:
        raise WeightsMismatch(
            f"{path.name} should be {LENGTH_BYTES + length + end:,} bytes long but is {size:,}: "
            "download it again."
        )
    return dict(header)
