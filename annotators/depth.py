"""Depth: the nearest point is white, the farthest black.

Sources: Ranftl et al. 2020, "Towards Robust Monocular Depth Estimation" (MiDaS DPT-hybrid, through
controlnet-aux), and Yang et al. 2024, "Depth Anything V2" (through transformers). All give inverse
depth up to scale and shift; so does Diorama's annotator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotators._diorama import HELP, TRAINING_RESOLUTION, doubt, is_flat, predict, resize_like
from annotators._map_checks import grey_map_warning, require_finite
from annotators._pretrained import (
    INFERENCE_LOCK,
    detector_preprocessor,
    load_detector,
    load_transformer,
    run_detector,
    transformer_preprocessor,
)
from annotators._strokes import number
from annotators._surfaces import Slider, slider_values, soft_cover, surface_editor
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score, WebUINames
from core.images import grey_map

DEPTH_ANYTHING = (
    "AutoModelForDepthEstimation",
    "depth-anything/Depth-Anything-V2-Small-hf",
    "5426e4f0f36572d16453bbda7a8389317b1bef99",
    99_173_660,
)
MIN_SPREAD = 0.01
"""The smallest (max - min) / max(|min|, |max|) of inverse depth that makes a map; less is noise.

Relative, because each network has its own unit. All count from about 0, which is infinitely far.
"""
MIDAS = ("MidasDetector", (("dpt_hybrid-midas-501f0c75.pt", 493_000_000),))


@dataclass(frozen=True)
class DepthParams:
    """Depth has no settings."""


def draw_diorama(image: RGBImage, _: DepthParams) -> ControlMap:
    """Draw the depth that Diorama's annotator predicts."""
    if is_flat(image):
        return np.zeros_like(image)
    return as_map(resize_like(predict(image)["depth"], image)[:, :, 0])


def draw_midas(image: RGBImage, _: DepthParams) -> ControlMap:
    """Draw MiDaS's inverse depth, as ControlNet v1.0 does."""
    return run_detector(load_detector(*MIDAS), image)


def draw_depth_anything(image: RGBImage, _: DepthParams) -> ControlMap:
    """Draw Depth Anything V2's inverse depth (the small network, Apache-2.0)."""
    processor, network = load_transformer(*DEPTH_ANYTHING)
    with INFERENCE_LOCK, torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").to(network.device)
        inverse_depth = network(**pixels).predicted_depth[0].float().cpu().numpy()
    return as_map(resize_like(inverse_depth[:, :, None], image)[:, :, 0])


def as_map(inverse_depth: NDArray[np.float32]) -> ControlMap:
    """Return inverse depth (H, W) as a map (H, W, 3), stretched to 0..255.

    It is black if the depth varies less than MIN_SPREAD.

    Raises:
        SuiteError: a value is NaN or infinite.
    """
    require_finite(inverse_depth)
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    if high - low <= MIN_SPREAD * max(abs(low), abs(high)):
        return grey_map(np.zeros(inverse_depth.shape, np.uint8))
    grey = (inverse_depth - low) / (high - low)
    return grey_map((grey * 255).round().astype(np.uint8))


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two depth maps of one size: RMSE in grey levels, 0..255, ControlNet++'s metric.

    The headline, 0..100, is 100 * max(0, 1 - RMSE / standard deviation of the target). A map of one
    grey scores 0, unless the target is that same grey.
    """
    levels, found = (grey.astype(np.float64).mean(axis=2) for grey in (target, extracted))
    rmse = float(np.sqrt(np.square(levels - found).mean()))
    deviation = float(levels.std())
    agreement = 1 - rmse / deviation if deviation > 0 else float(rmse == 0)
    return Score(
        headline=100 * max(0.0, agreement),
        metric="RMSE",
        metrics={"RMSE": rmse},
        higher_is_better=False,
    )


SLIDERS = (
    Slider("far", "Far", 0, 255, 1, 0, "What is darker than this becomes the farthest: black."),
    Slider("near", "Near", 0, 255, 1, 255, "What is brighter becomes the nearest: white."),
    Slider(
        "contrast", "Contrast", 0.25, 4, 0.05, 1, "Above 1 sets what is near apart from the rest."
    ),
    Slider(
        "tilt_right", "Tilt right", -1, 1, 0.05, 0, "Brings the right nearer, the left farther."
    ),
    Slider("tilt_down", "Tilt down", -1, 1, 0.05, 0, "Brings the bottom nearer, the top farther."),
)
MOST_LEVELS = 64
"""That one stroke brings nearer or farther, in grey levels."""


def _check_stroke(stroke: Mapping[str, Any]) -> dict[str, float]:
    return {"by": number(stroke.get("by", 0), "by", -MOST_LEVELS, MOST_LEVELS)}


def draw_edit(edit: Mapping[str, Any], control_map: ControlMap) -> ControlMap:
    """Draw an edit over a depth map: levels, contrast and tilt, then the strokes.

    The grey "far" becomes black and "near" white, with all beyond clipped; "near" below "far" turns
    near and far round. The result, 0..1, is raised to "contrast". A tilt of 1 adds half the range
    at one rim and takes it away at the other. Each stroke adds "by" grey levels.
    """
    values = slider_values(edit, SLIDERS)
    height, width = control_map.shape[:2]
    far, spread = values["far"], values["near"] - values["far"]
    levels = control_map.astype(np.float32)
    # Within one grey level there is nothing between near and far.
    relative = (levels - far) / spread if abs(spread) >= 1 else (levels >= far) * np.float32(1)
    grey = 255 * relative.clip(0, 1) ** values["contrast"]
    across, down = (np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    plane = values["tilt_right"] * across[None, :] + values["tilt_down"] * down[:, None]
    grey += 127.5 * plane[:, :, None]
    for stroke in edit["strokes"]:
        grey += stroke["by"] * soft_cover(stroke, edit["size"], (height, width))
    return np.asarray(grey.round().clip(0, 255), np.uint8)


ANNOTATOR = Annotator(
    name="depth",
    preprocessors=(
        Preprocessor(
            "Diorama", draw_diorama, help=HELP, detect_resolution=TRAINING_RESOLUTION, doubt=doubt
        ),
        detector_preprocessor("MiDaS", draw_midas, MIDAS),
        transformer_preprocessor("Depth Anything V2", draw_depth_anything, DEPTH_ANYTHING),
    ),
    params=DepthParams,
    score=score,
    interpolation="linear",
    detect_resolution=384,
    empty_message="No depth found: the picture looks flat.",
    map_warning=grey_map_warning("depth is grey, and bright is near"),
    webui=WebUINames(
        {
            "depth_midas": "MiDaS",
            "depth": "MiDaS",
            "depth_anything_v2": "Depth Anything V2",
            "depth_anything": "Depth Anything V2",
        },
        ("depth",),
    ),
    editor=surface_editor("depth", SLIDERS, _check_stroke, draw_edit, 40, levels=MOST_LEVELS),
)
