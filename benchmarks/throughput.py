"""How many pictures a minute come out when many ask at once, and whether each gets its own.

    python -m benchmarks.throughput --model diorama --clients 16 [--requests N] [--json]

Every client asks for a held-out scene of its own, by turns with the ControlNets of --conditions,
and has its picture encoded as PNG. First all requests are made one after the other, then by all
clients at once, through the same pipeline; each client asks anew when it has its picture. The wait
is from asking to the encoded picture; one at a time, who comes behind waits for all before.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np

from benchmarks._shared import command, machine, psnr
from benchmarks.controllability import chosen
from benchmarks.modes import scenes
from core.condition import Condition, RGBImage
from core.errors import SuiteError
from core.metadata import save_png
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store

CONDITIONS = "canny,hed,depth,lineart"


@dataclass(frozen=True, eq=False)
class Made:
    """One picture, and when it was there: seconds since all began, and since it was asked for."""

    image: RGBImage
    finished: float
    waited: float


def requests(
    store: Store, pipeline: Pipeline, model: str, conditions: Sequence[Condition], count: int
) -> list[GenerationRequest]:
    """So many requests of different scenes and seeds, by turns with each condition."""
    share = -(-count // len(conditions))
    by_condition = [
        list(scenes(store, pipeline, model, condition, share)) for condition in conditions
    ]
    # Each condition starts with the same scenes; nobody's shall be another's.
    return [
        replace(request, seed=index)
        for index, request in enumerate(
            request for turn in zip(*by_condition, strict=True) for request in turn
        )
    ][:count]


def at_once(
    make: Callable[[GenerationRequest], RGBImage], asked: Sequence[GenerationRequest], clients: int
) -> list[Made]:
    """Every clients-th request is a client's; it asks for the next when it has one."""
    made: dict[int, Made] = {}
    began = time.perf_counter()

    def client(number: int) -> None:
        for index in range(number, len(asked), clients):
            since = time.perf_counter()
            image = make(asked[index])
            now = time.perf_counter()
            made[index] = Made(image, now - began, now - since)

    with ThreadPoolExecutor(clients) as threads:
        for done in [threads.submit(client, number) for number in range(clients)]:
            done.result()
    return [made[index] for index in range(len(asked))]


def one_by_one(
    make: Callable[[GenerationRequest], RGBImage], asked: Sequence[GenerationRequest]
) -> list[Made]:
    """All have asked at the beginning and are served in order."""
    began, made = time.perf_counter(), []
    for one in asked:
        image = make(one)
        passed = time.perf_counter() - began
        made.append(Made(image, passed, passed))
    return made


def compare(
    store: Store, model: str, conditions: Sequence[Condition], clients: int, each: int, mode: str
) -> dict[str, Any]:
    """The figures of both ways, and how near each client's picture is to the one made alone.

    Raises:
        SuiteError: the model cannot be had.
    """
    pipeline = Pipeline(store.load)
    asked = [
        replace(request, mode=mode)
        for request in requests(store, pipeline, model, conditions, clients * each)
    ]

    def make(request: GenerationRequest) -> RGBImage:
        result = pipeline.generate(request)
        save_png(BytesIO(), result.images[0], result, 0)
        return result.images[0]

    for request in asked[: len(conditions)]:
        make(request)  # loads and warms up
    alone = one_by_one(make, asked)
    together = at_once(make, asked, clients)
    near = np.array([[psnr(a.image, b.image) for b in alone] for a in together])
    ways = {"one at a time": alone, "at once": together}
    networks = store.load(model, conditions[0].weights)
    height, width = (side // networks.downscale for side in alone[0].image.shape[:2])
    rates = {name: len(asked) / max(one.finished for one in made) for name, made in ways.items()}
    return {
        "model": model,
        "device": str(store.device),
        "dtype": str(store.dtype).removeprefix("torch."),
        "mode": mode,
        "clients": clients,
        "requests": len(asked),
        "max_batch": networks.max_batch(height, width),
        "ways": {
            name: {
                "images_per_second": round(rates[name], 4),
                "wait_p50": round(float(np.percentile([one.waited for one in made], 50)), 3),
                "wait_p95": round(float(np.percentile([one.waited for one in made], 95)), 3),
            }
            for name, made in ways.items()
        },
        "throughput_ratio": round(rates["at once"] / rates["one at a time"], 3),
        "identical": int(
            sum(np.array_equal(a.image, b.image) for a, b in zip(together, alone, strict=True))
        ),
        "psnr_lowest": round(float(near.diagonal().min()), 1),
        "strangers": int((near.argmax(1) != np.arange(len(asked))).sum()),
    }


def _print(result: dict[str, Any]) -> None:
    for name, row in result["ways"].items():
        print(
            f"{name:14} {row['images_per_second']:.2f} images a second, "
            f"wait p50 {row['wait_p50']:.1f} s, p95 {row['wait_p95']:.1f} s"
        )
    print(
        f"{result['clients']} clients get {result['throughput_ratio']:.2f} times as many; "
        f"{result['identical']} of {result['requests']} pictures are the ones made alone to the "
        f"last bit (lowest PSNR {result['psnr_lowest']} dB), {result['strangers']} are another's"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` stand in for the process's own.

    Returns 1 if anybody got another's picture.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default=CONDITIONS, help="the ControlNets in use")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1, help="of each client")
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    try:
        store = Store(options.device, options.dtype)
        conditions = list(chosen(store, options.model, options.conditions.split(",")).values())
        result = {
            "command": command("throughput", arguments),
            "machine": machine(store.device, store.dtype),
            **compare(
                store, options.model, conditions, options.clients, options.requests, options.mode
            ),
        }
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    _print(result)
    if options.json:
        print(json.dumps(result))
    return 1 if result["strangers"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
