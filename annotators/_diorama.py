"""Diorama's annotator: one small network for soft edges, depth, normals, classes and keypoints.

`training.train_annotator` trains it on rendered scenes with exact ground truth, and on nothing
else: its maps of photographs are poor. `doubt` knows such a picture, and the pages say so.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.condition import RGBImage, is_rough
from core.errors import WeightsMissing
from core.images import fit_size, resize
from models.catalog.paths import MODELS
from models.devices import shared_device
from models.engine.kernels.build import cpu_has_bfloat16
from models.threads import fit_threads

if TYPE_CHECKING:
    from annotators._scene_annotator import SceneAnnotator

FOLDER = MODELS / "diorama" / "annotator"
JOINTS = 18
"""Number of OpenPose's body keypoints."""
NECK = 1
"""The neck's index among them; a person is located by it."""
MIRRORED_JOINTS = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
"""For each of them, the one that a mirrored person has in its place: left and right are swapped."""
HELP = "Nothing to download. Trained on Diorama's scenes, not on photographs."
"""Help text of every preprocessor that uses this network."""
TRAINING_RESOLUTION = 256
"""Short side of the training pictures in pixels; larger pictures give worse maps."""
STRIDE = 2
"""Side of the picture divided by side of the prediction."""
GRID = 32
"""The picture's sides must be multiples of this: the network halves it five times."""
SHIFTS = ((0, 0), (3, 3), (1, 2), (2, 1))
"""Pixels, x and y, that a picture is moved by for the mean of its predictions: each place on a grid
of four once, so that the mean hardly depends on where such a grid lies on the picture. A large
picture, of which a pixel is less, is moved by the first two, and one of a rough map not at all."""
MAX_ENTROPY = 0.45
"""Of the classes, in nats, the mean over a picture's pixels. One of 500 held-out scenes lies above,
and of the pictures that are none 95 % of crops of photographs and all noise."""
FLAT_LEVELS = 8
"""Largest range of grey levels, of 255, in a flat picture: JPEG leaves such noise."""
OFFSET_SCALE = 32.0
"""Unit of the offsets to a person's neck, in cells; it brings them to around 1."""

_LOAD_LOCK = threading.Lock()
"""Held while the network loads: a second request waits instead of loading it again."""


@dataclass(frozen=True)
class Prediction:
    """The network's output, at 1/STRIDE of the pictures' size; all float (B, C, h, w)."""

    edges: Tensor
    """1 channel, logits: soft edges."""
    depth: Tensor
    """1 channel: inverse depth, near is 1 and far is 0."""
    normal: Tensor
    """3 channels, not normalised: x right, y up, z towards the camera."""
    classes: Tensor
    """One channel for each of the config's `classes`, logits."""
    joints: Tensor
    """JOINTS channels, logits: OpenPose's body keypoints in its order."""
    offset: Tensor
    """2 channels: from a joint to its person's neck, x and y in OFFSET_SCALE cells."""

    def mirrored(self) -> Self:
        """Return what is predicted for the mirrored pictures."""
        parts = {name: part.flip(3) for name, part in vars(self).items()}
        parts["joints"] = parts["joints"][:, list(MIRRORED_JOINTS)]
        for name in ("normal", "offset"):
            x, *others = parts[name].split(1, 1)
            parts[name] = torch.cat([-x, *others], 1)
        return replace(self, **parts)


def load_network() -> "SceneAnnotator":
    """Return the trained network on the process's device (models/devices.py).

    Raises:
        WeightsMissing: models/diorama/annotator holds no network.
    """
    with _LOAD_LOCK:
        return _loaded(FOLDER, shared_device())


@lru_cache(maxsize=1)
def _loaded(folder: Path, device: torch.device) -> "SceneAnnotator":
    if not (folder / "config.json").is_file():
        raise WeightsMissing(
            "Diorama's annotator is not in models/diorama/annotator: train it with `python -m "
            "training.train_annotator --save models/diorama/annotator`, or choose another "
            "preprocessor."
        )
    # Only here: importing every network of diffusers takes seconds.
    from annotators._scene_annotator import SceneAnnotator  # noqa: PLC0415
    from models.checkpoints import loading  # noqa: PLC0415

    network: SceneAnnotator = loading.load_network(SceneAnnotator, folder)
    # With channels last its convolutions take two thirds of the time on a CPU.
    network.to(device, torch.float32, memory_format=torch.channels_last).eval()
    return network


def is_flat(image: RGBImage) -> bool:
    """Return whether a picture (H, W, 3) is one colour, up to JPEG noise.

    The picture must be tested, not the prediction: the network, trained on scenes alone, imagines
    one in a flat picture.
    """
    return int(np.ptp(image.reshape(-1, 3), axis=0).max()) <= FLAT_LEVELS


