"""Textual inversion: files of vectors that replace a word of the prompt, their name.

They are in the folder `embeddings` beside the cards, or in a LoRA file. As in AUTOMATIC1111 the
file's name in a prompt, in any case, is enough; ComfyUI's `embedding:name`, SwarmUI's
`<embed:name>` and InvokeAI's `<name>` work too, and so does the word that diffusers' trainer writes
into learned_embeds. AUTOMATIC1111's trainer also writes PNG files that hold an embedding.

Sources: Gal et al. 2022, "An Image is Worth One Word"; AUTOMATIC1111 (textual_inversion.py,
image_embedding.py) and diffusers (loaders/textual_inversion.py) for the layouts.
"""

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from core.errors import BadInput, SuiteError, WeightsMismatch, WeightsMissing
from core.files import files_below, plain_name
from core.png_chunks import chunks, read_bytes
from models.catalog.cards import CONTROL_SUFFIXES
from models.catalog.paths import in_folder
from models.checkpoints.detect import WIDTHS, read_shapes, read_state
from models.checkpoints.lora import BUNDLED, Lora
from models.text import Inversion

KEPT_FILES = 64
"""Files kept in memory, of some ten kilobytes each."""
HASH_LENGTH = 10
"""Characters of a hash; as many as AUTOMATIC1111 prints."""
_BUNDLED_KEY = re.compile(
    re.escape(BUNDLED) + r"(?P<name>.+?)\.(?P<inner>string_to_param\..+|[^.]+)"
)
_ONE = re.compile(r"emb_params|string_to_param\..+")
"""AUTOMATIC1111's and OneTrainer's keys of the vectors, in safetensors and in pickles."""
_XL = {"clip_l", "clip_g"}
"""The vectors for the two text encoders of Stable Diffusion XL."""
_OF_DIFFUSERS = "learned_embeds"
"""diffusers' name of every file; the word is the key of the vectors."""
_CALLS = (r"(?<!\w)(?:embedding:)?({names})(?!\w)", r"<(?:embed(?:ding)?:)?({names})>")
_PICTURE, _IN_PICTURE = ".png", b"sd-ti-embedding\0"
"""The suffix of AUTOMATIC1111's embeddings in pictures, and the start of a text chunk with one."""
_ASKED = re.compile(r"(?<!\w)embed(?:ding)?:([^\s,()<>:]+)")


def available(folder: Path) -> dict[str, Path]:
    """Return the embedding files in a folder and its subfolders by their name in prompts."""
    files = [path for path in files_below(folder) if _is_embedding(path)]
    return {_name(path): path for path in files}


