"""How well a model keeps the control and obeys the prompt, on scenes it has never seen.

    python -m benchmarks.controllability --model diorama --conditions canny,depth [--json]
    python -m benchmarks.controllability --model sd15_plus --protocol controlnet++ --data DIR

Without --conditions: all that the model has a ControlNet for. They go by their annotators' names.
The second line follows ControlNet++'s paper, on your own pictures: see _controlnetpp.py. The first:

Every held-out scene gives a picture, its control map and its caption. The model draws the scene
again from map and caption at several control strengths, the map is re-extracted from what it drew,
and the two are scored as the app scores them. The oracle is the same score for the autoencoder's
round trip of the scene itself: what the decoder allows at best; `closed` is how much of the way
there from strength 0 the headline has gone at strength 1. Where Diorama's annotator drew the maps,
they are also scored against those that the exact truth of the scene gives. Prompt colours: the
share of named things whose visible surface is nearest to its named colour.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
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
    round_trip,
    save_sheet,
    spared,
)
from core.condition import Condition, ControlMap, RGBImage, Score
from core.consistency import Extractor
from core.errors import BadInput, SuiteError, WeightsMissing
from core.pipeline import Pipeline
from core.request import GenerationRequest, GenerationResult
from models.store import Store
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import TONE, Truth, render
from training.diorama.truth import truth_arrays
from training.diorama.world import COLOURS, Scene, make_scene
from training.progress import clock
from training.weights import annotate, facts

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SMALLEST_SURFACE = 60  # pixels: a speck has no colour to speak of
LOOKED_AT = 20  # scenes for each one measured, before a condition is given up; a fifth have people
SCENES = 128  # what the figures of the README and in the weights come from
CLOSED_ENOUGH = 0.75  # of the way from strength 0 to the oracle; what falls short is pointed out


def nearest_colour(pixels: np.ndarray, scene: Scene) -> str:
    """The colour word nearest to pixels (N, 3) uint8, under the scene's light.

    Each named colour is compared as that light would show it: tinted, and as bright as suits it
    best.
    """
    light = np.asarray(scene.sky.sun) * 0.6 + np.asarray(scene.sky.ambient)
    tint = light / light.max()
    middle = np.median(pixels, axis=0) / 255
    brightness = np.linspace(0.3, 1.4, 45)[:, None]

    def distance(name: str) -> float:
        shown = np.clip(brightness * tint * np.asarray(COLOURS[name]), 0, 1) ** TONE
        return float(np.abs(shown - middle).sum(1).min())

    return min(COLOURS, key=distance)


def named_surfaces(scene: Scene, truth: Truth, index: int) -> list[tuple[str, np.ndarray]]:
    """(colour word, mask (H, W)) of each thing whose named colour can be seen."""
    found = []
    things, painted = truth.things[index].numpy(), truth.painted[index].numpy()
    for k, thing in enumerate(scene.things):
        if thing.colour is None:
            continue
        mask = ((things == k) & painted).astype(np.uint8)
        inner = cv2.erode(mask, np.ones((5, 5), np.uint8)).astype(bool)  # away from the outline
        if inner.sum() >= SMALLEST_SURFACE:
            found.append((thing.colour, inner))
    return found


def colour_hits(scene: Scene, truth: Truth, index: int, image: RGBImage) -> list[bool]:
    """For each named surface, whether its pixels show the named colour."""
    return [
        nearest_colour(image[mask], scene) == name
        for name, mask in named_surfaces(scene, truth, index)
    ]


# The maps that the exact truth of a scene gives


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
    """The normals, their x to the left as maps have it; the sky, which has none, faces us."""
    right, up, near = np.moveaxis(resize_like(_level(truth["normal"], 127), image), 2, 0)
    return normal.as_map(np.stack([-right, up, near], 2))


def true_classes(truth: dict[str, np.ndarray], _: RGBImage) -> ControlMap:
    """The classes."""
    return seg.as_map(truth["classes"].repeat(STRIDE, 0).repeat(STRIDE, 1))


def true_people(truth: dict[str, np.ndarray], image: RGBImage) -> ControlMap:
    """The people of whom enough is seen to be one."""
    seen = truth["keypoints"][:, :, 2] > 0
    places = np.where(seen[:, :, None], truth["keypoints"][:, :, :2] * STRIDE, np.nan)
    people = list(places[seen.sum(1) >= pose.MIN_JOINTS].astype(np.float32))
    return pose.draw_people(people, *image.shape[:2])


def _level(values: np.ndarray, one: int) -> np.ndarray:
    """Whole numbers (h, w) or (h, w, C) in which `one` stands for 1, as float32 (h, w, C)."""
    return np.atleast_3d(values).astype(np.float32) / np.float32(one)


TRUE_MAPS: dict[Callable[..., ControlMap], Callable[..., ControlMap]] = {
    hed.draw_diorama: true_edges,
    scribble.draw_fake: true_strokes,
    depth.draw_diorama: true_depth,
    normal.draw_diorama: true_normals,
    seg.draw_diorama: true_classes,
    pose.draw_diorama: true_people,
}
"""For each way to draw a map from what Diorama's annotator sees, the map of what is there: from
`truth_arrays` of one scene, without the batch axis, and its picture."""


# The measuring


def measurable() -> dict[str, Condition]:
    """The apps' conditions by the names of their annotators, each drawing its map of a picture."""
    found: dict[str, Condition] = {}
    for condition in apps.conditions():
        annotator = condition.annotator
        if annotator.reextract:  # a scene is no drawing, so it is drawn as the results are
            annotator = replace(annotator, preprocessors=(annotator.reextract,), reextract=None)
        found.setdefault(annotator.name, replace(condition, annotator=annotator))
    return found


