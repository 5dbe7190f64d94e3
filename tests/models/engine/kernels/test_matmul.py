"""The compiled product is no further from the exact one than oneDNN's, its gate nearer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engine.kernels import matmul
from models.engine.layers import GATED_VNNI, VNNI, multiply, multiply_gated

on_every_build = pytest.mark.usefixtures("compiled")
SHAPES = [
    # (rows, in, out): Diorama's and SD 1.x's, and remainders of rows at once, of a group of them,
    # and of a panel.
    (128, 160, 160),
    (4096, 320, 320),
    (64, 5120, 1280),
    (1, 2, 32),
    (7, 30, 96),
    (1003, 64, 48),
]


def drawn(rows: int, inputs: int, outputs: int, *, bias: bool = True) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)
    return layer, torch.randn(1, rows, inputs).bfloat16()


def exactly(layer: Any, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return functional.linear(x.double(), layer.weight.double(), bias)


def no_further(found: Tensor, theirs: Tensor, exact: Tensor) -> None:
    # A remainder of a bfloat16's last place: where both round alike, neither is nearer.
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert (found - exact).norm() <= 1.01 * (theirs - exact).norm() + 1e-6 * exact.norm()


@on_every_build
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_no_further_from_exact_than_torch_is(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = drawn(*shape, bias=bias)
    plain, theirs, exact = layer.weight.clone(), layer(x), exactly(layer, x)
    no_further(multiply(layer, x), theirs, exact)
    assert layer.weight.packing is VNNI
    assert torch.equal(layer.weight, plain)


@on_every_build
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate_is_no_further_from_exact_than_torch_is(shape: tuple[int, ...]) -> None:
    rows, inputs, outputs = shape
    layer, x = drawn(rows, inputs, 2 * outputs)
    x *= 4  # far into both tails of GELU
    plain = layer.weight.clone()
    value, gate = layer(x).chunk(2, -1)
    exact_value, exact_gate = exactly(layer, x).chunk(2, -1)
    exact = exact_value * functional.gelu(exact_gate)
    no_further(multiply_gated(layer, x), value * functional.gelu(gate), exact)
    assert layer.weight.packing is GATED_VNNI
    assert torch.equal(layer.weight, plain)


@on_every_build
def test_a_gate_far_below_zero_shuts() -> None:
    for gate, wanted in ((-3e38, 0), (-9, 0), (0, 0), (1, 0.8413), (9, 9), (3e38, 3e38)):
        layer = nn.Linear(2, 64).bfloat16().requires_grad_(False)
        layer.weight.data.zero_()
        layer.bias.data[:32], layer.bias.data[32:] = 1, gate
        found = multiply_gated(layer, torch.zeros(1, 2).bfloat16()).float()
        torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=4e-3, atol=1e-6)


@on_every_build
@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    layer, x = drawn(500, 64, 192)
    wanted, before = multiply(layer, x), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(multiply(layer, x), wanted)
    finally:
        torch.set_num_threads(before)


@on_every_build
@pytest.mark.parametrize("shape", [(3, 31, 32), (3, 32, 30)])
def test_others_are_left_to_others(shape: tuple[int, ...]) -> None:
    layer, x = drawn(*shape)
    assert not matmul.suits(layer.weight, x, layer.bias)


@on_every_build
def test_what_does_not_fit_is_never_read() -> None:
    layer, x = drawn(3, 32, 32)
    assert matmul.suits(layer.weight, x, layer.bias)
    assert not matmul.suits(layer.weight, x[..., :16].contiguous(), layer.bias)
    assert not matmul.suits(layer.weight, x, layer.bias[:16])
    assert multiply(layer, x[:, :0]).shape == (1, 0, 32)


@on_every_build
def test_small_numbers_keep_their_digits_beside_large_ones() -> None:
    # In another row, another block of inputs, and for another output.
    layer, x = drawn(8, 256, 64, bias=False)
    x[:, 4:] *= 1e4
    x[..., 128:] *= 1e-4
    weight = layer.weight.clone()
    weight[32:] *= 1e4
    weight[::2, :128] = 0
    layer.weight = nn.Parameter(weight, requires_grad=False)
    theirs, exact = layer(x), exactly(layer, x)
    found = multiply(layer, x)
    for rows in (slice(0, 4), slice(4, 8)):
        for columns in (slice(0, 32, 2), slice(1, 32, 2), slice(32, 64, 2), slice(33, 64, 2)):
            place = (0, rows, columns)
            error = (found[place] - exact[place]).norm()
            assert error <= 1.1 * (theirs[place] - exact[place]).norm()  # over few numbers


@on_every_build
def test_what_is_no_number_stays_none() -> None:
    for none in (torch.nan, torch.inf):
        layer, x = drawn(8, 160, 64)
        x[0, 3, 140] = none
        found = multiply(layer, x)[0]
        assert not found[3].isfinite().any()
        assert found[:3].isfinite().all() and found[4:].isfinite().all()
        layer, x = drawn(8, 160, 64)
        layer.weight[5, 7] = none
        found = multiply(layer, x)[0]
        assert not found[:, 5].isfinite().any()
        assert found[:, :5].isfinite().all() and found[:, 6:].isfinite().all()
