"""How well a model follows control map and prompt, on scenes it was not trained on.

    python -m benchmarks.controllability --model diorama --conditions canny,depth [--json]
    python -m benchmarks.controllability --model sd15_plus --protocol controlnet++ --data DIR

--conditions are annotators' names; the default is all that the model has a ControlNet for. --model
may also be a ControlNet's folder of `training.train_control`, --save or --out. The second line
follows ControlNet++'s paper, on your own pictures (`_controlnetpp.py`). The first:

Every held-out scene has a picture, its control map and its caption. Map and caption generate an
image at several control strengths; the map is re-extracted from it, and the two are scored as in
the apps. The oracle is the score of the autoencoder's round trip of the scene's own picture, an
upper bound; `closed` is the fraction of the gap between strength 0 and the oracle that is closed at
strength 1. Maps of Diorama's annotator are also scored against those of the scene's ground truth.
Prompt colours: the share of named things whose visible surface is nearest to the named colour.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import apps
from annotators import depth, hed, normal, pose, scribble, seg
from annotators._diorama import STRIDE, resize_like
from benchmarks import _controlnetpp
from benchmarks._shared import (
    at_strength,
    command,
    machine,
    psnr,
    record_failure,
    round_trip,
    save_sheet,
)
from benchmarks._trained import Trained, TrainedRegistry, find_trained
from core.condition import Condition, ControlMap, RGBImage, Score
from core.consistency import Extractor
from core.errors import BadInput, SuiteError, WeightsMissing
from core.pipeline import Pipeline
from core.request import DEFAULTS, GenerationRequest, GenerationResult
from models.store import Store
from training.diorama.colours import colour_hits
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import Truth, render
from training.diorama.truth import truth_arrays
from training.diorama.world import Scene, make_scene
from training.progress import progress_line
from training.weights import add_metadata, read_metadata

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
MAX_TRIES = 20  # scenes tried per scene measured, before a condition fails; a fifth have people
SCENES = 128  # as in the results of the README and in the weights
MIN_CLOSED = 0.75  # a smaller fraction of the gap is marked


# Maps of a scene's ground truth


def true_edges(truth: dict[str, np.ndarray], image: RGBImage) -> ControlMap:
    """The soft edges."""
    return hed.as_map(resize_like(_level(truth["edges"], 255), image)[:, :, 0])


def true_strokes(truth: dict[str, np.ndarray], image: RGBImage) -> ControlMap:
    """The fake scribble of the true soft edges."""
    return scribble.scribble_from_thin_edges(true_edges(truth, image))


def true_depth(truth: dict[str, np.ndarray], image: RGBImage) -> ControlMap:
    """The inverse depth."""
    return depth.as_map(resize_like(_level(truth["depth"], 65535), image)[:, :, 0])


def true_normals(truth: dict[str, np.ndarray], image: RGBImage) -> ControlMap:
    """The normals, x to the left as in maps; the sky, which has none, faces the camera."""
    right, up, near = np.moveaxis(resize_like(_level(truth["normal"], 127), image), 2, 0)
    return normal.as_map(np.stack([-right, up, near], 2))


def true_classes(truth: dict[str, np.ndarray], _: RGBImage) -> ControlMap:
    """The classes."""
    return seg.as_map(truth["classes"].repeat(STRIDE, 0).repeat(STRIDE, 1))


def true_people(truth: dict[str, np.ndarray], image: RGBImage) -> ControlMap:
    """The people with enough visible joints."""
    visible = truth["keypoints"][:, :, 2] > 0
    joints = np.where(visible[:, :, None], truth["keypoints"][:, :, :2] * STRIDE, np.nan)
    people = list(joints[visible.sum(1) >= pose.MIN_JOINTS].round().astype(np.float32))
    return pose.draw_people(people, *image.shape[:2])


def _level(values: np.ndarray, one: int) -> np.ndarray:
    """Integers (h, w) or (h, w, C), of which `one` means 1, as float32 (h, w, C)."""
    return np.atleast_3d(values).astype(np.float32) / np.float32(one)


TRUE_MAPS: dict[Callable[..., ControlMap], Callable[..., ControlMap]] = {
    hed.draw_diorama: true_edges,
    scribble.draw_fake: true_strokes,
    depth.draw_diorama: true_depth,
    normal.draw_diorama: true_normals,
    seg.draw_diorama: true_classes,
    pose.draw_diorama: true_people,
}
"""For each function that draws Diorama's predictions, the one that draws the ground truth instead,
from `truth_arrays` of one scene, without the batch axis, and its picture."""


# The evaluation


def conditions_by_annotator() -> dict[str, Condition]:
    """The apps' conditions by annotator name, each drawing its map from a picture."""
    conditions: dict[str, Condition] = {}
    for condition in apps.conditions():
        annotator = condition.annotator
        if annotator.reextract:  # a scene is not a drawing: draw its map as that of a result
            annotator = replace(annotator, preprocessors=(annotator.reextract,), reextract=None)
        conditions.setdefault(annotator.name, replace(condition, annotator=annotator))
    return conditions


