"""Whether a picture of a scene has the colours that its caption names."""

import cv2
import numpy as np

from core.condition import RGBImage
from training.diorama.renderer import TONE, Truth
from training.diorama.world import COLOURS, Scene

MIN_SURFACE = 60  # pixels: the colour of a smaller surface is not judged


def nearest_colour(pixels: np.ndarray, scene: Scene) -> str:
    """The colour word nearest to pixels (N, 3) uint8, under the scene's light.

    Each named colour is tinted by that light and compared at its best-fitting brightness.
    """
    light = np.asarray(scene.sky.sun) * 0.6 + np.asarray(scene.sky.ambient)
    tint = light / light.max()
    median = np.median(pixels, axis=0) / 255
    brightness = np.linspace(0.3, 1.4, 45)[:, None]

    def distance(name: str) -> float:
        lit = np.clip(brightness * tint * np.asarray(COLOURS[name]), 0, 1) ** TONE
        return float(np.abs(lit - median).sum(1).min())

    return min(COLOURS, key=distance)


def named_surfaces(scene: Scene, truth: Truth, index: int) -> list[tuple[str, np.ndarray]]:
    """(colour word, mask (H, W)) of each thing with a visible surface in its named colour."""
    surfaces = []
    things, painted = truth.things[index].numpy(), truth.painted[index].numpy()
    for k, thing in enumerate(scene.things):
        if thing.colour is None:
            continue
        mask = ((things == k) & painted).astype(np.uint8)
        inner = cv2.erode(mask, np.ones((5, 5), np.uint8)).astype(bool)  # away from the outline
        if inner.sum() >= MIN_SURFACE:
            surfaces.append((thing.colour, inner))
    return surfaces


def colour_hits(scene: Scene, truth: Truth, index: int, image: RGBImage) -> list[bool]:
    """For each named surface, whether its pixels have the named colour."""
    return [
        nearest_colour(image[mask], scene) == name
        for name, mask in named_surfaces(scene, truth, index)
    ]
