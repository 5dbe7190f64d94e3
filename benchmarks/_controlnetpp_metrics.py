"""How ControlNet++'s paper draws and compares each condition's maps, and its published results.

Pose, which it does not measure, is as CPO's paper has it.

Source: Li et al. 2024, "ControlNet++" (arXiv 2404.07987), and its eval/; Lyu et al. 2025, "CPO"
(arXiv 2511.04753).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotators import depth
from annotators._diorama import resize_like
from annotators._map_checks import require_finite
from annotators._pretrained import load_transformer
from annotators.seg import as_classes, as_map, palette
from benchmarks._keypoints import mean_average_precision, people_matched
from core.condition import ControlMap, RGBImage
from core.consistency import lines_in, ms_ssim
from core.images import grey_map

DPT_LARGE = (
    "DPTForDepthEstimation",
    "Intel/dpt-large",
    "bc15f29aa3a80d532f2ed650b5e16ac48d8958f9",  # what transformers' depth pipeline loads
    1_367_456_044,
)
MASK2FORMER = (
    "Mask2FormerForUniversalSegmentation",
    "facebook/mask2former-swin-large-ade-semantic",
    "aa25c92404a40599614215e76514c79b427c7527",
    866_052_064,
)

Statistics = NDArray[np.float64]
"""One picture's statistics, aggregated over all pictures at the end."""
Draw = Callable[[RGBImage, Any], ControlMap]


# Drawing maps


def predict_depth(image: RGBImage) -> NDArray[np.float32]:
    """DPT-Large's inverse depth of a picture, (H, W)."""
    processor, network = load_transformer(*DPT_LARGE)
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").to(network.device)
        inverse_depth = network(**pixels).predicted_depth[0].float().cpu().numpy()
    return resize_like(inverse_depth[:, :, None], image)[:, :, 0]


def draw_depth(image: RGBImage, _: Any) -> ControlMap:
    """Draw a source picture's depth: its farthest point is black, its nearest white."""
    return depth.as_map(predict_depth(image))


def draw_generated_depth(image: RGBImage, _: Any) -> ControlMap:
    """Draw a generated picture's depth, which the paper divides by its largest value.

    Raises:
        SuiteError: a value is NaN or infinite.
    """
    inverse_depth = predict_depth(image)
    require_finite(inverse_depth)
    inverse_depth = inverse_depth.clip(0)
    largest = max(float(inverse_depth.max()), 1e-9)
    return grey_map((255 * inverse_depth / largest).round().astype(np.uint8))


def draw_classes(image: RGBImage, _: Any) -> ControlMap:
    """Draw Mask2Former's classes."""
    processor, network = load_transformer(*MASK2FORMER)
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").to(network.device)
        classes = processor.post_process_semantic_segmentation(
            network(**pixels), target_sizes=[image.shape[:2]]
        )
    return as_map(classes[0].cpu().numpy().astype(np.uint8))


# Comparing maps: (the target, the re-extracted maps of its images) -> the picture's statistics


def pooled_f1(target: ControlMap, extracted: Sequence[ControlMap]) -> Statistics:
    """Exact-pixel F1 in percent, with the pixels of all images pooled; 0 if there are no lines."""
    wanted = lines_in(target)
    found = [lines_in(m) for m in extracted]
    common = sum(int((wanted & one).sum()) for one in found)
    total = sum(int(wanted.sum() + one.sum()) for one in found)
    return np.array(100 * 2 * common / total if total else 0.0)


def mean_ms_ssim(target: ControlMap, extracted: Sequence[ControlMap]) -> Statistics:
    """Multi-scale SSIM, 0 to 1, as torchmetrics has it."""
    wanted, *found = (m[:, :, 0].astype(np.float32) / np.float32(255) for m in (target, *extracted))
    return np.array(np.mean([ms_ssim(wanted, one, mirrored=True) for one in found]), np.float64)


def mean_rmse(target: ControlMap, extracted: Sequence[ControlMap]) -> Statistics:
    """Root mean squared error in grey levels, 0 to 255."""
    wanted, *found = (m[:, :, 0].astype(np.float64) for m in (target, *extracted))
    errors = [np.sqrt(np.square(wanted - one).mean()) for one in found]
    return np.array(np.mean(errors), np.float64)


def class_overlaps(target: ControlMap, extracted: Sequence[ControlMap]) -> Statistics:
    """Pixel counts of each class's intersection and union: (images, 2, classes).

    Black pixels of the target have no class and are ignored.
    """
    labelled = target.any(axis=2)
    count = partial(np.bincount, minlength=len(palette()[0]))
    wanted = as_classes(target)[labelled]
    result = []
    for control_map in extracted:
        found = as_classes(control_map)[labelled]
        intersection = count(wanted[wanted == found])
        result.append([intersection, count(wanted) + count(found) - intersection])
    return np.array(result, np.float64)


def mean(statistics: Sequence[Statistics]) -> float:
    """The mean over the pictures."""
    return float(np.mean(statistics))


