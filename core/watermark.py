"""An invisible watermark in the pixels, by blind-watermark; off unless the operator asks for it.

It outlives programs that drop XMP, JPEG of quality 75 and halving (benchmarks/README.md has the
figures, and what it costs), but no crop and no turn, and whoever knows this file can take it out.
CONTROLLOOP_WATERMARK=on asks for it, after `pip install --no-deps -r requirements-watermark.txt`:
the library asks for another OpenCV package than the one that is here.
"""

import importlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np

from core.condition import RGBImage
from core.errors import BadInput

VARIABLE = "CONTROLLOOP_WATERMARK"
INSTALL = "pip install --no-deps -r requirements-watermark.txt"
BITS = np.unpackbits(np.frombuffer(bytes.fromhex("a7163c5e"), np.uint8)).astype(bool)
"""What is marked: 32 bits, the same in every picture, and half of them set."""
ENOUGH = 29
"""Bits that must be right: by chance they are in one of 780,000 pictures without the watermark."""
SCALES = (1, 2)
"""How much a picture is enlarged before the bits are looked for: it may have been halved."""
KEY = 1
"""Of the order in which the library marks; it must be the same for reading."""


def is_asked_for(variables: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment asks for the watermark.

    Raises:
        BadInput: the value is neither on nor off, or the library is not installed.
    """
    value = variables.get(VARIABLE) or "off"
    if value not in ("on", "off"):
        raise BadInput(f"{VARIABLE} is {value!r}; it must be on or off.")
    if value == "on" and not is_here():
        raise BadInput(f"{VARIABLE} asks for a watermark: run `{INSTALL}` first.")
    return value == "on"


def is_here() -> bool:
    """Return whether the library is installed."""
    return find_spec("blind_watermark") is not None


def watermarked(image: RGBImage) -> RGBImage:
    """Return a picture (H, W, 3) with the watermark in it; of at least 64 pixels a side."""
    marker = _marker()
    marker.read_img(img=cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    marker.read_wm(BITS.copy(), mode="bit")
    marked = np.rint(np.clip(marker.embed(), 0, 255)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(marked, cv2.COLOR_BGR2RGB))


def bits_right(image: RGBImage) -> int:
    """Return how many of the watermark's bits are read from a picture; by chance 16, all are 32."""
    found = 0
    for scale in SCALES:
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        bgr = cv2.cvtColor(large, cv2.COLOR_RGB2BGR)
        read = _marker().extract(embed_img=bgr, wm_shape=len(BITS), mode="bit")
        found = max(found, int(((np.asarray(read) > 0.5) == BITS).sum()))
    return found


def _marker() -> Any:
    library = importlib.import_module("blind_watermark")
    library.bw_notes.close()  # or it prints a greeting
    return library.WaterMark(password_wm=KEY, password_img=KEY)
