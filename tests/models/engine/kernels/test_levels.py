"""On a processor without instructions for bfloat16 no layer runs in torch's or oneDNN's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engine import layers
from models.engine.layers import GATHERED, WINOGRAD, as_it_is, convolve, convolve_doubled, to_be_run

pytestmark = pytest.mark.usefixtures("without_bfloat16")


def drawn(sizes: tuple[int, ...], side: int, **settings: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(*sizes, **settings).bfloat16().requires_grad_(False)
    x = torch.randn(2, sizes[0], side, side).bfloat16()
    return layer, x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("sizes", "side", "settings", "packing"),
    [
        ((32, 48, 3), 8, {"padding": 1}, WINOGRAD),
        ((32, 48, 3), 4, {"padding": 1}, GATHERED),  # few pixels
        ((32, 48, 3), 9, {"padding": 1, "stride": 2}, GATHERED),
        ((32, 48, 3), 9, {"padding": (0, 1), "stride": (1, 2), "bias": False}, GATHERED),
        ((4, 32, 3), 8, {"padding": 1}, GATHERED),  # few channels
        ((32, 4, 3), 8, {"padding": 1}, WINOGRAD),
        ((32, 3, 3), 8, {"padding": 1, "bias": False}, WINOGRAD),
    ],
)
def test_a_convolution_is_ours_and_no_further_from_exact(
    sizes: tuple[int, ...],
    side: int,
    settings: dict[str, Any],
    packing: Any,
    relu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = drawn(sizes, side, **settings)
    plain, theirs = layer.weight.clone(), layer(x)
    bias = None if layer.bias is None else layer.bias.double()
    exact = functional.conv2d(x.double(), plain.double(), bias, layer.stride, layer.padding)
    if relu:
        theirs, exact = theirs.relu(), exact.relu()
    monkeypatch.setattr(functional, "conv2d", lambda *_: pytest.fail("torch's own ran"))
    for _ in range(2):
        found = convolve(layer, x, relu=relu)
        assert found.shape == exact.shape
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found - exact).norm() <= 1.08 * (theirs - exact).norm()
    assert layer.weight.packing is packing and torch.equal(layer.weight, plain)


def test_what_is_added_comes_before_the_relu() -> None:
    layer, x = drawn((32, 48, 3), 4, padding=1)
    kept = torch.randn(2, 48, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    wanted = (layer(x).float() + kept).relu()
    found = convolve(layer, x, kept=kept, relu=True)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    assert layer.weight.packing is GATHERED


def test_a_small_enlarged_picture_is_ours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = drawn((32, 48, 3), 3, padding=1)
    wanted = layer(functional.interpolate(x, scale_factor=2.0))
    monkeypatch.setattr(functional, "conv2d", lambda *_: pytest.fail("torch's own ran"))
    torch.testing.assert_close(convolve_doubled(layer, x), wanted, rtol=2e-2, atol=2e-2)


def test_what_others_run_is_float32_for_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = drawn((8, 16, 3), 6)
    faster = to_be_run(layer)
    assert faster.weight.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16
    assert torch.equal(as_it_is(layer, x), faster(x.float()).bfloat16())
    trained = nn.Linear(4, 4).bfloat16()
    assert to_be_run(trained) is trained
    monkeypatch.setattr(layers, "cpu_has_bfloat16", lambda: True)
    assert to_be_run(layer) is layer
    assert torch.equal(as_it_is(layer, x), layer(x))
