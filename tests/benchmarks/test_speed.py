"""The speed benchmark gives all competitors the same work, and computes its figures correctly."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from benchmarks import _peers, speed
from benchmarks._random_sd15 import random_networks, save
from core.networks import PredictCall
from models.checkpoints.loading import build_base, load_tokenizer
from models.engine.kernels.build import best_target
from models.engine.layers import can_be_light, is_light
from models.store import Store
from tests.tiny_networks import tiny_networks


@pytest.fixture
def work(models_folder, monkeypatch):
    monkeypatch.setattr(speed, "GEMM_SIDE", 256)  # faster, and accurate enough here
    return speed.Workload(
        load=lambda *controls, light=False: Store("cpu", "bfloat16", models_folder).load(
            "tiny", *controls, light=light
        ),
        model="tiny",
        control="canny",
        size=256,
        steps=2,
        images=1,
        guidance_scale=2.0,
    )


@pytest.mark.slow
def test_all_competitors_do_the_same_work(work):
    result = speed.compare(replace(work, images=2), speed.PEERS, 2, 1)
    runs = result["runs"]
    assert set(runs) == {"ours", "diffusers", "diffusers_float32"}
    assert set(result["ratios"]) == {"diffusers", "diffusers_float32"}
    # With other work, our latents would be far from the float32 reference.
    assert runs["diffusers_float32"]["rho"] == 0
    assert runs["diffusers"]["rho"] == pytest.approx(1)
    assert 0.2 < runs["ours"]["rho"] < 1.5
    json.dumps(result)


@pytest.mark.slow
def test_the_light_mode_is_compared_with_the_exact_one(work):
    if not can_be_light(torch.device("cpu"), torch.bfloat16):
        pytest.skip("no GCC, or no AVX2")
    result = speed.compare(work, [speed.LIGHT], 1, 1)
    assert set(result["runs"]) == {"ours", "light"}
    assert set(result["ratios"]) == {"light"}
    # Networks this small take no less memory for it, so their weights tell.
    competitors, _ = speed._peers(work, [speed.LIGHT])
    light = {
        name: any(is_light(weight) for weight in one.networks.unet.parameters())
        for name, one in competitors.items()
    }
    assert light == {"ours": False, "light": True}


@pytest.mark.parametrize("level", speed.LEVELS)
def test_a_level_limits_all_libraries_before_they_are_imported(level, monkeypatch):
    started = []
    monkeypatch.setattr(speed.os, "execve", lambda *given: started.append(given))
    for name in speed.LIMIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    speed.limit(level, ["--level", level, "--steps", "2"])
    ((program, arguments, environment),) = started
    assert arguments == [program, "-m", "benchmarks.speed", "--level", level, "--steps", "2"]
    for name in speed.LIMIT_VARIABLES:
        monkeypatch.setenv(name, environment[name])
    speed.limit(level, ["--level", level])  # the limits hold: it does nothing
    assert len(started) == 1
    best = best_target()
    assert best is None or best.isa in environment.values()


PACE = {"ours": 1.0, "diffusers": 3.0, "diffusers_float32": 5.0}


class TimedPeer:
    """Takes PACE seconds per step and image, and after the steps more in each round."""

    runs: list
    """The names and requests of all peers' runs, in order."""
    clock: SimpleNamespace

    def __init__(self, name="ours"):
        self.name = name
        self.networks = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)

    def __call__(self, request, measurement):
        self.runs.append((self.name, request))
        pace, images = PACE[self.name], request.num_samples
        for step in range(1, request.steps + 1):
            self.clock.now += pace * images
            measurement.end_step(step, images)
        self.clock.now += pace * request.seed**2
        measurement.latents.append(torch.full((images, 1), 5 - pace))

    def flops(self, request):
        return 9e9, 4e9


