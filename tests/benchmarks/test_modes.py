"""The benchmark of the modes measures each against the exact one, from the same seed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import modes
from benchmarks.controllability import measurable
from core.modes import MODES, PREVIEW_STEPS
from core.pipeline import Pipeline
from models.store import Store


@pytest.fixture
def canny():
    return {"canny": replace(measurable()["canny"], weights="canny")}


@pytest.fixture
def asked(monkeypatch):
    """What is generated, as (mode, seed, steps)."""
    asked = []
    generate = Pipeline.generate

    def watched(self, request, *rest):
        asked.append((request.mode, request.seed, request.steps))
        return generate(self, request, *rest)

    monkeypatch.setattr(Pipeline, "generate", watched)
    return asked


def test_every_mode_is_measured_against_the_exact_one(models_folder, canny, asked, tmp_path):
    folder = shutil.copytree(models_folder, tmp_path / "models")
    factors = {"lora_down": torch.ones(1, 16, 3, 3), "lora_up": torch.ones(4, 1, 1, 1)}
    state = {f"lora_unet_conv_out.{part}.weight": tensor for part, tensor in factors.items()}
    save_file(state, folder / "tiny/lcm.safetensors")
    found = modes.measure(Store("cpu", "float32", folder), "tiny", canny, 2, each=False)
    seeds = (modes.FIRST_SCENE, modes.FIRST_SCENE + 1)
    steps = {"exact": 2, "fast": 2, "preview": PREVIEW_STEPS}
    assert steps.keys() == MODES.keys() == {mode for mode, *_ in asked[: len(MODES)]}
    assert asked[len(MODES) :] == [(mode, seed, steps[mode]) for seed in seeds for mode in MODES]
    assert list(found["modes"]) == list(MODES) and found["left_out"] == {}
    assert found["modes"]["preview"]["psnr"] < 60 and found["modes"]["preview"]["R"] > 0
    exact, fast = (found["modes"][name] for name in ("exact", "fast"))
    assert (exact["R"], exact["psnr"], exact["score_change_percent"]) == (1.0, None, 0.0)
    # Of two steps none is shortened.
    assert fast["psnr"] > 60 and fast["score"] == exact["score"]
    json.dumps(found)
    assert modes.table(found).count("\n") == 4


def test_a_mode_whose_lora_is_not_here_is_left_out_with_one_line(
    models_folder, canny, asked, capsys
):
    store = Store("cpu", "float32", models_folder)
    found = modes.measure(store, "tiny", canny, 1, each=True)
    assert {mode for mode, *_ in asked} == {"exact", "fast"}
    assert "preview" not in found["modes"] and list(found["left_out"]) == ["preview"]
    told = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(told) == 1
    assert told[0].startswith("preview is left out: Tiny has no LCM-LoRA, which the mode preview")


def test_each_shortcut_is_measured_alone():
    rows = {way.name: way for way in modes.ways(each=True, steps=20)}
    fast = MODES["fast"]
    assert rows["guidance ends"].shortcuts == replace(
        type(fast)(), guidance_until=fast.guidance_until
    )
    assert rows["12 steps"].changes == {"steps": 12}
