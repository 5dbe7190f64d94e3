"""Soft edges: the strength of a boundary at every pixel, bright on black.

Sources: Xie & Tu 2015, "Holistically-Nested Edge Detection", and Su et al. 2021, "Pixel Difference
Networks" (PiDiNet), both through controlnet-aux; "safe" quantises to three levels, so that no
faint trace of the picture remains (ControlNet v1.1, annotator/util.py).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from annotators._diorama import HELP, doubt, is_flat, predict, resize_like
from annotators._map_checks import line_map_warning, require_finite
from annotators._pretrained import detector_preprocessor, load_detector, run_detector
from annotators._strokes import line_editor
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score, WebUINames
from core.consistency import ms_ssim
from core.images import grey_map

HED = ("HEDdetector", (("ControlNetHED.pth", 29_444_406),))
PIDINET = ("PidiNetDetector", (("table5_pidinet.pth", 2_870_000),))
PIDINET_TERMS = "for research; ask its authors before commercial use"
MIN_BRIGHTNESS = 26
"""Of 255: a map that is nowhere brighter than a tenth is a network's noise on a plain wall."""


@dataclass(frozen=True)
class HEDParams:
    """Soft edges have no settings."""


def draw_diorama(image: RGBImage, _: HEDParams) -> ControlMap:
    """Draw the soft edges that Diorama's annotator predicts."""
    if is_flat(image):
        return np.zeros_like(image)
    logits = resize_like(predict(image)["edges"], image)
    return as_map(1 / (1 + np.exp(-logits[:, :, 0])))


def draw_hed(image: RGBImage, _: HEDParams, safe: bool) -> ControlMap:
    """Draw HED's soft edges with controlnet-aux's Apache-licensed network."""
    return run_detector(load_detector(*HED), image, safe=safe)


def draw_pidinet(image: RGBImage, _: HEDParams, safe: bool) -> ControlMap:
    """Draw PiDiNet's soft edges."""
    return run_detector(load_detector(*PIDINET), image, safe=safe)


def is_faint(control_map: ControlMap) -> bool:
    """Return whether soft edges are too faint everywhere to count as edges."""
    return bool(control_map.max() < MIN_BRIGHTNESS)


def as_map(grey: NDArray[np.floating]) -> ControlMap:
    """Return grey (H, W) in 0..1 as a control map (H, W, 3).

    Raises:
        SuiteError: a value is NaN or infinite.
    """
    require_finite(grey)
    return grey_map((grey * 255).clip(0, 255).astype(np.uint8))


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two soft edge maps of one size by their MS-SSIM, ControlNet++'s metric.

    It differs from the paper's figures at the border (core.consistency.ms_ssim).

    Most of such a map is black, so an empty one is already similar: the headline is scaled from
    the similarity of an empty map (0) to equality (100).
    """
    wanted, found = (grey.max(axis=2).astype(np.float32) / 255 for grey in (target, extracted))
    similarity = ms_ssim(wanted, found)
    of_empty = ms_ssim(wanted, np.zeros_like(wanted))
    scaled = (similarity - of_empty) / (1 - of_empty) if of_empty < 1 else float(similarity >= 1)
    return Score(headline=100 * max(0.0, scaled), metric="MS-SSIM", metrics={"MS-SSIM": similarity})


ANNOTATOR = Annotator(
    name="hed",
    preprocessors=(
        Preprocessor("Diorama", draw_diorama, help=HELP, doubt=doubt),
        detector_preprocessor("HED", partial(draw_hed, safe=False), HED),
        detector_preprocessor("HED safe", partial(draw_hed, safe=True), HED),
        detector_preprocessor("PiDiNet", partial(draw_pidinet, safe=False), PIDINET, PIDINET_TERMS),
        detector_preprocessor(
            "PiDiNet safe", partial(draw_pidinet, safe=True), PIDINET, PIDINET_TERMS
        ),
    ),
    params=HEDParams,
    score=score,
    interpolation="linear",
    detect_resolution=512,
    empty_message="No edges found in this picture.",
    is_empty=is_faint,
    map_warning=line_map_warning("edges"),
    webui=WebUINames(
        {
            "softedge_hed": "HED",
            "hed": "HED",
            "softedge_hedsafe": "HED safe",
            "hed_safe": "HED safe",
            "softedge_pidinet": "PiDiNet",
            "pidinet": "PiDiNet",
            "softedge_pidisafe": "PiDiNet safe",
            "pidinet_safe": "PiDiNet safe",
        },
        ("softedge", "hed"),
    ),
    editor=line_editor(4),
)
