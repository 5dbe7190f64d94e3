"""The throughput benchmark tells whose picture is whose."""

import json
from dataclasses import replace

import pytest

from benchmarks import throughput
from benchmarks.controllability import conditions_by_annotator
from core.pipeline import Pipeline
from models.store import Store


@pytest.fixture
def canny():
    return [replace(conditions_by_annotator()["canny"], weights="canny")]


@pytest.mark.slow
def test_each_client_gets_its_own_picture(models_folder, canny):
    store = Store("cpu", "float32", models_folder)
    result = throughput.compare(store, "tiny", canny, clients=3, each=2, mode="exact")
    assert (result["requests"], result["strangers"]) == (6, 0)
    assert result["psnr_lowest"] > 50
    assert all(row["images_per_second"] > 0 for row in result["ways"].values())
    json.dumps(result)


@pytest.mark.slow
def test_another_clients_picture_is_detected(models_folder, canny, monkeypatch):
    generated = []
    generate = Pipeline.generate

    def mixed_up(self, request):
        generated.append(request)
        late = len(generated) > 4  # after the warm-up and three sequential ones
        return generate(self, replace(request, seed=0) if late else request)

    monkeypatch.setattr(Pipeline, "generate", mixed_up)
    store = Store("cpu", "float32", models_folder)
    result = throughput.compare(store, "tiny", canny, clients=3, each=1, mode="exact")
    assert result["strangers"] >= 1