@pytest.fixture
def timed(monkeypatch):
    """TimedPeer in place of all competitors, with a clock that only they advance."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(TimedPeer, "clock", clock, raising=False)
    monkeypatch.setattr(TimedPeer, "runs", [], raising=False)
    for module in (speed, _peers):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(speed, "Diffusers", TimedPeer)
    return TimedPeer


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
def test_competitors_take_turns_and_warm_up_is_not_timed(work, timed, native, monkeypatch):
    monkeypatch.setattr(speed, "cpu_has_bfloat16", lambda: native)
    names = ["ours", *speed.PEERS]
    peers, weights = {name: timed(name) for name in names}, dict.fromkeys(names, 1000.0)
    monkeypatch.setattr(speed, "_peers", lambda *_: (peers, weights))
    monkeypatch.setattr(speed, "gemm_peak", lambda dtype, _: 320 / dtype.itemsize)
    result = speed.compare(replace(work, steps=4, images=2), speed.PEERS, rounds=3, seeds=1)
    assert [name for name, _ in timed.runs] == [*names, *names, *names[:2], *names[:2]]
    assert [(r.seed, r.steps) for _, r in timed.runs[::3]] == [(0, 2), (1, 4), (2, 4), (3, 4)]
    ours, theirs, exact = (result["runs"][name] for name in names)
    assert ours["seconds_per_image"] == pytest.approx({"median": 6, "p95": 8.25})
    assert (theirs["seconds_per_image"]["median"], exact["seconds_per_image"]["median"]) == (
        18,
        22.5,
    )
    assert result["ratios"] == {"diffusers": 3, "diffusers_float32": 3.75}
    assert (ours["seconds_per_step"], theirs["seconds_per_step"]) == (1, 3)
    assert (ours["rho"], theirs["rho"], exact["rho"]) == (2, 1, 0)
    # Where bfloat16 is emulated, its products are no peak.
    assert ours["share_of_peak"] == pytest.approx(40 / (160 if native else 80) / 6)
    assert exact["share_of_peak"] == pytest.approx(40 / 80 / 22.5)
    assert all(1000 <= row["peak_memory_mb"] < 1100 for row in (ours, theirs, exact))


@pytest.mark.slow
def test_without_competitors_ours_is_timed_alone(work):
    result = speed.compare(work, [], 1, 1)
    assert list(result["runs"]) == ["ours"]
    assert result["runs"]["ours"]["rho"] is None


def test_beside_busy_programs_each_is_compared_with_itself_alone(work, timed, monkeypatch):
    busy, names = [], ("ours", "diffusers")
    peers = {name: timed(name) for name in names}
    monkeypatch.setattr(speed, "_peers", lambda *_: (peers, {}))

    @contextmanager
    def programs(count):
        busy.append(count)
        monkeypatch.setitem(PACE, "ours", 1.0 + count)
        monkeypatch.setitem(PACE, "diffusers", 3.0 + 6 * count)
        yield

    monkeypatch.setattr(speed, "_busy", programs)
    monkeypatch.setattr(speed, "_seconds_of_products", lambda: 1.0 + 2 * busy[-1])
    rows = speed.beside(work, [2, 5], 2)
    assert busy == [row["busy"] for row in rows] == [0, 2, 5]
    assert [set(row["slower"]) for row in rows] == [{"ours", "diffusers", "matrix product"}] * 3
    assert rows[0]["slower"]["ours"] == 1 and rows[0]["slower"]["diffusers"] == 1
    assert [row["slower"]["matrix product"] for row in rows] == [1, 5, 11]
    assert rows[1]["seconds"]["ours"] < rows[2]["seconds"]["ours"]
    assert rows[2]["slower"]["diffusers"] > rows[2]["slower"]["ours"] > 1


def test_busy_programs_end_with_the_block():
    with speed._busy(2):
        found = [one for one in psutil.Process().children() if speed.BUSY in one.cmdline()]
        assert len(found) == 2
    assert not any(one.is_running() for one in found)


@pytest.mark.slow
def test_growth_varies_one_thing_at_a_time(work, monkeypatch):
    runs = []

    class Recorded(speed.Ours):
        def __call__(self, request, measurement):
            runs.append((request, self.networks))
            super().__call__(request, measurement)

    monkeypatch.setattr(speed, "Ours", Recorded)
    monkeypatch.setattr(speed, "CONTROLS", ("canny", "depth"))
    monkeypatch.setattr(speed, "GROWTH_IMAGES", (2,))
    monkeypatch.setattr(speed, "GROWTH_SIZES", (320,))
    monkeypatch.setattr(speed, "GROWTH_STEPS", (2,))
    work = replace(work, load=lambda *controls: tiny_networks(controls=controls))
    rows = speed.growth(work)
    varied = [(2, 256, 2, 1), (1, 320, 2, 1), (1, 256, 4, 1), (1, 256, 2, 1), (1, 256, 2, 2)]
    assert [(r["images"], r["size"], r["steps"], r["controls"]) for r in rows] == varied
    ran = [
        (one.num_samples, len(one.controls[0].image), one.steps, len(one.controls))
        for one, _ in runs[1::2]
    ]
    assert ran == varied, "each is measured after a warm-up run"
    assert [len(networks.controlnets) for _, networks in runs[1::2]] == [1, 1, 1, 1, 2]
    for row, (_, networks) in zip(rows, runs[1::2], strict=True):
        assert row["peak_memory_mb"] >= int(_peers.weights_mb(networks)) > 0
        assert row["seconds"] > row["seconds_per_step"] * row["images"]
    json.dumps(rows)


@pytest.mark.slow
def test_operations_include_convolutions_and_attention(work):
    assert _peers._attention_flops((1, 2, 16, 4), (1, 2, 8, 4)) == 2 * 2 * (2 * 16 * 8 * 4)
    step, rest = _peers.Diffusers(work.load("canny"), "canny").flops(work.request(1))
    unet = work.load().unet
    first = 2 * unet.conv_in.weight.numel() * 32 * 32  # of one picture's latents
    assert step > 2 * 2 * first and rest > 0


@pytest.mark.slow
def test_random_networks_are_reproducible_and_finite(models_folder):
    one, same = (
        random_networks(["canny"], torch.device("cpu"), torch.bfloat16, models_folder / "tiny")
        for _ in range(2)
    )
    for part in ("text_encoder", "unet", "vae"):
        for a, b in zip(
            getattr(one, part).parameters(), getattr(same, part).parameters(), strict=True
        ):
            assert torch.equal(a, b) and a.dtype == torch.bfloat16
    zero = one.controlnets["canny"].controlnet_mid_block
    assert zero.weight.abs().max() > 0
    call = PredictCall(torch.randn(1, 4, 8, 8), 500, one.encode_text(["the red ball"]))
    pictures = one.decode(one.predict(call))
    assert torch.isfinite(pictures).all() and pictures.std() > 0.01


@pytest.mark.slow
def test_random_networks_as_a_folder_are_a_base(models_folder, tmp_path):
    save(tmp_path, models_folder / "tiny")
    networks = build_base(tmp_path, tmp_path)
    assert [one.dtype for one in networks] == [torch.float16] * 3
    assert all(one.isfinite().all() for network in networks for one in network.parameters())
    load_tokenizer(tmp_path)


def test_random_networks_have_full_size():
    """860 million parameters in the UNet and 361 in a ControlNet, counted on the meta device."""
    config = json.loads((speed.ROOT / "models/sd15/unet/config.json").read_text())
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    counts = [sum(p.numel() for p in n.parameters()) for n in (unet, control)]
    assert counts == [859_520_964, 361_279_120]


def test_an_unknown_competitor_is_named(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--peers", "nobody", "--no-server"])
    assert "There is no peer 'nobody'" in capsys.readouterr().err


def test_memory_of_a_run_is_its_peak():
    with _peers.PeakMemory(torch.device("cpu")) as peak:
        held = torch.ones(64 * 2**20, dtype=torch.uint8)
        time.sleep(0.1)
        del held
    assert 60 < peak.megabytes < 80, "it was freed before the end"


def test_gemm_peak_is_the_best_rate(timed, monkeypatch):
    monkeypatch.setattr(speed, "GEMM_SIDE", 100)
    ticks = iter([0.0, 0.3, 1.0, 1.02, 2.0, 2.001, 3.0, 3.04, 4.0, 4.5])
    monkeypatch.setattr(timed.clock, "perf_counter", lambda: next(ticks))
    # 2 x 100 x 100 x 100 operations in a thousandth of a second.
    assert speed.gemm_peak(torch.float32, torch.device("cpu")) == pytest.approx(2)
