"""ControlNet++'s evaluation protocol, on a folder of pictures and captions.

Every picture is resized to 512 x 512, whatever its shape, and its map and caption generate four
images. Maps are drawn and compared as in the paper, depth with DPT-Large, classes with Mask2Former,
in the paper's units and with its aggregation: canny's F1 pools a caption's four images, mIoU is
over all pictures, once for each of the four. Beside them stand FID and CLIP score, where their
networks are here, and what papers have published. Rows and pictures are kept in a folder as they
come: the same command goes on where it was interrupted.

Differences: DDIM, not UniPC; every image has a seed of its own; Mask2Former is transformers', not
MMSegmentation's; the overflow in the paper's inversion of line art is not reproduced; in maps that
a folder brings, road and skyscraper share a colour and are one class; people are found by OpenPose,
not by DEKR or ViTPose (CPO, which alone measures pose).

Source: Li et al. 2024, "ControlNet++" (arXiv 2404.07987), and its eval/.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from annotators import depth, find_annotator
from benchmarks import _quality
from benchmarks._controlnetpp_metrics import EVALUATIONS, SPREAD, Evaluation, Statistics
from benchmarks._rows import Rows
from benchmarks._shared import (
    MAX_SHEET_ROWS,
    at_strength,
    psnr,
    record_failure,
    round_trip,
    save_sheet,
)
from core.condition import ALREADY_A_MAP, Annotator, Condition, ControlMap, Preprocessor, RGBImage
from core.consistency import Extractor
from core.errors import BadInput, SuiteError
from core.images import SUFFIXES, read_image
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store
from training.progress import progress_line
from training.weights import git_commit

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
    square = cv2.resize(_load(path), (SIDE, SIDE), interpolation=interpolation)
    return np.asarray(square, np.uint8)


def _load(path: Path) -> RGBImage:
    if not path.is_file():
        raise BadInput(f"{path} does not exist.")
    try:
        return read_image(path)[0]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


# The evaluation


class _Evaluator:
    """Evaluates one condition of a model, picture by picture."""

    def __init__(
        self, store: Store, model: str, name: str, strengths: tuple[float, ...], rows: Rows
    ) -> None:
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
        self._rows, self._device = rows, store.device
        self._run = _run_facts(store, model, name, strengths)
        self._keys = [f"{s:g}" for s in strengths]
        self.statistics: dict[str, list[Statistics]] = {k: [] for k in ("oracle", *self._keys)}
        self.headlines: dict[str, list[float]] = {k: [] for k in ("oracle", *self._keys)}
        self.psnrs: list[float] = []  # of the autoencoder's round trips, in dB
        self._measured: list[tuple[str, str]] = []  # key and caption of each picture
        self.notes: dict[str, str] = {}  # why a figure is not measured, by its name

    def _preprocessor(self, annotator: Annotator) -> Preprocessor:
        draw = self.evaluation.draw
        if not isinstance(draw, str):
            return Preprocessor("the paper's", draw)
        for preprocessor in annotator.preprocessors:
            if preprocessor.name == draw:
                return preprocessor
        raise BadInput(f"The annotator {annotator.name} has no preprocessor {draw}.")

    def add(self, example: Example) -> None:
        """Evaluate one picture, or take what an interrupted run has measured of it.

        Raises:
            BadInput: The picture or its map does not exist or cannot be read.
        """
        image = load_square(example.path)
        key = self._key(example)
        row = self._rows.get(key) or self._rows.add(
            {"key": key} | self._measure(example, image, key)
        )
        if not row["pictures"]:
            return
        self.psnrs.append(row["psnr"])
        self._measured.append((key, example.caption))
        for name, values in row["statistics"].items():
            self.statistics[name].append(np.array(values, np.float64))
            self.headlines[name] += row["headlines"][name]

    def _key(self, example: Example) -> str:
        """A digest of all that an example's row depends on; the noise depends on its place."""
        own_map = self._folder_map_path(example)
        files = [example.path, *([own_map] if own_map and own_map.is_file() else [])]
        facts = [self._run, len(self.psnrs), example.caption]
        facts += [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def _measure(self, example: Example, image: RGBImage, key: str) -> dict[str, Any]:
        """Return the row of a picture; without pictures if its map is empty and that is skipped."""
        annotator = self._condition.annotator
        params = annotator.params()
        control_map = self._folder_map(example) if self.evaluation.labelled else None
        if control_map is None:
            control_map = annotator.preprocessors[0].draw(image, params)
        if self.evaluation.skips_empty and annotator.is_empty(control_map):
            return {"pictures": []}
        decoded = round_trip(self._networks, image)
        extractor = Extractor(annotator, annotator.preprocessors[0], params, None)
        reextracted, score = extractor.reextract_and_score(decoded, control_map)
        oracle = self.evaluation.compare(control_map, [reextracted] * IMAGES)
        statistics, headlines = {"oracle": oracle.tolist()}, {"oracle": [score.headline]}
        request = GenerationRequest.single(
            self._condition,
            control_map,
            prompt=example.caption,
            # An image's own seed in the whole evaluation.
            seed=FIRST_SEED + IMAGES * len(self.psnrs),
            model=self._model,
            **SETTINGS,
        )
        pictures = {self._name(key, "real"): image}
        row = [image, annotator.preview(control_map)]
        for strength, name in zip(self._strengths, self._keys, strict=True):
            result = self._pipeline.generate(at_strength(request, strength))
            if len(result.images) < IMAGES:
                raise SuiteError(result.warnings[-1])
            compared = self.evaluation.compare(control_map, result.reextracted)
            statistics[name] = compared.tolist()
            headlines[name] = [one.headline for one in result.scores]
            row += [result.images[0], annotator.preview(result.reextracted[0])]
            for k, one in enumerate(result.images):
                pictures[self._name(key, name, k)] = one
        pictures[self._name(key, "row")] = np.concatenate(row, 1)
        for picture_name, picture in pictures.items():
            Image.fromarray(picture).save(self._rows.folder / picture_name)
        return {
            "condition": self._condition.name,
            "picture": example.path.name,
            "psnr": psnr(image, decoded),
            "statistics": statistics,
            "headlines": headlines,
            "pictures": list(pictures),
        }

    @staticmethod
    def _name(key: str, *what: str | int) -> str:
        return f"{'-'.join(map(str, (key, *what)))}.png"

    def _files(self, *what: str | int) -> list[Path]:
        return [self._rows.folder / self._name(key, *what) for key, _ in self._measured]

    def sheet_rows(self) -> list[list[RGBImage]]:
        """The first rows of the contact sheet, a picture each."""
        files = self._files("row")[:MAX_SHEET_ROWS]
        return [[read_image(file)[0]] for file in files]

    def _folder_map_path(self, example: Example) -> Path | None:
        """Where the folder has its own map of a picture; None if it has none of this condition."""
        folder = example.folder / self._condition.name
        if not self.evaluation.labelled or not folder.is_dir():
            return None
        return folder / f"{example.path.stem}.png"

    def _folder_map(self, example: Example) -> ControlMap | None:
        """The folder's own map of a picture; None if it has no maps of this condition."""
        path, annotator = self._folder_map_path(example), self._condition.annotator
        if path is None:
            return None
        if annotator.fit_map:
            return annotator.fit_map(_load(path), (SIDE, SIDE))
        if annotator.interpolation == "nearest":
            return load_square(path, cv2.INTER_NEAREST)
        return depth.as_map(load_square(path)[:, :, 0].astype(np.float32))

    def _quality(self) -> dict[str, dict[str, float | None]]:
        """FID and CLIP score by strength; None, and a note, where one cannot be measured."""
        found: dict[str, dict[str, float | None]] = {"fid": {}, "clip": {}}
        captions = [caption for _, caption in self._measured]
        for name in self._keys:
            groups = [self._files(name, k) for k in range(IMAGES)]

            def fid(groups: list[list[Path]] = groups) -> float | None:
                return _quality.fid(self._files("real"), groups, self._device)

            def clip(groups: list[list[Path]] = groups) -> float | None:
                files = [file for group in groups for file in group]
                return _quality.clip_score(files, captions * len(groups), self._device)

            found["fid"][name] = self._or_note("FID", fid)
            found["clip"][name] = self._or_note("CLIP", clip)
        return found

    def _or_note(self, name: str, measure: Callable[[], float | None]) -> float | None:
        if name in self.notes:  # once is enough
            return None
        try:
            value = measure()
        except SuiteError as error:
            self.notes[name] = str(error)
            return None
        return None if value is None else round(value, 2)

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
            **self._quality(),
        }


