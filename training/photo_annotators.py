"""What annotates photographs in the apps, with gradients, for the reward (`training.reward`).

Each predicts a preprocessor's map by the same network, before the steps that no gradient passes:
the thinning of edges, the choice of the likeliest class, the rounding to 256 levels. The losses are
those of Li et al. 2024, "ControlNet++" (arXiv 2404.07987): cross-entropy of classes, binary
cross-entropy of edges, and the mean squared error of all else. Two are not as in its code, whose
edges are thinned before they are compared, so that a missing edge has no gradient, and whose soft
edges are rounded, so that none has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from annotators import find_annotator
from annotators._pretrained import load_detector, load_transformer
from annotators.canny import KORNIA_HIGH, KORNIA_LOW, gradient
from annotators.depth import DEPTH_ANYTHING, MIDAS
from annotators.hed import HED, PIDINET
from annotators.lineart import LINEART
from annotators.seg import SEGFORMER
from core.images import drawing_size

LOW_LOGIT = -2.0
"""Of an edge as weak as the low threshold; one as strong as the high threshold has the opposite."""
LEAST_DEPTH = 1e-3
"""Of the nearest point, in a network's unit, so that a picture without depth has finite gradients;
MiDaS's are in the thousands, Depth Anything's around ten."""
THRESHOLD = 200
"""The last timestep that is rewarded, of 999, as published for every condition."""

Predict = Callable[[Tensor], Tensor]
"""From pictures (B, 3, H, W) in 0..1, RGB in float32, to a prediction (B, C, h, w)."""
Compare = Callable[[Tensor, Tensor], Tensor]
"""From two predictions (B, C, h, w) to a number for each pixel, (B, h, w)."""


@dataclass(frozen=True)
class PhotoAnnotator:
    """A preprocessor's network, and the loss of what it predicts."""

    condition: str
    """Whose maps it draws."""
    load: Callable[[], tuple[nn.Module, Predict]]
    """Gives the network, in the process's cache of detectors, and how to use it."""
    errors: Compare
    """Of a prediction, given another as the target: smallest where they agree."""
    doubt: Compare
    """How far two predictions differ, 0 where they agree."""

    def predictor(self, device: str) -> Predict:
        """Load the network on a device and freeze it; it looks at pictures as large as in the apps.

        Raises:
            WeightsMissing, SuiteError: as the preprocessor.
        """
        network, predict = self.load()
        network.to(device).requires_grad_(False)
        resolution = find_annotator(self.condition).detect_resolution

        def predict_at(pictures: Tensor) -> Tensor:
            return predict(resized(pictures, resolution) if resolution else pictures)

        return predict_at


def resized(pictures: Tensor, resolution: int) -> Tensor:
    """Return pictures at the size that the apps draw a map at, given its short side."""
    height, width = pictures.shape[2:]
    wide, high = drawing_size(width, height, resolution)
    if (wide, high) == (width, height):
        return pictures
    return functional.interpolate(pictures, (high, wide), mode="bilinear", antialias=True)


# Predictions


def _canny() -> tuple[nn.Module, Predict]:
    """Return the logits of an edge: the gradient's strength between the two thresholds."""
    middle, half = (KORNIA_HIGH + KORNIA_LOW) / 2, (KORNIA_HIGH - KORNIA_LOW) / 2

    def predict(pictures: Tensor) -> Tensor:
        magnitude = gradient(pictures)[0][:, None]
        return (middle - magnitude) * (LOW_LOGIT / half)

    return nn.Identity(), predict


def _hed() -> tuple[nn.Module, Predict]:
    network: Any = load_detector(*HED).netNetwork

    def predict(pictures: Tensor) -> Tensor:
        size = pictures.shape[2:]
        scales = [
            functional.interpolate(one, size, mode="bilinear") for one in network(255 * pictures)
        ]
        return torch.stack(scales).mean(0).sigmoid()

    return network, predict


def _pidinet() -> tuple[nn.Module, Predict]:
    network: Any = load_detector(*PIDINET).netNetwork

    def predict(pictures: Tensor) -> Tensor:
        found: Tensor = network(pictures.flip(1))[-1]  # it is given BGR
        return found

    return network, predict


def _lineart() -> tuple[nn.Module, Predict]:
    network: Any = load_detector(*LINEART).model

    def predict(pictures: Tensor) -> Tensor:
        found: Tensor = 1 - network(pictures)  # it draws black on white
        return found

    return network, predict


def _midas() -> tuple[nn.Module, Predict]:
    network: Any = load_detector(*MIDAS).model.model  # the inner one: the outer stops gradients
    return network, lambda pictures: _of_largest(network(2 * pictures - 1))


def _depth_anything() -> tuple[nn.Module, Predict]:
    processor, network = load_transformer(*DEPTH_ANYTHING)
    return network, lambda pictures: _of_largest(
        network(_processed(processor, pictures)).predicted_depth
    )


def _segformer() -> tuple[nn.Module, Predict]:
    processor, network = load_transformer(*SEGFORMER)

    def predict(pictures: Tensor) -> Tensor:
        found: Tensor = network(_processed(processor, pictures)).logits
        return found

    return network, predict


def _of_largest(inverse_depth: Tensor) -> Tensor:
    """Return inverse depth (B, h, w) as shares of each picture's largest, (B, 1, h, w)."""
    largest = inverse_depth.amax((1, 2), keepdim=True).clamp_min(LEAST_DEPTH)
    return (inverse_depth / largest)[:, None]


def _processed(processor: Any, pictures: Tensor) -> Tensor:
    """Return what a transformers processor makes of pictures, clipped after resizing as bytes are.

    It is torchvision's, which passes gradients on.
    """
    sized = processor(images=pictures, do_rescale=False, do_normalize=False, return_tensors="pt")
    clipped = sized["pixel_values"].clamp(0, 1)
    found = processor(images=clipped, do_rescale=False, do_resize=False, return_tensors="pt")
    values: Tensor = found["pixel_values"]
    return values


# Losses


def _edge_errors(logits: Tensor, wanted: Tensor) -> Tensor:
    target = wanted.sigmoid()
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]


def _edge_doubt(one: Tensor, other: Tensor) -> Tensor:
    return (one.sigmoid() - other.sigmoid()).abs()[:, 0]


def _squares(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square()[:, 0]


def _distances(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs()[:, 0]


def _class_errors(logits: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(logits, wanted.argmax(1), reduction="none")


def divergences(one: Tensor, other: Tensor) -> Tensor:
    """Return KL(other | one) at each pixel (B, h, w) of two logits (B, C, h, w) of classes."""
    logs = (one.log_softmax(1), other.log_softmax(1))
    return functional.kl_div(*logs, reduction="none", log_target=True).sum(1)


PHOTO_ANNOTATORS = {
    "Kornia": PhotoAnnotator("canny", _canny, _edge_errors, _edge_doubt),
    "HED": PhotoAnnotator("hed", _hed, _squares, _distances),
    "PiDiNet": PhotoAnnotator("hed", _pidinet, _squares, _distances),
    "Lineart": PhotoAnnotator("lineart", _lineart, _squares, _distances),
    "MiDaS": PhotoAnnotator("depth", _midas, _squares, _distances),
    "Depth Anything V2": PhotoAnnotator("depth", _depth_anything, _squares, _distances),
    "SegFormer": PhotoAnnotator("seg", _segformer, _class_errors, divergences),
}
"""By the name of the preprocessor in the apps."""
