"""The README.md of a trained ControlNet or T2I-Adapter: a model card in the hub's format."""

import shutil
from pathlib import Path
from typing import Any

from models.catalog.cards import Card
from training.validation import read_curve

CARD = """---
license: other
license_name: not-stated
tags: [{tag}, stable-diffusion, diffusers]
base_model: {base}
---

# A {kind} for {condition} maps

{use} Written by `python -m training.train_control`; every option and the commit
are in the metadata of the weights, under `controlloop`.

| | |
|---|---|
| Data | {pictures} pictures of the folder `{folder}`, {captions} of them with a caption |
| Side of the pictures | {size} pixels |
| Steps | {steps}, of {batch} pictures each |
| Learning rate | {learning_rate} |

## Control score

{scores}

## Licence

Not stated: write the licence of the weights here and into the first lines, and what the pictures'
licence asks for. The base's is: {licence}.
"""
SCORES = """How well generated pictures follow their maps, 0 to 100, on `{folder}`. The weights
are those with the best score.

![The score against steps](score.png)

| Steps | Score |
|---|---|
{rows}"""
NO_SCORES = "Not measured: no `--validation` was given."


def write_card(
    folder: Path, base: Card, options: dict[str, Any], steps: int, captions: list[str]
) -> None:
    """Write README.md into the folder of a trained network, with its scores if there are any.

    `options` are those of the command, `captions` those of its pictures.
    """
    scores, curve = NO_SCORES, read_curve(options["out"])
    if curve and options["validation"]:
        shutil.copy(options["out"] / "score.png", folder / "score.png")
        rows = "".join(f"| {step} | {score:.1f} |\n" for step, score in curve)
        scores = SCORES.format(rows=rows.rstrip(), folder=options["validation"].name)
    accumulated = options["batch"] * options["gradient_accumulation_steps"]
    kind = "T2I-Adapter" if options["adapter"] else "ControlNet"
    use = f"It is used with {base.title}."
    if options["unlock_decoder"]:
        use = f"It belongs to the base in this folder, {base.title} with a decoder trained too."
    text = CARD.format(
        kind=kind,
        tag=kind.lower(),
        base=base.base.hub if base.base else base.name,
        condition=options["condition"],
        use=use,
        pictures=len(captions),
        folder=options["folder"].name,
        captions=sum(map(bool, captions)),
        size=options["size"],
        steps=steps,
        batch=accumulated,
        learning_rate=options["learning_rate"],
        scores=scores,
        licence=base.licence,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
