"""The suite on many workers, with Ray Serve: a front with the pages, workers for the pictures.

    pip install -r requirements-cluster.txt
    python -m deploy.ray --workers 2
    serve run deploy.ray:app workers=2 gpus=1

The front is a process without networks: it shows the pages and sends each request to a worker. Each
worker is a process with a pipeline, and batches what it gets. All have the first model; a request
for another one goes to a worker that has it already, if that is not full. A request whose worker is
lost goes to another one, with its seed, so that the same pictures come. More: deploy/README.md.
"""

import argparse
import asyncio
import logging
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

import apps
from apps.web.remote import gather, work
from apps.web.serve import Environment, make_suite, mounted
from core.condition import Condition
from core.errors import DeviceUnavailable
from core.pipeline import Load, Pipeline, draw_seed
from core.request import GenerationRequest, GenerationResult, Progress
from core.wire import packed
from models.registry import Registry

try:
    import ray
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.handle import DeploymentHandle
except ModuleNotFoundError:
    sys.exit("Ray is not installed: pip install -r requirements-cluster.txt")

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

MOST_TRIES = 3
"""Workers that a request may lose before it is given up."""
HEARTBEAT_S = 0.5
KEPT_MODELS = 8
"""Models with their ControlNets by which requests find a worker that has them."""
MOST_AT_ONCE = 8
"""Requests of a worker: as many as it samples in one batch. More wait in the front."""
MOST_CONNECTIONS = 1000
"""Open pages and calls of the front, each with a connection that waits for news."""
LOST = "The worker that made the pictures was lost, three times in a row: please try again later."


class Options(BaseModel):
    """How many workers there are, and what each has."""

    workers: int = Field(1, ge=1)
    most_workers: int = Field(0, ge=0)
    """Workers are added up to so many while requests wait, and removed after; 0 is `workers`."""
    cpus: float = Field(1, gt=0)
    """Cores of a worker, which Ray also makes its threads."""
    gpus: float = Field(0, ge=0)
    model: str = ""
    only: str = ""
    """Names of apps, as launch.py's --only; empty for all."""


class Worker:
    """Makes pictures, several requests at once."""

    def __init__(self, model: str) -> None:
        """Load the first model, so that the worker counts as ready when it is."""
        self._suite = make_suite(model, Environment.read())
        self._conditions = _conditions()
        self._suite.load_now(apps.conditions()[0])
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, "reports")

    @serve.multiplexed(max_num_models_per_replica=KEPT_MODELS)
    async def _noted(self, networks: str) -> str:
        """Note for the routing that this worker has networks: its store loads and keeps them."""
        return networks

    async def make(self, given: bytes) -> AsyncIterator[bytes]:
        """Yield the reports of a packed request; closing the iterator stops it within a step."""
        if networks := serve.get_multiplexed_model_id():
            await self._noted(networks)
        closed = threading.Event()
        reports = work(self._suite.pipeline, given, self._conditions, closed, closed.is_set)
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.run_in_executor(self._threads, next, reports, b""):
                yield data
        finally:
            closed.set()


class Workers(Pipeline):
    """Makes pictures on workers; maps that are drawn alone are drawn in this process."""

    def __init__(
        self, worker: DeploymentHandle, first: str, load: Load, most_requests: int, *_: Any
    ) -> None:
        """Take a handle of Worker, the model that all of them have, and Pipeline's arguments."""
        super().__init__(load, most_requests)
        self._worker, self._first = worker, first
        self._conditions = _conditions()

    def generate(
        self,
        request: GenerationRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        preview_every: int = 0,
        on_images: Callable[[GenerationResult], None] | None = None,
    ) -> GenerationResult:
        """Make the request's pictures as Pipeline.generate does.

        Raises:
            SuiteError: as Pipeline.generate, or every worker it was given to was lost.
        """
        if request.seed == -1:
            request = replace(request, seed=draw_seed())
        reports = self._reports(request, preview_every, cancelled or (lambda: False))
        return gather(reports, self._conditions, request, on_progress, on_images)

    def _reports(
        self, request: GenerationRequest, preview_every: int, cancelled: Callable[[], bool]
    ) -> Iterator[bytes]:
        given = packed((request, preview_every))
        networks = [request.model, *(one.condition.weights for one in request.controls)]
        worker = self._worker.options(
            stream=True,
            multiplexed_model_id="" if request.model == self._first else " ".join(networks),
        )
        for _ in range(MOST_TRIES):
            responses = worker.make.remote(given)
            try:
                for data in _arriving(responses):
                    if cancelled():
                        responses.cancel()
                        return
                    if data is not None:
                        yield data
            except RayActorError as error:
                log.warning("A worker was lost, its request goes to another one: %s", error)
            else:
                return
        raise DeviceUnavailable(LOST)


def _arriving(responses: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield what arrives, and None where nothing has for HEARTBEAT_S.

    Raises:
        BaseException: as the responses.
    """
    arrived: queue.SimpleQueue[tuple[bytes | None, BaseException | None]] = queue.SimpleQueue()

    def receive() -> None:
        try:
            for data in responses:
                arrived.put((data, None))
            arrived.put((None, None))
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            arrived.put((None, error))

    threading.Thread(target=receive, name="receive", daemon=True).start()
    while True:
        try:
            data, error = arrived.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            yield None
            continue
        if error:
            raise error
        if data is None:
            return
        yield data


def _conditions() -> dict[str, Condition]:
    return {one.name: one for one in apps.conditions()}


def _pages(worker_name: str, options: Options) -> "FastAPI":
    """Return the front's pages, in its own process."""
    from apps.web.site import build_site  # noqa: PLC0415 - gradio takes seconds

    environment = Environment.read()
    registry = Registry()
    first = registry.card(options.model or registry.default_model()).name
    worker = serve.get_deployment_handle(worker_name)
    suite = make_suite(options.model, environment, partial(Workers, worker, first))
    wanted = options.only.split(",") if options.only else apps.names()
    return mounted(build_site([apps.find(name) for name in wanted], suite), environment, suite)


def app(options: Options) -> serve.Application:
    """Return the application, as `serve run deploy.ray:app` wants it."""
    workers = serve.deployment(
        Worker,
        name="worker",
        max_ongoing_requests=MOST_AT_ONCE,
        autoscaling_config={
            "min_replicas": options.workers,
            "max_replicas": max(options.workers, options.most_workers),
            "target_ongoing_requests": MOST_AT_ONCE / 2,
        },
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    ).bind(options.model)

    def pages() -> "FastAPI":  # Ray takes only a function for one that makes the pages
        return _pages("worker", options)

    @serve.ingress(pages)
    class Front:
        """The pages; one process, because a visitor's session lives in it."""

        def __init__(self, _: DeploymentHandle) -> None:
            """Bound to the workers, so that these are deployed with it."""

    front = serve.deployment(
        Front,
        name="front",
        num_replicas=1,
        max_ongoing_requests=MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(workers)


def main() -> None:
    """Run the command line, on a cluster of this machine or the one of RAY_ADDRESS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    for name, field in Options.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=field.annotation, default=field.default
        )
    given = vars(parser.parse_args())
    ray.init()
    serve.start(http_options={"host": given.pop("host"), "port": given.pop("port")})
    serve.run(app(Options(**given)), blocking=True)


if __name__ == "__main__":
    main()
