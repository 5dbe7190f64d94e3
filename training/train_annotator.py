"""Trains Diorama's annotator: one network for soft edges, depth, normals, classes and keypoints.

    python -m training.train_annotator --minutes 30 --save models/diorama/annotator

All five are learned at once from the renderer's exact ground truth (`diorama.truth`), half of it
from blurred pictures.
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

from annotators._diorama import JOINTS, NECK, OFFSET_SCALE, STRIDE, Prediction
from annotators._scene_annotator import SceneAnnotator
from training.diorama.dataset import Pictures
from training.diorama.truth import load_truth
from training.diorama.world import ADE20K
from training.loop import add_run_options, run_config, train
from training.train_autoencoder import pixels
from training.weights import save_module

JOINT_SIGMA = 1.5  # of a joint's Gaussian, in cells
OFFSET_RADIUS = 2  # cells around a joint in which the offset to its neck is trained
JOINT_WEIGHT = 40.0  # a joint covers a thousandth of the picture
MAX_BLUR = 4.0  # the largest factor by which the resolution of blurred pictures is reduced
MIN_JOINT = 0.3  # probability above which a network's prediction counts as a joint


def joint_targets(keypoints: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training targets on `side` x `side` cells from one picture's keypoints (people, 18, 3).

    Returns the joints' heatmaps (18, side, side) in 0..1, the offsets to the neck (2, side, side),
    and a mask of where these are defined (side, side).
    """
    heatmaps = np.zeros((JOINTS, side, side), np.float32)
    offset = np.zeros((2, side, side), np.float32)
    mask = np.zeros((side, side), np.float32)
    cells = np.arange(side)
    for person in keypoints[keypoints[:, :, 2].any(1)]:
        neck = person[NECK, :2]  # used even when hidden: it locates the person
        for joint in range(JOINTS):
            x, y, visible = person[joint]
            if not visible:
                continue
            row, column = (np.exp(-((cells - v) ** 2) / (2 * JOINT_SIGMA**2)) for v in (y, x))
            np.maximum(heatmaps[joint], np.outer(row, column), out=heatmaps[joint])
            near_x, near_y = (cells[np.abs(cells - v) <= OFFSET_RADIUS] for v in (x, y))
            near = np.ix_(near_y, near_x)
            offset[0][near] = (neck[0] - near_x) / OFFSET_SCALE
            offset[1][near] = (neck[1] - near_y)[:, None] / OFFSET_SCALE
            mask[near] = 1
    return heatmaps, offset, mask


