"""ControlNet++'s evaluation protocol, on a folder of pictures and captions.

Every picture is resized to 512 x 512, whatever its shape, and its map and caption generate four
images. Maps are drawn and compared as in the paper, depth with DPT-Large, classes with Mask2Former,
in the paper's units and with its aggregation: canny's F1 pools a caption's four images, mIoU is
over all pictures, once for each of the four.

Differences: DDIM, not UniPC; every image has a seed of its own; Mask2Former is transformers', not
MMSegmentation's; the overflow in the paper's inversion of line art is not reproduced; in maps that
a folder brings, road and skyscraper share a colour and are one class.

Source: Li et al. 2024, "ControlNet++" (arXiv 2404.07987), and its eval/.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from annotators import depth, find_annotator
from benchmarks._controlnetpp_metrics import EVALUATIONS, SPREAD, Statistics
from benchmarks._shared import at_strength, psnr, record_failure, round_trip, save_sheet
from core.condition import ALREADY_A_MAP, Annotator, Condition, ControlMap, Preprocessor, RGBImage
from core.consistency import Extractor
from core.errors import BadInput, SuiteError
from core.images import SUFFIXES, read_image
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store
from training.progress import progress_line

PROTOCOL = "controlnet++"
SIDE, IMAGES, FIRST_SEED = 512, 4, 42
SETTINGS: dict[str, Any] = {
    "added_prompt": "",
    "negative_prompt": "worst quality, low quality",
    "num_samples": IMAGES,
    "image_resolution": SIDE,
    "steps": 20,
    "guidance_scale": 7.5,
    "preprocessor": ALREADY_A_MAP,
}


# The pictures


@dataclass(frozen=True)
class Example:
    """One picture of a folder."""

    folder: Path
    path: Path
    caption: str


def read_folder(folder: Path) -> list[Example]:
    """A folder's pictures with their captions.

    They are listed in prompt.json, one object per line with `target` and `prompt`, as training
    reads it; without one, each picture's caption is the text file beside it (cat.jpg, cat.txt).

    Raises:
        BadInput: The folder has no pictures, or prompt.json or a caption cannot be read.
    """
    manifest = folder / "prompt.json"
    if manifest.is_file():
        try:
            lines = manifest.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            examples = [Example(folder, folder / row["target"], str(row["prompt"])) for row in rows]
        except (ValueError, LookupError, TypeError) as error:
            raise BadInput(
                f"{manifest} must have one JSON object per line, with target and prompt."
            ) from error
    else:
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
        examples = [Example(folder, file, _caption(file.with_suffix(".txt"))) for file in files]
    if not examples:
        raise BadInput(f"There are no pictures in {folder}.")
    return examples


def _caption(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8").strip() if text.is_file() else ""
    except UnicodeDecodeError as error:
        raise BadInput(f"{text} is not UTF-8 text; save it as UTF-8.") from error


def load_square(path: Path, interpolation: int = cv2.INTER_CUBIC) -> RGBImage:
    """Load a picture at 512 x 512, without keeping its aspect ratio.

    Raises:
        BadInput: It does not exist or cannot be read.
    """
    if not path.is_file():
        raise BadInput(f"{path} does not exist.")
    try:
        picture = read_image(path)[0]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=interpolation), np.uint8)


# The evaluation


class _Evaluator:
    """Evaluates one condition of a model, picture by picture."""

    def __init__(self, store: Store, model: str, name: str, strengths: tuple[float, ...]) -> None:
        self.evaluation = EVALUATIONS[name]
        annotator = find_annotator(name)
        draw_generated = self.evaluation.draw_generated
        annotator = replace(
            annotator,
            preprocessors=(self._preprocessor(annotator),),
            reextract=Preprocessor("generated", draw_generated) if draw_generated else None,
            detect_resolution=None,
        )
        self._condition = Condition(name, name, "", annotator, weights=name)
        self._pipeline, self._model, self._strengths = Pipeline(store.load), model, strengths
        self._networks = store.load(model, name)
        keys = ["oracle", *(f"{s:g}" for s in strengths)]
        self.statistics: dict[str, list[Statistics]] = {key: [] for key in keys}
        self.headlines: dict[str, list[float]] = {key: [] for key in keys}
        self.psnrs: list[float] = []  # of the autoencoder's round trips, in dB
        self.rows: list[list[RGBImage]] = []  # of the contact sheet

    def _preprocessor(self, annotator: Annotator) -> Preprocessor:
        draw = self.evaluation.draw
        if not isinstance(draw, str):
            return Preprocessor("the paper's", draw)
        for preprocessor in annotator.preprocessors:
            if preprocessor.name == draw:
                return preprocessor
        raise BadInput(f"The annotator {annotator.name} has no preprocessor {draw}.")

    def add(self, example: Example) -> None:
        """Evaluate one picture.

        Raises:
            BadInput: The picture or its map does not exist or cannot be read.
        """
        annotator, image = self._condition.annotator, load_square(example.path)
        params = annotator.params()
        control_map = self._folder_map(example) if self.evaluation.labelled else None
        if control_map is None:
            control_map = annotator.preprocessors[0].draw(image, params)
        decoded = round_trip(self._networks, image)
        index = len(self.psnrs)
        self.psnrs.append(psnr(image, decoded))
        extractor = Extractor(annotator, annotator.preprocessors[0], params, None)
        reextracted, score = extractor.reextract_and_score(decoded, control_map)
        oracle = self.evaluation.compare(control_map, [reextracted] * IMAGES)
        self.statistics["oracle"].append(oracle)
        self.headlines["oracle"].append(score.headline)
        request = GenerationRequest.single(
            self._condition,
            control_map,
            prompt=example.caption,
            seed=FIRST_SEED + IMAGES * index,  # an image's own seed in the whole evaluation
            model=self._model,
            **SETTINGS,
        )
        row = [image, annotator.preview(control_map)]
        for strength in self._strengths:
            result = self._pipeline.generate(at_strength(request, strength))
            if len(result.images) < IMAGES:
                raise SuiteError(result.warnings[-1])
            key = f"{strength:g}"
            self.statistics[key].append(self.evaluation.compare(control_map, result.reextracted))
            self.headlines[key] += [score.headline for score in result.scores]
            row += [result.images[0], annotator.preview(result.reextracted[0])]
        self.rows.append(row)

    def _folder_map(self, example: Example) -> ControlMap | None:
        """The folder's own map of a picture; None if it has no maps of this condition."""
        folder = example.folder / self._condition.name
        if not folder.is_dir():
            return None
        path = folder / f"{example.path.stem}.png"
        if self._condition.annotator.interpolation == "nearest":
            return load_square(path, cv2.INTER_NEAREST)
        return depth.as_map(load_square(path)[:, :, 0].astype(np.float32))

    def summary(self) -> dict[str, Any]:
        """The condition's entry in the JSON, in the paper's units."""
        evaluation = self.evaluation
        values = {k: round(evaluation.aggregate(v), 4) for k, v in self.statistics.items()}
        return {
            "metric": evaluation.metric,
            "higher_is_better": evaluation.higher_is_better,
            "oracle": values.pop("oracle"),
            "strength": values,
            "headline": {k: round(float(np.mean(v)), 2) for k, v in self.headlines.items()},
            "pictures": len(self.psnrs),
        }


