"""What the invisible watermark costs, and what it outlives.

    python -m benchmarks.watermark [--model diorama] [--conditions a,b] [--scenes N] [--json]

Pictures are made of held-out scenes, marked, and measured against those without the watermark: PSNR
and the score of their control. Then it is looked for in the file as it is, as JPEG of quality 75,
halved, both, and cut by 8 pixels; and in the pictures without it, so that a false find would show.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._shared import command, machine, psnr
from benchmarks.controllability import select_conditions
from benchmarks.modes import scene_requests
from core.condition import Condition, RGBImage
from core.consistency import Extractor
from core.errors import SuiteError
from core.images import read_image
from core.pipeline import Pipeline
from core.request import GenerationResult
from core.watermark import BITS, ENOUGH, INSTALL, bits_right, is_here, watermarked
from models.store import Store

CONDITIONS = "canny,hed,depth,seg"
SCENES = 6
CUT_PX = 8


def as_jpeg(image: RGBImage) -> RGBImage:
    """Return a picture as it comes back from a JPEG of quality 75."""
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "JPEG", quality=75)
    return read_image(memory.getvalue())[0]


def halved(image: RGBImage) -> RGBImage:
    """Return a picture of half its size."""
    size = (image.shape[1] // 2, image.shape[0] // 2)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


FATES: dict[str, Callable[[RGBImage], RGBImage]] = {
    "as it is": lambda image: image,
    "JPEG, quality 75": as_jpeg,
    "half its size": halved,
    "half its size, then JPEG 75": lambda image: as_jpeg(halved(image)),
    f"cut by {CUT_PX} pixels": lambda image: image[CUT_PX:, CUT_PX:],
}
"""What happens to a picture before the watermark is looked for."""


def measure(
    store: Store, model: str, conditions: Sequence[Condition], scenes: int
) -> dict[str, Any]:
    """Return the benchmark's JSON.

    Raises:
        SuiteError: the model or a condition's ControlNet is not available.
    """
    pipeline = Pipeline(store.load)
    costs: dict[str, list[float]] = {"psnr": [], "score": [], "marked score": [], "seconds": []}
    bits: dict[str, list[int]] = {name: [] for name in (*FATES, "without it")}
    for condition in conditions:
        for request in scene_requests(store, pipeline, model, condition, scenes):
            result = pipeline.generate(request)
            image = result.images[0]
            began = time.perf_counter()
            marked = watermarked(image)
            costs["seconds"].append(time.perf_counter() - began)
            costs["psnr"].append(psnr(image, marked))
            costs["score"].append(result.headlines[0])
            costs["marked score"].append(_score(result, marked))
            for name, change in FATES.items():
                bits[name].append(bits_right(change(marked)))
            bits["without it"].append(bits_right(image))
            print(f"{len(costs['psnr'])} of {scenes * len(conditions)}", end="\r", flush=True)
    return {
        "model": model,
        "pictures": len(costs["psnr"]),
        "bits": len(BITS),
        "enough": ENOUGH,
        "psnr": {"mean": float(np.mean(costs["psnr"])), "lowest": min(costs["psnr"])},
        "score": float(np.mean(costs["score"])),
        "marked_score": float(np.mean(costs["marked score"])),
        "seconds": float(np.median(costs["seconds"])),
        "found": {
            name: {
                "pictures": sum(right >= ENOUGH for right in found),
                "mean_bits": float(np.mean(found)),
                "fewest_bits": min(found),
            }
            for name, found in bits.items()
        },
    }


def _score(result: GenerationResult, marked: RGBImage) -> float:
    """Return the score of a result's picture with the watermark in it."""
    (made,), (asked,) = result.controls, result.request.controls
    annotator = made.condition.annotator
    usual = annotator.preprocessors[0]
    extractor = Extractor(annotator, usual, asked.params, asked.detect_resolution)
    return extractor.reextract_and_score(marked, made.control_map)[1].headline


def table(result: dict[str, Any]) -> str:
    """Return the measurement in lines of text."""
    quality = result["psnr"]
    lines = [
        f"{result['pictures']} pictures: PSNR {quality['mean']:.1f} dB, lowest "
        f"{quality['lowest']:.1f}; score {result['score']:.1f}, marked "
        f"{result['marked_score']:.1f}; {result['seconds']:.2f} s a picture"
    ]
    for name, found in result["found"].items():
        lines.append(
            f"{name:28} found in {found['pictures']} of {result['pictures']}, "
            f"{found['mean_bits']:.1f} of {result['bits']} bits, fewest {found['fewest_bits']}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default=CONDITIONS, help="names such as canny,depth")
    parser.add_argument("--scenes", type=int, default=SCENES, help="per condition")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args(arguments)
    if not is_here():
        parser.exit(2, f"The watermark's library is not here: run `{INSTALL}`.\n")
    try:
        store = Store()
        conditions = select_conditions(store, options.model, options.conditions.split(","))
        result = {
            "command": command("watermark", arguments),
            "machine": machine(store.device, store.dtype),
            **measure(store, options.model, list(conditions.values()), options.scenes),
        }
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    print(table(result))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
