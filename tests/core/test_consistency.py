"""F1 with a tolerance, on drawings small enough to count."""

import numpy as np
import pytest

from core.consistency import tolerant_f1


def column(x, length=6, size=8):
    mask = np.zeros((size, size), bool)
    mask[:length, x] = True
    return mask


@pytest.mark.parametrize(
    ("wanted", "found", "tolerance", "f1"),
    [
        (column(2), column(2), 0, 1.0),
        (column(2), column(3), 0, 0.0),
        (column(2), column(3), 1, 1.0),
        (column(2), column(4), 1, 0.0),
        (column(2), column(4), 2, 1.0),
        # Half of the line found: precision 1, recall 1/2.
        (column(2, 6), column(2, 3), 0, 2 / 3),
        # One more pixel of the wanted line lies next to what was found: recall 4/6.
        (column(2, 6), column(2, 3), 1, 0.8),
        # The line and one as long beside it: precision 1/2, recall 1.
        (column(2), column(2) | column(6), 1, 2 / 3),
        (column(2, 0), column(2, 0), 1, 1.0),
        (column(2, 0), column(2), 1, 0.0),
        (column(2), column(2, 0), 1, 0.0),
    ],
)
def test_tolerant_f1(wanted, found, tolerance, f1):
    assert tolerant_f1(wanted, found, tolerance) == pytest.approx(f1)
    assert tolerant_f1(found, wanted, tolerance) == pytest.approx(f1)
