"""Compares the ways of tuning a ControlNet: the diffusion loss alone, and each --method beside it.

    python -m training.compare --conditions canny,depth

Each run tunes one of Diorama's ControlNets on rendered scenes of 128 px, for as many steps as every
other, and is then scored as in the apps on held-out scenes: how well the map is kept, and the share
of named things in their named colour. Written are compare.md, a table of means over the seeds
with what a run costs, and each run's figures, so that a comparison that was stopped goes on where
it was. With OMP_NUM_THREADS=1 two of them may run side by side.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from annotators import find_annotator
from core.condition import Annotator, ControlMap
from training.diorama.colours import colour_hits
from training.diorama.dataset import HELD_OUT, render_scenes
from training.diorama.maps import draw_maps
from training.diorama.renderer import render
from training.diorama.world import make_scene
from training.examples import default_extractor
from training.loop import peak_memory
from training.train_control import CPO, METHODS, Training, trained

SIZE, SCENES, HELD_OUT_SCENES, STEPS, SEEDS = 128, 1200, 64, 40, 3
RECIPE = ("--size", f"{SIZE}", "--batch", "12", "--learning-rate", "4e-4", "--sheet-every", "0")
WARM_UP = ("--lr-warmup-steps", "5")
REWARDS = {
    "canny": ("edges", "0.5"),
    "hed": ("edges", "0.5"),
    "lineart": ("edges", "0.5"),
    "depth": ("depth", "0.5"),
    "seg": ("classes", "0.2"),
    "pose": ("joints", "offset", "0.1"),
}
"""The recipe's losses and weight by condition (training/README.md); classes for seg, as published,
since --method uncertainty needs a loss of pixels."""
PREFERENCE_WEIGHT = "2"
PLAIN = "diffusion loss"


def method_options(method: str, condition: str) -> list[str]:
    """Return the arguments of `training.train_control` for a way of tuning."""
    *kinds, weight = REWARDS[condition]
    if method == PLAIN:
        return []
    if method == CPO:
        return ["--method", method, "--reward-weight", PREFERENCE_WEIGHT]
    return ["--method", method, "--reward", *kinds, "--reward-weight", weight]


def evaluate(training: Training, annotator: Annotator, count: int) -> dict[str, float]:
    """Return the mean score and the share of right colours, 0 to 100, on held-out scenes.

    Scenes with an empty map are skipped.
    """
    extractor, scenes, truths = default_extractor(annotator), [], []
    maps: list[ControlMap] = []
    seed = HELD_OUT
    while len(maps) < count:
        scene = make_scene(seed)
        truth = render([scene], SIZE)
        control_map = extractor.extract(truth.image[0].numpy(), (SIZE, SIZE), SIZE)
        seed += 1
        if annotator.empty_message and annotator.is_empty(control_map):
            continue
        scenes.append(scene)
        truths.append(truth)
        maps.append(control_map)
    pictures = training.pictures(np.stack(maps), [scene.caption for scene in scenes])
    found = [
        extractor.reextract_and_score(picture, control_map)[1].headline
        for picture, control_map in zip(pictures, maps, strict=True)
    ]
    hits = [
        hit
        for scene, truth, picture in zip(scenes, truths, pictures, strict=True)
        for hit in colour_hits(scene, truth, 0, picture)
    ]
    return {"score": float(np.mean(found)), "colours": 100 * float(np.mean(hits))}


def run(arguments: Sequence[str], condition: str, count: int, out: Path) -> None:
    """Train once, and write what came of it to result.json."""
    # Of the processor, not of the clock, which other programs slow down.
    start = time.process_time()
    training = trained([*arguments, "--out", f"{out}"])
    figures: dict[str, float] = {
        "seconds": time.process_time() - start,
        "gigabytes": peak_memory(torch.device("cpu")) / 1e9,
    }
    figures |= evaluate(training, find_annotator(condition), count)
    (out / "result.json").write_text(json.dumps(figures))


def compare(
    conditions: Sequence[str],
    out: Path,
    seeds: int = SEEDS,
    steps: int = STEPS,
    count: int = HELD_OUT_SCENES,
) -> str:
    """Run what is missing; return the table, which is also written into `out`.

    `count` scenes are held out.
    """
    data = out / "scenes"
    render_scenes(SCENES, SIZE, data)
    draw_maps(data, conditions, SIZE)
    methods = (PLAIN, *METHODS)
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed, condition, method in product(range(seeds), conditions, methods):
        folder = out / f"{condition}-{method}-{seed}".replace(" ", "-")
        if not (folder / "result.json").exists():
            start = Path("models/diorama/controlnet", condition)
            arguments = [
                *("--condition", condition, "--data", f"{data}", "--start", f"{start}"),
                *("--steps", f"{steps}", "--seed", f"{seed}", *RECIPE, *WARM_UP),
                *method_options(method, condition),
            ]
            _alone(arguments, condition, count, folder)
        figures = json.loads((folder / "result.json").read_text())
        results.setdefault((condition, method), []).append(figures)
        print(f"{folder.name}: {figures}", flush=True)
    table = _table(conditions, methods, results)
    (out / "compare.md").write_text(f"{table}\n", encoding="utf-8")
    return table


def _alone(*arguments: Any) -> None:
    """Run in a process of its own, whose memory is this run's alone."""
    process = get_context("spawn").Process(target=run, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _table(
    conditions: Sequence[str],
    methods: Sequence[str],
    results: dict[tuple[str, str], list[dict[str, float]]],
) -> str:
    """A row for each condition, of means and standard deviations, and the cost of each method."""

    def values(name: str, condition: str, method: str) -> list[float]:
        return [figures[name] for figures in results[condition, method]]

    rows = [["", *methods], ["---"] * (len(methods) + 1)]
    for condition in conditions:
        cells = [condition]
        for method in methods:
            scores = values("score", condition, method)
            colours = np.mean(values("colours", condition, method))
            spread = f" ± {np.std(scores):.1f}" if len(scores) > 1 else ""
            cells.append(f"{np.mean(scores):.1f}{spread}, {colours:.0f} %")
        rows.append(cells)
    for title, name, digits in (("processor, s", "seconds", 0), ("memory, GB", "gigabytes", 2)):
        each = (
            np.median([one for condition in conditions for one in values(name, condition, method)])
            for method in methods
        )
        rows.append([title, *(f"{one:.{digits}f}" for one in each)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conditions", default=",".join(REWARDS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    options = parser.parse_args(arguments)
    print(compare(options.conditions.split(","), options.out, options.seeds))


if __name__ == "__main__":
    main()
