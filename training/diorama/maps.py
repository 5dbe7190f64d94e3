"""Control maps of rendered scenes, for what learns from them.

    python -m training.maps --conditions canny,depth,seg

`training.train_control` draws the maps of each batch as it goes. A GPU would wait for that most of
its time: this command draws them all beforehand, with one process a core, and keeps them beside the
pictures (200 KB each at 256 px), where they are found.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from annotators import find_annotator
from annotators._diorama import FOLDER as NETWORK
from annotators._diorama import batched_prediction
from core.condition import Annotator
from core.params import Bounds, settings_of
from training.diorama.dataset import CHUNK, Pictures
from training.progress import clock


class DrawnExamples(Pictures):
    """Rendered scenes, with the map drawn by an annotator when it is asked for.

    Drawn by the annotator's first preprocessor: of half the scenes at its default settings, of the
    others at settings of their own, so that sparse and dense maps are both known.
    """

    def __init__(self, folder: Path, annotator: Annotator, size: int) -> None:
        super().__init__(folder, size)
        self._annotator = annotator
        kept = kept_maps(folder, annotator, size)
        self._kept = np.load(kept, mmap_mode="r") if kept.exists() else np.empty(0)

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        if len(self._kept) == len(self):
            return np.asarray(self._kept[list(rows)])
        draw, params = self._annotator.preprocessors[0].draw, self._annotator.params
        pictures = list(self.batch(rows))
        with batched_prediction(pictures):
            return np.stack(
                [
                    draw(picture, varied(params, row) if row % 2 else params())
                    for row, picture in zip(rows, pictures, strict=True)
                ]
            )


def varied(params: type, seed: int) -> Any:
    """Settings around the default ones: each number times 1/4 to 2, within its bounds."""
    rng = np.random.default_rng(seed)
    settings = {}
    for name, control in settings_of(params).items():
        if isinstance(control, Bounds) and control.default is not None:
            settings[name], _ = control.clamp(control.default * 2 ** rng.uniform(-2, 1))
    return params(**settings)


def kept_maps(folder: Path, annotator: Annotator, size: int) -> Path:
    """The file of all maps of a folder, (N, size, size, 3) uint8, if they were drawn beforehand.

    Its name has a part of the hash of Diorama's annotator, which draws some of them.
    """
    weights = hashlib.sha256()
    for file in sorted(NETWORK.glob("*.safetensors")):
        weights.update(file.read_bytes())
    return folder / f"maps-{annotator.name}-{size}-{weights.hexdigest()[:8]}.npy"


def draw_maps(folder: Path, names: Sequence[str], size: int) -> None:
    """Draws the maps of all scenes of a folder that are not kept yet, with one process a core."""
    files = {name: kept_maps(folder, find_annotator(name), size) for name in names}
    files = {name: file for name, file in files.items() if not file.exists()}
    count, jobs = len(Pictures(folder, size)), []
    for name, file in files.items():
        shape = (count, size, size, 3)
        np.lib.format.open_memmap(file.with_suffix(".part"), "w+", np.uint8, shape).flush()
        jobs += [(name, file, first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    began = time.monotonic()
    waiting = dict.fromkeys(files, -(-count // CHUNK))
    with get_context("spawn").Pool(os.cpu_count(), _begin, (folder, size)) as pool:
        for n, name in enumerate(pool.imap(_draw, jobs)):
            waiting[name] -= 1
            if not waiting[name]:
                files[name].with_suffix(".part").rename(files[name])
                print(name, end=" ")
            print(clock(n + 1, len(jobs), began, "chunks"), flush=True)


_scenes: dict[str, Any] = {}
"""What a process of the pool draws from: the folder, the size, and examples by condition."""


def _begin(folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    _scenes.update(folder=folder, size=size)


def _draw(job: tuple[str, Path, int, int]) -> str:
    name, file, first, end = job
    if name not in _scenes:
        _scenes[name] = DrawnExamples(_scenes["folder"], find_annotator(name), _scenes["size"])
    maps = np.load(file.with_suffix(".part"), mmap_mode="r+")
    for start in range(first, end, CHUNK // 2):
        rows = range(start, min(start + CHUNK // 2, end))
        maps[rows.start : rows.stop] = _scenes[name].maps(rows)
    maps.flush()
    return name


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conditions", required=True, help="of annotators, with commas between")
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument("--size", type=int, default=256, help="of the pictures")
    options = parser.parse_args(arguments)
    draw_maps(options.data, options.conditions.split(","), options.size)
