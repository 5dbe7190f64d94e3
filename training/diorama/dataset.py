"""Renders scenes with captions to disk, and reads them back.

    python -m training.dataset --scenes 12000 --out runs/scenes

Scenes are stored in chunks that are memory-mapped, not loaded. Existing chunks are kept, so the
command resumes where it was stopped.
"""

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from training.diorama.renderer import render
from training.diorama.truth import truth_arrays
from training.diorama.world import make_scene
from training.progress import progress_line

CHUNK = 120  # scenes per file: about 24 MB of pictures at 256 px
COARSE_SIDE = 32  # side of the coarse map of which thing is where
HELD_OUT = 1_000_000_000  # seeds from here on are never trained on


def render_chunk(first: int, count: int, size: int, out: Path, device: str) -> None:
    """Render the scenes of `count` seeds from `first` on.

    Written are `<first>.json`, the captions; `<first>-things.npy`, (count, COARSE_SIDE,
    COARSE_SIDE) int8, the index of the visible thing in the scene or -1; `<first>-truth.npz`, the
    arrays of `diorama.truth`; and last and atomically `<first>.npy`, the pictures, (count, size,
    size, 3) uint8.
    """
    torch.set_num_threads(1)
    step = 1 if device == "cpu" else 16
    scenes = [make_scene(seed) for seed in range(first, first + count)]
    pictures, things, truths = [], [], []
    centres = (torch.arange(COARSE_SIDE) * size + size // 2) // COARSE_SIDE
    for k in range(0, count, step):
        truth = render(scenes[k : k + step], size, device)
        pictures.append(truth.image.cpu().numpy())
        things.append(truth.things.cpu()[:, centres][:, :, centres].to(torch.int8).numpy())
        truths.append(truth_arrays(truth))
    stem = out / f"{first:09d}"
    arrays = {name: np.concatenate([part[name] for part in truths]) for name in truths[0]}
    np.savez_compressed(out / f"{first:09d}-truth.npz", allow_pickle=False, **arrays)
    np.save(out / f"{first:09d}-things.npy", np.concatenate(things))
    stem.with_suffix(".json").write_text(json.dumps([s.caption for s in scenes]))
    part = stem.with_suffix(".part.npy")
    np.save(part, np.concatenate(pictures))
    part.rename(stem.with_suffix(".npy"))


def render_scenes(scenes: int, size: int, out: Path, first: int = 0, device: str = "cpu") -> None:
    """Render the missing scenes; on the CPU with one process per core."""
    out.mkdir(parents=True, exist_ok=True)
    starts = [k for k in range(first, first + scenes, CHUNK) if not (out / f"{k:09d}.npy").exists()]
    jobs = [(k, min(CHUNK, first + scenes - k), size, out, device) for k in starts]
    start = time.monotonic()
    if device != "cpu" or len(jobs) < 2:
        for n, job in enumerate(jobs):
            render_chunk(*job)
            print(progress_line(n + 1, len(jobs), start, "chunks"), flush=True)
        return
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        results = [pool.apply_async(render_chunk, job) for job in jobs]
        for n, result in enumerate(results):
            result.get()
            print(progress_line(n + 1, len(jobs), start, "chunks"), flush=True)


class PictureSource(Protocol):
    """Square pictures of `size` pixels, read by index."""

    size: int
    fingerprint: str
    """Changes with the pictures and their order; "" where they never change."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures, (N, size, size, 3) uint8 RGB."""
        ...


class Pictures:
    """The pictures and captions of a folder written by `render_scenes`.

    They are `size` pixels square; None keeps the stored size.

    Raises:
        FileNotFoundError: The folder holds no pictures.
    """

    fingerprint = ""

    def __init__(self, folder: Path, size: int | None = None) -> None:
        files = sorted(folder.glob("?????????.npy"))
        if not files:
            raise FileNotFoundError(
                f"There are no pictures in {folder}; run `python -m training.dataset` first."
            )
        self._chunks = [np.load(f, mmap_mode="r") for f in files]
        self.captions: list[str] = [
            c for f in files for c in json.loads(f.with_suffix(".json").read_text())
        ]
        self.seeds = [
            int(f.stem) + k
            for f, chunk in zip(files, self._chunks, strict=True)
            for k in range(len(chunk))
        ]
        self._things = [f.with_name(f"{f.stem}-things.npy") for f in files]
        self._index = [(c, k) for c, chunk in enumerate(self._chunks) for k in range(len(chunk))]
        self._stored = int(self._chunks[0].shape[1])
        self.size = size or self._stored

    def __len__(self) -> int:
        return len(self._index)

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures, (N, size, size, 3) uint8 RGB, resized by area averaging if needed."""
        stored = np.stack([self._chunks[c][k] for c, k in (self._index[r] for r in rows)])
        if self.size == self._stored:
            return stored
        side = (self.size, self.size)
        return np.stack(
            [cv2.resize(picture, side, interpolation=cv2.INTER_AREA) for picture in stored]
        )

    def things(self) -> np.ndarray:
        """The visible thing's index in its scene, or -1: (N, COARSE_SIDE, COARSE_SIDE) int8."""
        return np.concatenate([np.load(f) for f in self._things])

    def crops(self, rows: Iterable[int], side: int, rng: np.random.Generator) -> np.ndarray:
        """(N, side, side, 3) uint8: a random crop of each stored picture, half of them mirrored."""
        crops = []
        for r in rows:
            chunk, k = self._index[r]
            y, x = rng.integers(0, self._stored - side + 1, 2)
            crop = self._chunks[chunk][k, y : y + side, x : x + side]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return np.stack(crops)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument(
        "--first", type=int, default=0, help="first seed; from 1000000000 on they are held out"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    render_scenes(options.scenes, options.size, options.out, options.first, options.device)
