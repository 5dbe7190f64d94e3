"""The validation curve: how well generated pictures follow their control maps, as training goes on.

The score is that of the apps: the map is drawn again from the generated picture, and the two are
compared. The loss says nothing of it: it hardly falls while control is learned, which happens
suddenly (Zhang et al. 2023, "sudden convergence").
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.condition import RGBImage
from core.consistency import Extractor
from training.examples import FolderExamples
from training.log import read_log

JUMP = 10.0  # points of score between two validations that the log tells of
CURVE_SIZE, CURVE_MARGIN = (640, 360), 48  # pixels
COLOURS = ("steelblue", "chocolate", "seagreen", "purple", "black")
SHEET_PICTURES = 8

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Points by the curve's name."""


class Validation:
    """Generates the pictures of a validation set, scores them, and keeps the best weights."""

    def __init__(
        self,
        data: FolderExamples,
        extractor: Extractor,
        generate: Callable[[FolderExamples], Sequence[RGBImage]],
        save_best: Callable[[int, float], None],
        out: Path,
    ) -> None:
        """`generate` makes a picture from each map with the weights of the moment.

        `out` is the run's folder, whose log.jsonl has the scores so far; it gets score.png, the
        curve, and validation.png, pictures with their maps.
        """
        self._data, self._extractor, self._generate = data, extractor, generate
        self._save_best, self._out = save_best, out

    def __call__(self, step: int) -> dict[str, Any]:
        """Validate; return the score (0 to 100), the condition's mean metric and a picture."""
        pictures, found, scores = self._generate(self._data), [], []
        maps = [self._data.maps([row])[0] for row in range(len(self._data))]
        for picture, control_map in zip(pictures, maps, strict=True):
            again, one_score = self._extractor.reextract_and_score(picture, control_map)
            found.append(again)
            scores.append(one_score)
        score = float(np.mean([one.headline for one in scores]))
        metric = scores[0].metric
        mean = float(np.mean([one.metrics[metric] for one in scores]))
        print(f"Score {score:.1f} of 100 after {step} steps: {metric} {mean:.3f}", flush=True)
        curve = read_curve(self._out)
        self._tell_jump(step, score, curve)
        if all(score > one for _, one in curve):
            self._save_best(step, score)
        draw_curves({"": [*curve, (step, score)]}).save(self._out / "score.png")
        sheet = self._out / "validation.png"
        self._sheet(maps, pictures, found).save(sheet)
        return {"score": round(score, 2), metric: round(mean, 4), "validation": sheet}

    def _tell_jump(self, step: int, score: float, curve: list[tuple[int, float]]) -> None:
        if curve and score - curve[-1][1] >= JUMP:
            print(
                f"The score jumped by {score - curve[-1][1]:.0f} points between the steps "
                f"{curve[-1][0]} and {step}: control is being learned (sudden convergence).",
                flush=True,
            )

    def _sheet(
        self, maps: list[RGBImage], pictures: Sequence[RGBImage], found: list[RGBImage]
    ) -> Image.Image:
        """Maps, generated pictures and the maps of these, of the first that have one size."""
        preview = self._extractor.annotator.preview
        same = [k for k, one in enumerate(maps) if one.shape == maps[0].shape][:SHEET_PICTURES]
        columns = [np.concatenate([preview(maps[k]), pictures[k], preview(found[k])]) for k in same]
        return Image.fromarray(np.concatenate(columns, 1))


def read_curve(out: Path) -> list[tuple[int, float]]:
    """Return the steps and scores in the log of a run, in order."""
    return [(one["step"], one["score"]) for one in read_log(out) if "score" in one]


def draw_curves(
    curves: Curves,
    across: str = "steps",
    up: str = "control score",
    marks: Sequence[float] = (),
    top: int = 100,
) -> Image.Image:
    """Draw scores against steps: a curve for each name, which is written beside it.

    `up` is drawn against `across`, from 0 to `top`; `marks` are the numbers below, the first and
    the last if there are none.
    """
    (width, height), margin = CURVE_SIZE, CURVE_MARGIN
    picture = Image.new("RGB", CURVE_SIZE, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    last = max(step for curve in curves.values() for step, _ in curve) or 1.0

    def place(step: float, score: float) -> tuple[float, float]:
        x = margin + step / last * (width - 2 * margin)
        return x, height - margin - score / top * (height - 2 * margin)

    for score in range(0, top + 1, top // 4):
        draw.line([place(0, score), place(last, score)], "lightgrey")
        x, y = place(0, score)
        draw.text((x - 8, y), str(score), "black", font, anchor="rm")
    for step in marks or (0, last):
        x, y = place(step, 0)
        draw.text((x, y + 8), f"{step:.10g}", "black", font, anchor="mt")
    draw.text((width / 2, height - 14), across, "black", font, anchor="mm")
    draw.text((margin, margin / 2), up, "black", font, anchor="lm")
    for k, (name, curve) in enumerate(curves.items()):
        colour, points = COLOURS[k % len(COLOURS)], [place(*one) for one in curve]
        draw.line(points, colour, 2)
        for x, y in points:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        draw.text((width - margin, margin / 2 + 16 * k - 8), name, colour, font, anchor="rm")
    return picture
