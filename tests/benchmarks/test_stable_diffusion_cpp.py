"""stable-diffusion.cpp gets the same weights and work, and is left out where it cannot be fair.

The program itself is optional, so a stand-in records what it is given; the benchmark runs it.
"""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import _peers, _stable_diffusion_cpp, speed
from benchmarks._shared import psnr
from benchmarks._stable_diffusion_cpp import (
    KINDS,
    MODULE,
    build,
    why_no_cpp,
    write_checkpoints,
)
from core.networks import ControlInput, PredictCall
from models.store import Store
from tests.tiny_networks import tiny_networks

FEATURES = """System Info:
    SSE3 = 1 |     AVX = 1 |     AVX2 = 1 |     AVX512 = 1 |     VSX = 0 | """


class StandIn:
    """Draws diffusers' picture, a little changed, and takes its steps."""

    made: list
    drawn: np.ndarray

    def __init__(self, **options):
        self.options = options
        self.made.append(self)

    def generate_image(self, prompt, negative_prompt, progress_callback, **options):
        self.asked = {"prompt": prompt, "negative_prompt": negative_prompt, **options}
        for step in range(options["sample_steps"]):
            progress_callback(step + 1, options["sample_steps"], 0.1)
        return [Image.fromarray(self.drawn ^ 1).convert("RGBA")] * options["batch_count"]


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType(MODULE)
    module.StableDiffusion = StandIn
    module.sd_get_system_info = FEATURES.encode
    module.__spec__ = sys.__spec__
    monkeypatch.setattr(_stable_diffusion_cpp, "version", lambda _: "1.2")
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(StandIn, "made", [], raising=False)
    return StandIn


@torch.no_grad()
def test_the_checkpoints_hold_the_same_networks(models_folder, tmp_path):
    networks = tiny_networks()
    base, control = write_checkpoints(networks, "canny", tmp_path)
    place = tmp_path / base.stem / "controlnet"
    place.mkdir(parents=True)
    control.rename(place / "canny.safetensors")
    loaded = Store("cpu", "float32", models_folder).load(f"{base}", "canny")
    text, latents = networks.encode_text(["the red ball"]), torch.randn(1, 4, 8, 8)
    hint = torch.rand(1, 3, 64, 64)

    def predicted(one):
        given = ControlInput("canny", hint, (1.0,) * one.residual_count("canny"))
        return one.predict(PredictCall(latents, 500, text, [given]))

    assert torch.allclose(predicted(loaded), predicted(networks), atol=2e-2)
    assert not torch.allclose(predicted(loaded), torch.zeros(()), atol=2e-1)


@pytest.mark.slow
def test_it_gets_the_same_work(models_folder, monkeypatch, stand_in):
    monkeypatch.setattr(speed, "GEMM_SIDE", 256)
    work = speed.Workload(
        load=lambda *controls, light=False: Store("cpu", "float32", models_folder).load(
            "tiny", *controls, light=light
        ),
        model="tiny",
        control="canny",
        size=256,
        steps=4,
        images=2,
        guidance_scale=2.0,
    )
    request = work.request(1)
    exact = _peers.Diffusers(work.load("canny"), "canny")
    usual = exact._pipeline.scheduler
    stand_in.drawn = exact.trailing_picture(request)
    assert exact._pipeline.scheduler is usual and usual.config.timestep_spacing == "leading"
    assert stand_in.drawn.shape == (256, 256, 3) and stand_in.drawn.std() > 1
    measurement = _peers.Measurement()
    exact(request, measurement)
    assert 10 < psnr(measurement.picture, stand_in.drawn) < 45, "another sampler's picture"
    result = speed.compare(work, ["diffusers_float32", *KINDS], 2, 2)
    assert [one.options["wtype"] for one in stand_in.made] == ["f16", "q8_0"]
    assert stand_in.made[0].options["rng_type"] == "cpu"
    asked = stand_in.made[1].asked
    last = work.request(2)
    assert np.array_equal(np.asarray(asked.pop("control_image")), last.controls[0].image)
    assert asked == {
        "prompt": last.prompt,
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "cfg_scale": 2.0,
        "sample_method": "ddim_trailing",
        "sample_steps": 4,
        "seed": 2,
        "batch_count": 2,
        "control_strength": 1.0,
    }
    for name in KINDS:
        row = result["runs"][name]
        assert row["rho"] is None and row["seconds_per_step"] > 0
        assert row["psnr"] == pytest.approx(psnr(stand_in.drawn ^ 1, stand_in.drawn))
        assert row["psnr"] == pytest.approx(48.13, abs=0.01)


def test_it_is_left_out_where_it_is_not_or_knows_more(monkeypatch, stand_in):
    assert build() == "stable-diffusion-cpp-python 1.2 SSE3 AVX AVX2 AVX512"
    assert why_no_cpp(True, None) == why_no_cpp(True, "avx512") == ""
    assert why_no_cpp(True, "avx2") == "it was built with AVX512, which avx2 has not"
    assert "does not tell" in why_no_cpp(True, "avx512-vnni")
    assert "not this model" in why_no_cpp(False, None)
    monkeypatch.setitem(sys.modules, MODULE, None)
    assert "is not installed" in why_no_cpp(True, None)


def test_only_models_of_its_size_are_compared():
    assert speed._is_sd1(speed.RANDOM) and speed._is_sd1("sd15") and not speed._is_sd1("diorama")
