"""Surface normals as colours: red faces left, green up, blue the camera.

The control map is RGB as shown (the convention of ScanNet, NormalBae and ControlNet v1.1);
ControlNet v1.0's network takes BGR, which its weights' config says.

Sources: v1.0's normals from depth (annotator/midas/__init__.py of ControlNet); Bae et al. 2021,
"Estimating and Exploiting the Aleatoric Uncertainty in Surface Normal Estimation" (NormalBae).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from annotators._diorama import HELP, TRAINING_RESOLUTION, doubt, is_flat, predict, resize_like
from annotators._map_checks import require_finite
from annotators._pretrained import (
    INFERENCE_LOCK,
    detector_preprocessor,
    load_detector,
    run_detector,
)
from annotators._strokes import listed, number
from annotators._surfaces import Slider, slider_values, soft_cover, surface_editor
from annotators.depth import MIDAS
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score, WebUINames
from core.errors import BadInput
from core.params import bounded, checked

BAE = ("NormalBaeDetector", (("scannet.pt", 291_000_000),))
TOWARDS_CAMERA = 2 * math.pi
"""z before normalising, in units of the depth's gradient (v1.0's constant)."""
DIORAMA_DEPTH_SCALE = 1000.0
"""MiDaS's values reach a few thousand; v1.0's constant is made for their gradients."""

DIORAMA_DEPTH_BLUR = 1 / 64
"""Standard deviation of the blur of its depth, as a fraction of the short side: a gradient shows
the network's noise. Against the truth of its scenes this makes the normals slightly better."""

LENGTH_TOLERANCE, MIN_Z = 0.3, -0.15
"""A valid normal has length 1 and faces the camera, up to rounding."""
MAX_INVALID = 0.2
"""Largest share of invalid normals in a normal map. Over 20 pictures the maps drawn here had 0.04
at most, the pictures themselves 0.39 at least."""

SHORTEST = 0.01
"""Length of a direction that is painted; a shorter one has none."""

Normals = NDArray[np.float32]
"""(H, W, 3): unit vectors, x to the LEFT, y up, z towards the camera."""


@dataclass(frozen=True)
class NormalParams:
    """The one setting of ControlNet v1.0's app."""

    background_threshold: float = bounded(
        0.4,
        0.0,
        1.0,
        0.01,
        "Normal background threshold",
        "Points farther than this (1 is the nearest) are background; only for normals from depth.",
    )

    def __post_init__(self) -> None:
        checked(self)


def draw_diorama(image: RGBImage, _: NormalParams) -> ControlMap:
    """Draw the normals that Diorama's annotator predicts."""
    if is_flat(image):
        return as_map(np.zeros(image.shape, np.float32))
    x, y, z = np.moveaxis(resize_like(predict(image)["normal"], image), 2, 0)
    return as_map(np.stack([-x, y, z], 2))


def draw_from_diorama_depth(image: RGBImage, params: NormalParams) -> ControlMap:
    """Draw normals from the depth that Diorama's annotator predicts, as ControlNet v1.0 does."""
    if is_flat(image):
        return as_map(np.zeros(image.shape, np.float32))
    depth = resize_like(predict(image)["depth"], image)[:, :, 0]
    blur = DIORAMA_DEPTH_BLUR * min(depth.shape)
    depth = np.asarray(cv2.GaussianBlur(depth, (0, 0), blur), np.float32)
    return as_map(from_depth(depth * DIORAMA_DEPTH_SCALE, params.background_threshold))


def draw_from_midas(image: RGBImage, params: NormalParams) -> ControlMap:
    """Draw normals from MiDaS's depth, as ControlNet v1.0 does."""
    detector = load_detector(*MIDAS)
    pixels = torch.from_numpy(image.copy()).to(next(detector.model.parameters()).device)
    with INFERENCE_LOCK, torch.no_grad():
        depth = detector.model(pixels.permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
    return as_map(from_depth(depth.cpu().numpy(), params.background_threshold))


def draw_bae(image: RGBImage, _: NormalParams) -> ControlMap:
    """Draw NormalBae's normals, as ControlNet v1.1 does."""
    return run_detector(load_detector(*BAE), image)


def from_depth(inverse_depth: NDArray[np.float32], background_threshold: float) -> Normals:
    """Return the normals of inverse depth (H, W); the background faces the camera.

    Raises:
        SuiteError: a value is NaN or infinite.
    """
    require_finite(inverse_depth)
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    relative = (inverse_depth - low) / (high - low) if high > low else inverse_depth * 0
    # Where inverse depth grows to the right, the surface faces left.
    x = cv2.Sobel(inverse_depth, cv2.CV_32F, 1, 0, ksize=3)
    y = cv2.Sobel(inverse_depth, cv2.CV_32F, 0, 1, ksize=3)
    near = relative >= background_threshold
    normals = np.stack([x * near, y * near, np.full_like(inverse_depth, TOWARDS_CAMERA)], 2)
    return _unit(normals)


def _unit(vectors: NDArray[np.float32]) -> Normals:
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    facing = np.array([0, 0, 1], np.float32)
    unit = np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), facing)
    return np.asarray(unit, np.float32)


