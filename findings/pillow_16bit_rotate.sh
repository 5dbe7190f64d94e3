#!/usr/bin/env bash
# One would guess: Pillow turns and warps a 16-bit grey picture (mode "I;16", a depth map's PNG) as it
# resizes one, or says that it cannot, as its filters do.
# Nearest neighbour and resize are right. Rotating or transforming with BILINEAR or BICUBIC succeeds
# and gives noise, all of it between 0 and 255, in place of a depth map. Through mode "F" or "I" the
# same call is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==12.3.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transform

print("pillow", version("pillow"), "numpy", version("numpy"))
depth = np.add.outer(np.arange(64), 1000 * np.arange(64)).astype(np.uint16)  # a slanted plane
picture = Image.fromarray(depth)
assert picture.mode == "I;16"
calls = {
    "resize": lambda image, how: image.resize((48, 48), how),
    "rotate by 10 degrees": lambda image, how: image.rotate(10, how),
    "move by a quarter of a pixel": lambda image, how: image.transform(
        image.size, Transform.AFFINE, (1, 0, 0.25, 0, 1, 0.25), how
    ),
}
inner = slice(16, 32)
for how in (Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC):
    for name, call in calls.items():
        got = np.asarray(call(picture, how), np.float64)[inner, inner]
        right = np.asarray(call(picture.convert("F"), how), np.float64)[inner, inner]
        error = abs(got - right).max()
        print(f"{how.name} {name}: largest value {got.max():.0f}, error {error:.0f} of 65535")
        if how is Resampling.NEAREST or name == "resize":
            assert error <= 1001  # a pixel beside it, at the most
        else:
            assert got.max() < 256 and error > 10_000
PYTHON
# Seen:
# pillow 12.3.0 numpy 2.4.6
# NEAREST resize: largest value 42042, error 1001 of 65535
# NEAREST rotate by 10 degrees: largest value 34017, error 0 of 65535
# NEAREST move by a quarter of a pixel: largest value 31031, error 0 of 65535
# BILINEAR resize: largest value 41542, error 1 of 65535
# BILINEAR rotate by 10 degrees: largest value 237, error 33613 of 65535
# BILINEAR move by a quarter of a pixel: largest value 202, error 31198 of 65535
# BICUBIC resize: largest value 41542, error 1 of 65535
# BICUBIC rotate by 10 degrees: largest value 246, error 33527 of 65535
# BICUBIC move by a quarter of a pixel: largest value 234, error 31305 of 65535
