#!/usr/bin/env bash
# One would guess: a library either turns a picture upright by its EXIF orientation or leaves that to
# the caller, whatever the format.
# In none of the three is it so. The same picture with orientation 6: Pillow turns TIFF and HEIF by
# itself and no other format; OpenCV 5 turns all it reads but AVIF (and a TIFF only from memory: imread
# gives None for it), and with IMREAD_UNCHANGED TIFF alone; imageio.v3 turns HEIF, and TIFF if it is
# given the bytes, not if it is given the path.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 pillow==12.3.0 pillow-heif==1.8.1 tifffile==2026.3.3 \
    imageio==2.38.1 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import imageio.v3
import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

names = ("pillow", "pillow-heif", "opencv-python-headless", "imageio", "tifffile")
print(*(f"{name} {version(name)}" for name in names))
register_heif_opener()
exif = Image.Exif()
exif[0x112] = 6  # upright after a quarter turn
lying = Image.new("RGB", (96, 64))


def decoded(flag):
    return lambda path, data: cv2.imdecode(np.frombuffer(data, np.uint8), flag)


readers = {
    "Pillow": lambda path, data: np.asarray(Image.open(path)),
    "OpenCV": decoded(cv2.IMREAD_COLOR),
    "OpenCV unchanged": decoded(cv2.IMREAD_UNCHANGED),
    "imageio.v3, path": lambda path, data: imageio.v3.imread(path),
    "imageio.v3, bytes": lambda path, data: imageio.v3.imread(data),
}
expected = {  # in the readers' order: turned, lying, or not read at all
    "jpeg": "LTLLL",
    "png": "LTLLL",
    "webp": "LTLLL",
    "avif": "LLLLL",
    "tiff": "TTTLT",
    "heif": "T--TT",
}
words = {"T": "turned", "L": "lying", "-": "not read"}
for suffix, letters in expected.items():
    path = Path(sys.argv[1]) / f"photo.{suffix}"
    lying.save(path, exif=exif.tobytes())
    shapes = {name: read(path, path.read_bytes()) for name, read in readers.items()}
    shapes = {name: None if image is None else image.shape[:2] for name, image in shapes.items()}
    seen = "".join({None: "-", (64, 96): "L", (96, 64): "T"}[shape] for shape in shapes.values())
    told = (f"{name} {words[letter]}" for name, letter in zip(readers, seen, strict=True))
    print(f"{suffix}: {'; '.join(told)}")
    assert seen == letters, (suffix, seen)
PYTHON
# Seen:
# pillow 12.3.0 pillow-heif 1.8.1 opencv-python-headless 5.0.0.93 imageio 2.38.1 tifffile 2026.3.3
# jpeg: Pillow lying; OpenCV turned; OpenCV unchanged lying; imageio.v3, path lying; imageio.v3, bytes lying
# png: Pillow lying; OpenCV turned; OpenCV unchanged lying; imageio.v3, path lying; imageio.v3, bytes lying
# webp: Pillow lying; OpenCV turned; OpenCV unchanged lying; imageio.v3, path lying; imageio.v3, bytes lying
# avif: Pillow lying; OpenCV lying; OpenCV unchanged lying; imageio.v3, path lying; imageio.v3, bytes lying
# tiff: Pillow turned; OpenCV turned; OpenCV unchanged turned; imageio.v3, path lying; imageio.v3, bytes turned
# heif: Pillow turned; OpenCV not read; OpenCV unchanged not read; imageio.v3, path turned; imageio.v3, bytes turned
