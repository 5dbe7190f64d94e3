"""What each mode costs and loses: time, nearness to the exact picture, and how control is kept.

    python -m benchmarks.modes --model diorama [--conditions canny,depth] [--scenes N] [--json]

Every held-out scene is drawn again from its map and caption in every mode, in turns and from the
same seed, so that a busy machine slows all alike. R is the exact mode's seconds divided by the
mode's, the median over the scenes; seconds are those of a whole request but for loading, with the
map drawn before and again. With --each, every shortcut of the fast mode is measured alone too, and
what as few plain steps would give. The preview mode is another model: its PSNR says little, its
control score what counts. Where the model has no LoRA for it, it is left out with one line.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks._shared import command, machine, psnr
from benchmarks.controllability import chosen
from core.condition import Condition, RGBImage
from core.errors import SuiteError, WeightsMissing
from core.modes import MODES, Shortcuts
from core.pipeline import Pipeline
from core.request import GenerationRequest, GenerationResult
from models.store import Store
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene
from training.progress import clock

SCENES = 32
FIRST_SCENE = 100  # the fast mode's settings were chosen on some of those before
EXACT = "exact"


@dataclass(frozen=True)
class Way:
    """One row of the table: how a request is changed, and the shortcuts if they are no mode's."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    shortcuts: Shortcuts | None = None


def ways(each: bool, steps: int) -> list[Way]:
    """The exact mode first, then the others; `each` adds the shortcuts of the fast mode alone."""
    found = [Way(name, {"mode": name}) for name in MODES]
    if not each:
        return found
    fast, mode = MODES["fast"], {"mode": "fast"}
    asked = sum(fast.predicts(step, steps) for step in range(steps))
    return [
        *found,
        Way("guidance ends", mode, Shortcuts(guidance_until=fast.guidance_until)),
        Way("ControlNet rests", mode, Shortcuts(control_every=fast.control_every)),
        Way("answers foretold", mode, Shortcuts(predict_every=fast.predict_every)),
        Way(f"{asked} steps", {"steps": asked}),
    ]


def _there(
    store: Store, model: str, condition: Condition, found: list[Way]
) -> tuple[list[Way], dict[str, str]]:
    """The ways whose networks can be had, and of the others why not."""
    left_out = {}
    for way in found:
        if MODES[way.changes.get("mode", EXACT)].few_step:
            try:
                store.load(model, condition.weights, few_step=True)
            except WeightsMissing as error:
                left_out[way.name] = str(error)
    return [way for way in found if way.name not in left_out], left_out


def scenes(
    store: Store, pipeline: Pipeline, model: str, condition: Condition, count: int
) -> Iterator[GenerationRequest]:
    """Requests that draw held-out scenes again, each with its seed; scenes without map left out."""
    defaults = store.registry.card(model).defaults
    number, made = FIRST_SCENE, 0
    while made < count:
        scene = make_scene(HELD_OUT + number)
        size = int(defaults.get("image_resolution", 512))
        picture = render([scene], size).image[0].numpy()
        request = GenerationRequest.single(
            condition, picture, prompt=scene.caption, seed=number, model=model, **defaults
        )
        number += 1
        control_map = pipeline.draw_map(request)
        if not condition.annotator.is_empty(control_map):
            made += 1
            yield request


def measure(
    store: Store, model: str, conditions: dict[str, Condition], count: int, each: bool
) -> dict[str, Any]:
    """The figures of every way, over `count` held-out scenes of every condition.

    Raises:
        SuiteError: the model or a condition's ControlNet cannot be had.
    """
    pipeline = Pipeline(store.load)
    steps = int(store.registry.card(model).defaults.get("steps", 20))
    compared, left_out = _there(store, model, next(iter(conditions.values())), ways(each, steps))
    for name, why in left_out.items():
        print(f"{name} is left out: {why}", flush=True)
    rows: dict[str, list[dict[str, float]]] = {way.name: [] for way in compared}
    began, done = time.monotonic(), 0
    for condition in conditions.values():
        for request in scenes(store, pipeline, model, condition, count):
            if not done:  # the first runs also pay for loading and warming up
                for mode in dict.fromkeys(way.changes.get("mode", EXACT) for way in compared):
                    _made(pipeline, replace(request, steps=2), Way("", {"mode": mode}))
            exact: RGBImage | None = None
            for way in compared:
                result = _made(pipeline, request, way)
                exact = result.images[0] if exact is None else exact
                rows[way.name].append(_figures(result, exact))
            done += 1
            print(clock(done, count * len(conditions), began, "scenes"), end="\r", flush=True)
    print()
    return {
        "model": model,
        "device": str(store.device),
        "dtype": str(store.dtype).removeprefix("torch."),
        "conditions": list(conditions),
        "scenes": count,
        "steps": steps,
        "modes": {name: _summary(found, rows[EXACT]) for name, found in rows.items()},
        "left_out": left_out,
    }


def _made(pipeline: Pipeline, request: GenerationRequest, way: Way) -> GenerationResult:
    """One picture in this way."""
    with patch.dict(MODES, fast=way.shortcuts) if way.shortcuts else nullcontext():
        return pipeline.generate(replace(request, **way.changes))


def _figures(result: GenerationResult, exact: RGBImage) -> dict[str, float]:
    spent = {stage: seconds for stage, seconds in result.seconds.items() if stage != "load"}
    return {
        "seconds": sum(spent.values()),
        "sampling": spent["sample"],
        "psnr": psnr(exact, result.images[0]),
        "score": result.headlines[0],
    }


def _summary(found: list[dict[str, float]], exact: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the times and of their ratios to the exact mode's; means of the rest."""

    def ratio(name: str) -> float:
        pairs = zip(exact, found, strict=True)
        return round(float(np.median([theirs[name] / ours[name] for theirs, ours in pairs])), 3)

    def mean(rows: list[dict[str, float]], name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    score, wanted = mean(found, "score"), mean(exact, "score")
    return {
        "seconds": round(float(np.median([row["seconds"] for row in found])), 4),
        "R": ratio("seconds"),
        "R_sampling": ratio("sampling"),
        "psnr": None if found is exact else round(mean(found, "psnr"), 2),
        "psnr_lowest": None if found is exact else round(min(row["psnr"] for row in found), 2),
        "score": round(score, 2),
        "score_change_percent": round(100 * (score / wanted - 1), 2) if wanted else None,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as the README has them."""
    lines = [
        "| mode | seconds | R | R of sampling | PSNR to exact, lowest | control score, change |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["modes"].items():
        near = "" if row["psnr"] is None else f"{row['psnr']:.1f} dB, {row['psnr_lowest']:.1f}"
        change = row["score_change_percent"]
        kept = f"{row['score']:.1f}" + ("" if change is None else f", {change:+.1f} %")
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['R']:.2f} | {row['R_sampling']:.2f} "
            f"| {near} | {kept} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default="canny", help="names such as canny,depth")
    parser.add_argument("--scenes", type=int, default=SCENES, help="of each condition")
    parser.add_argument("--each", action="store_true", help="also each shortcut alone")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    try:
        store = Store(options.device, options.dtype)
        conditions = chosen(store, options.model, options.conditions.split(","))
        result = {
            "command": command("modes", arguments),
            "machine": machine(store.device, store.dtype),
            **measure(store, options.model, conditions, options.scenes, options.each),
        }
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    print(table(result))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