def miou(statistics: Sequence[Statistics]) -> float:
    """Mean IoU in percent over the pixels of all pictures; the mean over a picture's images."""
    intersection, union = np.moveaxis(np.sum(statistics, 0), 1, 0)
    with np.errstate(invalid="ignore"):
        return float(100 * np.nanmean(intersection / union, axis=1).mean())


SPREAD = {"MS-SSIM": 0.02, "RMSE": 1.5}
"""How far third parties came from ControlNet++'s published values: InnerControl's table has 0.8208
and 29.66 where the paper has 0.8399 and 28.32."""


@dataclass(frozen=True)
class Evaluation:
    """How ControlNet++'s paper measures one condition, and what it and its successors reach."""

    metric: str
    draw: Draw | str
    """A function, or the name of one of the annotator's preprocessors."""
    compare: Callable[[ControlMap, Sequence[ControlMap]], Statistics]
    published: dict[str, float]
    """Values by method, Stable Diffusion 1.5 at guidance 7.5 on the papers' data: ControlNet and
    ControlNet++ (arXiv 2404.07987), Ctrl-U (2410.11236) and InnerControl (2507.02321) as
    InnerControl's table has them, CPO (2511.04753)."""
    aggregate: Callable[[Sequence[Statistics]], float] = mean
    draw_generated: Draw | None = None
    """Draws the maps of generated pictures, if not `draw`."""
    labelled: bool = False
    """Whether the paper's maps are labels of its data set, so that a folder may bring its own."""
    higher_is_better: bool = True
    quality: dict[str, tuple[float, float]] = field(default_factory=dict)
    """FID and CLIP score by method, from the same tables."""
    skips_empty: bool = False
    """Whether pictures with an empty map are left out, as nothing in them is to be found."""


EVALUATIONS = {
    "canny": Evaluation(
        metric="F1",
        draw="Kornia",
        compare=pooled_f1,
        published={"ControlNet": 34.65, "ControlNet++": 37.04, "CPO": 39.28},
        quality={
            "ControlNet": (14.73, 32.15),
            "ControlNet++": (20.16, 31.87),
            "CPO": (19.69, 31.83),
        },
    ),
    "hed": Evaluation(
        metric="MS-SSIM",
        draw="HED",
        compare=mean_ms_ssim,
        published={
            "ControlNet": 0.7621,
            "ControlNet++": 0.8097,
            "Ctrl-U": 0.8401,
            "InnerControl": 0.8207,
            "CPO": 0.8201,
        },
        quality={
            "ControlNet": (15.47, 32.33),
            "ControlNet++": (15.01, 32.05),
            "Ctrl-U": (11.59, 32.05),
            "InnerControl": (13.27, 31.99),
            "CPO": (13.35, 32.07),
        },
    ),
    "lineart": Evaluation(
        metric="MS-SSIM",
        draw="Lineart",
        compare=mean_ms_ssim,
        published={
            "ControlNet": 0.7054,
            "ControlNet++": 0.8399,
            "Ctrl-U": 0.8250,
            "InnerControl": 0.8258,
            "CPO": 0.8447,
        },
        quality={
            "ControlNet": (17.44, 32.46),
            "ControlNet++": (13.88, 31.95),
            "Ctrl-U": (12.04, 31.88),
            "InnerControl": (12.08, 31.97),
            "CPO": (13.35, 31.98),
        },
    ),
    "depth": Evaluation(
        metric="RMSE",
        draw=draw_depth,
        compare=mean_rmse,
        published={
            "ControlNet": 35.90,
            "ControlNet++": 28.32,
            "Ctrl-U": 29.06,
            "InnerControl": 26.09,
            "CPO": 27.49,
        },
        draw_generated=draw_generated_depth,
        labelled=True,
        higher_is_better=False,
        quality={
            "ControlNet": (17.76, 32.45),
            "ControlNet++": (16.66, 32.17),
            "Ctrl-U": (19.73, 31.88),
            "InnerControl": (18.29, 31.97),
            "CPO": (15.88, 32.31),
        },
    ),
    "seg": Evaluation(
        metric="mIoU",
        draw=draw_classes,
        compare=class_overlaps,
        # On ADE20K, from the corrected version of ControlNet++: 27.46 and 35.36 in the first are
        # for pictures saved as JPEG.
        published={"ControlNet": 32.55, "ControlNet++": 43.64, "CPO": 44.81},
        aggregate=miou,
        labelled=True,
        quality={
            "ControlNet": (33.28, 31.53),
            "ControlNet++": (30.24, 31.96),
            "CPO": (30.30, 31.97),
        },
    ),
    "pose": Evaluation(
        metric="mAP",
        draw="OpenPose",
        compare=people_matched,
        published={"ControlNet": 72.53, "CPO": 87.98},  # on COCO's people
        aggregate=mean_average_precision,
        labelled=True,
        quality={"ControlNet": (42.02, 32.05), "CPO": (39.21, 32.90)},
        skips_empty=True,
    ),
}
