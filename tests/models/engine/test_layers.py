"""Layers packed for oneDNN give what they gave before, and their weights still say the same."""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engine import layers
from models.engine.layers import PackedWeight, convolve, convolve_doubled, multiply, multiply_gated

needs_onednn = pytest.mark.skipif(not layers._has_onednn(), reason="no oneDNN with bfloat16")


def layer(kind: Any, *sizes: int, **settings: Any) -> Any:
    torch.manual_seed(0)
    made = kind(*sizes, **settings).bfloat16().requires_grad_(False)
    if isinstance(made, nn.Conv2d):
        made.weight.data = made.weight.data.contiguous(memory_format=torch.channels_last)
    return made


def picture(channels: int, height: int = 8, width: int = 6) -> Tensor:
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def same(found: Tensor, wanted: Tensor) -> None:
    """Equal up to a rounding or two of bfloat16."""
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((32, 48, 3), {"padding": 1}),
        ((32, 32, 3), {"padding": 1, "stride": 2}),
        ((32, 30, 1), {}),
        ((32, 30, 1), {"stride": 2}),
        ((4, 32, 3), {"padding": 1}),
    ],
)
def test_a_convolution_is_torchs_own(sizes: tuple[int, ...], settings: dict[str, Any]) -> None:
    one = layer(nn.Conv2d, *sizes, **settings)
    x, plain = picture(sizes[0]), one.weight.clone()
    wanted = one(x)
    for _ in range(2):
        found = convolve(one, x)
        same(found, wanted)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.weight, plain)
    bias = torch.arange(sizes[1]).bfloat16()
    same(convolve(one, x, bias), functional.conv2d(x, plain, bias, one.stride, one.padding))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_torchs_own(kind: str, bias: bool) -> None:
    one = layer(nn.Linear, 24, 40, bias=bias)
    x = torch.randn(2, 5, 24).bfloat16()
    wanted = one(x)
    if kind == "convolution":
        one = layer(nn.Conv2d, 24, 40, 1, bias=bias)
        wanted = functional.linear(x, one.weight.flatten(1), one.bias)
    for _ in range(2):
        same(multiply(one, x), wanted)


def test_a_gate_is_torchs_own() -> None:
    one = layer(nn.Linear, 24, 2 * 40)
    x, plain = torch.randn(2, 5, 24).bfloat16(), one.weight.clone()
    value, gate = one.float()(x.float()).chunk(2, -1)
    one.bfloat16()
    for _ in range(2):
        same(multiply_gated(one, x), value * functional.gelu(gate))
    assert torch.equal(one.weight, plain)


def test_an_enlargement_sees_each_pixel_twice() -> None:
    one = layer(nn.Conv2d, 16, 24, 3, padding=1)
    x = picture(16)
    wanted = one.float()(functional.interpolate(x.float(), scale_factor=2.0))
    one.bfloat16()
    for _ in range(2):
        same(convolve_doubled(one, x), wanted)


@needs_onednn
def test_an_enlargement_by_hand() -> None:
    """Of one bright pixel, every weight of the kernel is seen where it belongs."""
    one = layer(nn.Conv2d, 1, 1, 3, padding=1, bias=False)
    one.weight.data = torch.arange(1.0, 10).reshape(1, 1, 3, 3).bfloat16()
    x = torch.zeros(1, 1, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    x[0, 0, 1, 1] = 1
    found = convolve_doubled(one, x)[0, 0]
    # The enlarged pixel has the rows 2 and 3, so row 1 sees it with the kernel's last row alone.
    assert found[1, 1] == 9 and found[4, 4] == 1
    assert found[2, 2] == 5 + 6 + 8 + 9 and found[3, 3] == 1 + 2 + 4 + 5
    assert found.sum() == 4 * 45 and (found[0] == 0).all() and (found[5] == 0).all()


@needs_onednn
def test_there_is_one_copy_which_can_be_copied_and_changed_to_float32() -> None:
    one = layer(nn.Conv2d, 16, 16, 3, padding=1)
    plain = one.weight.clone()
    convolve(one, picture(16))
    assert isinstance(one.weight, PackedWeight) and isinstance(one.weight, nn.Parameter)
    for copied in (copy.deepcopy(one), copy.deepcopy(one).float()):
        assert not isinstance(copied.weight, PackedWeight)
        assert torch.equal(copied.weight.bfloat16(), plain)
    assert torch.equal(one.weight.to(torch.float32, copy=True), plain.float())
    assert torch.equal(torch.empty_like(one.weight).copy_(plain), plain)
    assert torch.equal(one.state_dict()["weight"], plain)
    with pytest.raises(RuntimeError, match="cannot be changed in place"):
        one.weight.zero_()
    assert one.float().weight.dtype == torch.float32
    assert torch.equal(one.weight, plain.float())


@needs_onednn
@needs_onednn
def test_layers_that_share_a_weight_share_it_packed() -> None:
    """Whichever runs first, and also after both were packed anew for another kernel."""
    one = layer(nn.Linear, 64, 32)
    two = copy.deepcopy(one, {id(one.weight): one.weight})
    x = torch.randn(5, 64).bfloat16()
    wanted = one(x)
    plain = weakref.ref(one.weight)
    for first, second in ((one, two), (two, one)):
        for packing in (layers.PRODUCT, layers.VNNI):
            layers._packed(first, x, packing)
            layers._packed(second, x, packing)
            assert first.weight is second.weight and first.weight.packing is packing
    same(functional.linear(x, one.weight, one.bias), wanted)
    assert plain() is None
    third = copy.deepcopy(one, {id(one.weight): one.weight})
    layers._packed(one, x, layers.PRODUCT)
    layers._packed(one, x, layers.VNNI)
    layers._packed(third, x, layers.PRODUCT)
    layers._packed(third, x, layers.VNNI)
    assert third.weight is one.weight


def test_in_inference_mode_it_becomes_an_ordinary_weight() -> None:
    one = layer(nn.Linear, 16, 16)
    with torch.inference_mode():
        wanted = multiply(one, torch.ones(1, 16).bfloat16())
    assert not one.weight.is_inference()
    assert torch.equal(multiply(one, torch.ones(1, 16).bfloat16()), wanted)


@pytest.mark.parametrize("reason", ["trained", "format", "torch"])
def test_elsewhere_a_weight_stays_where_it_is(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, linear = layer(nn.Conv2d, 16, 16, 3, padding=1), layer(nn.Linear, 16, 32)
    x, row = picture(16), torch.randn(1, 16).bfloat16()
    if reason == "trained":
        convolution.requires_grad_(), linear.requires_grad_()
    if reason == "format":
        convolution, linear, x, row = convolution.float(), linear.float(), x.float(), row.float()
    if reason == "torch":
        monkeypatch.setattr(layers, "_has_onednn", lambda: False)
        for kernels in (layers.matmul, layers.winograd):  # ours, which this processor may have
            monkeypatch.setattr(kernels, "suits", lambda *_, **__: False)
        monkeypatch.setattr(layers.matmul, "takes", lambda *_, **__: False)
    enlarged = functional.interpolate(x, scale_factor=2.0)
    same(convolve(convolution, x), convolution(x))
    same(convolve_doubled(convolution, x), convolution(enlarged))
    same(multiply(linear, row), linear(row))
    value, gate = linear(row).chunk(2, -1)
    same(multiply_gated(linear, row), value * functional.gelu(gate))
    assert type(convolution.weight) is type(linear.weight) is nn.Parameter
