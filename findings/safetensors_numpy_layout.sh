#!/usr/bin/env bash
# One would guess: safetensors.numpy saves the values of an array whatever its memory layout, as
# numpy.save does, or refuses as safetensors.torch does for a tensor that is not contiguous.
# It does neither: it writes the memory as it lies under the array's shape. A transposed array, as a
# converter between frameworks makes them, comes back with its values in other places: no error, the
# same shape, and the sum is right. (The docstring asks for contiguous arrays; nothing checks it.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

print("safetensors", version("safetensors"), "numpy", version("numpy"))
kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {
    "as it is": kernel,
    "transposed": kernel.T,
    "column-major": np.asfortranarray(kernel),
    "transposed, made contiguous": np.ascontiguousarray(kernel.T),
}
for name, array in arrays.items():
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    assert np.array_equal(np.load(file), array)
    loaded = load(save({"weight": array}))["weight"]
    same = np.array_equal(loaded, array)
    print(f"{name}: saved {array.tolist()}, loaded {loaded.tolist()}")
    assert loaded.shape == array.shape and loaded.sum() == array.sum()
    assert same == array.flags.c_contiguous, name
PYTHON
# Seen:
# safetensors 0.8.0 numpy 2.4.6
# as it is: saved [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], loaded [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
# transposed: saved [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
# column-major: saved [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], loaded [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
# transposed, made contiguous: saved [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], loaded [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
