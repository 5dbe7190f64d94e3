"""ControlNet++'s own way to measure control, on a folder of pictures and captions.

Every picture is squeezed to 512 pixels squared and drawn again four times from its caption alone;
edges are found and compared as in the paper, depth with DPT-Large, classes with Mask2Former. The
figures are in the paper's units, and their whole is taken as there: canny's F1 over the four images
of a caption together, mIoU over all pictures, once for each of the four.

What differs: DDIM for UniPC; a seed of its own for every image; Mask2Former is transformers' and
not MMSegmentation's; the overflow in the paper's inversion of line art is left out; road and
skyscraper, which share a colour, are one class in maps that a folder brings.

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
from benchmarks._controlnetpp_metrics import WAYS, Figures
from benchmarks._shared import at_strength, psnr, round_trip, save_sheet, spared
from core.condition import ALREADY_A_MAP, Annotator, Condition, ControlMap, Preprocessor, RGBImage
from core.consistency import Extractor
from core.errors import BadInput, SuiteError
from core.images import SUFFIXES, read_image
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store
from training.progress import clock

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
    """The pictures of a folder with their captions.

    From its prompt.json, one line a picture with `target` and `prompt`, as training reads it; where
    there is none, every picture with the text file beside it (cat.jpg, cat.txt).

    Raises:
        BadInput: There is nothing in it, or a line of prompt.json or a caption has another form.
    """
    manifest = folder / "prompt.json"
    if manifest.is_file():
        try:
            lines = manifest.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            found = [Example(folder, folder / row["target"], str(row["prompt"])) for row in rows]
        except (ValueError, LookupError, TypeError) as error:
            raise BadInput(
                f"{manifest} must have one JSON object a line, with target and prompt."
            ) from error
    else:
        files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)
        found = [Example(folder, file, _caption(file.with_suffix(".txt"))) for file in files]
    if not found:
        raise BadInput(f"There are no pictures in {folder}.")
    return found


def _caption(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8").strip() if text.is_file() else ""
    except UnicodeDecodeError as error:
        raise BadInput(f"{text} is not UTF-8 text: please save it as that.") from error


def squeezed(path: Path, interpolation: int = cv2.INTER_CUBIC) -> RGBImage:
    """The picture at 512 pixels squared, whatever its shape.

    Raises:
        BadInput: It is not there or cannot be read.
    """
    if not path.is_file():
        raise BadInput(f"{path} is not there.")
    try:
        picture = read_image(path)[0]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=interpolation), np.uint8)


# The measuring


class _Measured:
    """What is found about one condition of a model, picture by picture."""

    def __init__(self, store: Store, model: str, name: str, strengths: tuple[float, ...]) -> None:
        self.way = WAYS[name]
        annotator = find_annotator(name)
        found = self.way.draw_found
        annotator = replace(
            annotator,
            preprocessors=(self._preprocessor(annotator),),
            reextract=Preprocessor("of results", found) if found else None,
            detect_resolution=None,
        )
        self._condition = Condition(name, name, "", annotator, weights=name)
        self._pipeline, self._model, self._strengths = Pipeline(store.load), model, strengths
        self._networks = store.load(model, name)
        keys = ["oracle", *(f"{s:g}" for s in strengths)]
        self.figures: dict[str, list[Figures]] = {key: [] for key in keys}
        self.headlines: dict[str, list[float]] = {key: [] for key in keys}
        self.noise: list[float] = []  # PSNR of the autoencoder's round trips, in dB
        self.rows: list[list[RGBImage]] = []  # of the contact sheet

    def _preprocessor(self, annotator: Annotator) -> Preprocessor:
        draw = self.way.draw
        if not isinstance(draw, str):
            return Preprocessor("the paper's", draw)
        for one in annotator.preprocessors:
            if one.name == draw:
                return one
        raise BadInput(f"The annotator {annotator.name} has no preprocessor {draw}.")

    def add(self, example: Example) -> None:
        """Measures one picture.

        Raises:
            BadInput: It, or its map, is not there or cannot be read.
        """
        annotator, image = self._condition.annotator, squeezed(example.path)
        params = annotator.params()
        control_map = self._given_map(example) if self.way.labelled else None
        if control_map is None:
            control_map = annotator.preprocessors[0].draw(image, params)
        returned = round_trip(self._networks, image)
        self.noise.append(psnr(image, returned))
        extractor = Extractor(annotator, annotator.preprocessors[0], params, None)
        found, score = extractor.reextract_and_score(returned, control_map)
        self.figures["oracle"].append(self.way.compare(control_map, [found] * IMAGES))
        self.headlines["oracle"].append(score.headline)
        request = GenerationRequest.single(
            self._condition,
            control_map,
            prompt=example.caption,
            seed=FIRST_SEED + IMAGES * len(self.noise) - IMAGES,
            model=self._model,
            **SETTINGS,
        )
        row = [image, annotator.preview(control_map)]
        for strength in self._strengths:
            made = self._pipeline.generate(at_strength(request, strength))
            if len(made.images) < IMAGES:
                raise SuiteError(made.warnings[-1])
            key = f"{strength:g}"
            self.figures[key].append(self.way.compare(control_map, made.reextracted))
            self.headlines[key] += [one.headline for one in made.scores]
            row += [made.images[0], annotator.preview(made.reextracted[0])]
        self.rows.append(row)

    def _given_map(self, example: Example) -> ControlMap | None:
        """The folder's own map of a picture; None where it brings none of this condition."""
        folder = example.folder / self._condition.name
        if not folder.is_dir():
            return None
        path = folder / f"{example.path.stem}.png"
        if self._condition.annotator.interpolation == "nearest":
            return squeezed(path, cv2.INTER_NEAREST)
        return depth.as_map(squeezed(path)[:, :, 0].astype(np.float32))

    def summary(self) -> dict[str, Any]:
        """The figures of the contract, in the paper's units."""
        values = {key: round(self.way.whole(kept), 4) for key, kept in self.figures.items()}
        return {
            "metric": self.way.metric,
            "higher_is_better": self.way.higher_is_better,
            "oracle": values.pop("oracle"),
            "strength": values,
            "headline": {k: round(float(np.mean(kept)), 2) for k, kept in self.headlines.items()},
            "pictures": len(self.noise),
        }


