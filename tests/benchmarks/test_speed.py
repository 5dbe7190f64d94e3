"""The speed benchmark times both sides on the same work, and its measures mean what they say."""

import json

import pytest
import torch

from benchmarks import speed
from models.store import Store


def test_both_sides_do_the_same_work(models_folder):
    store = Store("cpu", "bfloat16", models_folder)
    found = speed.compare(store, "tiny", "canny", 256, 2, 1)
    runs = found["runs"]
    assert set(runs) == {"ours", "diffusers", "diffusers_float32"}
    assert set(found["ratios"]) == {"diffusers", "diffusers_float32"}
    # Had ours done other work, its latents would lie far from the float32 reference.
    assert runs["diffusers_float32"]["rho"] == 0
    assert runs["diffusers"]["rho"] == pytest.approx(1)
    assert 0 < runs["ours"]["rho"] < 2
    for run in runs.values():
        assert run["seconds_per_image"]["median"] > 0 and run["peak_memory_mb"] > 50
    json.dumps(found)


def test_gemm_peak_is_a_plausible_rate():
    assert 1 < speed.gemm_peak(torch.float32, torch.device("cpu")) < 100_000