def select_conditions(store: Store, model: str, names: list[str] | None) -> dict[str, Condition]:
    """The conditions of these names; None selects all that the model has a ControlNet for.

    Raises:
        BadInput: There is no such condition; the message lists all.
        WeightsMissing: The model has no ControlNet at all.
    """
    known, card = conditions_by_annotator(), store.registry.card(model)
    if names is None:
        names = [name for name, c in known.items() if card.has_control(c.weights)]
        if not names:
            raise WeightsMissing(f"{card.title} has no ControlNet of any condition yet.")
    for name in names:
        if name not in known:
            raise BadInput(f"There is no condition {name!r}; there are: {', '.join(known)}.")
    return {name: known[name] for name in names}


class _Evaluator:
    """Evaluates one condition of a model, scene by scene."""

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store,
        model: str,
        condition: Condition,
        strengths: tuple[float, ...],
    ) -> None:
        self._pipeline, self._model, self._strengths = pipeline, model, strengths
        self._defaults = store.registry.card(model).defaults
        self._size = int({**DEFAULTS, **self._defaults}["image_resolution"])
        self._condition = condition
        self._annotator = condition.annotator
        self._true_map = TRUE_MAPS.get(self._annotator.preprocessors[0].draw)
        self._networks = store.load(model, condition.weights)
        self.scores: dict[str, list[Score]] = {"oracle": [], **{f"{s:g}": [] for s in strengths}}
        self.annotator_scores: list[Score] = []  # its maps against those of the ground truth
        self.psnrs: list[float] = []  # of the autoencoder's round trips, in dB
        self.colour_hits: list[bool] = []  # of generated images
        self.colour_oracle: list[bool] = []  # of the round trips
        self.rows: list[list[RGBImage]] = []  # of the contact sheet

    def run(self, scenes: int) -> Iterator[GenerationRequest]:
        """Evaluate so many held-out scenes; yields the last request of each, as it was run.

        Scenes with an empty map, such as a pose map without people, are skipped: almost any image
        would match them.

        Raises:
            BadInput: Too few scenes have a map.
        """
        for k in range(scenes * MAX_TRIES):
            scene = make_scene(HELD_OUT + k)
            truth = render([scene], self._size)
            request = GenerationRequest.single(
                self._condition,
                truth.image[0].numpy(),
                prompt=scene.caption,
                seed=k,
                model=self._model,
                **self._defaults,
            )
            control_map = self._pipeline.draw_map(request)
            self._compare_with_truth(control_map, truth)
            if self._annotator.empty_message and self._annotator.is_empty(control_map):
                continue
            yield self._add(request, scene, truth)
            if len(self.rows) == scenes:
                return
        raise BadInput(
            f"Only {len(self.rows)} of {scenes * MAX_TRIES} scenes have a {self._annotator.name} "
            "map that is not empty: too few to measure."
        )

    def _compare_with_truth(self, control_map: ControlMap, truth: Truth) -> None:
        if self._true_map is None:
            return
        arrays = {name: values[0] for name, values in truth_arrays(truth).items()}
        true_map = self._true_map(arrays, truth.image[0].numpy())
        # Two empty maps would count as a success.
        if not all(map(self._annotator.is_empty, (true_map, control_map))):
            self.annotator_scores.append(self._annotator.score(true_map, control_map))

    def _add(self, request: GenerationRequest, scene: Scene, truth: Truth) -> GenerationRequest:
        image = request.controls[0].image
        decoded = round_trip(self._networks, image)
        self.psnrs.append(psnr(image, decoded))
        self.colour_oracle += colour_hits(scene, truth, 0, decoded)
        row = [image]
        for strength in self._strengths:
            result = self._pipeline.generate(at_strength(request, strength))
            self.scores[f"{strength:g}"].append(result.scores[0])
            if strength == self._strengths[0]:
                self.scores["oracle"].append(self._oracle(result, decoded))
                row.append(self._annotator.preview(result.control_map))
            if strength in (self._strengths[0], 1.0):
                row += [result.images[0], self._annotator.preview(result.reextracted[0])]
            if strength == 1.0:
                self.colour_hits += colour_hits(scene, truth, 0, result.images[0])
        self.rows.append(row)
        return result.request

    def _oracle(self, result: GenerationResult, decoded: RGBImage) -> Score:
        """The score of the scene's own picture after the autoencoder's round trip."""
        (control,) = result.request.controls
        extractor = Extractor(
            self._annotator,
            self._annotator.preprocessors[0],
            control.params,
            control.detect_resolution,
        )
        return extractor.reextract_and_score(decoded, result.control_map)[1]


