"""Throughput with concurrent clients, and whether each client gets its own picture.

    python -m benchmarks.throughput --model diorama --clients 16 [--requests N] [--json]

Every request has its own held-out scene, with the ControlNets of --conditions in turn, and ends
with a PNG-encoded picture. All requests run one after the other, then from all clients at once
through the same pipeline; a client sends its next request when it has its picture. The wait is from
request to encoded picture; one at a time, a request waits for all before it.
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
from benchmarks.controllability import select_conditions
from benchmarks.modes import scene_requests
from core.condition import Condition, RGBImage
from core.errors import SuiteError
from core.metadata import save_png
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store

CONDITIONS = "canny,hed,depth,lineart"


@dataclass(frozen=True, eq=False)
class TimedImage:
    """An image, with seconds from the start of all requests, and of its own."""

    image: RGBImage
    finished: float
    waited: float


def make_requests(
    store: Store, pipeline: Pipeline, model: str, conditions: Sequence[Condition], count: int
) -> list[GenerationRequest]:
    """`count` requests with different scenes and seeds, cycling through the conditions."""
    per_condition = -(-count // len(conditions))
    by_condition = [
        list(scene_requests(store, pipeline, model, condition, per_condition))
        for condition in conditions
    ]
    # All conditions start with the same scenes, so every request gets a seed of its own.
    return [
        replace(request, seed=index)
        for index, request in enumerate(
            request for cycle in zip(*by_condition, strict=True) for request in cycle
        )
    ][:count]


def run_concurrently(
    generate: Callable[[GenerationRequest], RGBImage],
    requests: Sequence[GenerationRequest],
    clients: int,
) -> list[TimedImage]:
    """Run the requests from `clients` threads; client k has every clients-th one from k on."""
    results: dict[int, TimedImage] = {}
    start = time.perf_counter()

    def client(number: int) -> None:
        for index in range(number, len(requests), clients):
            sent = time.perf_counter()
            image = generate(requests[index])
            now = time.perf_counter()
            results[index] = TimedImage(image, now - start, now - sent)

    with ThreadPoolExecutor(clients) as threads:
        for future in [threads.submit(client, number) for number in range(clients)]:
            future.result()
    return [results[index] for index in range(len(requests))]


def run_sequentially(
    generate: Callable[[GenerationRequest], RGBImage], requests: Sequence[GenerationRequest]
) -> list[TimedImage]:
    """Run the requests in order; all wait from the start."""
    start, results = time.perf_counter(), []
    for request in requests:
        image = generate(request)
        elapsed = time.perf_counter() - start
        results.append(TimedImage(image, elapsed, elapsed))
    return results


def compare(
    store: Store, model: str, conditions: Sequence[Condition], clients: int, each: int, mode: str
) -> dict[str, Any]:
    """Time both runs, and compare each client's picture with that of the sequential run.

    Raises:
        SuiteError: The model is not available.
    """
    pipeline = Pipeline(store.load)
    requests = [
        replace(request, mode=mode)
        for request in make_requests(store, pipeline, model, conditions, clients * each)
    ]

    def generate(request: GenerationRequest) -> RGBImage:
        result = pipeline.generate(request)
        save_png(BytesIO(), result.images[0], result, 0)
        return result.images[0]

    for request in requests[: len(conditions)]:
        generate(request)  # loads and warms up
    sequential = run_sequentially(generate, requests)
    concurrent = run_concurrently(generate, requests, clients)
    psnrs = np.array([[psnr(a.image, b.image) for b in sequential] for a in concurrent])
    runs = {"one at a time": sequential, "at once": concurrent}
    networks = store.load(model, conditions[0].weights)
    height, width = (side // networks.downscale for side in sequential[0].image.shape[:2])
    rates = {name: len(requests) / max(r.finished for r in run) for name, run in runs.items()}
    return {
        "model": model,
        "device": str(store.device),
        "dtype": str(store.dtype).removeprefix("torch."),
        "mode": mode,
        "clients": clients,
        "requests": len(requests),
        "max_batch": networks.max_batch(height, width),
        "ways": {
            name: {
                "images_per_second": round(rates[name], 4),
                "wait_p50": round(float(np.percentile([r.waited for r in run], 50)), 3),
                "wait_p95": round(float(np.percentile([r.waited for r in run], 95)), 3),
            }
            for name, run in runs.items()
        },
        "throughput_ratio": round(rates["at once"] / rates["one at a time"], 3),
        "identical": int(
            sum(
                np.array_equal(a.image, b.image)
                for a, b in zip(concurrent, sequential, strict=True)
            )
        ),
        "psnr_lowest": round(float(psnrs.diagonal().min()), 1),
        "strangers": int((psnrs.argmax(1) != np.arange(len(requests))).sum()),
    }


def _print(result: dict[str, Any]) -> None:
    for name, row in result["ways"].items():
        print(
            f"{name:14} {row['images_per_second']:.2f} images per second, "
            f"wait p50 {row['wait_p50']:.1f} s, p95 {row['wait_p95']:.1f} s"
        )
    print(
        f"{result['clients']} clients get {result['throughput_ratio']:.2f} times as many; "
        f"{result['identical']} of {result['requests']} pictures are bit-identical to those made "
        f"alone (lowest PSNR {result['psnr_lowest']} dB), {result['strangers']} another client's"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; `arguments` replace sys.argv.

    Returns 1 if a client got another's picture.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default=CONDITIONS, help="the ControlNets to use in turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1, help="per client")
    parser.add_argument("--mode", default="exact")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    try:
        store = Store(options.device, options.dtype)
        conditions = list(
            select_conditions(store, options.model, options.conditions.split(",")).values()
        )
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
