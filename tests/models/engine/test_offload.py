"""Parts are loaded when used and offloaded when memory is short, and the numbers stay the same."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.condition import ALREADY_A_MAP
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.checkpoints.loading import Placement
from models.engine.offload import Offloader
from models.networks import GPU_MAX_BATCH, DiffusersNetworks, workspace_bytes
from tests.core.conftest import condition  # noqa: F401 - a fixture
from tests.tiny_networks import tiny_networks

PART = 4 * (8 * 8 + 8)
"""Bytes of a part."""


def part(value: float = 1.0) -> nn.Linear:
    made = nn.Linear(8, 8).requires_grad_(False)
    nn.init.constant_(made.weight, value)
    return made


class Elsewhere(Offloader):
    """A stand-in for a GPU that holds so many parts: what is on it is a copy in other memory."""

    def __init__(self, holds: float) -> None:
        self.copies: list[Tensor] = []
        super().__init__(torch.device("cpu"), lambda: holds * PART - self.filled())

    def filled(self) -> int:
        parts = [one for used in self._used if (one := used()) is not None]
        there = [t for one in parts for t in one.parameters() if self._is_here(t)]
        return sum({one.data_ptr(): one.nbytes for one in there}.values())

    def _is_here(self, tensor: Tensor) -> bool:
        return tensor.data_ptr() in [one.data_ptr() for one in self.copies]

    def _to_device(self, tensor: Tensor) -> Tensor:
        self.copies.append(tensor.clone())
        return self.copies[-1]

    def has(self, *parts: nn.Module) -> list[bool]:
        """Tell of each whether it is there, whole."""
        return [all(map(self._is_here, one.parameters())) for one in parts]


def test_with_room_for_all_nothing_is_offloaded() -> None:
    parts = [part() for _ in range(3)]
    offloader = Elsewhere(holds=3)
    for one in parts:
        with offloader.using(one):
            assert offloader.has(one) == [True]
    assert offloader.has(*parts) == [True] * 3 and len(offloader.copies) == 2 * 3
    assert offloader.free_with(parts) == 0 and offloader.free_with([part()]) == -PART


def test_the_least_recently_used_goes_first_and_comes_back_as_it_was() -> None:
    one, two, three = parts = [part(value) for value in (1, 2, 3)]
    offloader = Elsewhere(holds=2)
    for each in (one, two, one, three):
        with offloader.using(each):
            pass
    assert offloader.has(*parts) == [True, False, True]
    with torch.inference_mode(), offloader.using(two):
        assert offloader.has(*parts) == [False, True, True]
    for each, value in zip(parts, (1.0, 2.0, 3.0), strict=True):
        assert torch.equal(each.weight, torch.full((8, 8), value))
        assert not each.weight.is_inference()


@pytest.mark.parametrize(("work", "stays"), [(0.0, True), (0.5, True), (1.0, False)])
def test_room_for_the_work_is_made_too(work: float, stays: bool) -> None:
    one, two = part(), part()
    offloader = Elsewhere(holds=2.5)
    for _ in range(2):  # when it comes, and when it is there already
        with offloader.using(one), offloader.using(two):
            pass
        with offloader.using(two, work * PART):
            assert offloader.has(one, two) == [stays, True]


def test_what_is_in_use_stays_though_room_is_short() -> None:
    one, two, three = part(), part(), part()
    offloader = Elsewhere(holds=2)
    with offloader.using(one):
        with offloader.using(two):
            pass
        with offloader.using(three):
            assert offloader.has(one, two, three) == [True, False, True]
        with offloader.using(three, work=5 * PART):  # there is no such room, and it is tried
            assert offloader.has(one, three) == [True, True]


def test_alone_there_is_only_what_is_in_use() -> None:
    parts = one, two, three = part(), part(), part()
    offloader = Elsewhere(holds=10)
    with offloader.using(one), offloader.using(two, alone=True), offloader.using(three, alone=True):
        assert offloader.has(*parts) == [True] * 3
    with offloader.using(three, alone=True):
        assert offloader.has(*parts) == [False, False, True]


def test_shared_weights_stay_with_who_uses_them() -> None:
    """As of a UNet and its version with a LoRA."""
    base, changed = part(), part(2)
    changed.bias = base.bias
    offloader = Elsewhere(holds=10)
    with offloader.using(base):
        pass
    with offloader.using(changed, alone=True):
        assert offloader.has(base, changed) == [False, True]
        assert offloader._is_here(base.bias)


def test_a_part_in_anothers_use_is_waited_for() -> None:
    one, two = part(), part()
    offloader = Elsewhere(holds=1)
    came = threading.Event()

    def come() -> None:
        with offloader.using(two):
            came.set()

    other = threading.Thread(target=come)
    with offloader.using(one):
        other.start()
        assert not came.wait(0.1)
    assert came.wait(10) and offloader.has(one, two) == [False, True]
    other.join()


def test_a_dropped_part_is_forgotten() -> None:
    one, two = part(), part()
    offloader = Elsewhere(holds=1)
    with offloader.using(one):
        pass
    del one
    with offloader.using(two):
        assert len(offloader._used) == 1


def test_what_does_not_fit_is_loaded_on_the_cpu() -> None:
    for free, where in ((PART, "cpu"), (PART + 1, "meta")):
        placement = Placement(torch.device("meta"), torch.float32, lambda _, free=free: free)
        assert placement.place(part()).weight.device.type == where


# A whole model


@pytest.fixture(scope="module")
def tiny() -> DiffusersNetworks:
    return tiny_networks(controls=("weights-name", "other"))


def watched(networks: DiffusersNetworks, free: float) -> tuple[DiffusersNetworks, Offloader]:
    """Return networks whose layers, when they run, must be those of a part in use."""
    offloader = Offloader(torch.device("cpu"), lambda: free)
    parts = (networks.text_encoder, networks.unet, networks.vae, *networks.controlnets.values())
    for one in parts:

        def looked(*_: Any, one: nn.Module = one) -> None:
            assert one in [used for _, used in offloader._in_use]

        for layer in one.modules():
            if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                layer.register_forward_pre_hook(looked)
    return replace(networks, offloader=offloader), offloader


def pictures(networks: DiffusersNetworks, condition: Any, count: int) -> list[Any]:  # noqa: F811
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    request = GenerationRequest.single(
        condition, image, prompt="the red ball", preprocessor=ALREADY_A_MAP, image_resolution=256,
        steps=2, seed=3, eta=0.5, num_samples=count,
    )  # fmt: skip
    result = Pipeline(lambda *_, **__: networks).generate(request)
    return list(result.images)


@pytest.mark.slow
def test_every_part_is_in_use_when_it_runs_and_pictures_are_the_same(
    tiny: DiffusersNetworks,
    condition: Any,  # noqa: F811
) -> None:
    wanted = pictures(tiny, condition, 1)
    for free, sparing in ((1e12, False), (0, False), (1e12, True)):
        networks, _ = watched(tiny_networks(controls=("weights-name", "other")), free)
        found = pictures(networks.in_low_memory() if sparing else networks, condition, 1)
        assert np.array_equal(found, wanted)


@pytest.mark.slow
def test_chunks_are_as_large_as_memory_and_pictures_the_same(
    tiny: DiffusersNetworks,
    condition: Any,  # noqa: F811
) -> None:
    """One by one to the bit; in batches up to float32 rounding, which shows in no picture."""
    each, wanted = workspace_bytes(tiny.unet, 32 * 32), pictures(tiny, condition, 5)
    for holds, most in ((0, 1), (2.5, 2), (100, GPU_MAX_BATCH)):
        networks, _ = watched(tiny_networks(controls=("weights-name", "other")), holds * each)
        assert networks.max_batch(32, 32) == most
        assert networks.in_low_memory().max_batch(32, 32) == 1
        found = pictures(networks, condition, 5)
        for a, b in zip(found, wanted, strict=True):
            assert np.abs(a.astype(int) - b).max() <= (0 if most == 1 else 1)


def test_a_float32_copy_is_made_on_the_cpu() -> None:
    networks = tiny_networks()
    half = replace(
        networks,
        dtype=torch.float16,
        unet=networks.unet.half(),
        text_encoder=networks.text_encoder.half(),
        vae=networks.vae.half(),
    )
    whole = half.in_float32()
    weight = whole.unet.conv_in.weight
    assert weight.dtype == torch.float32 and weight.device.type == "cpu"
    assert torch.equal(weight, half.unet.conv_in.weight.float())
    assert half.unet.conv_in.weight.dtype == torch.float16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_pictures_are_the_same_however_little_is_there(condition: Any) -> None:  # noqa: F811
    gpu = torch.device("cuda")
    wanted = None
    for free in (None, lambda: 0):
        networks = replace(
            tiny_networks(controls=("weights-name",)), device=gpu, offloader=Offloader(gpu, free)
        )
        found = pictures(networks, condition, 1)
        # Recorded or not, convolutions may have other algorithms, and so another rounding.
        assert wanted is None or np.abs(np.int32(found) - np.int32(wanted)).max() <= 2
        wanted = found


def test_on_a_cpu_nothing_is_moved(tiny: DiffusersNetworks) -> None:
    assert tiny.offloader is None and tiny.in_low_memory().max_batch(32, 32) == 1
    assert isinstance(tiny._on_device(tiny.unet), nullcontext)
