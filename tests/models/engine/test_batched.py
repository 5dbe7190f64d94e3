"""Calls of several requests, predicted as one batch, give what each gives alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.networks import ControlInput, PredictCall
from models.engine import batched
from models.engine.kernels.build import has_kernels
from models.engine.offload import Offloader
from models.networks import CPU_MAX_BATCH, GPU_MAX_BATCH, DiffusersNetworks
from models.store import Store
from tests.tiny_networks import tiny_networks, tiny_unet


@pytest.fixture(scope="module")
def pair() -> tuple[DiffusersNetworks, DiffusersNetworks]:
    """The same base twice, as the store hands it to two requests, each with its ControlNets."""
    whole = tiny_networks(controls=("canny", "depth"))
    one = replace(whole, controlnets={"canny": whole.controlnets["canny"]})
    return whole, one


Call = tuple[DiffusersNetworks, PredictCall]


def call_of(
    networks: DiffusersNetworks,
    seed: int,
    images: int = 1,
    controls: tuple[tuple[str, float], ...] = (("canny", 1.0),),
    timestep: int = 500,
    texts: int = 2,
    chunks: int = 1,
) -> Call:
    """Everything in it follows from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return networks, PredictCall(
        torch.randn(images, 4, 8, 8, generator=generator),
        timestep,
        networks.encode_text([" BREAK ".join(["the red ball"] * chunks), f"a {seed}"][:texts]),
        [
            ControlInput(name, torch.rand(1, 3, 64, 64, generator=generator), (scale,) * 7)
            for name, scale in controls
        ],
    )


def assert_as_alone(calls: list[Call]) -> list[Tensor]:
    found = calls[0][0].predict_batched(calls)
    for (networks, call), prediction in zip(calls, found, strict=True):
        torch.testing.assert_close(prediction, networks.predict(call), rtol=1e-4, atol=1e-5)
    return found


def test_other_prompts_maps_strengths_and_controlnets(pair) -> None:
    whole, one = pair
    calls = [
        call_of(whole, 1, controls=(("canny", 1.0),)),
        call_of(one, 2, images=2, controls=(("canny", 0.4),)),
        call_of(whole, 3, controls=(("depth", 0.7), ("canny", 0.2))),
        call_of(whole, 4, controls=()),
        call_of(whole, 5, controls=(("depth", 0.0),)),
    ]
    found = assert_as_alone(calls)
    assert not torch.allclose(found[0], found[3], atol=1e-3)


def test_residuals_alone(pair) -> None:
    whole, one = pair
    calls = [
        call_of(whole, 1, controls=(("depth", 0.7), ("canny", 0.2))),
        call_of(one, 2, images=2, controls=(("canny", 0.4),)),
        call_of(whole, 3, controls=(("canny", 1.0),), texts=1),
        call_of(whole, 4, controls=(("depth", 0.0),)),
    ]
    found = whole.control_residuals_batched(calls)
    for (networks, call), residuals in zip(calls, found, strict=True):
        wanted = networks.control_residuals(call)
        torch.testing.assert_close(residuals, wanted, rtol=1e-4, atol=1e-5)
    assert found[3] == ()


def test_residuals_that_were_kept(pair) -> None:
    whole, _ = pair
    first, (_, second) = call_of(whole, 1), call_of(whole, 2, images=2)
    kept = whole.control_residuals(second)
    found = assert_as_alone([first, (whole, replace(second, controls=(), residuals=kept))])
    torch.testing.assert_close(found[1], whole.predict(second), rtol=1e-4, atol=1e-5)


def test_one_text_as_well_as_two(pair) -> None:
    assert_as_alone([call_of(pair[0], seed, texts=1) for seed in (1, 2)])


def test_calls_that_cannot_be_batched_run_alone(pair, monkeypatch) -> None:
    sizes = []
    predict = batched.predict

    def watched(calls):
        sizes.append((calls[0][1].timestep, len(calls)))
        return predict(calls)

    monkeypatch.setattr(batched, "predict", watched)
    whole, one = pair
    other = tiny_networks(seed=1)
    assert_as_alone(
        [
            call_of(whole, 1),
            call_of(whole, 2, timestep=7),
            call_of(whole, 3, texts=1),
            call_of(other, 4),
            call_of(one, 5),
            call_of(whole, 6, chunks=3),
        ]
    )
    assert sizes == [(500, 2)]


