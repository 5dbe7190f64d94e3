"""Checks of networks' outputs, and warnings about maps that look like another kind of picture."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.condition import ControlMap
from core.consistency import lines_in
from core.errors import SuiteError

GREY_SPREAD = 40
"""Largest difference between a grey pixel's channels, of 255, after JPEG."""
MAX_COLOURED = 0.05
"""Largest share of coloured pixels in a grey map."""
MAX_LINES = 0.5
"""Largest share of bright pixels in a map of lines."""

NOT_FINITE = (
    "The network that draws this map gave NaN or infinite values; please choose another "
    "preprocessor, or check its weights file."
)

MapWarning = Callable[[ControlMap], str]


def require_finite(output: NDArray[np.floating]) -> None:
    """Refuse a network's output that has no meaning as grey levels: a cast would make any of it.

    Raises:
        SuiteError: a value is NaN or infinite.
    """
    if not np.isfinite(output).all():
        raise SuiteError(NOT_FINITE)


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
