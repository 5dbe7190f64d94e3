#!/usr/bin/env bash
# One would guess: datasets' "imagefolder" takes all the pictures of a flat folder as its train split;
# other splits are folders.
# One picture whose name has "test", "validation", "eval" or "dev" as a word of its own makes that split,
# and every picture without such a word is dropped, with no message: a folder of a hundred photos and
# crash-test.png is a data set of one. "train" does the same: train-station.png is the whole train split.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pillow==12.3.0
export HF_HOME=$folder/home HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

from datasets import disable_progress_bars, load_dataset
from PIL import Image

print("datasets", version("datasets"), "pillow", version("pillow"))
disable_progress_bars()
for n, (name, expected) in enumerate(
    {
        "contest.png": {"train": 4},
        "crash-test.png": {"test": 1},
        "photo eval.png": {"test": 1},
        "dev_1.png": {"validation": 1},
        "train-station.png": {"train": 1},
    }.items()
):
    pictures = Path(sys.argv[1]) / str(n)
    pictures.mkdir()
    for picture in ("cat.png", "dog.png", "owl.png", name):
        Image.new("RGB", (8, 8)).save(pictures / picture)
    splits = load_dataset("imagefolder", data_dir=str(pictures))
    found = {split: len(rows) for split, rows in splits.items()}
    print(f"cat.png, dog.png, owl.png and {name}: {found}")
    assert found == expected
PYTHON
# Seen:
# datasets 5.2.0 pillow 12.3.0
# cat.png, dog.png, owl.png and contest.png: {'train': 4}
# cat.png, dog.png, owl.png and crash-test.png: {'test': 1}
# cat.png, dog.png, owl.png and photo eval.png: {'test': 1}
# cat.png, dog.png, owl.png and dev_1.png: {'validation': 1}
# cat.png, dog.png, owl.png and train-station.png: {'train': 1}