def doubt(image: RGBImage) -> float:
    """Return how unlike a picture (H, W, 3) is to Diorama's scenes; above 1 it is none of them.

    It is the mean entropy of the classes in units of MAX_ENTROPY. A flat picture has a map of its
    own (is_flat), so 0.
    """
    if is_flat(image):
        return 0.0
    size = fit_size(image.shape[1], image.shape[0], TRAINING_RESOLUTION)
    logits = torch.from_numpy(predict(resize(image, size))["classes"])
    entropy = torch.special.entr(logits.softmax(2)).sum(2).mean()
    return float(entropy) / MAX_ENTROPY


Maps = NDArray[np.float32]
"""(h, w, C)."""


def predict(image: RGBImage) -> dict[str, Maps]:
    """Return the network's prediction for a picture (H, W, 3): `Prediction`'s fields by name.

    Each is float32 (h, w, channels), about 1/STRIDE of the picture's size.
    """
    batch = _BATCH.get()
    if id(image) not in batch:
        return _predict_once(load_network(), image.tobytes(), image.shape, is_rough())
    pending = [entry for entry in batch.values() if isinstance(entry, np.ndarray)]
    if pending:
        with torch.autocast(load_network().device.type, torch.bfloat16):
            made = _predict(load_network(), pending, is_rough())
            batch.update(zip(map(id, pending), made, strict=True))
    maps: dict[str, Maps] = batch[id(image)]
    return maps


@contextmanager
def batched_prediction(images: Sequence[RGBImage]) -> Iterator[None]:
    """While the block runs, the first `predict` of one of these pictures predicts all of them.

    One pass in bfloat16 over pictures of one size: several times faster, for training, where the
    last bits do not matter.
    """
    token = _BATCH.set({id(image): image for image in images})
    try:
        yield
    finally:
        _BATCH.reset(token)


_BATCH: ContextVar[dict[int, Any]] = ContextVar("_BATCH", default={})  # noqa: B039 - never written
"""The pictures of `batched_prediction` by id, replaced by their predictions once those are made."""


@lru_cache(maxsize=2)
def _predict_once(
    network: "SceneAnnotator", data: bytes, shape: tuple[int, int, int], rough: bool
) -> dict[str, Maps]:
    """Predict for a picture's bytes; several maps of one picture, and its doubt, cost one pass."""
    return _predict(network, [np.frombuffer(data, np.uint8).reshape(shape)], rough)[0]


def _predict(
    network: "SceneAnnotator", images: Sequence[RGBImage], rough: bool
) -> list[dict[str, Maps]]:
    height, width = (max(GRID, round(side / GRID) * GRID) for side in images[0].shape[:2])
    resized = [cv2.resize(i, (width, height), interpolation=cv2.INTER_AREA) for i in images]
    pixels = torch.from_numpy(np.stack(resized)).to(network.device).permute(0, 3, 1, 2).float()
    narrow = network.device.type == "cpu" and cpu_has_bfloat16()
    fit_threads()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        shifts = 1 if rough else 4 if min(height, width) <= TRAINING_RESOLUTION else 2
        output = _steady(network, pixels / 127.5 - 1, SHIFTS[:shifts])
    parts = {name: part.permute(0, 2, 3, 1).cpu().numpy() for name, part in vars(output).items()}
    return [{name: part[k] for name, part in parts.items()} for k in range(len(images))]


def _steady(
    network: "SceneAnnotator", pixels: Tensor, shifts: Sequence[tuple[int, int]]
) -> Prediction:
    """Return the mean prediction for pictures (B, 3, H, W), moved by `shifts`, and their mirrors.

    A mirrored picture has the same mean, and with SHIFTS one moved by a pixel nearly the same. A
    cell lies at the first pixel of 2 x 2; the shifts predict each of the four equally often, so the
    mean lies at their centre.
    """
    height, width = pixels.shape[2:]

    def moved_back(part: Tensor, x: int, y: int) -> Tensor:
        cells = functional.pad(part, (x // STRIDE, 0, y // STRIDE, 0), "replicate")
        return cells[:, :, : part.shape[2], : part.shape[3]]

    def mean_of(view: Tensor) -> Prediction:
        larger = functional.pad(view, (0, GRID, 0, GRID), "replicate")
        moved = network(torch.cat([larger[:, :, y : y + height, x : x + width] for x, y in shifts]))
        parts = (part.float().chunk(len(shifts)) for part in vars(moved).values())
        return Prediction(
            *(
                torch.stack([moved_back(p, *s) for p, s in zip(part, shifts, strict=True)]).mean(0)
                for part in parts
            )
        )

    pairs = zip(
        vars(mean_of(pixels)).values(),
        vars(mean_of(pixels.flip(3)).mirrored()).values(),
        strict=True,
    )
    return Prediction(*((a + b) / 2 for a, b in pairs))


def resize_like(values: Maps, image: RGBImage) -> Maps:
    """Resize maps (h, w, C) bilinearly to a picture's size: (H, W, C)."""
    size = (image.shape[1], image.shape[0])
    enlarged = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged, np.float32).reshape(*image.shape[:2], values.shape[2])