def select_conditions(store: Store, model: str, names: list[str] | None) -> list[str]:
    """Check the conditions' names; None selects all of the paper's that the model has.

    Raises:
        BadInput: The paper does not measure one, or there is none; the message lists those it does.
    """
    card = store.registry.card(model)
    if names is None:
        names = [name for name in EVALUATIONS if card.has_control(name)]
    measured = ", ".join(EVALUATIONS)
    if not any(names):
        raise BadInput(
            f"{card.title} has none of the ControlNets that ControlNet++ measures: {measured}."
        )
    for name in names:
        if name not in EVALUATIONS:
            raise BadInput(f"ControlNet++ does not measure {name!r}: choose among {measured}.")
    return names


def measure(
    store: Store,
    model: str,
    names: list[str],
    examples: Sequence[Example],
    strengths: tuple[float, ...],
    sheet: Path | None,
) -> dict[str, Any]:
    """Evaluate the conditions on the examples; returns the JSON, published results too.

    A condition or picture that fails is reported on stderr and in "failed".

    Raises:
        SuiteError: None could be measured.
    """
    result: dict[str, Any] = {
        "model": model,
        "protocol": PROTOCOL,
        "scenes": len(examples),
        "images": IMAGES,
        "resolution": SIDE,
        "seed": FIRST_SEED,
        "steps": SETTINGS["steps"],
        "guidance_scale": SETTINGS["guidance_scale"],
        "conditions": {},
        "published": {},
        "failed": {},
    }
    psnrs: list[float] = []
    start, total = time.monotonic(), len(examples) * len(names)
    for k, name in enumerate(names):
        with record_failure(name, result["failed"]):
            evaluator = _Evaluator(store, model, name, strengths)
            for done, example in enumerate(examples, k * len(examples) + 1):
                with record_failure(example.path.name, result["failed"], BadInput):
                    evaluator.add(example)
                print(progress_line(done, total, start, "pictures"), end="\r", flush=True)
            if not evaluator.psnrs:
                raise BadInput("None of the pictures can be used.")
            result["conditions"][name] = evaluator.summary()
            result["published"][name] = evaluator.evaluation.published
            psnrs += evaluator.psnrs
            print_condition(name, result["conditions"][name], evaluator.evaluation.published)
            if sheet:
                save_sheet(evaluator.rows, sheet, name)
    if not psnrs:
        raise SuiteError("Nothing could be measured.")
    result["autoencoder_psnr"] = round(float(np.mean(psnrs)), 2)
    result["prompt_colour_accuracy"] = None
    return result


def print_condition(name: str, summary: dict[str, Any], published: dict[str, float]) -> None:
    """Print a condition's results, and those that papers report on their own data."""
    lower = "" if summary["higher_is_better"] else "  (lower is better)"
    cells = {"oracle": summary["oracle"], **summary["strength"]}
    ours = "  ".join(f"{key}: {value:.4g}" for key, value in cells.items())
    theirs = "  ".join(f"{key} {value:.4g}" for key, value in published.items())
    print(" " * 79, end="\r")
    print(f"  {name:8} {summary['metric']:8} {ours}{lower}", flush=True)
    spread = SPREAD.get(summary["metric"])
    others = f"; others' repetitions differ by up to {spread:g}" if spread else ""
    print(f"  {'':8} {'':8} published: {theirs}{others}", flush=True)


def print_totals(result: dict[str, Any]) -> None:
    """Print the settings, and the results over all conditions."""
    print(
        f"{result['model']}, protocol of ControlNet++: {result['scenes']} pictures of "
        f"{SIDE} x {SIDE}, {IMAGES} images each, {result['steps']} steps of DDIM (the paper: "
        f"UniPC), guidance {result['guidance_scale']:g}; "
        f"autoencoder {result['autoencoder_psnr']} dB"
    )