def measure(
    store: Store,
    model: str,
    conditions: dict[str, Condition],
    scenes: int,
    strengths: tuple[float, ...],
    sheet: Path | None,
) -> dict[str, Any]:
    """Evaluate the conditions on `scenes` held-out scenes each; returns the benchmark's JSON.

    With `sheet`, saves a contact sheet of each condition, and one with a row of each. A condition
    that fails is reported on stderr and in "failed"; the others are still measured.

    Raises:
        SuiteError: None could be measured.
    """
    pipeline = Pipeline(store.load)
    result: dict[str, Any] = {"model": model, "scenes": scenes, "conditions": {}, "failed": {}}
    evaluators: list[_Evaluator] = []
    start, total = time.monotonic(), scenes * len(conditions)
    for k, (name, condition) in enumerate(conditions.items()):
        with record_failure(name, result["failed"]):
            evaluator = _Evaluator(pipeline, store, model, condition, strengths)
            for done, request in enumerate(evaluator.run(scenes), k * scenes + 1):
                result["steps"], result["guidance_scale"] = request.steps, request.guidance_scale
                print(progress_line(done, total, start, "scenes"), end="\r", flush=True)
            summary = _summary(evaluator.scores, evaluator.annotator_scores)
            result["conditions"][name] = summary
            evaluators.append(evaluator)
            _print_condition(name, summary)
            if sheet:
                save_sheet(evaluator.rows, sheet, name)
    if not evaluators:
        raise SuiteError("Nothing could be measured.")
    if sheet and len(evaluators) > 1:  # one row per condition, each of another scene
        rows = [e.rows[k % len(e.rows)] for k, e in enumerate(evaluators)]
        save_sheet(rows, sheet, "all")
    result["autoencoder_psnr"] = round(float(np.mean(_flat(e.psnrs for e in evaluators))), 2)
    result["prompt_colour_accuracy"] = _share(_flat(e.colour_hits for e in evaluators))
    result["prompt_colour_oracle"] = _share(_flat(e.colour_oracle for e in evaluators))
    return result


def _flat(lists: Iterable[list[Any]]) -> list[Any]:
    return [value for values in lists for value in values]


def _share(hits: list[bool]) -> float | None:
    """The share of hits; None without any judgement."""
    return round(float(np.mean(hits)), 3) if hits else None


def _summary(scores: dict[str, list[Score]], annotator_scores: list[Score]) -> dict[str, Any]:
    """A condition's entry in the JSON: the means of its scores."""
    first = scores["oracle"][0]
    strengths = [key for key in scores if key != "oracle"]
    others = [name for name in first.metrics if name != first.metric]
    headline: dict[str, float] = {
        key: _headline(scores[key]) for key in ("oracle", "0", "1") if key in scores
    }
    return {
        "metric": first.metric,
        "higher_is_better": first.higher_is_better,
        "oracle": _mean(scores["oracle"], first.metric),
        "strength": {key: _mean(scores[key], first.metric) for key in strengths},
        "headline": headline,
        "closed": _gap_closed(headline),
        "beside": {name: {key: _mean(scores[key], name) for key in scores} for name in others},
        "annotator": _annotator_summary(annotator_scores),
    }


