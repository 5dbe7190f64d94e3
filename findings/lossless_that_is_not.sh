#!/usr/bin/env bash
# One would guess: quality=-1 of pillow-heif ("lossless") and quality=100 of Pillow's AVIF, both with
# full chroma (4:4:4), give a class map back as it was.
# Both change it: colours go through YCbCr in eight bits first, so a map of flat colours comes back with
# most of its pixels off by one to three, and a class map looked up by its exact colours is lost. Without
# chroma=444 "lossless" HEIF halves the chroma besides. HEIF is exact with matrix_coefficients=0 as well;
# grey maps are exact in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==12.3.0 pillow-heif==1.8.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
from importlib.metadata import version

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

print(*(f"{name} {version(name)}" for name in ("pillow", "pillow-heif", "numpy")))
register_heif_opener()
rng = np.random.default_rng(0)
colours = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8).repeat(7, 0).repeat(7, 1)
exact_heif = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
cases = [
    ("HEIF", {"quality": -1}, colours, False),
    ("HEIF", {"quality": -1, "chroma": 444}, colours, False),
    ("HEIF", exact_heif, colours, True),
    ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, colours, False),
    ("WEBP", {"lossless": True}, colours, True),
    ("HEIF", {"quality": -1}, colours[..., 0], True),
    ("AVIF", {"quality": 100}, colours[..., 0], True),
]
for name, settings, given, exact in cases:
    file = io.BytesIO()
    Image.fromarray(given).save(file, name, **settings)
    with Image.open(file) as image:
        got = np.asarray(image.convert("RGB" if given.ndim == 3 else "L"))
    difference = abs(got.astype(int) - given).reshape(*given.shape[:2], -1).max(2)
    kind = "colours" if given.ndim == 3 else "grey"
    print(f"{name} {settings}, {kind}: {(difference > 0).mean():.0%} of pixels changed", end=", ")
    print(f"by {difference.max()} at most")
    assert (difference.max() == 0) == exact
PYTHON
# Seen:
# pillow 12.3.0 pillow-heif 1.8.1 numpy 2.4.6
# HEIF {'quality': -1}, colours: 84% of pixels changed, by 189 at most
# HEIF {'quality': -1, 'chroma': 444}, colours: 77% of pixels changed, by 1 at most
# HEIF {'quality': -1, 'chroma': 444, 'matrix_coefficients': 0}, colours: 0% of pixels changed, by 0 at most
# AVIF {'quality': 100, 'subsampling': '4:4:4'}, colours: 92% of pixels changed, by 3 at most
# WEBP {'lossless': True}, colours: 0% of pixels changed, by 0 at most
# HEIF {'quality': -1}, grey: 0% of pixels changed, by 0 at most
# AVIF {'quality': 100}, grey: 0% of pixels changed, by 0 at most