def chosen(store: Store, model: str, names: list[str] | None) -> dict[str, Condition]:
    """The conditions of these names, or for None all that the model has a ControlNet for.

    Raises:
        BadInput: There is no such condition; the message lists those there are.
        WeightsMissing: The model has no ControlNet of any.
    """
    known, card = measurable(), store.registry.card(model)
    if names is None:
        names = [name for name, one in known.items() if card.has_control(one.weights)]
        if not names:
            raise WeightsMissing(f"{card.title} has no ControlNet of any condition yet.")
    for name in names:
        if name not in known:
            raise BadInput(f"There is no condition {name!r}; there are: {', '.join(known)}.")
    return {name: known[name] for name in names}


class _Measured:
    """What is found about one condition of a model, scene by scene."""

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
        self._condition = condition
        self._annotator = condition.annotator
        self._true_map = TRUE_MAPS.get(self._annotator.preprocessors[0].draw)
        self._networks = store.load(model, condition.weights)
        self.scores: dict[str, list[Score]] = {"oracle": [], **{f"{s:g}": [] for s in strengths}}
        self.seen: list[Score] = []  # the annotator's maps against the true ones
        self.noise: list[float] = []  # PSNR of the autoencoder's round trips, in dB
        self.hits: list[bool] = []  # whether named colours are seen in what the model drew
        self.possible: list[bool] = []  # and in the round trips
        self.rows: list[list[RGBImage]] = []  # of the contact sheet

    def over(self, scenes: int) -> Iterator[GenerationRequest]:
        """Measures so many held-out scenes; yields the last request of each as it was run.

        Scenes without anything to keep, such as poses where nobody is, are passed over: almost
        every picture keeps them.

        Raises:
            BadInput: Hardly any scene has a map.
        """
        for k in range(scenes * LOOKED_AT):
            scene = make_scene(HELD_OUT + k)
            truth = render([scene], int(self._defaults.get("image_resolution", 512)))
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
            f"Of {scenes * LOOKED_AT} scenes only {len(self.rows)} have anything in their "
            f"{self._annotator.name} map: its annotator sees too little to be measured with."
        )

    def _compare_with_truth(self, control_map: ControlMap, truth: Truth) -> None:
        """Where both show nothing, nothing was asked of the annotator."""
        if self._true_map is None:
            return
        arrays = {name: values[0] for name, values in truth_arrays(truth).items()}
        wanted = self._true_map(arrays, truth.image[0].numpy())
        if not all(map(self._annotator.is_empty, (wanted, control_map))):
            self.seen.append(self._annotator.score(wanted, control_map))

    def _add(self, request: GenerationRequest, scene: Scene, truth: Truth) -> GenerationRequest:
        image = request.controls[0].image
        returned = round_trip(self._networks, image)
        self.noise.append(psnr(image, returned))
        self.possible += colour_hits(scene, truth, 0, returned)
        row = [image]
        for strength in self._strengths:
            made = self._pipeline.generate(at_strength(request, strength))
            self.scores[f"{strength:g}"].append(made.scores[0])
            if strength == self._strengths[0]:
                self.scores["oracle"].append(self._oracle(made, returned))
                row.append(self._annotator.preview(made.control_map))
            if strength in (self._strengths[0], 1.0):
                row += [made.images[0], self._annotator.preview(made.reextracted[0])]
            if strength == 1.0:
                self.hits += colour_hits(scene, truth, 0, made.images[0])
        self.rows.append(row)
        return made.request

    def _oracle(self, made: GenerationResult, returned: RGBImage) -> Score:
        """How well the round trip of the picture itself agrees with the map that was used."""
        (control,) = made.request.controls
        extractor = Extractor(
            self._annotator,
            self._annotator.preprocessors[0],
            control.params,
            control.detect_resolution,
        )
        return extractor.reextract_and_score(returned, made.control_map)[1]


