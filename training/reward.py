"""ControlNet++'s reward: the generated picture's maps must be those of its source picture.

The clean latents are extrapolated from the noisy ones in one step and decoded; a frozen annotator
predicts maps of both pictures, and their difference is added to the diffusion loss. Source: Li et
al. 2024, "ControlNet++" (arXiv 2404.07987). The paper rewards only low noise, t <= 200 of 1000, and
uses one network per task. So does `PhotoReward`, for photographs and any base, with the networks
that the apps annotate with (`training.photo_annotators`). `Reward` has all maps from Diorama's
annotator and rewards every timestep: the layout is decided early, and it recognises classes in
pictures extrapolated from t = 950 already.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from annotators._diorama import Prediction
from annotators._scene_annotator import SceneAnnotator
from annotators.seg import MIN_AREA
from models.networks import raw_latents
from training.photo_annotators import PHOTO_ANNOTATORS, PhotoAnnotator, Predict, divergences
from training.train_annotator import Targets
from training.train_autoencoder import pixels

OVERLAP = "overlap"  # of classes
KINDS = ("edges", "depth", "normal", "classes", "joints", "offset", OVERLAP)
"""The losses of `Targets.losses`, and the overlap of classes."""
DOUBT_WEIGHT = 0.1  # of the disagreement beside the reward, as published for edges and depth


def large_classes(logits: Tensor) -> Tensor:
    """The argmax (B, h, w) of logits (B, C, h, w) over classes that cover MIN_AREA at least."""
    area = functional.one_hot(logits.argmax(1), logits.shape[1]).float().mean((1, 2))
    return logits.masked_fill((area < MIN_AREA)[:, :, None, None], -torch.inf).argmax(1)


def overlap_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """1 - soft mean intersection over union of logits (B, C, h, w) and classes (B, h, w).

    As in `annotators.seg.score`, the mean is over the classes in either: a few pixels of an extra
    class cost as much as a missing class, which cross-entropy hardly notices.
    """
    probability = logits.softmax(1)
    target = functional.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2).float()
    intersection = (probability * target).mean((2, 3))
    union = (probability + target - probability * target).mean((2, 3))
    predicted = functional.one_hot(logits.argmax(1), logits.shape[1]).permute(0, 3, 1, 2)
    area = (probability * predicted).mean((2, 3))
    present = target.amax((2, 3))
    # An extra class counts by a smooth step at MIN_AREA, so that its area has a gradient.
    counted = present + (1 - present) * area / (area + MIN_AREA)
    return 1 - ((present * intersection / union).sum(1) / counted.sum(1)).mean()


def disagreements(one: Prediction, other: Prediction) -> dict[str, Tensor]:
    """How far two predictions differ at each pixel, by field, (B, 1 or C, h, w); 0 for the same."""
    angle = 1 - functional.cosine_similarity(one.normal, other.normal, dim=1)
    return {
        "edges": (one.edges.sigmoid() - other.edges.sigmoid()).abs(),
        "depth": (one.depth - other.depth).abs(),
        "normal": angle[:, None],
        "classes": divergences(one.classes, other.classes)[:, None],
        "joints": (one.joints.sigmoid() - other.joints.sigmoid()).abs(),
        "offset": (one.offset - other.offset).abs(),
    }


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pictures (B, 3, 8h, 8w) in [-1, 1] of the scheduler's latents (B, 4, h, w)."""
    pictures: Tensor = vae.decode(raw_latents(vae, latents), return_dict=False)[0]
    return pictures.clamp(-1, 1)


