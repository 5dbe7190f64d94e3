"""Writes what a model made, marked as such: in XMP, and as the operator asks also otherwise."""

import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core import watermark
from core.condition import RGBImage
from core.content_credentials import Signer
from core.files import write_whole
from core.png_chunks import write_png
from core.provenance import COMPOSITE, VOCABULARY, mark

LOGGER = logging.getLogger(__name__)
UNSIGNED = (
    "A picture could not be signed, so it lacks the content credentials (C2PA) that it should "
    "carry; whoever runs this server finds the reason in its log."
)


@dataclass(frozen=True)
class Marks:
    """What is done beside XMP."""

    signer: Signer | None = None
    watermark: bool = False

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> "Marks":
        """Return what the environment asks for.

        Raises:
            BadInput: a variable is malformed, or a library is not installed.
        """
        return cls(Signer.read(variables), watermark.is_asked_for(variables))


_marks = Marks()


def mark_with(marks: Marks) -> None:
    """Have this process mark so what write_marked writes, from now on."""
    global _marks  # noqa: PLW0603 - a process has one operator, who does not change while it runs
    _marks = marks


def write_marked(
    target: str | Path | IO[bytes],
    image: RGBImage,
    source_type: str,
    system: str = "",
    texts: Mapping[str, str] = {},
) -> str:
    """Write an image as write_png does, marked with its source type and the model's name.

    The watermark is for pictures alone: a sheet shows them smaller. A picture that cannot be signed
    is written unsigned, for it is the visitor's: that is logged, and UNSIGNED returned; else "".
    """
    marks, memory = _marks, io.BytesIO()
    if marks.watermark and source_type != COMPOSITE:
        image = watermark.watermarked(image)
    write_png(memory, image, {**texts, **mark(source_type, system)})
    data, note = memory.getvalue(), ""
    if marks.signer is not None:
        try:
            data = marks.signer.signed(data, VOCABULARY + source_type, system)
        except Exception:
            LOGGER.exception("A picture could not be signed")
            note = UNSIGNED
    if isinstance(target, str | Path):
        write_whole(Path(target), lambda path: path.write_bytes(data))
    else:
        target.write(data)
    return note
