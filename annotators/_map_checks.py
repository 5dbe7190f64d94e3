"""Warnings about maps that look like another kind of picture, above all those users bring."""

from collections.abc import Callable

import numpy as np

from core.condition import ControlMap
from core.consistency import lines_in

GREY_SPREAD = 40
"""Largest difference between a grey pixel's channels, of 255, after JPEG."""
MAX_COLOURED = 0.05
"""Largest share of coloured pixels in a grey map."""
MAX_LINES = 0.5
"""Largest share of bright pixels in a map of lines."""

MapWarning = Callable[[ControlMap], str]


def is_coloured(control_map: ControlMap) -> bool:
    """Return whether more than a few pixels are not grey."""
    channels = np.moveaxis(control_map, 2, 0)
    return bool((np.ptp(channels, axis=0) > GREY_SPREAD).mean() > MAX_COLOURED)


def line_map_warning(lines: str, advice: str = "", most: float = MAX_LINES) -> MapWarning:
    """Return a check that a map is sparse white lines on black; `lines` is what they are called."""

    def map_warning(control_map: ControlMap) -> str:
        if is_coloured(control_map):
            return f"This map has colours, but {lines} are white on black."
        if lines_in(control_map).mean() > most:
            return f"Much of this map is white, but {lines} are sparse, white on black.{advice}"
        return ""

    return map_warning


def grey_map_warning(rule: str) -> MapWarning:
    """Return a check that a map has no colours; `rule` says how it should look."""

    def map_warning(control_map: ControlMap) -> str:
        return f"This map has colours, but {rule}." if is_coloured(control_map) else ""

    return map_warning