class Reward:
    """Compares pictures by a frozen annotator's predictions, with the losses named in `kinds`."""

    def __init__(self, vae: Any, annotator: SceneAnnotator, kinds: Sequence[str]) -> None:
        """Freeze the autoencoder and the annotator."""
        self._vae = vae.requires_grad_(False)
        self._annotator = annotator.requires_grad_(False)
        self._kinds = kinds

    def loss(self, latents: Tensor, pictures: np.ndarray) -> Tensor:
        """The sum of losses between clean latents (B, 4, h, w) and pictures (B, 8h, 8w, 3) uint8.

        Each is around 1 for a picture of something else.
        """
        target, prediction = self._target(pictures, latents.device.type), self._predict(latents)
        losses = Targets.from_prediction(target).losses(prediction)
        losses[OVERLAP] = overlap_loss(prediction.classes, large_classes(target.classes))
        return torch.stack([losses[kind] for kind in self._kinds]).sum()

    def uncertain_loss(self, latents: Tensor, again: Tensor, pictures: np.ndarray) -> Tensor:
        """The same, where a pixel counts less the more `again`, other estimates, disagree there.

        Source: Zhang et al. 2025, "Ctrl-U" (arXiv 2410.11236): the reward is rectified by the
        factor exp(-disagreement), which itself is kept small. It has no `overlap`, which is not a
        loss of pixels.
        """
        target, prediction = self._target(pictures, latents.device.type), self._predict(latents)
        doubt = disagreements(prediction, self._predict(again))
        weights = {kind: (-values).exp() for kind, values in doubt.items()}
        losses = Targets.from_prediction(target).losses(prediction, weights)
        parts = [losses[kind] + DOUBT_WEIGHT * doubt[kind].mean() for kind in self._kinds]
        return torch.stack(parts).sum()

    def _target(self, pictures: np.ndarray, device: str) -> Prediction:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            found: Prediction = self._annotator(pixels(pictures, device))
            return found

    def _predict(self, latents: Tensor) -> Prediction:
        with torch.autocast(latents.device.type, torch.bfloat16):
            found: Prediction = self._annotator(decoded(self._vae, latents))
            return found


class PhotoReward:
    """Compares pictures by what frozen annotators of photographs predict for them.

    They compute in float32, the autoencoder with products in `precision`.
    """

    def __init__(self, vae: Any, names: Sequence[str], device: str, precision: torch.dtype) -> None:
        """Freeze the autoencoder, and load the annotators named.

        Raises:
            WeightsMissing, SuiteError: as their preprocessors.
        """
        self._vae, self._precision = vae.requires_grad_(False), precision
        found = [PHOTO_ANNOTATORS[name] for name in names]
        self._annotators = [(one, one.predictor(device)) for one in found]

    def loss(self, latents: Tensor, pictures: np.ndarray) -> Tensor:
        """The sum of losses, of latents (B, 4, h, w) and pictures (B, 8h, 8w, 3) uint8."""
        found = self._errors(latents, pictures)
        return torch.stack([errors.mean() for *_, errors in found]).sum()

    def uncertain_loss(self, latents: Tensor, again: Tensor, pictures: np.ndarray) -> Tensor:
        """The same, where a pixel counts less the more `again` disagrees; see `Reward`."""
        other, parts = self._drawn(again), []
        for annotator, predict, prediction, errors in self._errors(latents, pictures):
            doubt = annotator.doubt(prediction, predict(other))
            parts.append(((-doubt).exp() * errors).mean() + DOUBT_WEIGHT * doubt.mean())
        return torch.stack(parts).sum()

    def _errors(
        self, latents: Tensor, pictures: np.ndarray
    ) -> Iterator[tuple[PhotoAnnotator, Predict, Tensor, Tensor]]:
        """Yield each annotator, its prediction for the latents, and the errors of that."""
        drawn, wanted = self._drawn(latents), _shares(pixels(pictures, latents.device.type))
        for annotator, predict in self._annotators:
            prediction = predict(drawn)
            with torch.no_grad():
                target = predict(wanted)
            yield annotator, predict, prediction, annotator.errors(prediction, target)

    def _drawn(self, latents: Tensor) -> Tensor:
        device, on = latents.device.type, self._precision != torch.float32
        with torch.autocast(device, self._precision, enabled=on):
            drawn = decoded(self._vae, latents)
        return _shares(drawn.float())


def _shares(pictures: Tensor) -> Tensor:
    """Pictures from [-1, 1] to [0, 1]."""
    return pictures / 2 + 0.5
