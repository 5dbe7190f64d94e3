"""The speed benchmark times both sides on the same work, and its measures mean what they say."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import _peers, speed
from benchmarks._random_sd15 import random_networks
from core.networks import PredictCall
from models.store import Store


@pytest.fixture
def work(models_folder, monkeypatch):
    monkeypatch.setattr(speed, "GEMM_SIDE", 256)  # quick, and as good a number here
    return speed.Workload(
        load=lambda *controls: Store("cpu", "bfloat16", models_folder).load("tiny", *controls),
        model="tiny",
        control="canny",
        size=256,
        steps=2,
        images=1,
        guidance_scale=2.0,
    )


def test_both_sides_do_the_same_work(work):
    found = speed.compare(replace(work, images=2), speed.PEERS, 2, 1)
    runs = found["runs"]
    assert set(runs) == {"ours", "diffusers", "diffusers_float32"}
    assert set(found["ratios"]) == {"diffusers", "diffusers_float32"}
    # Had ours done other work, its latents would lie far from the float32 reference.
    assert runs["diffusers_float32"]["rho"] == 0
    assert runs["diffusers"]["rho"] == pytest.approx(1)
    assert 0 < runs["ours"]["rho"] < 2
    for run in runs.values():
        assert run["seconds_per_image"]["median"] > run["seconds_per_step"] > 0
        assert run["peak_memory_mb"] > 0
        assert run["share_of_peak"] > 0
    json.dumps(found)


def test_without_peers_ours_is_timed_alone(work):
    found = speed.compare(work, [], 1, 1)
    assert list(found["runs"]) == ["ours"]
    assert found["runs"]["ours"]["rho"] is None


def test_growth_varies_one_thing_at_a_time(work, monkeypatch):
    monkeypatch.setattr(speed, "CONTROLS", ("canny",))
    monkeypatch.setattr(speed, "GROWTH_IMAGES", (2,))
    monkeypatch.setattr(speed, "GROWTH_SIZES", (320,))
    monkeypatch.setattr(speed, "GROWTH_STEPS", (2,))
    rows = speed.growth(replace(work, steps=2))
    varied = [(row["images"], row["size"], row["steps"], row["controls"]) for row in rows]
    assert varied == [(2, 256, 2, 1), (1, 320, 2, 1), (1, 256, 4, 1), (1, 256, 2, 1)]
    json.dumps(rows)


def test_operations_are_counted_whole(work):
    """A convolution and an attention that a person can follow are in it."""
    assert _peers._attention_flops((1, 2, 16, 4), (1, 2, 8, 4)) == 2 * 2 * (2 * 16 * 8 * 4)
    step, rest = _peers.Diffusers(work.load("canny"), "canny").flops(work.request(1))
    unet = work.load().unet
    first = 2 * unet.conv_in.weight.numel() * 32 * 32  # of one picture's latents
    assert step > 2 * 2 * first and rest > 0


def test_random_networks_repeat_and_stay_finite(models_folder):
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


def test_random_networks_have_full_size():
    """860 million parameters in the UNet and 361 in a ControlNet, counted without making them."""
    config = json.loads((speed.ROOT / "models/sd15/unet/config.json").read_text())
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    counts = [sum(p.numel() for p in n.parameters()) for n in (unet, control)]
    assert counts == [859_520_964, 361_279_120]


def test_a_peer_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--peers", "nobody", "--no-server"])
    assert "There is no peer 'nobody'" in capsys.readouterr().err


def test_memory_of_a_run_is_what_it_adds():
    with _peers.PeakMemory(torch.device("cpu")) as peak:
        kept = torch.ones(64 * 2**20, dtype=torch.uint8)  # alive at the last look
    assert 60 < peak.megabytes < 200 and len(kept)


def test_gemm_peak_is_a_plausible_rate():
    assert 1 < speed.gemm_peak(torch.float32, torch.device("cpu")) < 100_000
