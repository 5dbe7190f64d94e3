"""What is odd about a map for its kind, in one sentence: first of all of one a person brings."""

from collections.abc import Callable

import numpy as np

from core.condition import ControlMap
from core.consistency import lines_in

SPREAD = 40
"""Of 255, between the channels of a place: less is grey that was saved as JPEG."""
FEW, MANY = 0.05, 0.5
"""Parts of all places."""

Misfit = Callable[[ControlMap], str]


def is_coloured(control_map: ControlMap) -> bool:
    """Tell whether more than a few places are not grey."""
    channels = np.moveaxis(control_map, 2, 0)
    return bool((np.ptp(channels, axis=0) > SPREAD).mean() > FEW)


def unless_few(what: str, advice: str = "", most: float = MANY) -> Misfit:
    """Return what tells of a map that is no few white lines on black; `what` names them."""

    def map_warning(control_map: ControlMap) -> str:
        if is_coloured(control_map):
            return f"This map has colours, but {what} are white on black."
        if lines_in(control_map).mean() > most:
            return f"Much of this map is white, but {what} are few, and white on black.{advice}"
        return ""

    return map_warning


def unless_grey(what: str) -> Misfit:
    """Return what tells of a map with colours; `what` says how it should be."""

    def map_warning(control_map: ControlMap) -> str:
        return f"This map has colours, but {what}." if is_coloured(control_map) else ""

    return map_warning
