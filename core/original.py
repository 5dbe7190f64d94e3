"""The picture that a request changes, at output size, and the part of it that may change.

Source of the strength and of the mask: core/sampling.py.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.condition import PixelMask, RGBImage
from core.images import RESIZE_AND_FILL, filled, inner_size, resize
from core.request import GenerationRequest


@dataclass(frozen=True, eq=False)
class Original:
    """A picture to start from, fitted to the output."""

    picture: RGBImage
    mask: PixelMask | None
    """(H, W), true where the picture may change; None for all of it."""
    blur_px: int
    """How far inside the mask the original fades out."""

    def latent_mask(self, downscale: int) -> Tensor | None:
        """Return the mask (1, 1, h, w) of the latent cells, 0 or 1; None without a mask.

        A cell is as its first pixel: nearest neighbours, as diffusers' pipeline has it.
        """
        if self.mask is None:
            return None
        cells = torch.from_numpy(self.mask[::downscale, ::downscale].copy())
        return cells[None, None].float()

    def kept_in(self, made: RGBImage) -> RGBImage:
        """Return a made picture of the same size with the original outside the mask, exactly."""
        if self.mask is None:
            return made
        return blended(self.picture, made, inner_fade(self.mask, self.blur_px))


def original_of(request: GenerationRequest, size: tuple[int, int]) -> Original | None:
    """Return the picture that a request changes at (width, height); None if it starts from noise.

    It is the first control's, resized as for its map, with the same margins if that has any.
    """
    if not request.changes_picture:
        return None
    first, mask = request.controls[0], request.mask
    inner = size
    if first.resize_mode == RESIZE_AND_FILL:
        height, width = first.image.shape[:2]
        inner = inner_size(width, height, size)
    resolution = request.image_resolution if inner == size else None
    picture = filled(resize(first.image, inner, resolution), size, exact=False)
    if mask is not None:
        mask = _in_the_middle(resize_mask(mask, inner), size)
    return Original(picture, mask, request.mask_blur)


def _in_the_middle(mask: PixelMask, size: tuple[int, int]) -> PixelMask:
    """Return a mask in the middle of (width, height), as core.images.filled places a map."""
    whole = np.zeros(size[::-1], bool)
    top, left = ((outer - inner) // 2 for outer, inner in zip(size[::-1], mask.shape, strict=True))
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return whole


def resize_mask(mask: PixelMask, size: tuple[int, int]) -> PixelMask:
    """Resize a mask to (width, height): a pixel is in it if half of what it covers is."""
    grey = mask.astype(np.uint8) * 255
    shrinking = size[0] * size[1] < mask.size
    resized = cv2.resize(
        grey, size, interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    )
    return np.asarray(resized > 127, dtype=bool)


def inner_fade(mask: PixelMask, blur_px: int) -> NDArray[np.float32]:
    """Return how much of the made picture each pixel (H, W) gets, 0..1.

    0 outside the mask; inside it rises over `blur_px` pixels from the rim to 1.
    """
    # To the nearest pixel outside; the picture's own border is none.
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.minimum(distance / (blur_px + 1), 1), dtype=np.float32)


def blended(
    original: RGBImage,
    made: RGBImage,
    share: NDArray[np.float32],
) -> RGBImage:
    """Return the two pictures mixed; `share` (H, W), 0..1, is the made one's."""
    part = share[:, :, None]
    mixed = original + part * (made.astype(np.float32) - original)
    return np.asarray(np.rint(mixed), dtype=np.uint8)
