"""The tags that ask for LoRAs, as in AUTOMATIC1111: `<lora:name:0.8>` in a prompt.

A model's name followed by such tags is the model with those LoRAs.
"""

import re
from collections.abc import Iterable

TAG = re.compile(r"<lora:([^<>:]+)(?::([^<>]*))?>")
"""A LoRA's name, and its weight where one is given."""


def tags_in(text: str) -> list[str]:
    """Return the LoRA tags of a prompt, in order."""
    return [match[0] for match in TAG.finditer(text)]


def without_tags(text: str, tags: Iterable[str]) -> str:
    """Return a prompt without these tags; they are no words for the text encoder."""
    for tag in tags:
        text = text.replace(tag, "")
    return text


def split(model: str) -> tuple[str, list[str]]:
    """Return the name of a model, and the tags that follow it."""
    return TAG.sub("", model).rstrip() if "<lora:" in model else model, tags_in(model)
