"""The benchmark of many clients knows whose picture is whose."""

import json
from dataclasses import replace

import pytest

from benchmarks import throughput
from benchmarks.controllability import measurable
from core.pipeline import Pipeline
from models.store import Store


@pytest.fixture
def canny():
    return [replace(measurable()["canny"], weights="canny")]


def test_each_client_has_its_own_picture(models_folder, canny):
    store = Store("cpu", "float32", models_folder)
    found = throughput.compare(store, "tiny", canny, clients=3, each=2, mode="exact")
    assert (found["requests"], found["strangers"]) == (6, 0)
    assert found["psnr_lowest"] > 50
    assert all(row["images_per_second"] > 0 for row in found["ways"].values())
    json.dumps(found)


def test_a_picture_that_is_anothers_is_found(models_folder, canny, monkeypatch):
    made = []
    generate = Pipeline.generate

    def mixed_up(self, request):
        made.append(request)
        late = len(made) > 4  # behind the warming up and three made alone
        return generate(self, replace(request, seed=0) if late else request)

    monkeypatch.setattr(Pipeline, "generate", mixed_up)
    store = Store("cpu", "float32", models_folder)
    found = throughput.compare(store, "tiny", canny, clients=3, each=1, mode="exact")
    assert found["strangers"] >= 1