def test_prompts_of_two_chunks_are_batched_with_each_other(pair, monkeypatch) -> None:
    sizes = []
    predict = batched.predict
    monkeypatch.setattr(
        batched, "predict", lambda calls: (sizes.append(len(calls)), predict(calls))[1]
    )
    whole, one = pair
    assert_as_alone(
        [call_of(whole, 1, chunks=2), call_of(whole, 2), call_of(one, 3, chunks=2, images=2)]
    )
    assert sizes == [2]


def test_guidance_scales_of_a_distilled_unet_are_not_mixed() -> None:
    networks = tiny_networks()
    networks = replace(networks, unet=tiny_unet(time_cond_proj_dim=8))
    assert networks.takes_guidance_scale
    _, call = call_of(networks, 1, texts=1)
    calls = [(networks, replace(call, guidance_scale=scale)) for scale in (1.0, 1.0, 8.0)]
    first, same, other = assert_as_alone(calls)
    torch.testing.assert_close(first, same)
    assert not torch.allclose(first, other, atol=1e-3)


def test_half_precision_is_kept_apart_from_float32(pair) -> None:
    whole, _ = pair
    half = replace(
        whole,
        unet=tiny_networks().unet.bfloat16(),
        controlnets={"canny": tiny_networks().controlnets["canny"].bfloat16()},
        text_encoder=tiny_networks().text_encoder.bfloat16(),
        dtype=torch.bfloat16,
    )
    calls = [call_of(half, 1), call_of(half, 2), call_of(whole, 1)]
    found = whole.predict_batched(calls)
    for (networks, call), prediction in zip(calls, found, strict=True):
        assert prediction.dtype == torch.float32
        torch.testing.assert_close(prediction, networks.predict(call), rtol=0.05, atol=0.05)


def test_images_are_batched_on_a_gpu_and_small_ones_where_our_kernels_run(
    pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    roomy = replace(pair[0], device=gpu, offloader=Offloader(gpu, lambda: math.inf))
    assert roomy.max_batch(8, 8) == GPU_MAX_BATCH
    assert pair[0].max_batch(8, 8) == 1  # float32
    half = replace(pair[0], dtype=torch.bfloat16)
    for there, most in ((True, CPU_MAX_BATCH), (False, 1)):
        monkeypatch.setattr("models.networks.has_kernels", lambda there=there: there)
        assert half.max_batch(8, 8) == most
        assert half.max_batch(1000, 1000) == 1


@pytest.mark.skipif(not has_kernels(), reason="not every kernel of ours runs here")
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 40)])
def test_with_our_kernels_batching_changes_no_bit(size: tuple[int, int]) -> None:
    """On Diorama's own weights, whose sizes those of the tiny networks are not."""
    networks: Any = Store("cpu", "bfloat16").load("diorama", "canny", "depth")
    generator = torch.Generator().manual_seed(0)
    sides = [8 * side for side in size]
    scales = (1.0,) * networks.residual_count("canny")
    given = [(1, "a box", "canny"), (2, "", "depth"), (1, "", "canny")]
    given += [(1, "a (blue:1.3) box BREAK a tree", "canny"), (2, "a BREAK tree", "depth")]
    calls = [
        PredictCall(
            torch.randn(images, 4, *size, generator=generator),
            500,
            networks.encode_text(["a red ball on grass", prompt]),
            [ControlInput(control, torch.rand(1, 3, *sides, generator=generator), scales)],
        )
        for images, prompt, control in given
    ]
    found = networks.predict_batched([(networks, call) for call in calls])
    for call, prediction in zip(calls, found, strict=True):
        assert prediction.std() > 0.1
        assert torch.equal(prediction, networks.predict(call))
    latents = torch.randn(3, 4, *size, generator=generator)
    pictures = networks.decode(latents)
    assert pictures.std() > 0.1
    for one, picture in zip(latents.split(1), pictures.split(1), strict=True):
        assert torch.equal(networks.decode(one), picture)
