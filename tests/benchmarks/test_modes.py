"""The benchmark of the modes measures each against the exact one, from the same seed."""

import json
from dataclasses import replace

import pytest

from benchmarks import modes
from benchmarks.controllability import measurable
from core.pipeline import Pipeline
from core.shortcuts import MODES
from models.store import Store


@pytest.fixture
def canny():
    return {"canny": replace(measurable()["canny"], weights="canny")}


def test_every_mode_is_measured_against_the_exact_one(models_folder, canny, monkeypatch):
    asked = []
    generate = Pipeline.generate

    def watched(self, condition, request, *rest):
        asked.append((request.mode, request.seed, request.steps))
        return generate(self, condition, request, *rest)

    monkeypatch.setattr(Pipeline, "generate", watched)
    found = modes.measure(Store("cpu", "float32", models_folder), "tiny", canny, 2, each=False)
    seeds = (modes.FIRST_SCENE, modes.FIRST_SCENE + 1)
    assert asked[1:] == [(mode, seed, 2) for seed in seeds for mode in MODES]
    assert list(found["modes"]) == list(MODES)
    exact, fast = (found["modes"][name] for name in ("exact", "fast"))
    assert (exact["R"], exact["psnr"], exact["score_change_percent"]) == (1.0, None, 0.0)
    # Of two steps none is shortened.
    assert fast["psnr"] > 60 and fast["score"] == exact["score"]
    json.dumps(found)
    assert modes.table(found).count("\n") == 3


def test_each_shortcut_is_measured_alone():
    rows = {way.name: way for way in modes.ways(each=True, steps=20)}
    fast = MODES["fast"]
    assert rows["guidance ends"].shortcuts == replace(
        type(fast)(), guidance_until=fast.guidance_until
    )
    assert rows["12 steps"].changes == {"steps": 12}
