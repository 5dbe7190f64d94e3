"""Depth: near is white, far is black, stretched over the picture.

Sources: Ranftl et al. 2020, "Towards Robust Monocular Depth Estimation" (MiDaS DPT-hybrid, through
controlnet-aux), and Yang et al. 2024, "Depth Anything V2" (through transformers). All give inverse
depth up to scale and shift; so does Diorama's annotator.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from annotators._diorama import HELP, LEARNED_AT, at_size, is_flat, see
from annotators._map_checks import unless_grey
from annotators._pretrained import (
    IN_TURN,
    by_detector,
    by_transformer,
    load_detector,
    load_transformer,
    run_detector,
)
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score
from core.images import grey_map

DEPTH_ANYTHING = (
    "AutoModelForDepthEstimation",
    "depth-anything/Depth-Anything-V2-Small-hf",
    "5426e4f0f36572d16453bbda7a8389317b1bef99",
    99_173_660,
)
LEAST_SPREAD = 0.01
"""Of the largest value: what differs less is a network's noise, not a difference of depth."""
MIDAS = ("MidasDetector", (("dpt_hybrid-midas-501f0c75.pt", 493_000_000),))


@dataclass(frozen=True)
class DepthParams:
    """Depth has no settings."""


def draw_diorama(image: RGBImage, _: DepthParams) -> ControlMap:
    """Draw what Diorama's annotator sees."""
    if is_flat(image):
        return np.zeros_like(image)
    return stretched(at_size(see(image)["depth"], image)[:, :, 0])


def draw_midas(image: RGBImage, _: DepthParams) -> ControlMap:
    """Draw MiDaS's inverse depth, as ControlNet v1.0 does."""
    return run_detector(load_detector(*MIDAS), image)


def draw_depth_anything(image: RGBImage, _: DepthParams) -> ControlMap:
    """Draw Depth Anything V2's inverse depth (the small network, Apache-2.0)."""
    processor, network = load_transformer(*DEPTH_ANYTHING)
    with IN_TURN, torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").to(network.device)
        found = network(**pixels).predicted_depth[0].float().cpu().numpy()
    return stretched(at_size(found[:, :, None], image)[:, :, 0])


def stretched(inverse_depth: NDArray[np.float32]) -> ControlMap:
    """Return inverse depth (H, W) as a map whose nearest place is white and farthest black.

    A picture of one depth everywhere, or nearly, has no nearest place and gives a black map.
    """
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    if high - low <= LEAST_SPREAD * max(abs(low), abs(high)):
        return grey_map(np.zeros(inverse_depth.shape, np.uint8))
    grey = (inverse_depth - low) / (high - low)
    return grey_map((grey * 255).round().astype(np.uint8))


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two depth maps of one size: RMSE in grey levels, 0..255, ControlNet++'s figure.

    The headline is the share of the wanted map's own spread that is explained: a map of one grey
    everywhere, however well chosen, scores 0.
    """
    first, second = (grey.astype(np.float64).mean(axis=2) for grey in (wanted, found))
    rmse = float(np.sqrt(np.square(first - second).mean()))
    spread = float(first.std())
    kept = 1 - rmse / spread if spread > 0 else float(rmse == 0)
    return Score(100 * max(0.0, kept), "RMSE", {"RMSE": rmse}, higher_is_better=False)


ANNOTATOR = Annotator(
    name="depth",
    preprocessors=(
        Preprocessor("Diorama", draw_diorama, help=HELP, detect_resolution=LEARNED_AT),
        by_detector("MiDaS", draw_midas, MIDAS),
        by_transformer("Depth Anything V2", draw_depth_anything, DEPTH_ANYTHING),
    ),
    params=DepthParams,
    score=score,
    interpolation="linear",
    detect_resolution=384,
    empty_message="No depth found: the picture looks flat.",
    map_warning=unless_grey("depth is grey, and bright is near"),
)
