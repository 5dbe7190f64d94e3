#!/usr/bin/env bash
# One would guess: a COCO polygon filled by pycocotools, OpenCV, Pillow or scikit-image is the same mask,
# apart from a pixel here and there.
# They mean different things by a coordinate. To pycocotools it is a place between pixels: a square from
# 10 to 20 has 10 x 10 pixels. To the others it is a pixel's middle, and the rim belongs to the mask:
# 11 x 11, a fifth more. Pillow draws fractions, OpenCV has to round them, scikit-image takes the middles
# inside: one square of side 9.4 has 100, 121, 100 and 81 pixels, each a solid square.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pillow==12.3.0 opencv-python-headless==5.0.0.93 \
    scikit-image==0.26.0 pycocotools==2.0.11
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import cv2
import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask
from skimage.draw import polygon2mask

names = ("pycocotools", "opencv-python-headless", "pillow", "scikit-image", "numpy")
print(*(f"{name} {version(name)}" for name in names))
SIDE = 32


def by_pycocotools(points):
    return mask.decode(mask.frPyObjects([points.ravel().tolist()], SIDE, SIDE))[..., 0]


def by_opencv(points):
    return cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [points.round().astype(np.int32)], 1)


def by_pillow(points):
    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).polygon([tuple(point) for point in points.tolist()], fill=1)
    return np.asarray(image)


def by_skimage(points):
    return polygon2mask((SIDE, SIDE), points[:, ::-1])


for start, end, expected in ((10, 20, [100, 121, 121, 121]), (10.3, 19.7, [100, 121, 100, 81])):
    square = np.array([(start, start), (end, start), (end, end), (start, end)])
    masks = [fill(square) for fill in (by_pycocotools, by_opencv, by_pillow, by_skimage)]
    pixels = [int(np.count_nonzero(one)) for one in masks]
    print(f"{start} to {end}: pycocotools, OpenCV, Pillow, scikit-image: {pixels} pixels")
    assert pixels == expected
PYTHON
# Seen:
# pycocotools 2.0.11 opencv-python-headless 5.0.0.93 pillow 12.3.0 scikit-image 0.26.0 numpy 2.4.6
# 10 to 20: pycocotools, OpenCV, Pillow, scikit-image: [100, 121, 121, 121] pixels
# 10.3 to 19.7: pycocotools, OpenCV, Pillow, scikit-image: [100, 121, 100, 81] pixels
