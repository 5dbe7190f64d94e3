"""Draws the control maps of rendered scenes, on the fly or in advance.

    python -m training.maps --conditions canny,depth,seg

`training.train_control` draws each batch's maps while it trains, and a GPU would mostly wait for
them. This command draws them all in advance, with one process per core, and caches them beside the
pictures (200 KB each at 256 px).
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
from core.condition import Annotator, RGBImage
from core.params import Bounds, settings_of
from training.diorama.dataset import CHUNK, Pictures
from training.progress import progress_line


class SceneExamples(Pictures):
    """Rendered scenes with their control maps, drawn by an annotator's first preprocessor.

    Half of the maps are drawn with the default settings, the others with random ones, so that
    sparse and dense maps are both learned.
    """

    def __init__(self, folder: Path, annotator: Annotator, size: int) -> None:
        super().__init__(folder, size)
        self._annotator = annotator
        file = cached_maps(folder, annotator, size)
        self._cached = np.load(file, mmap_mode="r") if file.exists() else np.empty(0)

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        if len(self._cached) == len(self):
            return np.asarray(self._cached[list(rows)])
        return self.maps_of(list(self.batch(rows)), rows)

    def maps_of(self, pictures: Sequence[RGBImage], rows: Sequence[int]) -> np.ndarray:
        """The maps (N, H, W, 3) uint8 of other pictures, with the settings of these rows' maps."""
        draw, params = self._annotator.preprocessors[0].draw, self._annotator.params
        with batched_prediction(list(pictures)):
            return np.stack(
                [
                    draw(picture, random_params(params, row) if row % 2 else params())
                    for row, picture in zip(rows, pictures, strict=True)
                ]
            )


def random_params(params: type, seed: int) -> Any:
    """Random settings: each number's default times 1/4 to 2, within its bounds."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, setting in settings_of(params).items():
        if isinstance(setting, Bounds) and setting.default is not None:
            values[name], _ = setting.clamp(setting.default * 2 ** rng.uniform(-2, 1))
    return params(**values)


def cached_maps(folder: Path, annotator: Annotator, size: int) -> Path:
    """The path of a folder's cached maps, (N, size, size, 3) uint8.

    The name contains a hash of Diorama's annotator, which draws some of them.
    """
    weights = hashlib.sha256()
    for file in sorted(NETWORK.glob("*.safetensors")):
        weights.update(file.read_bytes())
    return folder / f"maps-{annotator.name}-{size}-{weights.hexdigest()[:8]}.npy"


def draw_maps(folder: Path, names: Sequence[str], size: int) -> None:
    """Draw and cache the missing maps of a folder's scenes, with one process per core."""
    files = {name: cached_maps(folder, find_annotator(name), size) for name in names}
    files = {name: file for name, file in files.items() if not file.exists()}
    count, jobs = len(Pictures(folder, size)), []
    for name, file in files.items():
        shape = (count, size, size, 3)
        np.lib.format.open_memmap(file.with_suffix(".part"), "w+", np.uint8, shape).flush()
        jobs += [(name, file, first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    start = time.monotonic()
    remaining = dict.fromkeys(files, -(-count // CHUNK))
    with get_context("spawn").Pool(os.cpu_count(), _init_worker, (folder, size)) as pool:
        for n, name in enumerate(pool.imap(_draw, jobs)):
            remaining[name] -= 1
            if not remaining[name]:
                files[name].with_suffix(".part").rename(files[name])
                print(name, end=" ")
            print(progress_line(n + 1, len(jobs), start, "chunks"), flush=True)


_scenes: dict[str, Any] = {}
"""A worker's folder and size, and its examples by condition."""


def _init_worker(folder: Path, size: int) -> None:
    torch.set_num_threads(1)
    _scenes.update(folder=folder, size=size)


def _draw(job: tuple[str, Path, int, int]) -> str:
    name, file, first, end = job
    if name not in _scenes:
        _scenes[name] = SceneExamples(_scenes["folder"], find_annotator(name), _scenes["size"])
    maps = np.load(file.with_suffix(".part"), mmap_mode="r+")
    for start in range(first, end, CHUNK // 2):
        rows = range(start, min(start + CHUNK // 2, end))
        maps[rows.start : rows.stop] = _scenes[name].maps(rows)
    maps.flush()
    return name


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conditions", required=True, help="names such as canny,depth")
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    options = parser.parse_args(arguments)
    draw_maps(options.data, options.conditions.split(","), options.size)
