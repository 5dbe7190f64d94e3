#!/usr/bin/env bash
# One would guess: safetensors is a plain format without timestamps, so the same tensors with the
# same metadata are the same bytes, and a SHA-256 tells whether weights have changed.
# It is so only with one metadata entry. With more, their order in the header is drawn anew at each
# save, within one process too: the tensors' bytes are equal, the file's hash is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import hashlib
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

print("safetensors", version("safetensors"), "numpy", version("numpy"))
tensors = {"weight": np.arange(6, dtype=np.float32), "bias": np.zeros(2, np.float32)}
one = {"format": "pt"}
several = {"format": "pt", "seed": "1", "steps": "20", "commit": "abc"}
for metadata in (one, several):
    files = [save(tensors, metadata) for _ in range(50)]
    hashes = {hashlib.sha256(file).hexdigest() for file in files}
    same = all(np.array_equal(load(file)["weight"], tensors["weight"]) for file in files)
    print(f"{len(metadata)} entries: {len(hashes)} hashes of 50 saves, tensors equal: {same}")
    assert same and (len(hashes) == 1) == (metadata is one)
PYTHON
# Seen:
# safetensors 0.8.0 numpy 2.4.6
# 1 entries: 1 hashes of 50 saves, tensors equal: True
# 4 entries: 20 hashes of 50 saves, tensors equal: True (of 24 possible orders)