def _gap_closed(headline: dict[str, float]) -> float | None:
    """The fraction of the gap between strength 0 and the oracle closed at strength 1.

    None if there is no gap, or a strength was not measured.
    """
    if not {"0", "1"} <= headline.keys() or headline["oracle"] <= headline["0"]:
        return None
    return round((headline["1"] - headline["0"]) / (headline["oracle"] - headline["0"]), 3)


def _annotator_summary(scores: list[Score]) -> dict[str, Any] | None:
    """The means of an annotator's scores against the ground truth; None without any."""
    if not scores:
        return None
    return {
        "metric": scores[0].metric,
        "higher_is_better": scores[0].higher_is_better,
        "value": _mean(scores, scores[0].metric),
        "headline": _headline(scores),
        "scenes": len(scores),
    }


def _mean(scores: list[Score], metric: str) -> float:
    return round(float(np.mean([score.metrics[metric] for score in scores])), 4)


def _headline(scores: list[Score]) -> float:
    return round(float(np.mean([score.headline for score in scores])), 2)


def _print_condition(name: str, summary: dict[str, Any]) -> None:
    print(" " * 79, end="\r")
    for label, text in _lines(summary):
        print(f"  {name:13} {label:14} {text}", flush=True)


def _print_totals(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['scenes']} held-out scenes, {result['steps']} steps, "
        f"guidance {result['guidance_scale']:g}; autoencoder {result['autoencoder_psnr']} dB; "
        f"prompt colours {result['prompt_colour_accuracy']} "
        f"(autoencoder {result['prompt_colour_oracle']})"
    )


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A condition's printed lines: label and text."""

    def cells(values: dict[str, float]) -> str:
        return "  ".join(f"{key}: {value:.3f}" for key, value in values.items())

    lower = "" if summary["higher_is_better"] else "  (lower is better)"
    lines = [
        (summary["metric"], cells({"oracle": summary["oracle"], **summary["strength"]}) + lower),
        *((metric, cells(values)) for metric, values in summary["beside"].items()),
        ("headline", cells(summary["headline"])),
    ]
    closed = summary["closed"]
    if closed is not None:
        mark = f": BELOW {MIN_CLOSED:g}" if closed < MIN_CLOSED else ""
        lines.append(("gap closed", f"{closed:.3f}, from strength 0 to the oracle{mark}"))
    own = summary["annotator"]
    if own:
        figures = f"{own['metric']} {own['value']:.3f}{lower}, headline {own['headline']:.2f}"
        lines.append(("annotator", f"{figures}, against {own['scenes']} scenes' ground truth"))
    return lines


def _annotate(result: dict[str, Any], conditions: dict[str, Condition], root: Path) -> None:
    """Write the results into the metadata of a model's weights, unless it has those of more scenes.

    For what all conditions share, every condition's scenes count.
    """
    keys = ("scenes", "steps", "guidance_scale", "autoencoder_psnr", "prompt_colour_accuracy")
    shared = {key: result[key] for key in keys}
    for name, summary in result["conditions"].items():
        _write_scores(root / "controlnet" / conditions[name].weights, shared | summary)
    scenes = result["scenes"] * len(result["conditions"])
    _write_scores(root / "vae", {"psnr": result["autoencoder_psnr"], "scenes": scenes})
    accuracy = result["prompt_colour_accuracy"]
    if accuracy is not None:  # it is measured at strength 1
        _write_scores(root / "unet", {"prompt_colour_accuracy": accuracy, "scenes": scenes})


def _write_scores(folder: Path, scores: dict[str, Any]) -> None:
    known = read_metadata(folder).get("scores")
    if known is None or scores["scenes"] >= known.get("scenes", SCENES):
        add_metadata(folder, scores=scores)


def _run_interactive(options: argparse.Namespace) -> dict[str, Any]:
    """The apps' metrics on held-out scenes."""
    store, model, names, strengths = _parse(options, STRENGTHS)
    conditions = select_conditions(store, model, names)
    scenes = options.scenes or SCENES
    result = measure(store, model, conditions, scenes, strengths, options.sheet)
    result |= {"model": options.model, "base": model}
    _print_totals(result)
    _print_json(result, store, options)
    if options.annotate:
        _annotate(result, conditions, store.registry.card(model).folder)
    return result


