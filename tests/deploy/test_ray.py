"""Ray Serve: workers make the same pictures, can be stopped, and may be lost."""

import importlib
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import apps
from core.pipeline import Pipeline
from core.request import GenerationRequest, Progress
from models.store import Store

ray = pytest.importorskip("ray", reason="Ray is not installed (requirements-cluster.txt)")
cluster = importlib.import_module("deploy.ray")

pytestmark = pytest.mark.slow
PICTURE = np.zeros((256, 256, 3), np.uint8)
PICTURE[:, 100:] = 255
PORT = 18765


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """Two workers of a core each, and the front."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.serve.start(http_options={"port": PORT})
    ray.serve.run(cluster.app(cluster.Options(workers=2, only="canny2image")))
    handle = ray.serve.get_deployment_handle("worker", "default")
    yield cluster.Workers(handle, "diorama", Store("cpu").load, 20)
    ray.serve.shutdown()
    ray.shutdown()


def request(**settings: Any) -> GenerationRequest:
    usual = {"steps": 4, "image_resolution": 256, "seed": 5, "model": "diorama"}
    return GenerationRequest.single(apps.find("canny2image"), PICTURE, **(usual | settings))


def replicas() -> list[Any]:
    """Return the actors of the workers."""
    return [
        ray.get_actor(one["name"], namespace="serve")
        for one in ray.util.list_named_actors(all_namespaces=True)
        if "#worker#" in one["name"]
    ]


def test_the_pictures_are_those_of_one_process(workers: Any) -> None:
    told: list[Any] = []
    asked = request(num_samples=2, prompt="a red ball")
    made = workers.generate(asked, told.append, None, 1, told.append)
    wanted = Pipeline(Store("cpu").load).generate(asked)
    assert np.array_equal(made.images, wanted.images) and made.headlines == wanted.headlines
    assert any(isinstance(one, Progress) and one.preview is not None for one in told)


def test_a_stop_reaches_the_worker(workers: Any) -> None:
    told: list[Progress] = []
    begun = time.monotonic()
    made = workers.generate(
        request(steps=100, num_samples=12),
        told.append,
        lambda: any(one.stage == "sample" for one in told),
    )
    assert made.cancelled and made.images == ()
    again = workers.generate(request())  # a worker that went on would be busy for a minute
    assert len(again.images) == 1 and time.monotonic() - begun < 60


def test_a_lost_worker_costs_only_time(workers: Any) -> None:
    asked = request(steps=20, num_samples=4)
    wanted = Pipeline(Store("cpu").load).generate(asked)
    lost = threading.Event()

    def lose(progress: Progress) -> None:
        if progress.stage == "sample" and not lost.is_set():
            lost.set()
            for one in replicas():
                ray.kill(one)

    made = workers.generate(asked, lose)
    assert lost.is_set() and np.array_equal(made.images, wanted.images)


def test_the_front_shows_the_pages(workers: Any) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/canny2image", timeout=60) as page:
        assert b"gradio" in page.read()