@dataclass(frozen=True)
class Targets:
    """What a `Prediction` should be, without logits; (B, C, side, side)."""

    edges: Tensor
    """In 0..1."""
    depth: Tensor
    normal: Tensor
    classes: Tensor
    """(B, side, side) int64 indices of the network's own classes."""
    joints: Tensor
    """In 0..1."""
    offset: Tensor
    offset_mask: Tensor
    """One channel: 1 where the offset is defined."""

    @classmethod
    def from_truth(
        cls, truth: dict[str, np.ndarray], rows: np.ndarray, classes: list[int], device: str
    ) -> Self:
        """From the renderer's ground truth of these rows; `classes` are the network's."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        side = truth["edges"].shape[1]
        joints = [joint_targets(people, side) for people in truth["keypoints"][rows]]
        index = np.zeros(256, np.int64)
        index[classes] = range(len(classes))
        normal = tensor(truth["normal"][rows].transpose(0, 3, 1, 2)).float() / 127
        # The sky has no surface; in maps it faces the camera, as every undefined normal does.
        normal[:, 2][normal.square().sum(1) == 0] = 1
        return cls(
            edges=tensor(truth["edges"][rows][:, None]).float() / 255,
            depth=tensor(truth["depth"][rows][:, None].astype(np.float32) / 65535),
            normal=normal,
            classes=tensor(index[truth["classes"][rows]]),
            joints=tensor(np.stack([heatmaps for heatmaps, _, _ in joints])),
            offset=tensor(np.stack([offset for _, offset, _ in joints])),
            offset_mask=tensor(np.stack([mask for _, _, mask in joints]))[:, None],
        )

    @classmethod
    def from_prediction(cls, prediction: Prediction) -> Self:
        """Take a network's prediction for other pictures as the target."""
        joints = prediction.joints.sigmoid()
        return cls(
            edges=prediction.edges.sigmoid(),
            depth=prediction.depth,
            normal=prediction.normal,
            classes=prediction.classes.argmax(1),
            joints=joints,
            offset=prediction.offset,
            offset_mask=(joints.amax(1, keepdim=True) > MIN_JOINT).float(),
        )

    def losses(
        self, prediction: Prediction, weights: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The loss of each field, scaled to around 1 for an untrained network.

        `weights` are factors of each field's pixels, (B, 1 or C, side, side).
        """

        def weigh(name: str, values: Tensor) -> Tensor:
            if weights is None:
                return values
            height, width = values.shape[2:]  # differences have one row or column less
            return values * weights[name][..., :height, :width]

        error = prediction.depth - self.depth
        gradients = [weigh("depth", error.diff(dim=axis).abs()).mean() for axis in (2, 3)]
        angle = 1 - functional.cosine_similarity(prediction.normal, self.normal, dim=1)
        joints = functional.binary_cross_entropy_with_logits(
            prediction.joints, self.joints, reduction="none"
        )
        joints = joints * (1 + JOINT_WEIGHT * self.joints)
        offset = (prediction.offset - self.offset).abs() * self.offset_mask
        edges = functional.binary_cross_entropy_with_logits(
            prediction.edges, self.edges, reduction="none"
        )
        classes = functional.cross_entropy(prediction.classes, self.classes, reduction="none")
        depth = weigh("depth", error.abs()).mean()
        return {
            "edges": 3 * weigh("edges", edges).mean(),
            "depth": 4 * depth + 8 * (gradients[0] + gradients[1]),
            "normal": weigh("normal", angle[:, None]).mean(),
            "classes": weigh("classes", classes[:, None]).mean(),
            "joints": weigh("joints", joints).mean() * 10,
            "offset": weigh("offset", offset).sum() / (self.offset_mask.sum() + 1),
        }


def blurred(pictures: Tensor, scale: float) -> Tensor:
    """Pictures (B, 3, H, W), every second one reduced to `scale` (0..1) and enlarged again."""
    side = max(1, round(pictures.shape[-1] * scale))
    small = functional.interpolate(pictures[::2], size=(side, side), mode="area")
    result = pictures.clone()
    result[::2] = functional.interpolate(small, size=pictures.shape[2:], mode="bilinear")
    return result


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
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "runs/annotator", steps=20_000, learning_rate=1.5e-3)
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--start", type=Path, default=None, help="continue from an earlier --save")
    parser.add_argument(
        "--save", type=Path, default=None, help="folder to write the trained network to"
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
    with_people = np.flatnonzero(truth["keypoints"][..., 2].any((1, 2)))

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((options.seed, step))
        rows = rng.integers(0, len(data), batch)
        if len(with_people):  # joints are the hardest to learn: half of the pictures have some
            rows[: batch // 2] = rng.choice(with_people, batch // 2)
        targets = Targets.from_truth(truth, rows, classes, options.device)
        pictures = pixels(data.batch(rows.tolist()), options.device)
        # Generated pictures are softer than rendered ones, and vary more in exposure and colour.
        pictures = blurred(pictures, 1 / rng.uniform(1, MAX_BLUR))
        gain = torch.from_numpy(rng.uniform(0.75, 1.25, (batch, 3, 1, 1))).to(pictures)
        with torch.autocast(options.device, torch.bfloat16):
            prediction = network(((pictures + 1) * gain - 1).clamp(-1, 1))
        losses = targets.losses(prediction)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        rows = list(range(min(6, len(data))))
        pictures = data.batch(rows)
        with torch.no_grad():
            prediction = network(pixels(pictures, options.device))
        sheet_rows = []
        for k, picture in enumerate(pictures):
            normal = functional.normalize(prediction.normal[k], dim=0).permute(1, 2, 0)
            maps = [
                prediction.edges[k, 0].sigmoid(),
                prediction.depth[k, 0],
                normal / 2 + 0.5,
                prediction.classes[k].argmax(0) / max(len(classes) - 1, 1),
                prediction.joints[k].sigmoid().amax(0),
            ]
            arrays = [values.cpu().numpy() for values in maps]
            sheet_rows.append(_sheet_row(picture[::STRIDE, ::STRIDE], arrays))
        Image.fromarray(np.concatenate(sheet_rows, 0)).save(path)

    modules = train(run_config(options), {"annotator": network}, loss_at, sheet)
    if options.save:
        save_module(modules["annotator"], options.save, vars(options))


if __name__ == "__main__":
    main()
