#!/usr/bin/env bash
# One would guess: the number in the third line of a PFM file (the format of stereo and depth data sets)
# tells the byte order by its sign, and readers agree on the values.
# They do not: OpenCV divides every value by that number, Pillow leaves the values and puts the number
# into info["scale"]. A depth map whose header says -0.5 is read as twice as deep by one as by the other.
# Both write -1, so a test with one's own files passes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==12.3.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
from importlib.metadata import version

import cv2
import numpy as np
from PIL import Image

print(*(f"{name} {version(name)}" for name in ("pillow", "opencv-python-headless", "numpy")))
depth = np.arange(12, dtype=np.float32).reshape(3, 4)
for scale in (-1.0, -0.5, -4.0, 4.0):
    rows = depth[::-1].astype("<f4" if scale < 0 else ">f4").tobytes()  # the lowest row is first
    data = f"Pf\n4 3\n{scale}\n".encode() + rows
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    with Image.open(io.BytesIO(data)) as image:
        pillow, info = np.asarray(image), image.info
    print(f"{scale}: OpenCV {opencv[0].tolist()}, Pillow {pillow[0].tolist()}, {info}")
    assert np.array_equal(pillow, depth) and info["scale"] == abs(scale)
    assert np.array_equal(opencv, depth / abs(scale))
written = cv2.imencode(".pfm", depth)[1].tobytes()
assert written.split(b"\n")[2] == b"-1"
PYTHON
# Seen:
# pillow 12.3.0 opencv-python-headless 5.0.0.93 numpy 2.4.6
# -1.0: OpenCV [0.0, 1.0, 2.0, 3.0], Pillow [0.0, 1.0, 2.0, 3.0], {'scale': 1.0}
# -0.5: OpenCV [0.0, 2.0, 4.0, 6.0], Pillow [0.0, 1.0, 2.0, 3.0], {'scale': 0.5}
# -4.0: OpenCV [0.0, 0.25, 0.5, 0.75], Pillow [0.0, 1.0, 2.0, 3.0], {'scale': 4.0}
# 4.0: OpenCV [0.0, 0.25, 0.5, 0.75], Pillow [0.0, 1.0, 2.0, 3.0], {'scale': 4.0}
