#!/usr/bin/env bash
# One would guess: the methods dwtDct and dwtDctSvd of invisible-watermark, the first of which the
# Stable Diffusion pipelines use, change only the wavelets' coarse band, in which the bits are written,
# and cost what the bits cost.
# They put the picture together again with the horizontal and the vertical details of its colour in
# each other's place. Where colour is finely striped down, it comes back striped across, far more
# than the bits would change it. A smooth picture shows nothing of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 opencv-python-headless==5.0.0.93 pywavelets==1.9.0
"$folder/venv/bin/pip" install -q --no-deps invisible-watermark==0.2.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import types
from importlib.metadata import version

import cv2
import numpy as np

sys.modules["torch"] = types.ModuleType("torch")  # imported for a third method alone
from imwatermark import WatermarkEncoder

print(*(f"{name} {version(name)}" for name in ("invisible-watermark", "pywavelets", "numpy")))


def stripes(bgr):
    """Return how much blueness changes from column to column, and from row to row."""
    blueness = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV)[:, :, 1].astype(float)
    inside = blueness[8:-8, 8:-8]
    # Pixel against its neighbour of one pair, so that slow changes count little.
    return abs(inside[:, ::2] - inside[:, 1::2]).mean(), abs(inside[::2] - inside[1::2]).mean()


striped = np.empty((256, 256, 3), np.uint8)
striped[:, ::2], striped[:, 1::2] = (160, 110, 120), (90, 125, 120)
smooth = np.full((256, 256, 3), (125, 118, 120), np.uint8)
for name, picture in (("striped down", striped), ("smooth", smooth)):
    for method in ("dwtDct", "dwtDctSvd"):
        encoder = WatermarkEncoder()
        encoder.set_watermark("bytes", b"test")
        before, after = stripes(picture), stripes(encoder.encode(picture.copy(), method))
        row = [f"{one:.1f}" for one in (*before, *after)]
        print(f"{name}, {method}: columns {row[0]}, rows {row[1]}; marked: {row[2]}, {row[3]}")
        if picture is striped:
            assert before[0] > 20 > 1 > before[1] and after[1] > 20 > 5 > after[0]
        else:
            assert max(*before, *after) < 5
PYTHON
# Seen:
# invisible-watermark 0.2.0 pywavelets 1.9.0 numpy 2.4.6
# striped down, dwtDct: columns 35.0, rows 0.0; marked: 0.0, 35.0
# striped down, dwtDctSvd: columns 35.0, rows 0.0; marked: 0.0, 35.0
# smooth, dwtDct: columns 0.0, rows 0.0; marked: 0.0, 0.0
# smooth, dwtDctSvd: columns 0.0, rows 0.0; marked: 0.0, 0.0
