"""The compiled group normalisation gives what torch's own gives, and else torch's own runs."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.engine.kernels import build
from models.engine.kernels.build import kernel
from models.engine.kernels.groupnorm import group_norm

SHAPES = [
    # (B, C, groups, height, width): Diorama's, SD 1.x's, what follows a skip, and remainders of a
    # strip of pixels, of a run of them and of four vectors of channels.
    (2, 64, 16, 32, 32),
    (1, 320, 32, 16, 24),
    (3, 960, 32, 3, 5),
    (1, 48, 16, 9, 9),
    (1, 16, 2, 1, 1),
    (2, 176, 16, 65, 5),
]
on_every_build = pytest.mark.usefixtures("compiled")


def drawn(shape: tuple[int, ...], offset: float = 1.0) -> tuple[nn.GroupNorm, Tensor]:
    batch, channels, groups, height, width = shape
    torch.manual_seed(0)
    layer = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer = layer.bfloat16().requires_grad_(False)
    x = 2 * torch.randn(batch, channels, height, width) + offset
    return layer, x.bfloat16().contiguous(memory_format=torch.channels_last)


def exactly(layer: nn.GroupNorm, x: Tensor, *, silu: bool) -> Tensor:
    """In float64."""
    weight, bias = layer.weight.double(), layer.bias.double()
    found = functional.group_norm(x.double(), layer.num_groups, weight, bias, layer.eps)
    return functional.silu(found) if silu else found


@on_every_build
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_no_further_from_exact_than_torch_is(shape: tuple[int, ...], silu: bool) -> None:
    layer, x = drawn(shape)
    exact, found = exactly(layer, x, silu=silu), group_norm(layer, x, silu=silu)
    theirs = functional.silu(layer(x)) if silu else layer(x)
    assert found.dtype == torch.bfloat16 and found.stride() == x.stride()
    # A remainder of a bfloat16's last place: where both round alike, neither is nearer.
    assert (found - exact).norm() <= 1.02 * (theirs - exact).norm() + 1e-6 * exact.norm()


@on_every_build
def test_a_mean_far_from_zero_costs_no_precision() -> None:
    layer, x = drawn((1, 64, 16, 64, 64), offset=100.0)
    exact = exactly(layer, x, silu=False)
    assert (group_norm(layer, x) - exact).norm() <= 5e-3 * exact.norm()


@on_every_build
def test_what_is_no_number_stays_none_in_its_group() -> None:
    layer, x = drawn((1, 32, 2, 4, 4))
    x[0, 3, 2, 2] = float("nan")
    found = group_norm(layer, x, silu=True)
    assert found[0, :16].isnan().all() and found[0, 16:].isfinite().all()


@pytest.mark.parametrize("reason", ["format", "gradient", "layout", "channels", "compiler"])
def test_elsewhere_torchs_own_runs(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = drawn((1, 20 if reason == "channels" else 32, 4, 4, 4))
    if reason == "format":
        layer, x = layer.float(), x.float()
    if reason == "gradient":
        x.requires_grad_()
    if reason == "layout":
        x = x.contiguous()
    if reason == "compiler":
        monkeypatch.setattr(build.shutil, "which", lambda _name: None)
    kernel.cache_clear()
    try:
        found = group_norm(layer, x, silu=True)
    finally:
        kernel.cache_clear()
    assert torch.equal(found, functional.silu(layer(x)))
    assert found.requires_grad == (reason == "gradient")


@on_every_build
def test_a_picture_is_the_same_in_any_batch_and_with_any_number_of_threads() -> None:
    layer, x = drawn((3, 128, 16, 40, 40))
    wanted, before = group_norm(layer, x, silu=True), torch.get_num_threads()
    one = x[1:2].contiguous(memory_format=torch.channels_last)
    assert torch.equal(group_norm(layer, one, silu=True), wanted[1:2])
    torch.set_num_threads(3)
    try:
        assert torch.equal(group_norm(layer, x, silu=True), wanted)
    finally:
        torch.set_num_threads(before)
