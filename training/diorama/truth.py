"""The annotator's training targets: the renderer's ground truth at half the picture's size."""

from pathlib import Path

import cv2
import numpy as np

from training.diorama.renderer import Truth
from training.diorama.world import KEYPOINTS, MAX_THINGS

CREASE = 0.9  # cosine between neighbouring normals below which a surface has an edge
EDGE_STRENGTH = {"outline": 1.0, "crease": 0.75, "painted": 0.5}  # before the blur


def soft_edges(truth: Truth) -> np.ndarray:
    """Soft edges (B, H, W) float32 in 0..1: outlines of things, creases, painted lines.

    Stronger boundaries are brighter, as in human annotations (BSDS, which HED was trained on);
    edges are about two pixels wide and blurred.
    """
    things, classes = truth.things.cpu().numpy(), truth.classes.cpu().numpy()
    normal = truth.normal.cpu().numpy()
    image = truth.image.cpu().numpy()
    result = []
    for k in range(len(image)):
        edges = np.zeros(things.shape[1:], np.float32)
        for axis in (0, 1):
            here = [slice(None)] * 2
            there = [slice(None)] * 2
            here[axis], there[axis] = slice(1, None), slice(None, -1)
            a, b = tuple(here), tuple(there)
            outline = (things[k][a] != things[k][b]) | (classes[k][a] != classes[k][b])
            # The sky has no normals, so no creases; its outline comes from the classes.
            surface = np.abs(normal[k][a]).any(-1) & np.abs(normal[k][b]).any(-1)
            crease = surface & ((normal[k][a] * normal[k][b]).sum(-1) < CREASE)
            strength = np.maximum(
                outline * EDGE_STRENGTH["outline"], crease * EDGE_STRENGTH["crease"]
            )
            edges[a] = np.maximum(edges[a], strength)
        painted = cv2.Canny(image[k], 60, 150) > 0
        edges = np.maximum(edges, painted * np.float32(EDGE_STRENGTH["painted"]))
        # The blur takes two thirds of a thin line's brightness; the gain restores it, up to 1.
        result.append(np.minimum(cv2.GaussianBlur(edges, (0, 0), 1.0) * 1.8, 1))
    return np.stack(result)


def normalised_inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Inverse depth scaled to 0..1, as MiDaS's, from depth (H, W) in metres, inf for the sky."""
    inverse = 1 / depth
    low, high = float(inverse.min()), float(inverse.max())
    return np.asarray((inverse - low) / max(high - low, 1e-6), np.float32)


def truth_arrays(truth: Truth) -> dict[str, np.ndarray]:
    """The ground truth of B pictures of side S, as compact arrays at h = S / 2.

    edges (B, h, h) uint8; depth (B, h, h) uint16, near is 65535; normal (B, h, h, 3) int8, 127 is
    1; classes (B, h, h) uint8; keypoints (B, MAX_THINGS, 18, 3) float32: x and y in pixels of the
    half size, and visibility 0/1.
    """
    edges = [cv2.resize(e, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
             for e in soft_edges(truth)]  # fmt: skip
    depth = [normalised_inverse_depth(d)[::2, ::2] for d in truth.depth.cpu().numpy()]
    keypoints = np.zeros((len(truth.keypoints), MAX_THINGS, len(KEYPOINTS), 3), np.float32)
    for k, people in enumerate(truth.keypoints):
        keypoints[k, : len(people)] = people[:MAX_THINGS] * (0.5, 0.5, 1)
    return {
        "edges": np.rint(np.stack(edges) * 255).astype(np.uint8),
        "depth": np.rint(np.stack(depth) * 65535).astype(np.uint16),
        "normal": np.rint(truth.normal.cpu().numpy()[:, ::2, ::2] * 127).astype(np.int8),
        "classes": truth.classes.cpu().numpy()[:, ::2, ::2].astype(np.uint8),
        "keypoints": keypoints,
    }


def load_truth(folder: Path) -> dict[str, np.ndarray]:
    """Load the arrays that `training.dataset` wrote for a folder's scenes; 100 KB per scene.

    Raises:
        FileNotFoundError: The folder has none.
    """
    files = sorted(folder.glob("?????????-truth.npz"))
    if not files:
        raise FileNotFoundError(
            f"There is no ground truth in {folder}; render into a new folder with "
            "`python -m training.dataset`."
        )
    chunks = [dict(np.load(file)) for file in files]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
