"""Soft edges: how much of a boundary each place is, bright on black.

Sources: Xie & Tu 2015, "Holistically-Nested Edge Detection", and Su et al. 2021, "Pixel Difference
Networks" (PiDiNet), both through controlnet-aux; "safe" keeps three levels, so that no faint trace
of the picture comes through (ControlNet v1.1, annotator/util.py).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from annotators._diorama import HELP, at_size, is_flat, see
from annotators._map_checks import unless_few
from annotators._pretrained import by_detector, load_detector, run_detector
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.consistency import ms_ssim
from core.images import grey_map

HED = ("HEDdetector", (("ControlNetHED.pth", 29_444_406),))
PIDINET = ("PidiNetDetector", (("table5_pidinet.pth", 2_870_000),))
PIDINET_TERMS = "for research; ask its authors before commercial use"
FAINTEST = 26
"""Of 255: edges nowhere brighter than a tenth are what a network leaves on a plain wall."""


@dataclass(frozen=True)
class HEDParams:
    """Soft edges have no settings."""


def draw_diorama(image: RGBImage, _: HEDParams) -> ControlMap:
    """Draw what Diorama's annotator sees."""
    if is_flat(image):
        return np.zeros_like(image)
    logits = at_size(see(image)["edges"], image)
    return as_map(1 / (1 + np.exp(-logits[:, :, 0])))


def draw_hed(image: RGBImage, _: HEDParams, safe: bool) -> ControlMap:
    """Draw HED's soft edges, from controlnet-aux's Apache-licensed network."""
    return run_detector(load_detector(*HED), image, safe=safe)


def draw_pidinet(image: RGBImage, _: HEDParams, safe: bool) -> ControlMap:
    """Draw PiDiNet's soft edges."""
    return run_detector(load_detector(*PIDINET), image, safe=safe)


def too_faint(control_map: ControlMap) -> bool:
    """Return whether soft edges are so faint everywhere that they show nothing."""
    return bool(control_map.max() < FAINTEST)


def as_map(grey: NDArray[np.floating]) -> ControlMap:
    """Return grey (H, W) in 0..1 as a control map."""
    return grey_map((grey * 255).clip(0, 255).astype(np.uint8))


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two soft edge maps of one size by their MS-SSIM, ControlNet++'s figure.

    Most of such a map is black, so that an empty one is already similar; the headline is the share
    of the way from there to equal.
    """
    first, second = (grey.max(axis=2).astype(np.float32) / 255 for grey in (wanted, found))
    similar = ms_ssim(first, second)
    empty = ms_ssim(first, np.zeros_like(first))
    kept = (similar - empty) / (1 - empty) if empty < 1 else float(similar >= 1)
    return Score(100 * max(0.0, kept), "MS-SSIM", {"MS-SSIM": similar})


ANNOTATOR = Annotator(
    name="hed",
    preprocessors=(
        Preprocessor("Diorama", draw_diorama, help=HELP),
        by_detector("HED", partial(draw_hed, safe=False), HED),
        by_detector("HED safe", partial(draw_hed, safe=True), HED),
        by_detector("PiDiNet", partial(draw_pidinet, safe=False), PIDINET, PIDINET_TERMS),
        by_detector("PiDiNet safe", partial(draw_pidinet, safe=True), PIDINET, PIDINET_TERMS),
    ),
    params=HEDParams,
    score=score,
    interpolation="linear",
    detect_resolution=512,
    empty_message="No edges found in this picture.",
    is_empty=too_faint,
    map_warning=unless_few("edges"),
)
