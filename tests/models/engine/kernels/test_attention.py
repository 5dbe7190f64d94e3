"""The compiled attention gives what torch's own gives, and where it cannot run torch's own runs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.engine.kernels import attention as module
from models.engine.kernels import build
from models.engine.kernels.attention import attention
from models.engine.kernels.build import kernel

SHAPES = [
    # (B, rows, keys, heads, width): SD 1.x's widths, the text's 77 tokens, one key, and remainders
    # of a tile of rows, of a group of keys and of a block of them.
    (2, 64, 64, 8, 40),
    (1, 37, 300, 2, 80),
    (2, 9, 77, 3, 160),
    (1, 8, 1, 1, 8),
    (1, 1, 513, 2, 20),
    (1, 19, 64, 1, 512),  # the decoder's
]


def exactly(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """In float64, (B, N, heads * width)."""
    q, k, v = (one.double().transpose(1, 2) for one in (queries, keys, values))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def drawn(shape: tuple[int, ...], scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, count, heads, width = shape
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        (scale * torch.randn(batch, n, heads, width, generator=generator)).bfloat16()
        for n in (rows, count, count)
    )
    return queries, keys, values


def test_a_processor_with_tiles_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_tiles", lambda: True)
    monkeypatch.setattr(module, "kernel", None)  # nobody asks for it
    given = drawn((1, 8, 16, 2, 8))
    torch.testing.assert_close(attention(*given).double(), exactly(*given), rtol=2e-2, atol=2e-2)


on_every_build = pytest.mark.usefixtures("compiled")


@on_every_build
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_no_further_from_exact_than_torch_is(shape: tuple[int, ...]) -> None:
    given = drawn(shape)
    exact, found = exactly(*given), attention(*given)
    q, k, v = (one.transpose(1, 2) for one in given)
    theirs = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert found.dtype == torch.bfloat16 and found.shape == theirs.shape
    assert (found - exact).norm() <= 1.1 * (theirs - exact).norm() + 1e-6 * exact.norm()


@on_every_build
def test_heads_may_lie_between_others() -> None:
    """As the parts of one product for queries, keys and values do."""
    whole = torch.randn(2, 48, 3 * 4 * 40).bfloat16()
    given = [one.unflatten(2, (4, 40)) for one in whole.chunk(3, 2)]
    assert torch.equal(attention(*given), attention(*(one.contiguous() for one in given)))


@on_every_build
def test_large_logits_choose_one_key() -> None:
    keys = torch.zeros(1, 40, 1, 8)
    keys[0, 33, 0, 0], keys[0, 5, 0, 0] = 300, -300
    values = torch.arange(40.0).reshape(1, 40, 1, 1).expand(-1, -1, -1, 8)
    queries = torch.full((1, 1, 1, 8), 300.0)
    found = attention(*(one.bfloat16().contiguous() for one in (queries, keys, values)))
    assert (found == 33).all()


@on_every_build
def test_what_is_no_number_stays_none() -> None:
    queries, keys, values = drawn((1, 16, 64, 1, 8))
    keys[0, 40] = float("nan")
    assert attention(queries, keys, values).isnan().all()
    queries, keys, values = drawn((1, 16, 64, 1, 8))
    queries[0, 3] = float("inf")
    found = attention(queries, keys, values)
    assert found[0, 3].isnan().all() and found[0, 4].isfinite().all()


@pytest.mark.parametrize("reason", ["format", "gradient", "compiler", "processor", "wide"])
def test_elsewhere_torchs_own_runs(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(drawn((1, 16, 16, 2, 8 if reason != "wide" else 514)))
    if reason == "format":
        given = [one.float() for one in given]
    if reason == "gradient":
        given[0].requires_grad_()
    if reason == "compiler":
        monkeypatch.setattr(build.shutil, "which", lambda _name: None)
    if reason == "processor":
        monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    kernel.cache_clear()
    try:
        found = attention(*given)
    finally:
        kernel.cache_clear()
    torch.testing.assert_close(found.double(), exactly(*given), rtol=2e-2, atol=2e-2)
    assert found.requires_grad == (reason == "gradient")


def test_a_compiler_that_fails_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda _name: "false")
    monkeypatch.setattr(build, "is_supported", lambda _target: True)
    kernel.cache_clear()
    try:
        assert kernel("attention") is kernel("attention") is None
    finally:
        kernel.cache_clear()
    assert caplog.text.count("'attention' cannot be used") == 1


@pytest.mark.parametrize("fault", ["read-only", "no home"])
def test_without_a_cache_a_slower_kernel_runs(
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a container whose user has no home, or a file system that is only to be read."""

    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if fault == "read-only" else "")
    monkeypatch.setattr(build.Path, "home", homeless)
    monkeypatch.setattr(build.shutil, "which", lambda _name: "g++")
    monkeypatch.setattr(build, "is_supported", lambda _target: True)
    kernel.cache_clear()
    try:
        assert kernel("attention") is None
    finally:
        kernel.cache_clear()
    assert caplog.text.count("'attention' cannot be used") == 1
