"""What each mode gains and loses: speed, distance to the exact picture, and control score.

    python -m benchmarks.modes --model diorama [--conditions canny,depth] [--scenes N] [--json]

Every held-out scene is generated from its map and caption in every mode, in turns and from the same
seed, so that a busy machine slows all modes equally. R is the exact mode's seconds divided by the
mode's, the median over the scenes; seconds are a whole request's without loading, including drawing
and re-extracting the map. With --each, every shortcut of the fast mode is also measured alone, and
the exact mode with as few steps. The preview mode is another model: judge it by its control score,
not its PSNR. It is left out if the model has no LoRA for it, and the light mode where no kernel
runs it.
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
from benchmarks.controllability import select_conditions
from core.condition import Condition, RGBImage
from core.errors import BadInput, SuiteError, WeightsMissing
from core.modes import MODES, Shortcuts
from core.pipeline import Pipeline
from core.request import DEFAULTS, GenerationRequest, GenerationResult
from models.store import Store
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene
from training.progress import progress_line

SCENES = 32
FIRST_SCENE = 100  # the fast mode's settings were chosen on earlier ones
EXACT = "exact"


@dataclass(frozen=True)
class Variant:
    """One row of the table: changes to the request, and shortcuts that replace the fast mode's."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    shortcuts: Shortcuts | None = None


def variants(each: bool, steps: int) -> list[Variant]:
    """The modes, the exact one first; `each` adds the fast mode's shortcuts alone."""
    modes = [Variant(name, {"mode": name}) for name in MODES]
    if not each:
        return modes
    fast, mode = MODES["fast"], {"mode": "fast"}
    calls = sum(fast.predicts(step, steps) for step in range(steps))
    return [
        *modes,
        Variant("guidance ends", mode, Shortcuts(guidance_until=fast.guidance_until)),
        Variant("ControlNet rests", mode, Shortcuts(control_every=fast.control_every)),
        Variant("UNet rests", mode, Shortcuts(predict_every=fast.predict_every)),
        Variant(f"{calls} steps", {"steps": calls}),
    ]


def _available(
    store: Store, model: str, condition: Condition, candidates: list[Variant]
) -> tuple[list[Variant], dict[str, str]]:
    """The variants that can run here, and the reasons why others cannot."""
    left_out = {}
    for variant in candidates:
        mode = MODES[variant.changes.get("mode", EXACT)]
        if mode.few_step or mode.light:
            try:
                store.load(model, condition.weights, few_step=mode.few_step, light=mode.light)
            except (WeightsMissing, BadInput) as error:
                left_out[variant.name] = str(error)
    return [variant for variant in candidates if variant.name not in left_out], left_out


def scene_requests(
    store: Store, pipeline: Pipeline, model: str, condition: Condition, count: int
) -> Iterator[GenerationRequest]:
    """`count` requests from held-out scenes, each with its own seed; empty maps are skipped."""
    defaults = store.registry.card(model).defaults
    number, yielded = FIRST_SCENE, 0
    while yielded < count:
        scene = make_scene(HELD_OUT + number)
        size = int({**DEFAULTS, **defaults}["image_resolution"])
        picture = render([scene], size).image[0].numpy()
        request = GenerationRequest.single(
            condition, picture, prompt=scene.caption, seed=number, model=model, **defaults
        )
        number += 1
        control_map = pipeline.draw_map(request)
        if not condition.annotator.is_empty(control_map):
            yielded += 1
            yield request


def measure(
    store: Store, model: str, conditions: dict[str, Condition], count: int, each: bool
) -> dict[str, Any]:
    """Measure every variant on `count` held-out scenes per condition; returns the benchmark's JSON.

    Raises:
        SuiteError: The model or a condition's ControlNet is not available.
    """
    pipeline = Pipeline(store.load)
    steps = int({**DEFAULTS, **store.registry.card(model).defaults}["steps"])
    first = next(iter(conditions.values()))
    compared, left_out = _available(store, model, first, variants(each, steps))
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}", flush=True)
    rows: dict[str, list[dict[str, float]]] = {variant.name: [] for variant in compared}
    start, done, total = time.monotonic(), 0, count * len(conditions)
    for condition in conditions.values():
        for request in scene_requests(store, pipeline, model, condition, count):
            if not done:  # load and warm up
                for mode in dict.fromkeys(v.changes.get("mode", EXACT) for v in compared):
                    _generate(pipeline, replace(request, steps=2), Variant("", {"mode": mode}))
            exact: RGBImage | None = None
            for variant in compared:
                result = _generate(pipeline, request, variant)
                exact = result.images[0] if exact is None else exact
                rows[variant.name].append(_measurements(result, exact))
            done += 1
            print(progress_line(done, total, start, "scenes"), end="\r", flush=True)
    print()
    return {
        "model": model,
        "device": str(store.device),
        "dtype": str(store.dtype).removeprefix("torch."),
        "conditions": list(conditions),
        "scenes": count,
        "steps": steps,
        "modes": {name: _summary(measured, rows[EXACT]) for name, measured in rows.items()},
        "left_out": left_out,
    }


def _generate(pipeline: Pipeline, request: GenerationRequest, variant: Variant) -> GenerationResult:
    with patch.dict(MODES, fast=variant.shortcuts) if variant.shortcuts else nullcontext():
        return pipeline.generate(replace(request, **variant.changes))


def _measurements(result: GenerationResult, exact: RGBImage) -> dict[str, float]:
    seconds = {stage: value for stage, value in result.seconds.items() if stage != "load"}
    return {
        "seconds": sum(seconds.values()),
        "sampling": seconds["sample"],
        "psnr": psnr(exact, result.images[0]),
        "score": result.headlines[0],
    }


def _summary(rows: list[dict[str, float]], exact: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the times and of their ratios to the exact mode's; means of the rest."""

    def ratio(name: str) -> float:
        pairs = zip(exact, rows, strict=True)
        return round(float(np.median([base[name] / row[name] for base, row in pairs])), 3)

    def mean(rows: list[dict[str, float]], name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    score, exact_score = mean(rows, "score"), mean(exact, "score")
    return {
        "seconds": round(float(np.median([row["seconds"] for row in rows])), 4),
        "R": ratio("seconds"),
        "R_sampling": ratio("sampling"),
        "psnr": None if rows is exact else round(mean(rows, "psnr"), 2),
        "psnr_lowest": None if rows is exact else round(min(row["psnr"] for row in rows), 2),
        "score": round(score, 2),
        "score_change_percent": round(100 * (score / exact_score - 1), 2) if exact_score else None,
    }


def table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| mode | seconds | R | R of sampling | PSNR to exact, lowest | control score, change |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["modes"].items():
        psnrs = "" if row["psnr"] is None else f"{row['psnr']:.1f} dB, {row['psnr_lowest']:.1f}"
        change = row["score_change_percent"]
        score = f"{row['score']:.1f}" + ("" if change is None else f", {change:+.1f} %")
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['R']:.2f} | {row['R_sampling']:.2f} "
            f"| {psnrs} | {score} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default="canny", help="names such as canny,depth")
    parser.add_argument("--scenes", type=int, default=SCENES, help="per condition")
    parser.add_argument("--each", action="store_true", help="also measure each shortcut alone")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    try:
        store = Store(options.device, options.dtype)
        conditions = select_conditions(store, options.model, options.conditions.split(","))
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
