"""Trains Diorama's annotator: one network for soft edges, depth, normals, classes and people.

    python -m training.train_annotator --minutes 30 --save models/diorama/annotator

All five are learned at once from the exact truth that the renderer kept (`diorama.truth`), half of
it from softened pictures.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from annotators._diorama import JOINTS, NECK, OFFSET_SCALE, STRIDE, SceneAnnotator, Seen
from training.diorama.dataset import Pictures
from training.diorama.truth import load_truth
from training.diorama.world import ADE20K
from training.loop import add_run_options, run_from, train
from training.train_autoencoder import pixels
from training.weights import save_module

BLOB = 1.5  # standard deviation of a joint's place, in cells
REACH = 2  # cells around a joint in which the way to its neck is taught
JOINT_WEIGHT = 40.0  # a joint covers a thousandth of the picture
SOFTEST = 4.0  # by what the resolution of softened pictures is reduced at most
JOINT_SEEN = 0.3  # of a network's answer: from here on there is a joint


def joint_targets(keypoints: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints of one picture (people, 18, 3) → what `Seen` should hold, on `side` x `side` cells.

    Returns the joints' places (18, side, side) in 0..1, the offsets to the neck (2, side, side),
    and where they are defined (side, side).
    """
    places = np.zeros((JOINTS, side, side), np.float32)
    offset = np.zeros((2, side, side), np.float32)
    known = np.zeros((side, side), np.float32)
    line = np.arange(side)
    for person in keypoints[keypoints[:, :, 2].any(1)]:
        neck = person[NECK, :2]  # taught even when hidden: it is where the person is
        for joint in range(JOINTS):
            at_x, at_y, seen = person[joint]
            if not seen:
                continue
            across, down = (np.exp(-((line - at) ** 2) / (2 * BLOB**2)) for at in (at_x, at_y))
            np.maximum(places[joint], np.outer(down, across), out=places[joint])
            x, y = (line[np.abs(line - at) <= REACH] for at in (at_x, at_y))
            near = np.ix_(y, x)
            offset[0][near] = (neck[0] - x) / OFFSET_SCALE
            offset[1][near] = (neck[1] - y)[:, None] / OFFSET_SCALE
            known[near] = 1
    return places, offset, known