def measure(
    store: Store,
    model: str,
    conditions: dict[str, Condition],
    scenes: int,
    strengths: tuple[float, ...],
    sheet: Path | None,
) -> dict[str, Any]:
    """The figures of the contract, over `scenes` held-out scenes.

    Saves a contact sheet for each condition beside `sheet`, if one is asked for, and one with a row
    of each. A condition that fails is said on stderr and stands, with the reason, in "failed"; the
    others are measured.

    Raises:
        SuiteError: None could be measured.
    """
    pipeline = Pipeline(store.load)
    result: dict[str, Any] = {"model": model, "scenes": scenes, "conditions": {}, "failed": {}}
    all_found: list[_Measured] = []
    began, total = time.monotonic(), scenes * len(conditions)
    for k, (name, condition) in enumerate(conditions.items()):
        with spared(name, result["failed"]):
            found = _Measured(pipeline, store, model, condition, strengths)
            for done, used in enumerate(found.over(scenes), k * scenes + 1):
                result["steps"], result["guidance_scale"] = used.steps, used.guidance_scale
                print(clock(done, total, began, "scenes"), end="\r", flush=True)
            result["conditions"][name] = _summary(found.scores, found.seen)
            all_found.append(found)
            _print_condition(name, result["conditions"][name])
            if sheet:
                save_sheet(found.rows, sheet, name)
    if not all_found:
        raise SuiteError("Nothing could be measured.")
    if sheet and len(all_found) > 1:  # another scene for each, in one picture
        rows = [found.rows[k % len(found.rows)] for k, found in enumerate(all_found)]
        save_sheet(rows, sheet, "all")
    result["autoencoder_psnr"] = round(float(np.mean(_all(f.noise for f in all_found))), 2)
    result["prompt_colour_accuracy"] = _share(_all(f.hits for f in all_found))
    result["prompt_colour_oracle"] = _share(_all(f.possible for f in all_found))
    return result


def _all(parts: Iterable[list[Any]]) -> list[Any]:
    return [one for part in parts for one in part]


def _share(hits: list[bool]) -> float | None:
    """Share of hits; None where nothing could be judged."""
    return round(float(np.mean(hits)), 3) if hits else None