def chosen(store: Store, model: str, names: list[str] | None) -> list[str]:
    """The conditions of these names, or for None those of the paper that the model knows.

    Raises:
        BadInput: The paper does not measure one; the message lists those it does.
    """
    card = store.registry.card(model)
    if names is None:
        names = [name for name in WAYS if card.has_control(name)]
    for name in names or [""]:
        if name not in WAYS:
            raise BadInput(
                f"ControlNet++ does not measure {name!r}: choose among {', '.join(WAYS)}."
                if name
                else f"{card.title} has none of the ControlNets that ControlNet++ measures: "
                f"{', '.join(WAYS)}."
            )
    return names


def measure(
    store: Store,
    model: str,
    names: list[str],
    examples: Sequence[Example],
    strengths: tuple[float, ...],
    sheet: Path | None,
) -> dict[str, Any]:
    """The figures of the contract over the examples, with the paper's own beside them.

    What fails, a condition or a picture, is said on stderr and stands in "failed".

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
        "paper": {},
        "failed": {},
    }
    noise: list[float] = []
    began, total = time.monotonic(), len(examples) * len(names)
    for k, name in enumerate(names):
        with spared(name, result["failed"]):
            found = _Measured(store, model, name, strengths)
            for done, example in enumerate(examples, k * len(examples) + 1):
                with spared(example.path.name, result["failed"], BadInput):
                    found.add(example)
                print(clock(done, total, began, "pictures"), end="\r", flush=True)
            if not found.noise:
                raise BadInput("None of the pictures can be used.")
            result["conditions"][name] = found.summary()
            result["paper"][name] = found.way.paper
            noise += found.noise
            print_condition(name, result["conditions"][name], found.way.paper)
            if sheet:
                save_sheet(found.rows, sheet, name)
    if not noise:
        raise SuiteError("Nothing could be measured.")
    result["autoencoder_psnr"] = round(float(np.mean(noise)), 2)
    result["prompt_colour_accuracy"] = None
    return result


def print_condition(name: str, found: dict[str, Any], paper: dict[str, float]) -> None:
    """What was measured, and what the paper found on its own data."""
    lower = "" if found["higher_is_better"] else "  (lower is better)"
    cells = {"oracle": found["oracle"], **found["strength"]}
    ours = "  ".join(f"{key}: {value:.4g}" for key, value in cells.items())
    theirs = "  ".join(f"{key} {value:.4g}" for key, value in paper.items())
    print(" " * 79, end="\r")
    print(f"  {name:8} {found['metric']:8} {ours}{lower}   in the paper: {theirs}", flush=True)


def print_whole(result: dict[str, Any]) -> None:
    """Under what conditions all was measured."""
    print(
        f"{result['model']}, as ControlNet++ was measured: {result['scenes']} pictures of "
        f"{SIDE} x {SIDE}, {IMAGES} images of each, {result['steps']} steps of DDIM (the paper's "
        f"are UniPC's), guidance {result['guidance_scale']:g}; "
        f"autoencoder {result['autoencoder_psnr']} dB"
    )
