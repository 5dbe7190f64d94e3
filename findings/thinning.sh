#!/usr/bin/env bash
# One would guess: OpenCV's ximgproc.thinning and scikit-image's skeletonize, both Zhang and Suen's
# thinning, give one skeleton for a mask.
# They differ where a shape ends: OpenCV never changes the picture's rim, so a filled picture stays
# filled and a bar that runs off the picture ends in a fork as wide as the bar; scikit-image pads first.
# A square of 2 x 2 pixels vanishes in OpenCV and leaves a pixel or two in scikit-image. And OpenCV takes
# grey levels, not "nonzero": a mask of 0 and 1, what bool gives as uint8, comes back empty.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q opencv-contrib-python-headless==5.0.0.93 scikit-image==0.26.0 \
    numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import cv2
import numpy as np
from skimage.morphology import skeletonize

names = ("opencv-contrib-python-headless", "scikit-image", "numpy")
print(*(f"{name} {version(name)}" for name in names))


def mask(rows, columns, value=255):
    picture = np.zeros((30, 30), np.uint8)
    picture[rows, columns] = value
    return picture


inside, whole = slice(6, 24), slice(0, 30)
for name, given, expected in (
    ("a bar inside", mask(inside, slice(10, 17)), (11, 13)),
    ("a bar from rim to rim", mask(whole, slice(10, 17)), (42, 25)),
    ("all of it", mask(whole, whole), (900, 3)),
    ("2 x 2 pixels", mask(slice(9, 11), slice(9, 11)), (0, 2)),
    ("a bar inside, as 0 and 1", mask(inside, slice(10, 17), 1), (0, 13)),
):
    pixels = (
        np.count_nonzero(cv2.ximgproc.thinning(given, thinningType=cv2.ximgproc.THINNING_ZHANGSUEN)),
        np.count_nonzero(skeletonize(given > 0, method="zhang")),
    )
    print(f"{name}: {np.count_nonzero(given)} pixels, OpenCV {pixels[0]}, scikit-image {pixels[1]}")
    assert pixels == expected
PYTHON
# Seen:
# opencv-contrib-python-headless 5.0.0.93 scikit-image 0.26.0 numpy 2.4.6
# a bar inside: 126 pixels, OpenCV 11, scikit-image 13
# a bar from rim to rim: 210 pixels, OpenCV 42, scikit-image 25
# all of it: 900 pixels, OpenCV 900, scikit-image 3
# 2 x 2 pixels: 4 pixels, OpenCV 0, scikit-image 2
# a bar inside, as 0 and 1: 126 pixels, OpenCV 0, scikit-image 13