def _summary(kept: dict[str, list[Score]], seen: list[Score]) -> dict[str, Any]:
    """Means of the scores, for the oracle and each strength; `seen` are the annotator's own."""
    first = kept["oracle"][0]
    strengths = [key for key in kept if key != "oracle"]
    others = [name for name in first.metrics if name != first.metric]
    headline: dict[str, float] = {
        key: _headline(kept[key]) for key in ("oracle", "0", "1") if key in kept
    }
    return {
        "metric": first.metric,
        "higher_is_better": first.higher_is_better,
        "oracle": _mean(kept["oracle"], first.metric),
        "strength": {key: _mean(kept[key], first.metric) for key in strengths},
        "headline": headline,
        "closed": _closed(headline),
        "beside": {name: {key: _mean(kept[key], name) for key in kept} for name in others},
        "annotator": _agreement(seen),
    }


def _closed(headline: dict[str, float]) -> float | None:
    """How much of the way from strength 0 to the oracle is gone at strength 1; 1 is all of it.

    None where there is no way to go, or a strength was not measured.
    """
    if not {"0", "1"} <= headline.keys() or headline["oracle"] <= headline["0"]:
        return None
    return round((headline["1"] - headline["0"]) / (headline["oracle"] - headline["0"]), 3)


def _agreement(seen: list[Score]) -> dict[str, Any] | None:
    """Means of an annotator's scores against the truth; None where no truth is known."""
    if not seen:
        return None
    return {
        "metric": seen[0].metric,
        "higher_is_better": seen[0].higher_is_better,
        "value": _mean(seen, seen[0].metric),
        "headline": _headline(seen),
        "scenes": len(seen),
    }


def _mean(scores: list[Score], metric: str) -> float:
    return round(float(np.mean([score.metrics[metric] for score in scores])), 4)


def _headline(scores: list[Score]) -> float:
    return round(float(np.mean([score.headline for score in scores])), 2)


def _print_condition(name: str, found: dict[str, Any]) -> None:
    """As soon as it is known: a long run may yet be stopped."""
    print(" " * 79, end="\r")
    for label, text in _lines(found):
        print(f"  {name:13} {label:14} {text}", flush=True)


