"""Classes of a map that lost its exact colours: saved as JPEG or WebP, or with soft rims.

What a lossy format does to a map is known: brightness keeps its resolution, and colour is halved
(the mean of 2 x 2 pixels, enlarged linearly; 4:2:0) or not (4:4:4). So the classes are sought whose
picture, treated in the same way, is nearest to the given one, by iterated conditional modes (Besag
1986, "On the Statistical Analysis of Dirty Pictures"). At a rim the colours of two classes blend
into those of others; such a class is dropped where the picture is explained without it.

After JPEG at quality 85 with 4:2:0 the mIoU is 0.98 and more where colours are 40 apart, and 0.95
to 0.99 where neighbours are 12 to 40 apart: quantisation hides such rims. Encoding candidates
again with the file's own tables gains 0.003 in a second and 0.01 in twelve, so it is not done.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from core.condition import ControlMap

Classes = NDArray[np.uint8]
"""(H, W): indices of colours."""
Floats = NDArray[np.float32]

TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)
"""JPEG's brightness and two colour differences, without their offset."""
HALVED = np.outer((0.25, 0.75, 0.75, 0.25), (0.25, 0.75, 0.75, 0.25)).astype(np.float32)
"""Weights of the full-size pixels around each pixel of half size, when that is enlarged."""
HALVED_NORM = float(np.square(HALVED).sum()) / 16
"""Sum of the squares of what one pixel's colour becomes, halved and enlarged."""
CHUNK = 4096
"""Colours compared with the palette at once."""
MOST_PIXELS, MOST_COMPARED = 2**22, 2**25
"""Pixels of a map that is restored, and pixels times classes; of a larger map every second, third,
… pixel is taken. Both take about ten seconds."""
NEAR = 24
"""Distance in RGB within which a flat patch has a class's colour."""
FLAT_PATCH_PX = 9
"""Pixels of flat patches that make a class a candidate."""
MIN_FLAT = 0.5
"""Share of a map that must lie in flat patches; a photograph has less."""
INNER_PX = 9
"""Side of the square in which one class alone is certain."""
CORE_PX, CORE_AREA = 5, 50
"""A class that fills so many squares of that side is certain; thinner ones are questioned."""
NEEDED = 60.0
"""Squared error by which a thin class must explain its pixels better than the others do."""
SMOOTHNESS = 100.0
"""Squared error that one more neighbour of the same class outweighs."""
SWEEPS = 8
ROUNDS = 3


def nearest(picture: ControlMap, colours: NDArray[np.uint8]) -> tuple[Classes, Floats]:
    """Return each pixel's nearest colour of (N, 3) and its distance in RGB, both (H, W)."""
    numbers = picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    found, inverse = np.unique(numbers, return_inverse=True)
    rgb = np.stack([found >> 16, found >> 8 & 255, found & 255], 1).astype(np.float32)
    palette = colours.astype(np.float32)
    # |a - b|² = |a|² - 2 a·b + |b|²: whole numbers below 2**24, which float32 holds exactly.
    offsets = np.square(palette).sum(1)
    classes, squares = np.empty(len(found), np.uint8), np.square(rgb).sum(1)
    for start in range(0, len(found), CHUNK):
        part = slice(start, start + CHUNK)
        compared = offsets - 2 * (rgb[part] @ palette.T)
        classes[part] = compared.argmin(1)
        squares[part] += compared.min(1)
    inverse = inverse.reshape(picture.shape[:2])
    return classes[inverse], np.sqrt(squares)[inverse]


