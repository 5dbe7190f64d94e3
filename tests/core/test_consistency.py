"""F1 with a tolerance, on drawings small enough to count; MS-SSIM as two libraries have it."""

import numpy as np
import pytest
import torch

from core.consistency import ms_ssim, tolerant_f1


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


def soft_edges(size, shift=0):
    """Two circles and a border, blurred, on black, in 0..1."""
    y, x = np.mgrid[:size, :size] - shift
    rings = [abs(np.hypot(x - at * size, y - 0.5 * size) - 0.3 * size) for at in (0.3, 0.7)]
    rim = np.minimum(np.minimum(x, y), size - 1 - np.maximum(x, y))
    return np.exp(-np.minimum(np.minimum(*rings), abs(rim)) / 2).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [130, 192, 256, 333])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_ms_ssim_is_piqs_and_mirrored_torchmetrics(size, shift):
    import piq
    import torchmetrics.functional.image as torchmetrics

    first, second = soft_edges(size), soft_edges(size, shift)
    for other in (second, np.zeros_like(first)):
        pair = [torch.from_numpy(one)[None, None].double() for one in (first, other)]
        if size > 160:
            theirs = piq.multi_scale_ssim(*pair, data_range=1.0)
            mirrored = torchmetrics.multiscale_structural_similarity_index_measure(
                *pair, data_range=1.0
            )
        else:
            theirs = piq.ssim(*pair, data_range=1.0, downsample=False)
            mirrored = torchmetrics.structural_similarity_index_measure(*pair, data_range=1.0)
        if size != 333:  # piq pads odd sides, where torchmetrics and we cut the last pixels
            assert ms_ssim(first, other) == pytest.approx(max(0.0, float(theirs)), abs=1e-6)
        found = ms_ssim(first, other, mirrored=True)
        assert found == pytest.approx(max(0.0, float(mirrored)), abs=1e-6)