def _print_whole(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['scenes']} held-out scenes, {result['steps']} steps, "
        f"guidance {result['guidance_scale']:g}; autoencoder {result['autoencoder_psnr']} dB; "
        f"prompt colours {result['prompt_colour_accuracy']} "
        f"(round trip of the scenes themselves {result['prompt_colour_oracle']})"
    )


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What to print about a condition: label and text of each line."""

    def cells(values: dict[str, float]) -> str:
        return "  ".join(f"{key}: {value:.3f}" for key, value in values.items())

    lower = "" if found["higher_is_better"] else "  (lower is better)"
    lines = [
        (found["metric"], cells({"oracle": found["oracle"], **found["strength"]}) + lower),
        *((metric, cells(values)) for metric, values in found["beside"].items()),
        ("headline", cells(found["headline"])),
    ]
    closed = found["closed"]
    if closed is not None:
        short = f": BELOW {CLOSED_ENOUGH:g}" if closed < CLOSED_ENOUGH else ""
        lines.append(("closed", f"{closed:.3f} of the way from strength 0 to the oracle{short}"))
    seen = found["annotator"]
    if seen:
        figure = f"{seen['metric']} {seen['value']:.3f}{lower}, headline {seen['headline']:.2f}"
        lines.append(("annotator", f"{figure}, against the truth of {seen['scenes']} scenes"))
    return lines


def _annotate(result: dict[str, Any], conditions: dict[str, Condition], root: Path) -> None:
    """Writes the figures into the metadata of the weights in a model's folder.

    Those that are there stay if they are of more scenes; of the whole model, every condition's
    scenes count.
    """
    keys = ("scenes", "steps", "guidance_scale", "autoencoder_psnr", "prompt_colour_accuracy")
    shared = {key: result[key] for key in keys}
    for name, found in result["conditions"].items():
        _write(root / "controlnet" / conditions[name].weights, shared | found)
    scenes = result["scenes"] * len(result["conditions"])
    _write(root / "vae", {"psnr": result["autoencoder_psnr"], "scenes": scenes})
    accuracy = result["prompt_colour_accuracy"]
    if accuracy is not None:  # without strength 1 there is none
        _write(root / "unet", {"prompt_colour_accuracy": accuracy, "scenes": scenes})


def _write(folder: Path, scores: dict[str, Any]) -> None:
    known = facts(folder).get("scores")
    if known is None or scores["scenes"] >= known.get("scenes", SCENES):
        annotate(folder, scores=scores)


def _by_scenes(options: argparse.Namespace) -> dict[str, Any]:
    """Measures as the apps do, on held-out scenes."""
    store, names, strengths = _given(options, STRENGTHS)
    conditions = chosen(store, options.model, names)
    scenes = options.scenes or SCENES
    result = measure(store, options.model, conditions, scenes, strengths, options.sheet)
    _print_whole(result)
    _print_json(result, store, options)
    if options.annotate:
        _annotate(result, conditions, store.registry.card(options.model).folder)
    return result


def _by_paper(options: argparse.Namespace) -> dict[str, Any]:
    """Measures as the paper did, on a folder of pictures."""
    store, names, strengths = _given(options, (1.0,))
    names = _controlnetpp.chosen(store, options.model, names)
    examples = _controlnetpp.read_folder(options.data)[: options.scenes]
    result = _controlnetpp.measure(store, options.model, names, examples, strengths, options.sheet)
    _controlnetpp.print_whole(result)
    _print_json(result, store, options)
    return result


def _given(
    options: argparse.Namespace, strengths: tuple[float, ...]
) -> tuple[Store, list[str] | None, tuple[float, ...]]:
    """The store, and the names and strengths asked for; those given where there are none."""
    names = options.conditions.split(",") if options.conditions else None
    if options.strengths:
        strengths = tuple(float(s) for s in options.strengths.split(","))
    return Store(options.device, options.dtype), names, strengths


def _print_json(result: dict[str, Any], store: Store, options: argparse.Namespace) -> None:
    if options.json:
        run = {"command": options.command, "machine": machine(store.device, store.dtype)}
        print(json.dumps(run | result), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` stand in for the process's own.

    Returns 1 if a condition could not be measured.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument(
        "--conditions",
        default=None,
        help="names such as canny,depth; without it all that the model has a ControlNet for",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=None,
        help=f"how many; default {SCENES}, or with --data all pictures of the folder",
    )
    parser.add_argument(
        "--strengths",
        default=None,
        help="default 0,0.5,1,1.5; with --protocol controlnet++ the paper's 1",
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--sheet",
        type=Path,
        default=None,
        help="also save a contact sheet for each condition, NAME-<condition>.SUFFIX: scene, map, "
        "and image and map found in it at the first strength and at 1; NAME-all has a row of each",
    )
    parser.add_argument(
        "--annotate",
        action="store_true",
        help="write the figures into the model's own weights files, but not over those of more "
        "scenes; for what all conditions share (vae, unet) the scenes of all are added up",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument(
        "--protocol",
        choices=("interactive", _controlnetpp.PROTOCOL),
        default="interactive",
        help="measure as the apps do, or as ControlNet++'s authors did, on --data",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=None,
        help="for the latter: a folder of pictures and captions, with the prompt.json that "
        "training reads or a text file beside each picture; maps of its own for depth and seg lie "
        "in folders of these names, a PNG named as its picture",
    )
    options = parser.parse_args(arguments)
    options.command = command("controllability", arguments)
    as_paper = options.protocol == _controlnetpp.PROTOCOL
    if as_paper != bool(options.data) or (as_paper and options.annotate):
        parser.error(
            f"--protocol {_controlnetpp.PROTOCOL} goes with --data DIR, and without --annotate"
        )
    try:
        result = _by_paper(options) if as_paper else _by_scenes(options)
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
