"""Writes what a model made, marked as such: in XMP, and signed if the operator asks for it."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from core.condition import RGBImage
from core.content_credentials import Signer
from core.files import write_whole
from core.png_chunks import write_png
from core.provenance import VOCABULARY, mark

LOGGER = logging.getLogger(__name__)
_signer: Signer | None = None


def sign_with(signer: Signer | None) -> None:
    """Have this process sign what write_marked writes, from now on."""
    global _signer  # noqa: PLW0603 - a process has one operator, who does not change while it runs
    _signer = signer


def write_marked(
    target: str | Path | IO[bytes],
    image: RGBImage,
    source_type: str,
    system: str = "",
    texts: Mapping[str, str] = {},
) -> None:
    """Write an image as write_png does, marked with its source type and the model's name.

    A picture that cannot be signed is written unsigned, and that is logged: it is the visitor's.
    """
    memory = io.BytesIO()
    write_png(memory, image, {**texts, **mark(source_type, system)})
    data = memory.getvalue()
    if _signer is not None:
        try:
            data = _signer.signed(data, VOCABULARY + source_type, system)
        except Exception:
            LOGGER.exception("A picture could not be signed")
    if isinstance(target, str | Path):
        write_whole(Path(target), lambda path: path.write_bytes(data))
    else:
        target.write(data)
