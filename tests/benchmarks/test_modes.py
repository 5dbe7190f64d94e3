"""The benchmark of modes compares each with the exact one, from the same seed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import modes
from benchmarks.controllability import conditions_by_annotator
from core.modes import MODES, PREVIEW_STEPS
from core.pipeline import Pipeline
from models.store import Store


@pytest.fixture
def canny():
    return {"canny": replace(conditions_by_annotator()["canny"], weights="canny")}


@pytest.fixture
def generated(monkeypatch):
    """The generated requests as (mode, seed, steps)."""
    generated = []
    generate = Pipeline.generate

    def recorded(self, request, *rest):
        generated.append((request.mode, request.seed, request.steps))
        return generate(self, request, *rest)

    monkeypatch.setattr(Pipeline, "generate", recorded)
    return generated


@pytest.mark.slow
def test_every_mode_is_compared_with_the_exact_one(models_folder, canny, generated, tmp_path):
    folder = shutil.copytree(models_folder, tmp_path / "models")
    factors = {"lora_down": torch.ones(1, 16, 3, 3), "lora_up": torch.ones(4, 1, 1, 1)}
    state = {f"lora_unet_conv_out.{part}.weight": tensor for part, tensor in factors.items()}
    save_file(state, folder / "tiny/lcm.safetensors")
    result = modes.measure(Store("cpu", "float32", folder), "tiny", canny, 2, each=False)
    seeds = (modes.FIRST_SCENE, modes.FIRST_SCENE + 1)
    steps = {"exact": 2, "fast": 2, "preview": PREVIEW_STEPS}
    assert list(steps) == [mode for mode in MODES if mode != "light"]  # which needs bfloat16
    assert steps.keys() == {mode for mode, *_ in generated[: len(steps)]}
    assert generated[len(steps) :] == [
        (mode, seed, steps[mode]) for seed in seeds for mode in steps
    ]
    assert list(result["modes"]) == list(steps) and list(result["left_out"]) == ["light"]
    assert result["modes"]["preview"]["psnr"] < 60 and result["modes"]["preview"]["R"] > 0
    exact, fast = (result["modes"][name] for name in ("exact", "fast"))
    assert (exact["R"], exact["psnr"], exact["score_change_percent"]) == (1.0, None, 0.0)
    # Runs of two steps are never shortened.
    assert fast["psnr"] > 60 and fast["score"] == exact["score"]
    json.dumps(result)
    assert modes.table(result).count("\n") == 4


@pytest.mark.slow
def test_a_mode_that_cannot_run_is_left_out_with_one_line(models_folder, canny, generated, capsys):
    store = Store("cpu", "float32", models_folder)
    result = modes.measure(store, "tiny", canny, 1, each=True)
    assert {mode for mode, *_ in generated} == {"exact", "fast"}
    assert not {"preview", "light"} & result["modes"].keys()
    assert list(result["left_out"]) == ["preview", "light"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(lines) == 2
    assert lines[0].startswith("preview is left out: Tiny has no LCM-LoRA, which the mode preview")
    assert lines[1].startswith("light is left out: The mode light has kernels for x86 processors")


def test_each_shortcut_is_measured_alone():
    rows = {v.name: v for v in modes.variants(each=True, steps=20)}
    fast = MODES["fast"]
    assert rows["guidance ends"].shortcuts == replace(
        type(fast)(), guidance_until=fast.guidance_until
    )
    assert rows["12 steps"].changes == {"steps": 12}
