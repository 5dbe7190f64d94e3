"""Throughput with concurrent clients, and whether each client gets its own picture.

    python -m benchmarks.throughput --model diorama --clients 16 [--requests N] [--json]

Every request has its own held-out scene, with the ControlNets of --conditions in turn, and ends
with a PNG-encoded picture. All requests run one after the other, then from all clients at once
through the same pipeline; a client sends its next request when it has its picture. The wait is from
request to encoded picture; one at a time, a request waits for all before it.

With --workers N all clients are also served by N processes of one thread each, with Ray Serve
(deploy/ray.py): once as they are, and once while a worker is killed after a third of the pictures.
The hop is what a request takes beyond its own work, more than in this process.
"""

import argparse
import importlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
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
HOPS = 20
"""Requests that the hop is the median of."""


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


@contextmanager
def served_by(workers: int, model: str) -> Iterator[tuple[Pipeline, Callable[[], None]]]:
    """Start so many workers; yield the pipeline that sends them requests, and what kills one."""
    cluster: Any = importlib.import_module("deploy.ray")
    ray = cluster.ray
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        ray.serve.run(cluster.app(cluster.Options(workers=workers, model=model)))
        handle = ray.serve.get_deployment_handle("worker", "default")

        def kill_one() -> None:
            names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
            name = next(one for one in names if "#worker#" in one)
            ray.kill(ray.get_actor(name, namespace="serve"))

        yield cluster.Workers(handle, model, Store("cpu").load, 1000), kill_one
    finally:
        ray.serve.shutdown()
        ray.shutdown()


def overhead(pipeline: Pipeline, request: GenerationRequest) -> float:
    """Return the median of the seconds that a request takes beyond its own work."""
    beyond = []
    for _ in range(HOPS):
        begun = time.perf_counter()
        result = pipeline.generate(replace(request, steps=1))
        beyond.append(time.perf_counter() - begun - sum(result.seconds.values()))
    return float(np.median(beyond))


def compare(
    store: Store,
    model: str,
    conditions: Sequence[Condition],
    clients: int,
    each: int,
    mode: str,
    workers: int = 0,
) -> dict[str, Any]:
    """Time all runs, and compare each client's picture with that of the sequential run.

    Raises:
        SuiteError: The model is not available.
    """
    pipeline = Pipeline(store.load)
    requests = [
        replace(request, mode=mode)
        for request in make_requests(store, pipeline, model, conditions, clients * each)
    ]

    def generate(request: GenerationRequest, by: Pipeline = pipeline) -> RGBImage:
        result = by.generate(request)
        save_png(BytesIO(), result.images[0], result, 0)
        return result.images[0]

    for request in requests[: len(conditions)]:
        generate(request)  # loads and warms up
    sequential = run_sequentially(generate, requests)
    concurrent = run_concurrently(generate, requests, clients)
    psnrs = np.array([[psnr(a.image, b.image) for b in sequential] for a in concurrent])
    runs = {"one at a time": sequential, "at once": concurrent}
    hop = None
    if workers:
        with served_by(workers, model) as (remote, kill_one):
            for request in requests[: 2 * workers * len(conditions)]:
                generate(request, remote)
            hop = overhead(remote, requests[0]) - overhead(pipeline, requests[0])
            to_workers = partial(generate, by=remote)
            runs[f"{workers} workers"] = run_concurrently(to_workers, requests, clients)
            made = itertools.count(1)

            def losing_one(request: GenerationRequest) -> RGBImage:
                image = to_workers(request)
                if next(made) == len(requests) // 3:
                    kill_one()
                return image

            runs[f"{workers} workers, one killed"] = run_concurrently(losing_one, requests, clients)
    networks = store.load(model, conditions[0].weights)
    height, width = (side // networks.downscale for side in sequential[0].image.shape[:2])
    identical = {
        name: sum(np.array_equal(a.image, b.image) for a, b in zip(run, sequential, strict=True))
        for name, run in runs.items()
    }
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
        "identical": identical["at once"],
        "identical_of_workers": {
            name: same
            for name, same in identical.items()
            if name not in ("one at a time", "at once")
        },
        "hop_seconds": None if hop is None else round(hop, 4),
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
    for name, same in result["identical_of_workers"].items():
        print(f"{name}: {same} of {result['requests']} bit-identical")
    if result["hop_seconds"] is not None:
        print(f"hop {1000 * result['hop_seconds']:.0f} ms a request")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; `arguments` replace sys.argv.

    Returns 1 if a client got another's picture.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--conditions", default=CONDITIONS, help="the ControlNets to use in turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1, help="per client")
    parser.add_argument("--workers", type=int, default=0, help="also measure Ray Serve (see above)")
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
                store,
                options.model,
                conditions,
                options.clients,
                options.requests,
                options.mode,
                options.workers,
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