def _is_embedding(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in CONTROL_SUFFIXES or (suffix == _PICTURE and bool(_text_in(path)))


def _text_in(path: Path) -> bytes:
    """Return the embedding in a picture, as it is written there; nothing for any other picture."""
    facts = path.stat()
    return _read_text_in(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(KEPT_FILES)
def _read_text_in(path: Path, changed: int, size: int) -> bytes:
    try:
        texts = (body for kind, body, _ in chunks(read_bytes(path)) if kind == b"tEXt")
        return next((text for text in texts if text.startswith(_IN_PICTURE)), b"")
    except BadInput:  # too large for an embedding
        return b""


def bundled(loras: Sequence[Lora]) -> dict[str, Inversion]:
    """Return the embeddings in LoRA files by name; without a hash, since the file has one.

    Raises:
        WeightsMismatch: one is in an unknown layout.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for path in {lora.path: None for lora in loras}:
        if any(key.startswith(BUNDLED) for key in read_shapes(path)):
            for key, tensor in read_state(path).items():
                if match := _BUNDLED_KEY.fullmatch(key):
                    found.setdefault(match["name"], {})[match["inner"]] = tensor
    return {name: Inversion(name, _vectors(name, state), "") for name, state in found.items()}


def split_prompt(
    folder: Path, from_loras: Mapping[str, Inversion], width: int, prompt: str
) -> tuple[str | Inversion, ...]:
    """Return the parts of a prompt: text, and the embeddings that its words name.

    Those `from_loras` win over files of the same name. `width` is the text encoder's.

    Raises:
        WeightsMissing: `embedding:` names one that is not here.
        WeightsMismatch: one is damaged, or made for another width.
    """
    files = {plain_name(name): path for name, path in available(folder).items()}
    ours = {plain_name(name): inversion for name, inversion in from_loras.items()}
    spelt = {unicodedata.normalize(form, one) for one in (*files, *ours) for form in ("NFC", "NFD")}
    names = sorted(spelt, key=len, reverse=True)  # the longest that fits
    parts: list[str | Inversion] = [prompt]
    if names:
        any_name = "|".join(map(re.escape, names))
        calls = re.compile("|".join(_CALLS).format(names=any_name), re.IGNORECASE)
        parts, end = [], 0
        for match in calls.finditer(prompt):
            name = plain_name(match[1] or match[2])
            inversion = ours[name] if name in ours else _load(files[name])
            _require_width(inversion, width)
            parts += [prompt[end : match.start()], inversion]
            end = match.end()
        parts.append(prompt[end:])
    for part in parts:
        asked = _ASKED.search(part) if isinstance(part, str) else None
        if asked:
            raise WeightsMissing(
                f"There is no embedding '{asked[1]}' {in_folder(folder, available(folder))}: put "
                f"{asked[1]}.safetensors there, or take {asked[0]} out of the prompt."
            )
    return tuple(part for part in parts if part != "") or ("",)


def _name(path: Path) -> str:
    """Return a file's name, or the word inside a file with diffusers' name for all of them."""
    if path.stem.startswith(_OF_DIFFUSERS):
        try:
            keys = list(read_shapes(path))
        except SuiteError:  # reported when its file is used
            keys = []
        if len(keys) == 1 and not _ONE.fullmatch(keys[0]):
            return keys[0]
    return path.stem


def require_fit(path: Path, width: int) -> None:
    """Refuse an embedding that a text encoder of this width cannot take.

    Raises:
        WeightsMismatch: it is damaged, or made for another width.
    """
    _require_width(_load(path), width)


def _load(path: Path) -> Inversion:
    facts = path.stat()
    return _read(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(KEPT_FILES)
def _read(path: Path, changed: int, size: int) -> Inversion:
    """Return a file's embedding; the same object as long as the file is unchanged."""
    in_picture = path.suffix.lower() == _PICTURE
    state = _state_in(path.name, _text_in(path)) if in_picture else read_state(path)
    vectors = _vectors(path.name, state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Inversion(_name(path), vectors, digest[:HASH_LENGTH])


def _state_in(name: str, text: bytes) -> dict[str, Tensor]:
    """Return the tensors of an embedding in a picture: JSON in base64, tensors as nested lists."""
    try:
        params = json.loads(base64.b64decode(text.removeprefix(_IN_PICTURE)))["string_to_param"]
        return {
            f"string_to_param.{key}": torch.tensor(value["TORCHTENSOR"], dtype=torch.float32)
            for key, value in params.items()
        }
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise WeightsMismatch(
            f"The embedding in {name} is damaged: download the picture again as a file, or take "
            "its name out of the prompt."
        ) from error


def _vectors(name: str, state: Mapping[str, Tensor]) -> Tensor:
    """Return the vectors (n, width) of an embedding in any of the layouts."""
    if state.keys() == _XL and len({len(one) for one in state.values()}) == 1:
        return torch.cat(list(state.values()), dim=-1)
    known = [key for key in state if _ONE.fullmatch(key)] or list(state)
    vectors = state[known[0]] if len(known) == 1 else None
    if vectors is None or vectors.ndim not in (1, 2) or not vectors.is_floating_point():
        raise WeightsMismatch(
            f"{name} holds no textual inversion embedding of a known layout: take it out of the "
            "folder, or its name out of the prompt."
        )
    return vectors.reshape(-1, vectors.shape[-1])


def _require_width(inversion: Inversion, width: int) -> None:
    found = inversion.vectors.shape[1]
    if found != width:
        family = f" ({WIDTHS[found]})" if found in WIDTHS else ""
        raise WeightsMismatch(
            f"{inversion.name} is an embedding for text encoders of width {found}{family}, and "
            f"this model's has {width}: take it out of the prompt."
        )