def _run_controlnetpp(options: argparse.Namespace) -> dict[str, Any]:
    """The paper's protocol on a folder of pictures."""
    store, model, names, strengths = _parse(options, (1.0,))
    names = _controlnetpp.select_conditions(store, model, names)
    examples = _controlnetpp.read_folder(options.data)[: options.scenes]
    out = options.out or _default_out(options)
    result = _controlnetpp.measure(store, model, names, examples, strengths, options.sheet, out)
    result |= {"model": options.model, "base": model}
    _controlnetpp.print_totals(result)
    print(f"Rows and pictures: {out}")
    _print_json(result, store, options)
    return result


def _default_out(options: argparse.Namespace) -> Path:
    """Another folder for each model and folder of pictures."""
    own = [options.model, str(options.data.resolve())]
    digest = hashlib.sha256(repr(own).encode()).hexdigest()[:8]
    return Path("runs", f"controllability-{Path(options.model).stem}-{digest}")


def _parse(
    options: argparse.Namespace, strengths: tuple[float, ...]
) -> tuple[Store, str, list[str] | None, tuple[float, ...]]:
    """The store, the model, the conditions' names and the strengths, by default `strengths`.

    Raises:
        BadInput: The model is a trained ControlNet, and other conditions are asked for.
    """
    names = options.conditions.split(",") if options.conditions else None
    if options.strengths:
        strengths = tuple(float(s) for s in options.strengths.split(","))
    store = Store(options.device, options.dtype)
    trained = _find_trained(store, options)
    if trained is None:
        return store, options.model, names, strengths
    if names not in (None, [trained.condition]):
        raise BadInput(f"{options.model} was trained for {trained.condition} alone.")
    weights = conditions_by_annotator()[trained.condition].weights
    store.registry = TrainedRegistry(trained, {trained.condition, weights})
    return store, trained.base, [trained.condition], strengths


def _find_trained(store: Store, options: argparse.Namespace) -> Trained | None:
    """The trained ControlNet that --model names; a card's name is no folder."""
    if any(card.name == options.model for card in store.registry.cards()):
        return None
    trained = find_trained(options.model)
    if trained and options.annotate:
        raise BadInput("--annotate is for the models of cards: leave it out.")
    return trained


def _print_json(result: dict[str, Any], store: Store, options: argparse.Namespace) -> None:
    if options.json:
        run = {"command": options.command, "machine": machine(store.device, store.dtype)}
        print(json.dumps(run | result), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; `arguments` replace sys.argv.

    Returns 1 if a condition could not be measured.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default="diorama",
        help="a card's name, a checkpoint's path, or the folder of a ControlNet that you trained",
    )
    parser.add_argument(
        "--conditions",
        default=None,
        help="names such as canny,depth; default: all that the model has a ControlNet for",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=None,
        help=f"how many; default {SCENES}, or with --data all its pictures",
    )
    parser.add_argument(
        "--strengths",
        default=None,
        help="default 0,0.5,1,1.5; with --protocol controlnet++ 1, as in the paper",
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--sheet",
        type=Path,
        default=None,
        help="also save a contact sheet of each condition, NAME-<condition>.SUFFIX: scene, map, "
        "then image and its map at the first strength and at 1; NAME-all has a row of each",
    )
    parser.add_argument(
        "--annotate",
        action="store_true",
        help="write the results into the model's weights files, but not over those of more "
        "scenes; for shared parts (vae, unet) the scenes of all conditions are added",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument(
        "--protocol",
        choices=("interactive", _controlnetpp.PROTOCOL),
        default="interactive",
        help="the apps' metrics on scenes, or ControlNet++'s protocol on --data",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="for controlnet++: a folder of pictures, with captions in training's prompt.json or "
        "in a text file beside each; it may bring maps for depth, seg and pose, in folders of "
        "these names, each a PNG named as its picture",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="for controlnet++: folder of rows and pictures, from which an interrupted run goes "
        "on; the default is one in runs/ for each model and --data",
    )
    options = parser.parse_args(arguments)
    options.command = command("controllability", arguments)
    as_paper = options.protocol == _controlnetpp.PROTOCOL
    if as_paper != bool(options.data) or (as_paper and options.annotate):
        parser.error(
            f"--protocol {_controlnetpp.PROTOCOL} needs --data DIR and excludes --annotate"
        )
    try:
        result = _run_controlnetpp(options) if as_paper else _run_interactive(options)
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