@dataclass(frozen=True)
class Targets:
    """What the network should say about some pictures: `Seen`, settled, (B, C, side, side)."""

    edges: Tensor
    """In 0..1."""
    depth: Tensor
    normal: Tensor
    classes: Tensor
    """(B, side, side) int64, numbers among the network's own classes."""
    joints: Tensor
    """In 0..1."""
    offset: Tensor
    known: Tensor
    """One channel: 1 where there is an offset."""

    @classmethod
    def from_truth(
        cls, truth: dict[str, np.ndarray], rows: np.ndarray, classes: list[int], device: str
    ) -> Self:
        """What the renderer kept of these scenes says."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        side = truth["edges"].shape[1]
        joints = [joint_targets(people, side) for people in truth["keypoints"][rows]]
        number = np.zeros(256, np.int64)
        number[classes] = range(len(classes))
        normal = tensor(truth["normal"][rows].transpose(0, 3, 1, 2)).float() / 127
        # The sky has no surface; in maps it faces the camera, as whatever has no direction does.
        normal[:, 2][normal.square().sum(1) == 0] = 1
        return cls(
            edges=tensor(truth["edges"][rows][:, None]).float() / 255,
            depth=tensor(truth["depth"][rows][:, None].astype(np.float32) / 65535),
            normal=normal,
            classes=tensor(number[truth["classes"][rows]]),
            joints=tensor(np.stack([places for places, _, _ in joints])),
            offset=tensor(np.stack([offset for _, offset, _ in joints])),
            known=tensor(np.stack([known for _, _, known in joints]))[:, None],
        )

    @classmethod
    def from_seen(cls, seen: Seen) -> Self:
        """What a network said of other pictures, taken as the truth."""
        joints = seen.joints.sigmoid()
        return cls(
            edges=seen.edges.sigmoid(),
            depth=seen.depth,
            normal=seen.normal,
            classes=seen.classes.argmax(1),
            joints=joints,
            offset=seen.offset,
            known=(joints.amax(1, keepdim=True) > JOINT_SEEN).float(),
        )

    def losses(self, seen: Seen) -> dict[str, Tensor]:
        """Named losses of what was seen, each around one for a network that guesses."""
        error = seen.depth - self.depth
        slopes = [error.diff(dim=axis).abs().mean() for axis in (2, 3)]
        turn = 1 - functional.cosine_similarity(seen.normal, self.normal, dim=1)
        likely = functional.binary_cross_entropy_with_logits(
            seen.joints, self.joints, reduction="none"
        )
        way = ((seen.offset - self.offset).abs() * self.known).sum() / (self.known.sum() + 1)
        return {
            "edges": 3 * functional.binary_cross_entropy_with_logits(seen.edges, self.edges),
            "depth": 4 * error.abs().mean() + 8 * (slopes[0] + slopes[1]),
            "normal": turn.mean(),
            "classes": functional.cross_entropy(seen.classes, self.classes),
            "joints": (likely * (1 + JOINT_WEIGHT * self.joints)).mean() * 10,
            "offset": way,
        }


def softened(pictures: Tensor, share: float) -> Tensor:
    """Pictures (B, 3, H, W), every second of them with `share` (0..1) of its resolution."""
    side = max(1, round(pictures.shape[-1] * share))
    small = functional.interpolate(pictures[::2], size=(side, side), mode="area")
    soft = pictures.clone()
    soft[::2] = functional.interpolate(small, size=pictures.shape[2:], mode="bilinear")
    return soft


def _sheet_row(picture: np.ndarray, maps: list[np.ndarray]) -> np.ndarray:
    """A picture and its maps (h, w) or (h, w, 3) in 0..1, side by side at the picture's size."""
    size = picture.shape[1::-1]
    row = [picture]
    for values in maps:
        shown = cv2.resize(np.clip(values, 0, 1).astype(np.float32), size)
        shown = (shown * 255).astype(np.uint8)
        row.append(np.repeat(shown[:, :, None], 3, 2) if shown.ndim == 2 else shown)
    return np.concatenate(row, 1)


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "runs/annotator", steps=20_000, learning_rate=1.5e-3)
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--start", type=Path, default=None, help="an earlier --save to go on from")
    parser.add_argument(
        "--save", type=Path, default=None, help="folder to write the finished network to"
    )
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    data, truth = Pictures(options.data), load_truth(options.data)
    classes = sorted(ADE20K.values())
    if options.start:
        network = SceneAnnotator.from_pretrained(options.start, torch_dtype=torch.float32)
    else:
        network = SceneAnnotator(tuple(classes))
    network = network.to(options.device, memory_format=torch.channels_last).train()
    print(f"annotator {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M", flush=True)
    batch = options.batch or 16
    peopled = np.flatnonzero(truth["keypoints"][..., 2].any((1, 2)))

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((options.seed, step))
        rows = rng.integers(0, len(data), batch)
        if len(peopled):  # joints are the hardest to learn: half of the pictures have some
            rows[: batch // 2] = rng.choice(peopled, batch // 2)
        targets = Targets.from_truth(truth, rows, classes, options.device)
        pictures = pixels(data.batch(rows.tolist()), options.device)
        # It is asked what it sees in pictures that a model drew, too, which are softer than the
        # world's own; and what it sees must not depend on cameras and lights.
        pictures = softened(pictures, 1 / rng.uniform(1, SOFTEST))
        gain = torch.from_numpy(rng.uniform(0.75, 1.25, (batch, 3, 1, 1))).to(pictures)
        with torch.autocast(options.device, torch.bfloat16):
            seen = network(((pictures + 1) * gain - 1).clamp(-1, 1))
        losses = targets.losses(seen)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        rows = list(range(min(6, len(data))))
        pictures = data.batch(rows)
        with torch.no_grad():
            seen = network(pixels(pictures, options.device))
        drawn = []
        for k, picture in enumerate(pictures):
            normal = functional.normalize(seen.normal[k], dim=0).permute(1, 2, 0).cpu().numpy()
            guess = seen.classes[k].argmax(0).cpu().numpy()
            maps = [
                seen.edges[k, 0].sigmoid().cpu().numpy(),
                seen.depth[k, 0].cpu().numpy(),
                normal / 2 + 0.5,
                guess / max(len(classes) - 1, 1),
                seen.joints[k].sigmoid().amax(0).cpu().numpy(),
            ]
            drawn.append(_sheet_row(picture[::STRIDE, ::STRIDE], maps))
        Image.fromarray(np.concatenate(drawn, 0)).save(path)

    modules = train(run_from(options), {"annotator": network}, loss_at, sheet)
    if options.save:
        save_module(modules["annotator"], options.save, vars(options))


if __name__ == "__main__":
    main()
