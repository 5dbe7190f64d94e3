"""How well a model keeps the control and obeys the prompt, on scenes it has never seen.

    python -m benchmarks.controllability --model diorama --conditions canny --scenes 128 [--json]

Every held-out scene gives a picture, its control map and its caption. The model draws the scene
again from map and caption at several control strengths, the map is re-extracted from what it drew,
and the two are scored as the app scores them. The oracle is the same score for the autoencoder's
round trip of the scene itself: what the decoder allows at best. Prompt colours: the share of named
things whose visible surface is nearest to its named colour.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from annotators import find_annotator
from core.condition import Condition, RGBImage, Score
from core.consistency import Extractor
from core.errors import SuiteError
from core.images import to_images, to_tensor
from core.networks import Networks
from core.pipeline import Pipeline
from core.request import GenerationRequest, GenerationResult
from models.store import Store
from training.dataset import HELD_OUT
from training.progress import clock
from training.renderer import TONE, Truth, render
from training.weights import annotate
from training.world import COLOURS, Scene, make_scene

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SMALLEST_SURFACE = 60  # pixels: a speck has no colour to speak of


def round_trip(networks: Networks, image: RGBImage) -> RGBImage:
    """The picture as the autoencoder gives it back."""
    vae = networks.vae  # type: ignore[attr-defined]
    pixels = (to_tensor(image) * 2 - 1).to(networks.device, networks.dtype)
    with torch.no_grad():
        encoded = vae.encode(pixels)
        latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mean
        return to_images(vae.decode(latents).sample.float())[0]


def psnr(a: RGBImage, b: RGBImage) -> float:
    """Peak signal to noise ratio in dB, of 8-bit pictures."""
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


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


class _Measured:
    """What is found about one condition of a model, scene by scene."""

    def __init__(
        self, pipeline: Pipeline, store: Store, model: str, name: str, strengths: tuple[float, ...]
    ) -> None:
        self._pipeline, self._model, self._strengths = pipeline, model, strengths
        self._defaults = store.card(model).defaults
        self._annotator = find_annotator(name)
        self._condition = Condition(name, name, "", self._annotator, name)
        self._networks = store.load(model, name)
        self.scores: dict[str, list[Score]] = {"oracle": [], **{f"{s:g}": [] for s in strengths}}
        self.noise: list[float] = []  # PSNR of the autoencoder's round trips, in dB
        self.hits: list[bool] = []  # whether named colours are seen in what the model drew
        self.possible: list[bool] = []  # and in the round trips
        self.rows: list[list[RGBImage]] = []  # of the contact sheet

    def add(self, k: int) -> GenerationRequest:
        """Measures the held-out scene number k; returns the last request as it was run."""
        scene = make_scene(HELD_OUT + k)
        truth = render([scene], int(self._defaults.get("image_resolution", 512)))
        picture = truth.image[0].numpy()
        returned = round_trip(self._networks, picture)
        self.noise.append(psnr(picture, returned))
        self.possible += colour_hits(scene, truth, 0, returned)
        row = [picture]
        for strength in self._strengths:
            request = GenerationRequest(
                image=picture,
                prompt=scene.caption,
                strength=strength,
                seed=k,
                model=self._model,
                **self._defaults,
            )
            made = self._pipeline.generate(self._condition, request)
            self.scores[f"{strength:g}"].append(made.scores[0])
            if strength == self._strengths[0]:
                self.scores["oracle"].append(self._oracle(made, returned))
                row.append(made.control_map)
            row.append(made.images[0])
            if strength == 1.0:
                self.hits += colour_hits(scene, truth, 0, made.images[0])
                row.append(made.reextracted[0])
        self.rows.append(row)
        return made.request

    def _oracle(self, made: GenerationResult, returned: RGBImage) -> Score:
        """How well the round trip of the picture itself agrees with the map that was used."""
        extractor = Extractor(
            self._annotator,
            self._annotator.preprocessors[0],
            made.request.params,
            made.request.detect_resolution,
        )
        return extractor.reextract_and_score(returned, made.control_map)[1]

    def save_sheet(self, path: Path) -> None:
        """The first twelve scenes: picture, map, and what was drawn at each strength."""
        rows = [np.concatenate(row, 1) for row in self.rows[:12]]
        Image.fromarray(np.concatenate(rows, 0)).save(path)


def measure(
    store: Store,
    model: str,
    conditions: list[str],
    scenes: int,
    strengths: tuple[float, ...],
    sheet: Path | None,
) -> dict[str, Any]:
    """The figures of the contract, over `scenes` held-out scenes.

    Saves a contact sheet for each condition beside `sheet`, if one is asked for.
    """
    pipeline = Pipeline(store.load)
    result: dict[str, Any] = {"model": model, "scenes": scenes, "conditions": {}}
    noise: list[float] = []
    hits: list[bool] = []
    possible: list[bool] = []
    began, done = time.monotonic(), 0
    for name in conditions:
        found = _Measured(pipeline, store, model, name, strengths)
        for k in range(scenes):
            used = found.add(k)
            result["steps"], result["guidance_scale"] = used.steps, used.guidance_scale
            done += 1
            print(clock(done, scenes * len(conditions), began, "scenes"), end="\r", flush=True)
        result["conditions"][name] = _summary(found.scores)
        noise, hits, possible = noise + found.noise, hits + found.hits, possible + found.possible
        if sheet:
            found.save_sheet(sheet.with_stem(f"{sheet.stem}-{name}"))
    print()
    result["autoencoder_psnr"] = round(float(np.mean(noise)), 2)
    result["prompt_colour_accuracy"] = _share(hits)
    result["prompt_colour_oracle"] = _share(possible)
    return result


def _share(hits: list[bool]) -> float | None:
    """Share of hits; None where nothing could be judged."""
    return round(float(np.mean(hits)), 3) if hits else None


def _summary(kept: dict[str, list[Score]]) -> dict[str, Any]:
    """Means of the scores, for the oracle and each strength."""
    metric = kept["oracle"][0].metric

    def mean(key: str, name: str) -> float:
        return round(float(np.mean([score.metrics[name] for score in kept[key]])), 4)

    def headline(key: str) -> float:
        return round(float(np.mean([score.headline for score in kept[key]])), 2)

    strengths = [key for key in kept if key != "oracle"]
    others = [name for name in kept["oracle"][0].metrics if name != metric]
    return {
        "metric": metric,
        "higher_is_better": True,
        "oracle": mean("oracle", metric),
        "strength": {key: mean(key, metric) for key in strengths},
        "headline": {key: headline(key) for key in ("oracle", "0", "1") if key in kept},
        "beside": {name: {key: mean(key, name) for key in kept} for name in others},
    }


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['scenes']} held-out scenes, {result['steps']} steps, "
        f"guidance {result['guidance_scale']:g}"
    )
    for name, found in result["conditions"].items():
        for metric, values in {
            found["metric"]: {"oracle": found["oracle"], **found["strength"]},
            **found["beside"],
        }.items():
            cells = "  ".join(f"{key}: {value:.3f}" for key, value in values.items())
            print(f"  {name:10} {metric:10} {cells}")
    print(
        f"  autoencoder {result['autoencoder_psnr']} dB; "
        f"prompt colours {result['prompt_colour_accuracy']} "
        f"(round trip of the scenes themselves {result['prompt_colour_oracle']})"
    )


def _annotate(result: dict[str, Any], root: Path) -> None:
    """Writes the figures into the metadata of the weights in a model's folder."""
    keys = ("scenes", "steps", "guidance_scale", "autoencoder_psnr", "prompt_colour_accuracy")
    shared = {key: result[key] for key in keys}
    for name, found in result["conditions"].items():
        annotate(root / "controlnet" / name, scores=shared | found)
    annotate(root / "vae", scores={"psnr": result["autoencoder_psnr"]})
    annotate(root / "unet", scores={"prompt_colour_accuracy": result["prompt_colour_accuracy"]})


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default="canny", help="names, separated by commas")
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--strengths", default=",".join(f"{s:g}" for s in STRENGTHS))
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--sheet", type=Path, default=None, help="also save a contact sheet for each condition here"
    )
    parser.add_argument(
        "--annotate",
        action="store_true",
        help="write the figures into the model's own weights files",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    strengths = tuple(float(s) for s in options.strengths.split(","))
    try:
        store = Store(options.device, options.dtype)
        result = measure(
            store,
            options.model,
            options.conditions.split(","),
            options.scenes,
            strengths,
            options.sheet,
        )
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    _print(result)
    if options.annotate:
        _annotate(result, store.card(options.model).folder)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
