"""Pictures with captions, for every trainer.

    python -m training.dataset --scenes 12000 --out runs/scenes

Rendered scenes stand in chunks on disk and are read back without loading them all. Chunks that
already exist are kept, so the command resumes where it was stopped.
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
from training.progress import clock

CHUNK = 120  # scenes in a file: about 24 MB of pictures at 256 px
PLACES = 32  # side of the coarse map of where each thing is seen
HELD_OUT = 1_000_000_000  # seeds from here on are never trained on


def render_chunk(first: int, count: int, size: int, out: Path, device: str) -> None:
    """Renders the scenes of `count` seeds from `first` on.

    `<first>.npy` gets the pictures, (count, size, size, 3) uint8, completely or not at all,
    `<first>.json` the captions, and `<first>-things.npy` which thing is seen where, coarsely:
    (count, PLACES, PLACES) int8 index into the scene's things, -1 where none is; and
    `<first>-truth.npz` what `diorama.truth` makes of the rest.
    """
    torch.set_num_threads(1)
    step = 1 if device == "cpu" else 16
    scenes = [make_scene(seed) for seed in range(first, first + count)]
    pictures, things, truths = [], [], []
    middles = (torch.arange(PLACES) * size + size // 2) // PLACES
    for k in range(0, count, step):
        truth = render(scenes[k : k + step], size, device)
        pictures.append(truth.image.cpu().numpy())
        things.append(truth.things.cpu()[:, middles][:, :, middles].to(torch.int8).numpy())
        truths.append(truth_arrays(truth))
    stem = out / f"{first:09d}"
    kept = {name: np.concatenate([part[name] for part in truths]) for name in truths[0]}
    np.savez_compressed(out / f"{first:09d}-truth.npz", allow_pickle=False, **kept)
    np.save(out / f"{first:09d}-things.npy", np.concatenate(things))
    stem.with_suffix(".json").write_text(json.dumps([s.caption for s in scenes]))
    part = stem.with_suffix(".part.npy")
    np.save(part, np.concatenate(pictures))
    part.rename(stem.with_suffix(".npy"))


def render_scenes(scenes: int, size: int, out: Path, first: int = 0, device: str = "cpu") -> None:
    """Renders scenes that are not there yet, with one process a core on the CPU."""
    out.mkdir(parents=True, exist_ok=True)
    starts = [k for k in range(first, first + scenes, CHUNK) if not (out / f"{k:09d}.npy").exists()]
    jobs = [(k, min(CHUNK, first + scenes - k), size, out, device) for k in starts]
    began = time.monotonic()
    if device != "cpu" or len(jobs) < 2:
        for n, job in enumerate(jobs):
            render_chunk(*job)
            print(clock(n + 1, len(jobs), began, "chunks"), flush=True)
        return
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        results = [pool.apply_async(render_chunk, job) for job in jobs]
        for n, result in enumerate(results):
            result.get()
            print(clock(n + 1, len(jobs), began, "chunks"), flush=True)


class PictureSource(Protocol):
    """Anything that hands out square pictures of `size` pixels by their numbers."""

    size: int

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures, (N, size, size, 3) uint8 RGB."""
        ...


class Pictures:
    """The pictures and captions of a folder that `render_scenes` filled.

    They are `size` pixels square; as stored if that is None.

    Raises:
        FileNotFoundError: The folder holds no pictures.
    """

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
        self._place = [(c, k) for c, chunk in enumerate(self._chunks) for k in range(len(chunk))]
        self._stored = int(self._chunks[0].shape[1])
        self.size = size or self._stored

    def __len__(self) -> int:
        return len(self._place)

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """(N, size, size, 3) uint8; a size other than the stored one is averaged from it."""
        stored = np.stack([self._chunks[c][k] for c, k in (self._place[r] for r in rows)])
        if self.size == self._stored:
            return stored
        side = (self.size, self.size)
        return np.stack(
            [cv2.resize(picture, side, interpolation=cv2.INTER_AREA) for picture in stored]
        )

    def things(self) -> np.ndarray:
        """Which thing is seen where: (N, PLACES, PLACES) int8 index into each scene's things."""
        return np.concatenate([np.load(f) for f in self._things])

    def crops(self, rows: Iterable[int], side: int, rng: np.random.Generator) -> np.ndarray:
        """(N, side, side, 3) uint8: a random crop of each stored picture, half of them mirrored."""
        cut = []
        for r in rows:
            chunk, k = self._place[r]
            y, x = rng.integers(0, self._stored - side + 1, 2)
            piece = self._chunks[chunk][k, y : y + side, x : x + side]
            cut.append(piece[:, ::-1] if rng.random() < 0.5 else piece)
        return np.stack(cut)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=12_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument(
        "--first", type=int, default=0, help="first seed; held-out pictures start at 1000000000"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    render_scenes(options.scenes, options.size, options.out, options.first, options.device)