def _run_facts(store: Store, model: str, name: str, strengths: tuple[float, ...]) -> dict[str, Any]:
    """All that every row of a condition depends on, as JSON: settings, weights and code."""
    weights = [path for path in store.registry.find(model, name) if path]
    files = [f for path in weights for f in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {
        "condition": name,
        "settings": [SETTINGS, SIDE, IMAGES, FIRST_SEED, strengths],
        "weights": [model, stats],
        "machine": [str(store.device), str(store.dtype)],
        "commit": git_commit(),
    }


def select_conditions(store: Store, model: str, names: list[str] | None) -> list[str]:
    """Check the conditions' names; None selects all of the paper's that the model has.

    Raises:
        BadInput: The papers do not measure one, or there is none; the message lists those they do.
    """
    card = store.registry.card(model)
    if names is None:
        names = [name for name in EVALUATIONS if card.has_control(name)]
    measured = ", ".join(EVALUATIONS)
    if not any(names):
        raise BadInput(
            f"{card.title} has none of the ControlNets that this protocol measures: {measured}."
        )
    for name in names:
        if name not in EVALUATIONS:
            raise BadInput(f"This protocol does not measure {name!r}: choose among {measured}.")
    return names


def measure(
    store: Store,
    model: str,
    names: list[str],
    examples: Sequence[Example],
    strengths: tuple[float, ...],
    sheet: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Evaluate the conditions on the examples; returns the JSON, published results too.

    A condition or picture that fails is reported on stderr and in "failed". What the folder `out`
    has of an interrupted run is not measured again.

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
        "not_measured": {},
        "failed": {},
    }
    psnrs: list[float] = []
    rows = Rows(out)
    start, total = time.monotonic(), len(examples) * len(names)
    for k, name in enumerate(names):
        with record_failure(name, result["failed"]):
            evaluator = _Evaluator(store, model, name, strengths, rows)
            for done, example in enumerate(examples, k * len(examples) + 1):
                with record_failure(example.path.name, result["failed"], BadInput):
                    evaluator.add(example)
                print(progress_line(done, total, start, "pictures"), end="\r", flush=True)
            if not evaluator.psnrs:
                raise BadInput("None of the pictures can be used.")
            result["conditions"][name] = evaluator.summary()
            result["published"][name] = evaluator.evaluation.published
            psnrs += evaluator.psnrs
            result["not_measured"] |= evaluator.notes
            print_condition(name, result["conditions"][name], evaluator.evaluation)
            if sheet:
                save_sheet(evaluator.sheet_rows(), sheet, name)
    if not psnrs:
        raise SuiteError("Nothing could be measured.")
    result["autoencoder_psnr"] = round(float(np.mean(psnrs)), 2)
    result["prompt_colour_accuracy"] = None
    result["resumed"] = rows.resumed
    return result


def print_condition(name: str, summary: dict[str, Any], evaluation: Evaluation) -> None:
    """Print a condition's results, and those that papers report on their own data."""
    print(" " * 79, end="\r")
    cells = {"oracle": summary["oracle"], **summary["strength"]}
    _print_figure(name, evaluation.metric, cells, evaluation.higher_is_better)
    spread = SPREAD.get(evaluation.metric)
    others = f"; others' repetitions differ by up to {spread:g}" if spread else ""
    _print_published(evaluation.published, others)
    for k, figure in enumerate(("FID", "CLIP")):
        values = {key: v for key, v in summary[figure.lower()].items() if v is not None}
        if values:
            _print_figure(name, figure, values, figure == "CLIP")
            _print_published({method: both[k] for method, both in evaluation.quality.items()})


def _print_figure(name: str, figure: str, values: dict[str, float], higher_is_better: bool) -> None:
    ours = "  ".join(f"{key}: {value:.4g}" for key, value in values.items())
    lower = "" if higher_is_better else "  (lower is better)"
    print(f"  {name:8} {figure:8} {ours}{lower}", flush=True)


def _print_published(values: dict[str, float], more: str = "") -> None:
    theirs = "  ".join(f"{method} {value:.4g}" for method, value in values.items())
    print(f"  {'':8} {'':8} published: {theirs}{more}", flush=True)


def print_totals(result: dict[str, Any]) -> None:
    """Print the settings, and the results over all conditions."""
    print(
        f"{result['model']}, protocol of ControlNet++: {result['scenes']} pictures of "
        f"{SIDE} x {SIDE}, {IMAGES} images each, {result['steps']} steps of DDIM (the paper: "
        f"UniPC), guidance {result['guidance_scale']:g}; "
        f"autoencoder {result['autoencoder_psnr']} dB"
    )
    for note in result["not_measured"].values():
        print(note)
    if result["resumed"]:
        print(f"{result['resumed']} rows are of an earlier, interrupted run.")
