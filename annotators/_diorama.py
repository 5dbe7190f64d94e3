"""Diorama's annotator: one small network that sees soft edges, depth, normals, classes and people.

It is trained by `training.train_annotator` on scenes whose truth is known, and knows no other
world: on photographs it is a beginner, and the pages say so.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from core.condition import RGBImage
from core.errors import WeightsMissing
from models.catalog.paths import MODELS
from models.devices import LOADING, choose_device

FOLDER = MODELS / "diorama" / "annotator"
JOINTS = 18
"""OpenPose's body keypoints."""
NECK = 1
"""Its place among them: where a person is."""
HELP = "Nothing to download; made for its own world."
"""Of every preprocessor that looks through this network."""
LEARNED_AT = 256
"""Short side in pixels of the pictures it learned from: in larger ones it mistakes parts."""
STRIDE = 2
"""Sides of the picture over sides of what is seen."""
GRID = 32
"""The picture's sides must be multiples of this: the network halves it five times."""
HEAD_WIDTH = 64
FLAT_LEVELS = 8
"""Of 255: JPEG may leave such traces on a plain sheet."""
OFFSET_SCALE = 32.0
"""Offsets to a person's neck are given in this many cells, so that they are around one."""


@dataclass(frozen=True)
class Seen:
    """What the network says about pictures, at 1/STRIDE of their size; all float (B, C, h, w)."""

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


class _Block(nn.Module):
    """Two 3x3 convolutions around which the input passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        added: Tensor = x + self.conv2(functional.silu(self.norm2(h)))
        return added


class SceneAnnotator(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A U-Net from pictures to `Seen`.

    `classes` are the ADE20K indices it tells apart; `widths` the channels at each size, the first
    at half the picture's.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, classes: tuple[int, ...], widths: tuple[int, ...] = (24, 48, 96, 160, 224)
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(3, widths[0], 5, stride=STRIDE, padding=2)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        # Few at the large sizes, where they cost most.
        self.into = nn.ModuleList(
            nn.Sequential(*(_Block(b) for _ in range(min(k + 1, 2))))
            for k, (_, b) in enumerate(pairs)
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.out = nn.ModuleList(_Block(a) for a, _ in pairs)
        # Wider than what it reads: so many answers are not linear in so few channels.
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], HEAD_WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(HEAD_WIDTH, 1 + 1 + 3 + len(classes) + JOINTS + 2, 1),
        )

    def forward(self, pixels: Tensor) -> Seen:
        """See pictures (B, 3, H, W) in [-1, 1], sides multiples of GRID."""
        x = self.stem(pixels)
        kept = []
        for down, into in zip(self.down, self.into, strict=True):
            kept.append(x)
            x = into(down(functional.silu(x)))
        for up, out, beside in reversed(list(zip(self.up, self.out, kept, strict=True))):
            x = out(functional.interpolate(up(x), scale_factor=2.0) + beside)
        parts = self.head(functional.silu(x)).float()
        return Seen(*parts.split([1, 1, 3, len(self.config.classes), JOINTS, 2], 1))


def load_network() -> SceneAnnotator:
    """Return the trained network on the best device.

    Raises:
        WeightsMissing: it is not in this copy of the suite.
    """
    with LOADING:
        return _loaded(FOLDER)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> SceneAnnotator:
    if not (folder / "config.json").is_file():
        raise WeightsMissing(
            "Diorama's annotator is not in models/diorama/annotator: train it with `python -m "
            "training.train_annotator --save models/diorama/annotator`, or choose another "
            "preprocessor."
        )
    network: SceneAnnotator = SceneAnnotator.from_pretrained(folder, torch_dtype=torch.float32)
    network.to(choose_device()[0]).eval()
    return network


def is_flat(image: RGBImage) -> bool:
    """Return whether a picture (H, W, 3) is one colour, but for traces: there is nothing to see.

    It must be asked of the picture: the network, which never saw one without a scene, imagines one.
    """
    return int(np.ptp(image.reshape(-1, 3), axis=0).max()) <= FLAT_LEVELS


Maps = NDArray[np.float32]
"""(h, w, C)."""


def see(image: RGBImage) -> dict[str, Maps]:
    """Return what the network says about a picture (H, W, 3): the fields of `Seen` by name.

    Each is float32 (h, w, channels), about 1/STRIDE of the picture's size.
    """
    together = _TOGETHER.get()
    if id(image) not in together:
        return _seen([image])[0]
    waiting = [one for one in together.values() if isinstance(one, np.ndarray)]
    if waiting:
        with torch.autocast(load_network().device.type, torch.bfloat16):
            together.update(zip(map(id, waiting), _seen(waiting), strict=True))
    found: dict[str, Maps] = together[id(image)]
    return found


@contextmanager
def seen_together(images: Sequence[RGBImage]) -> Iterator[None]:
    """While it lasts, the first of these pictures that is looked at has all of them looked at.

    One pass in bfloat16 over pictures of one size: several times faster, for training, where the
    last bit of a map is no matter.
    """
    before = _TOGETHER.set({id(image): image for image in images})
    try:
        yield
    finally:
        _TOGETHER.reset(before)


_TOGETHER: ContextVar[dict[int, Any]] = ContextVar("_TOGETHER", default={})  # noqa: B039 - empty
"""Pictures of `seen_together` by their id, and what was seen of them from the first look on."""


def _seen(images: Sequence[RGBImage]) -> list[dict[str, Maps]]:
    network = load_network()
    height, width = (max(GRID, round(side / GRID) * GRID) for side in images[0].shape[:2])
    fitted = [cv2.resize(one, (width, height), interpolation=cv2.INTER_AREA) for one in images]
    pixels = torch.from_numpy(np.stack(fitted)).to(network.device).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        seen = network(pixels / 127.5 - 1)
    parts = {name: part.permute(0, 2, 3, 1).cpu().numpy() for name, part in vars(seen).items()}
    return [{name: part[k] for name, part in parts.items()} for k in range(len(images))]


def at_size(values: Maps, image: RGBImage) -> Maps:
    """Return maps (h, w, C) at a picture's height and width, smoothly enlarged: (H, W, C)."""
    size = (image.shape[1], image.shape[0])
    enlarged = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged, np.float32).reshape(*image.shape[:2], values.shape[2])
