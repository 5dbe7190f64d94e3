"""LoRA tags in prompts, as in AUTOMATIC1111: `<lora:name:0.8>`.

A model's name followed by tags is the model with those LoRAs. After its name a tag has, separated
by colons, the text encoder's strength, the UNet's if it differs, and a number of ranks; or any of
them by name (`te=`, `unet=`, `dyn=`). `lbw=` weights the UNet's blocks, by a preset or by numbers,
and may omit its name.

Sources: AUTOMATIC1111's extra_networks_lora.py, whose first number is the text encoder's and
defaults to both; hako-mikan/sd-webui-lora-block-weight for blocks and presets.
"""

import math
import re
from dataclasses import dataclass

from core.errors import BadInput

TAG = re.compile(r"<(lora|lyco|hypernet):([^<>:]+)(?::([^<>]*))?>", re.IGNORECASE)
"""Groups: the tag's word, the file's name, and the rest."""

MAX_STRENGTH = 10.0
"""No LoRA is useful beyond; sliders of other tools end at 1 or 2."""

BLOCKS = ("BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12)))
"""The text encoder, then the UNet's blocks as latent-diffusion counts them."""
_ATTENDING = (0, 2, 3, 5, 6, 8, 9, 13, *range(17, 26))
"""The blocks with attention, for a list of 17 numbers; the others get 0."""
_PRESETS = {
    "NONE": "0" * 17,
    "ALL": "1" * 17,
    "INS": "11110000000000000",
    "IND": "10001110000000000",
    "INALL": "11111110000000000",
    "MIDD": "10001111111100000",
    "OUTD": "10000000111100000",
    "OUTS": "10000000000011111",
    "OUTALL": "10000000111111111",
}
_OTHERS = {"ALL0.5": "ALL0.5", "MID": "M00"}
_NAMED = {"te", "unet", "dyn", "lbw", "w"}


@dataclass(frozen=True)
class Strengths:
    """The strengths in a tag."""

    weight: float = 1.0
    """The tag's first number."""
    text_encoder: float = 1.0
    unet: float = 1.0
    ranks: int | None = None
    """How many ranks of a plain LoRA are used; None for all."""
    blocks: tuple[float, ...] = (1.0,) * len(BLOCKS)
    """A factor per block of BLOCKS."""


def tags_in(text: str) -> list[str]:
    """Return the tags of a prompt, in order."""
    return [match[0] for match in TAG.finditer(text)]


def without_tags(text: str) -> str:
    """Return a prompt without its tags, which are not words for the text encoder."""
    return TAG.sub("", text)


def split(model: str) -> tuple[str, list[str]]:
    """Return the name of a model, and the tags after it."""
    tags = tags_in(model)
    return without_tags(model).rstrip() if tags else model, tags


def read_tag(tag: str) -> tuple[str, Strengths]:
    """Return the name in a tag, and the strengths of its LoRA.

    Raises:
        BadInput: it is a hypernetwork's, a strength is not a number or too large, or a setting is
            unknown.
    """
    match = TAG.fullmatch(tag)
    if match is None:
        raise BadInput(f"{tag} is not a LoRA tag: write it as in <lora:name:0.8>.")
    word, name, rest = match[1].lower(), match[2].strip(), match[3] or ""
    if word == "hypernet":
        raise BadInput(f"Hypernetworks cannot be used here: take {tag} out of the prompt.")
    plain: list[str] = []
    named: dict[str, str] = {}
    for part in filter(None, map(str.strip, rest.split(":"))):
        key, is_named, value = part.partition("=")
        if not is_named and ("," in part or part in {*_PRESETS, *BLOCKS, *_OTHERS}):
            named["lbw"] = part
        elif not is_named:
            plain.append(part)
        elif key.strip().lower() in _NAMED:
            named[key.strip().lower()] = value.strip()
        else:
            raise BadInput(
                f"In {tag} the setting {key} is not known: use te=, unet=, dyn= or lbw=."
            )
    first = _number(tag, name, plain[0]) if plain else 1.0
    text_encoder = _number(tag, name, named["te"]) if "te" in named else first
    unet = _number(tag, name, plain[1]) if len(plain) > 1 else text_encoder
    unet = _number(tag, name, named["unet"]) if "unet" in named else unet
    ranks = named.get("dyn") or (plain[2] if len(plain) > 2 else None)
    if len(plain) > 3 or (ranks and not re.fullmatch(r"[1-9]\d{0,5}", ranks)):
        raise BadInput(
            f"{tag} cannot be read: write at most the strengths of the text encoder and the UNet, "
            f"and how many ranks count, as in <lora:{name}:0.8:0.6:dyn=4>."
        )
    blocks = named.get("lbw") or named.get("w") or "ALL"
    return name, Strengths(
        first, text_encoder, unet, int(ranks) if ranks else None, _blocks(tag, blocks)
    )


def _number(tag: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= MAX_STRENGTH:
        raise BadInput(
            f"In {tag} the weight must be a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}, "
            f"as in <lora:{name}:0.8>."
        )
    return number


def _blocks(tag: str, text: str) -> tuple[float, ...]:
    """Return the factor per block of BLOCKS for a preset, a block's name or a list."""
    text = _OTHERS.get(text, text)
    if text == "ALL":
        return Strengths().blocks
    if text == "ALL0.5":
        numbers = [0.5] * len(_ATTENDING)
    elif text in _PRESETS:
        numbers = [float(sign) for sign in _PRESETS[text]]
    elif text in BLOCKS:
        numbers = [float(block == text) for block in BLOCKS]
    else:
        try:
            numbers = [float(number) for number in text.split(",")]
        except ValueError:
            numbers = []
    if len(numbers) == len(_ATTENDING):
        given = dict(zip(_ATTENDING, numbers, strict=True))
        numbers = [given.get(index, 0.0) for index in range(len(BLOCKS))]
    if len(numbers) != len(BLOCKS) or not all(abs(number) <= MAX_STRENGTH for number in numbers):
        raise BadInput(
            f"In {tag} the block weights must be {len(_ATTENDING)} or {len(BLOCKS)} numbers with "
            f"commas between, or one of {', '.join(_PRESETS)}."
        )
    return tuple(numbers)
