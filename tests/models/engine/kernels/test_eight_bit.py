"""Weights in 8 bits: rounded once, run by the same kernels, and never both in memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engine.layers import (
    convolve,
    convolve_doubled,
    is_light,
    lighten,
    multiply,
    multiply_gated,
)

on_every_build = pytest.mark.usefixtures("compiled")


class GEGLU(nn.Module):
    """Named as diffusers' is."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)


def _convolution(inputs: int, outputs: int, side: int, **options: Any) -> nn.Conv2d:
    options = {"padding": side // 2, **options}
    return nn.Conv2d(inputs, outputs, side, **options).to(memory_format=torch.channels_last)


def _gate(layer: GEGLU, x: Tensor) -> Tensor:
    value, gate = layer.proj(x).chunk(2, -1)
    return value * functional.gelu(gate)


Case = tuple[Callable[[], nn.Module], tuple[int, ...], Callable[..., Tensor], Callable[..., Tensor]]
CASES: dict[str, Case] = {
    "product": (lambda: nn.Linear(320, 64), (1, 70, 320), multiply, lambda m, x: m(x)),
    "wide product": (lambda: nn.Linear(130, 96), (2, 5, 130), multiply, lambda m, x: m(x)),
    "gate": (lambda: GEGLU(160, 96), (1, 33, 160), lambda m, x: multiply_gated(m.proj, x), _gate),
    "convolution": (
        lambda: _convolution(160, 96, 3),
        (1, 160, 13, 9),
        convolve,
        lambda m, x: m(x),
    ),
    "few pixels": (lambda: _convolution(64, 64, 3), (2, 64, 4, 4), convolve, lambda m, x: m(x)),
    "stride": (
        lambda: _convolution(32, 64, 3, stride=2),
        (1, 32, 12, 10),
        convolve,
        lambda m, x: m(x),
    ),
    "pixels alone": (
        lambda: _convolution(32, 64, 1),
        (1, 32, 12, 10),
        convolve,
        lambda m, x: m(x),
    ),
    "enlarged": (
        lambda: _convolution(32, 48, 3),
        (1, 32, 6, 5),
        convolve_doubled,
        lambda m, x: m(functional.interpolate(x, scale_factor=2.0)),
    ),
}


def _drawn(name: str) -> tuple[nn.Module, Tensor, Any, Any]:
    make, shape, ours, theirs = CASES[name]
    torch.manual_seed(0)
    network = nn.ModuleList([make()]).bfloat16().requires_grad_(False)
    x = torch.randn(shape).bfloat16()
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return network, x, ours, theirs


def _weight(network: nn.Module) -> Any:
    layer: Any = network[0]  # type: ignore[index]
    return getattr(layer, "proj", layer).weight


@on_every_build
@pytest.mark.parametrize("name", CASES)
def test_only_the_weight_is_rounded_and_only_once(name: str) -> None:
    network, x, ours, theirs = _drawn(name)
    before = theirs(copy.deepcopy(network).double()[0], x.double())
    lighten(network)
    plain = copy.deepcopy(network)  # in bfloat16 again, with the rounded numbers
    assert is_light(_weight(network)) and not is_light(_weight(plain))
    exact = theirs(copy.deepcopy(plain).double()[0], x.double())
    found = ours(network[0], x)
    assert is_light(_weight(network)), "and it stays so"
    assert found.shape == exact.shape and found.dtype == torch.bfloat16
    # The plain form is rounded to bfloat16, which most kernels have no need to do.
    error, others = (found - exact).norm(), (theirs(plain[0], x) - exact).norm()
    assert error <= 1.05 * others + 2**-9 * exact.norm()
    assert (found - before).norm() < 0.011 * before.norm()


@on_every_build
def test_it_takes_half_the_memory() -> None:
    network = nn.ModuleList(
        [nn.Linear(640, 640), _convolution(640, 640, 3), GEGLU(640, 640)]
    ).bfloat16()
    before = sum(one.nbytes for one in network.parameters())
    lighten(network)
    held = [one.parts if is_light(one) else (one,) for one in network.parameters()]
    assert sum(part.nbytes for parts in held for part in parts) < 0.53 * before


@on_every_build
def test_what_no_kernel_takes_stays_and_runs() -> None:
    network = nn.ModuleList(
        [
            nn.Linear(31, 32),
            nn.Linear(32, 30),
            _convolution(4, 64, 3),
            _convolution(64, 4, 3),
            _convolution(64, 64, 5),
            nn.Embedding(64, 64),
            nn.GroupNorm(8, 64),
        ]
    ).bfloat16()
    lighten(network)
    assert not any(is_light(one) for one in network.parameters())


@on_every_build
def test_other_code_sees_the_rounded_weight_and_lightening_it_again_changes_nothing() -> None:
    network, x, ours, theirs = _drawn("convolution")
    lighten(network)
    first = _weight(network)
    lighten(network)
    assert _weight(network) is first
    found = theirs(network[0], x)  # diffusers' own forward pass
    assert torch.equal(found, theirs(copy.deepcopy(network)[0], x))
    assert (found - ours(network[0], x)).norm() < 0.01 * found.norm()


@on_every_build
@pytest.mark.parametrize("name", ["product", "convolution"])
def test_what_is_no_number_stays_none(name: str) -> None:
    for none in (torch.nan, torch.inf):
        network, x, ours, _ = _drawn(name)
        _weight(network).data[5, 7] = none
        lighten(network)
        found = ours(network[0], x)
        found = found if found.ndim == 3 else found.permute(0, 2, 3, 1)
        assert not found[..., 5].isfinite().any()
        assert found[..., :5].isfinite().all() and found[..., 6:].isfinite().all()


@on_every_build
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["product", "gate", "convolution"])
def test_the_result_does_not_depend_on_the_number_of_threads(name: str, threads: int) -> None:
    network, x, ours, _ = _drawn(name)
    lighten(network)
    wanted, before = ours(network[0], x), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ours(network[0], x), wanted)
    finally:
        torch.set_num_threads(before)
