"""The compiled convolution is hardly further from the exact one than oneDNN's."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engine import layers
from models.engine.kernels import winograd
from models.engine.layers import CONVOLUTION, WINOGRAD, PackedWeight, convolve, convolve_doubled

on_every_build = pytest.mark.usefixtures("compiled")
SHAPES = [
    # (B, in, out, height, width): Diorama's and SD 1.x's, and remainders of a tile, of tiles at
    # once, of a group of them, of a block of channels and of a panel.
    (2, 64, 64, 32, 32),
    (2, 640, 320, 16, 16),
    pytest.param((1, 1280, 1280, 12, 12), marks=pytest.mark.slow),
    (1, 16, 16, 10, 10),
    (3, 80, 144, 9, 14),
    (1, 48, 48, 65, 33),
    (1, 176, 96, 7, 100),
]


def drawn(batch: int, channels: int, out: int, height: int, width: int) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, out, 3, padding=1).bfloat16().requires_grad_(False)
    x = torch.randn(batch, channels, height, width).bfloat16()
    return layer, x.contiguous(memory_format=torch.channels_last)


@on_every_build
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_hardly_further_from_exact_than_torch_is(shape: tuple[int, ...]) -> None:
    layer, x = drawn(*shape)
    plain, theirs = layer.weight.clone(), layer(x)
    exact = functional.conv2d(x.double(), plain.double(), layer.bias.double(), padding=1)
    found = convolve(layer, x)
    assert layer.weight.packing is WINOGRAD
    assert found.dtype == torch.bfloat16 and found.stride() == theirs.stride()
    # What whole numbers of 16 bits add to the rounding of the result.
    assert (found - exact).norm() <= 1.08 * (theirs - exact).norm()
    assert torch.equal(layer.weight, plain)


@on_every_build
@pytest.mark.parametrize("shape", SHAPES)
def test_so_is_one_of_an_enlarged_picture(shape: tuple[int, ...]) -> None:
    layer, x = drawn(*shape)
    plain, bias = layer.weight.double(), layer.bias.double()
    large = functional.interpolate(x, scale_factor=2.0)
    exact = functional.conv2d(large.double(), plain, bias, padding=1)
    theirs = layer(large)
    found = convolve_doubled(layer, x)
    assert layer.weight.packing is WINOGRAD
    assert found.shape == exact.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).norm() <= 1.08 * (theirs - exact).norm()


@on_every_build
@pytest.mark.parametrize("channels", [64, 128, 320])
def test_no_sum_of_whole_numbers_overflows(channels: int) -> None:
    # Where all pixels and weights agree, the largest sum is as large as it can be; where one
    # channel is all there is, so is a number.
    layer, x = drawn(1, channels, 64, 16, 16)
    for pixel, weight, others in ((1.0, 1.0, 1), (-3e4, 1.0, 1), (1e-10, -2e4, 1), (3.0, 1.0, 0)):
        x.fill_(pixel)
        same = torch.full_like(layer.weight, weight)
        same[:, 1:] *= others
        layer.weight = nn.Parameter(same, requires_grad=False)
        exact = functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1)
        torch.testing.assert_close(convolve(layer, x).float(), exact, rtol=5e-3, atol=0.02)


@on_every_build
def test_small_numbers_keep_their_digits_beside_large_ones() -> None:
    # In another tile, another block of channels, and for another output channel.
    layer, x = drawn(1, 256, 64, 16, 16)
    x[:, :, 8:] *= 1e4
    x[:, 128:] *= 1e-4
    x[:, 128:, :, 8:] *= 1e-4
    weight = layer.weight.clone()
    weight[32:] *= 1e4
    weight[:, :128, :, :] *= torch.tensor([0.0, 1.0]).repeat(32)[:, None, None, None].bfloat16()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    theirs, found = layer(x), convolve(layer, x)
    halves = (slice(0, 6), slice(10, 16))  # away from where both kinds meet
    outputs = (slice(0, 32, 2), slice(1, 32, 2), slice(32, 64, 2), slice(33, 64, 2))
    for place in itertools.product(outputs, halves, halves):
        wanted = exact[0][place]
        error = (found[0][place] - wanted).norm()
        assert error <= 1.2 * (theirs[0][place] - wanted).norm()  # over few numbers


@on_every_build
def test_channels_of_small_pixels_and_large_weights_keep_their_digits() -> None:
    layer, x = drawn(1, 128, 64, 16, 16)
    sizes = torch.linspace(-12, 12, 128).exp2().bfloat16()[:, None, None]
    x = (x * sizes).contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(layer.weight / sizes, requires_grad=False)
    plain, theirs = layer.weight.double(), layer(x)
    exact = functional.conv2d(x.double(), plain, layer.bias.double(), padding=1)
    assert (convolve(layer, x) - exact).norm() <= 1.08 * (theirs - exact).norm()


@on_every_build
def test_one_large_weight_and_channels_without_any_do_not_drown_the_others() -> None:
    for place, factor in (((0, 0), 1e4), ((slice(None), 5), 0.0)):
        layer, x = drawn(1, 128, 64, 16, 16)
        weight = layer.weight / 1e4
        weight[place] *= factor
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), None
        theirs = layer(x)
        exact = functional.conv2d(x.double(), weight.double(), padding=1)
        error = (convolve(layer, x) - exact)[:, 1:].norm()
        assert error <= 1.08 * (theirs - exact)[:, 1:].norm()


@on_every_build
@pytest.mark.parametrize("relu", [False, True])
def test_it_takes_in_what_is_added_and_what_follows(relu: bool) -> None:
    layer, x = drawn(2, 32, 80, 11, 13)
    bias = torch.randn(80).bfloat16()
    kept = torch.randn(2, 80, 11, 13).bfloat16().contiguous(memory_format=torch.channels_last)
    wanted = functional.conv2d(x.float(), layer.weight.float(), bias.float(), padding=1) + kept
    wanted = wanted.relu() if relu else wanted
    before = kept.clone()
    found = convolve(layer, x, bias, kept=kept, relu=relu)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)
    assert torch.equal(kept, before)
    without = nn.Conv2d(32, 80, 3, padding=1, bias=False).bfloat16().requires_grad_(False)
    same = functional.conv2d(x.float(), without.weight.float(), padding=1)
    torch.testing.assert_close(convolve(without, x).float(), same, rtol=1e-2, atol=1e-2)


@on_every_build
@pytest.mark.skipif(not layers._has_onednn(), reason="no oneDNN with bfloat16")
def test_a_weight_is_packed_anew_for_pictures_of_another_size() -> None:
    layer, x = drawn(1, 32, 32, 12, 12)
    plain = layer.weight.clone()
    for side, layout in ((12, WINOGRAD), (6, CONVOLUTION), (12, WINOGRAD)):
        small = x[:, :, :side, :side].contiguous(memory_format=torch.channels_last)
        wanted = functional.conv2d(small.float(), plain.float(), layer.bias.float(), padding=1)
        found = convolve(layer, small)
        torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)
        assert isinstance(layer.weight, PackedWeight)
        assert layer.weight.packing is layout
        assert torch.equal(layer.weight, plain)


@on_every_build
@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    layer, x = drawn(2, 64, 192, 20, 20)
    wanted, before = convolve(layer, x), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(convolve(layer, x), wanted)
    finally:
        torch.set_num_threads(before)


@on_every_build
@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        ({"stride": 2, "padding": 1}, 32),
        ({"padding": 0}, 32),
        ({"padding": 1, "groups": 2}, 32),
        ({"padding": 2, "dilation": 2}, 32),
        ({"padding": 1}, 20),
    ],
)
def test_others_are_left_to_others(settings: dict[str, Any], channels: int) -> None:
    layer = nn.Conv2d(channels, 32, 3, **settings).bfloat16().requires_grad_(False)
    x = torch.randn(1, channels, 16, 16).bfloat16().contiguous(memory_format=torch.channels_last)
    assert not winograd.suits(layer, x, layer.bias, None)


@on_every_build
def test_what_does_not_fit_is_never_read() -> None:
    layer, x = drawn(1, 32, 32, 12, 12)
    assert winograd.suits(layer, x, layer.bias, x)
    for y, bias, kept in (
        (x[:, :16].contiguous(memory_format=torch.channels_last), layer.bias, None),
        (x, layer.bias[:16], None),
        (x, layer.bias, x[:, :, :1, :1]),
        (x, layer.bias, x.float()),
    ):
        assert not winograd.suits(layer, y, bias, kept)
    same = convolve(layer, x, kept=x[:, :, :1, :1].contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(same, layer(x) + x[:, :, :1, :1], rtol=2e-2, atol=2e-2)
    assert convolve(layer, x[:0]).shape == (0, 32, 12, 12)


@on_every_build
def test_what_is_no_number_stays_none() -> None:
    layer, x = drawn(1, 32, 32, 12, 12)
    for none in (torch.nan, torch.inf):
        x[0, 0, 5, 5] = none
        assert not convolve(layer, x, relu=True)[0, :, 4:7, 4:7].isfinite().any()
        broken, y = drawn(1, 32, 32, 12, 12)
        broken.weight[3, 1, 1, 0] = none
        found = convolve(broken, y)[0]
        assert not found[3].isfinite().any()
        assert found[:3].isfinite().all() and found[4:].isfinite().all()