def restored_classes(picture: ControlMap, colours: NDArray[np.uint8]) -> Classes | None:
    """Return the classes of a map drawn in `colours` (N, 3); None if it is no such map.

    They have the map's size, or a fraction of it beyond MOST_PIXELS or MOST_COMPARED.
    """
    picture = _thinned(picture, MOST_PIXELS)
    smooth = np.asarray(cv2.medianBlur(picture, 5), np.uint8)
    classes, distance = nearest(smooth, colours)
    flat = _is_uniform(classes, 3) & (distance < NEAR)
    if flat.mean() < MIN_FLAT:
        return None
    counts = np.bincount(classes[flat], minlength=len(colours))
    present = np.flatnonzero(counts >= FLAT_PATCH_PX)
    picture = _thinned(picture, MOST_COMPARED // max(1, len(present)))
    given, palette = _to_ycbcr(picture), _to_ycbcr(colours[None, present])[0]
    fits = [
        _Fit(given, palette, lossy, lossy_transposed, norm).solve()
        for lossy, lossy_transposed, norm in (
            (_halved, _halved_transposed, HALVED_NORM),
            (_unchanged, _unchanged, 1.0),
        )
    ]
    _, best = min(fits, key=lambda fit: fit[0])
    return np.asarray(present[best], np.uint8)


def _thinned(picture: ControlMap, most: int) -> ControlMap:
    """Return every n-th row and column, so that at most so many pixels are left."""
    step = math.ceil(math.sqrt(max(1, picture.shape[0] * picture.shape[1] / most)))
    return np.ascontiguousarray(picture[::step, ::step])


def _to_ycbcr(rgb: NDArray[np.uint8]) -> Floats:
    return np.asarray(rgb.astype(np.float32) @ TO_YCBCR.T, np.float32)


def _is_uniform(classes: Classes, side: int) -> NDArray[np.bool_]:
    """Return where one class fills the square of this side around a pixel."""
    square = np.ones((side, side), np.uint8)
    return np.asarray(cv2.dilate(classes, square) == cv2.erode(classes, square), bool)


def _unchanged(colour: Floats) -> Floats:
    return colour


def _halved(colour: Floats) -> Floats:
    """Return colour (H, W, 2) as a format with 4:2:0 keeps it."""
    height, width = colour.shape[:2]
    even = np.pad(colour, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    half = even.reshape(len(even) // 2, 2, even.shape[1] // 2, 2, 2).mean((1, 3))
    whole = cv2.resize(half, (even.shape[1], len(even)), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole.reshape(even.shape)[:height, :width], np.float32)


def _halved_transposed(colour: Floats) -> Floats:
    """Apply the transpose of `_halved`, up to its border."""
    height, width = colour.shape[:2]
    even = np.pad(colour, ((0, height % 2), (0, width % 2), (0, 0)))
    half = cv2.filter2D(even, -1, HALVED, anchor=(1, 1), borderType=cv2.BORDER_CONSTANT)[::2, ::2]
    whole = half.repeat(2, axis=0).repeat(2, axis=1) / 4
    return np.asarray(whole[:height, :width], np.float32)


@dataclass(frozen=True, eq=False)
class _Fit:
    """Fits classes to a picture, both in YCbCr."""

    given: Floats
    """(H, W, 3)."""
    palette: Floats
    """(N, 3)."""
    lossy: Callable[[Floats], Floats]
    """What the format does to colour (H, W, 2)."""
    lossy_transposed: Callable[[Floats], Floats]
    norm: float
    """The squared length of what one pixel of length 1 becomes."""

    def solve(self) -> tuple[float, Classes]:
        """Return the mean squared error of the best classes found, and the classes."""
        classes = np.zeros(self.given.shape[:2], np.uint8)
        least = np.full(classes.shape, np.inf, np.float32)
        for k, colour in enumerate(self.palette):
            distance = np.square(self.given - colour).sum(2)
            nearer = distance < least
            classes[nearer], least[nearer] = k, distance[nearer]
        uncertain = np.nonzero(~_is_uniform(classes, INNER_PX))
        allowed = np.ones(len(self.palette), bool)
        classes = self._swept(classes, uncertain, allowed)
        for _ in range(ROUNDS):
            thin = np.flatnonzero(allowed & ~self._has_core(classes))
            without = allowed.copy()
            without[thin] = False
            if not len(thin) or not without.any():
                break
            other = self._swept(classes.copy(), uncertain, without)
            rise = self._errors(other) - self._errors(classes)
            dropped = [k for k in thin if not _is_needed(rise[classes == k])]
            if not dropped:
                break
            allowed[dropped] = False
            classes = self._swept(classes, uncertain, allowed)
        return float(self._errors(classes).mean()), classes

    def _has_core(self, classes: Classes) -> NDArray[np.bool_]:
        square = np.ones((CORE_PX, CORE_PX), np.uint8)
        cores = [
            cv2.erode((classes == k).astype(np.uint8), square).sum() >= CORE_AREA
            for k in range(len(self.palette))
        ]
        return np.array(cores, bool)

    def _residual(self, classes: Classes) -> Floats:
        drawn = self.palette[classes]
        drawn[..., 1:] = self.lossy(drawn[..., 1:])
        return self.given - drawn

    def _errors(self, classes: Classes) -> Floats:
        """Return the squared error (H, W), averaged over each pixel's neighbours."""
        errors = np.square(self._residual(classes)).sum(2)
        return np.asarray(cv2.blur(errors, (3, 3)), np.float32)

    def _swept(
        self,
        classes: Classes,
        uncertain: tuple[NDArray[np.intp], ...],
        allowed: NDArray[np.bool_],
    ) -> Classes:
        """Give each uncertain pixel the class of a neighbour that lowers the error most; in place.

        One pixel of every 2 x 2 at a time, so that few neighbours change at once. A class that is
        not allowed gives way to any other.
        """
        rows, columns = uncertain
        for turn in range(SWEEPS):
            mine = (rows % 2) * 2 + columns % 2 == turn % 4
            y, x = rows[mine], columns[mine]
            residual = self._residual(classes)
            # The gradient of the squared error by a pixel's own brightness and colour.
            brightness, colour = residual[y, x, 0], self.lossy_transposed(residual[..., 1:])[y, x]
            votes = np.stack(
                [
                    cv2.boxFilter((classes == k).astype(np.uint8), -1, (3, 3), normalize=False)[
                        y, x
                    ]
                    for k in range(len(self.palette))
                ]
            ).astype(np.float32)
            now = classes[y, x]
            leaves = ~allowed[now]
            least = np.where(leaves, np.float32(np.inf), np.float32(0))
            chosen, own = now.copy(), votes[now, np.arange(len(now))] - 1
            for k in np.flatnonzero(allowed):
                step = self.palette[k] - self.palette[now]
                change = step[:, 0] ** 2 - 2 * step[:, 0] * brightness
                change += self.norm * np.square(step[:, 1:]).sum(1)
                change -= 2 * (step[:, 1:] * colour).sum(1)
                change += SMOOTHNESS * (own - votes[k])
                better = ((votes[k] > 0) | leaves) & (change < least)
                least[better], chosen[better] = change[better], k
            classes[y, x] = chosen
        return classes


def _is_needed(rise: Floats) -> bool:
    """Return whether the squared errors at a class's pixels rise enough without it."""
    return bool(len(rise) and np.median(rise) >= NEEDED)
