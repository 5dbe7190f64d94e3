"""The compiled convolution is hardly further from the exact one than oneDNN's."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import winograd
from models.compiled import kernel
from models.packed import CONVOLUTION, PANELS, PackedWeight, convolve

needs_kernel = pytest.mark.skipif(kernel("winograd") is None, reason="no GCC, or no AVX-512 BF16")
SHAPES = [
    # (B, in, out, height, width): Diorama's and SD 1.x's, and remainders of a tile, of tiles at
    # once, of a group of them, of a block of channels and of a panel.
    (2, 64, 64, 32, 32),
    (2, 640, 320, 16, 16),
    (1, 1280, 1280, 12, 12),
    (1, 16, 16, 10, 10),
    (3, 80, 144, 9, 14),
    (1, 48, 48, 65, 33),
    (1, 176, 96, 7, 100),
]


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "has_tiles", lambda: False)


def drawn(batch: int, channels: int, out: int, height: int, width: int) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, out, 3, padding=1).bfloat16().requires_grad_(False)
    x = torch.randn(batch, channels, height, width).bfloat16()
    return layer, x.contiguous(memory_format=torch.channels_last)


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_hardly_further_from_exact_than_torch_is(shape: tuple[int, ...]) -> None:
    layer, x = drawn(*shape)
    plain, theirs = layer.weight.clone(), layer(x)
    exact = functional.conv2d(x.double(), plain.double(), layer.bias.double(), padding=1)
    found = convolve(layer, x)
    assert layer.weight.way is PANELS
    assert found.dtype == torch.bfloat16 and found.stride() == theirs.stride()
    # What whole numbers of 16 bits add to the rounding of the result.
    assert (found - exact).norm() <= 1.1 * (theirs - exact).norm()
    assert torch.equal(layer.weight, plain)


@needs_kernel
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


@needs_kernel
def test_a_weight_is_laid_out_anew_for_pictures_of_another_size() -> None:
    layer, x = drawn(1, 32, 32, 12, 12)
    plain = layer.weight.clone()
    for side, layout in ((12, PANELS), (6, CONVOLUTION), (12, PANELS)):
        small = x[:, :, :side, :side].contiguous(memory_format=torch.channels_last)
        wanted = functional.conv2d(small.float(), plain.float(), layer.bias.float(), padding=1)
        found = convolve(layer, small)
        torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)
        assert isinstance(layer.weight, PackedWeight)
        assert layer.weight.way is layout
        assert torch.equal(layer.weight, plain)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    layer, x = drawn(2, 64, 192, 20, 20)
    wanted, before = convolve(layer, x), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(convolve(layer, x), wanted)
    finally:
        torch.set_num_threads(before)


@needs_kernel
@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        ({"stride": 2, "padding": 1}, 32),
        ({"padding": 0}, 32),
        ({"padding": 1, "groups": 2}, 32),
        ({"padding": 2, "dilation": 2}, 32),
        ({"padding": 1}, 24),
    ],
)
def test_others_are_left_to_others(settings: dict[str, Any], channels: int) -> None:
    layer = nn.Conv2d(channels, 32, 3, **settings).bfloat16().requires_grad_(False)
    x = torch.randn(1, channels, 16, 16).bfloat16().contiguous(memory_format=torch.channels_last)
    assert not winograd.suits(layer, x, layer.bias, None)


@needs_kernel
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


@needs_kernel
def test_what_is_no_number_stays_none() -> None:
    layer, x = drawn(1, 32, 32, 12, 12)
    x[0, 0, 5, 5] = torch.nan
    assert convolve(layer, x, relu=True).isnan().any()