def as_map(vectors: NDArray[np.float32]) -> ControlMap:
    """Return vectors (H, W, 3) of any length as a map; those of length 0 face the camera.

    Raises:
        SuiteError: a value is NaN or infinite.
    """
    require_finite(vectors)
    return (_unit(vectors) * 127.5 + 127.5).clip(0, 255).astype(np.uint8)


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two normal maps of one size: the mean angle between their normals, in degrees.

    Our own metric of control: none is published. The headline, 0..100, is 100 * max(0, 1 - error /
    mean angle to the target's mean normal): a map of one direction scores 0 at best.
    """
    wanted, found = (_unit(m.astype(np.float32) / 127.5 - 1) for m in (target, extracted))
    error = _mean_angle(wanted, found)
    mean = _unit(wanted.mean((0, 1), keepdims=True))
    spread = _mean_angle(wanted, np.broadcast_to(mean, wanted.shape))
    agreement = 1 - error / spread if spread > 1e-3 else float(np.array_equal(target, extracted))
    return Score(
        headline=100 * max(0.0, agreement),
        metric="mean angle",
        metrics={"mean angle": error},
        higher_is_better=False,
    )


def _mean_angle(first: Normals, second: Normals) -> float:
    # From the chord: the cosine of a small angle is too close to 1 to be precise.
    chord = np.linalg.norm(first.astype(np.float64) - second, axis=2)
    return float(np.degrees(2 * np.arcsin((chord / 2).clip(0, 1))).mean())


def map_warning(control_map: ControlMap) -> str:
    """Warn of a map with many invalid normals."""
    normals = control_map / 127.5 - 1
    wrong_length = abs(np.linalg.norm(normals, axis=2) - 1) > LENGTH_TOLERANCE
    if (wrong_length | (normals[:, :, 2] < MIN_Z)).mean() > MAX_INVALID:
        return "Many pixels are not valid normals; this is probably not a normal map."
    return ""


SLIDERS = (
    Slider(
        "strength",
        "Strength",
        0,
        3,
        0.05,
        1,
        "How far all surfaces lean; 0 turns all to the camera.",
    ),
    Slider(
        "background", "Background", 0, 1, 0.01, 0, "What leans less than this faces the camera."
    ),
)


def _check_stroke(stroke: Mapping[str, Any]) -> dict[str, list[float]]:
    direction = listed(stroke.get("direction"), "direction", 3)
    if len(direction) != 3:
        raise BadInput("Each stroke of the edit needs its direction, [x, y, z].")
    parts = [
        number(part, "direction", low, 1) for part, low in zip(direction, (-1, -1, 0), strict=True)
    ]
    if math.hypot(*parts) < SHORTEST:
        raise BadInput("A direction of the edit must not be [0, 0, 0].")
    return {"direction": parts}


def draw_edit(edit: Mapping[str, Any], control_map: ControlMap) -> ControlMap:
    """Draw an edit over a normal map; what it does not touch keeps its values.

    What leans less than "background" (the sine of its angle to the camera) faces the camera. x and
    y are multiplied by "strength". Each stroke turns what it covers to its "direction": x to the
    left, y up, z to the camera, of any length.
    """
    values = slider_values(edit, SLIDERS)
    normals = _unit(control_map.astype(np.float32) / 127.5 - 1)
    normals[:, :, 2] = normals[:, :, 2].clip(0)
    flat = np.hypot(normals[:, :, 0], normals[:, :, 1]) < values["background"]
    normals[flat] = 0, 0, 1
    normals = _unit(normals * np.array([values["strength"]] * 2 + [1], np.float32))
    touched = flat | (values["strength"] != 1)
    for stroke in edit["strokes"]:
        cover = soft_cover(stroke, edit["size"], control_map.shape[:2])
        direction = np.array(stroke["direction"], np.float32)
        direction /= np.linalg.norm(direction)
        normals = _unit(normals + cover * (direction - normals))
        touched |= cover[:, :, 0] > 0
    return np.where(touched[:, :, None], as_map(normals), control_map)


ANNOTATOR = Annotator(
    name="normal",
    preprocessors=(
        Preprocessor(
            "Diorama", draw_diorama, help=HELP, detect_resolution=TRAINING_RESOLUTION, doubt=doubt
        ),
        Preprocessor(
            "From Diorama depth",
            draw_from_diorama_depth,
            help="ControlNet v1.0's formula.",
            doubt=doubt,
        ),
        detector_preprocessor("From MiDaS depth", draw_from_midas, MIDAS),
        detector_preprocessor("NormalBae", draw_bae, BAE),
    ),
    params=NormalParams,
    score=score,
    interpolation="linear",
    detect_resolution=384,
    empty_message="No surfaces found: the picture looks flat.",
    map_warning=map_warning,
    webui=WebUINames(
        {
            "normal_bae": "NormalBae",
            "normal_midas": "From MiDaS depth",
            "normal_map": "From MiDaS depth",
        },
        ("normal",),
        thresholds=("background_threshold",),
    ),
    editor=surface_editor("normals", SLIDERS, _check_stroke, draw_edit, 40),
)
