"""The kernels compile for both targets, and Python reads from them what both must agree on."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from models.engine.kernels import attention, build, groupnorm
from models.engine.kernels.build import KERNELS, kernel
from models.engine.layers import VNNI, WINOGRAD, convolve, multiply


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_compiles(name: str) -> None:
    assert kernel(name) is not None


def test_the_app_never_uses_the_portable_build() -> None:
    assert build.target is build.AVX512


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["portable"], indirect=True)
@pytest.mark.usefixtures("compiled")
def test_a_changed_constant_reaches_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Panels of another width, blocks of another depth, and narrower limits."""
    sources = tmp_path / "sources"
    shutil.copytree(build.SOURCES, sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, *changes in (
        ("matmul", ("PANEL = 64", "PANEL = 32")),
        ("winograd", ("PANEL = 64", "PANEL = 32"), ("DEPTH = 128", "DEPTH = 64")),
        ("attention", ("WIDEST = 512", "WIDEST = 16")),
        ("groupnorm", ("return LANES;", "return 64;")),
    ):
        text = (sources / f"{name}.cpp").read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (sources / f"{name}.cpp").write_text(text, encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    linear = nn.Linear(64, 96).bfloat16().requires_grad_(False)
    x = torch.randn(5, 64).bfloat16()
    wanted = linear(x)
    torch.testing.assert_close(multiply(linear, x), wanted, rtol=2e-2, atol=2e-2)
    assert linear.weight.packing is VNNI
    convolution = nn.Conv2d(160, 96, 3, padding=1).bfloat16().requires_grad_(False)
    x = torch.randn(1, 160, 12, 12).bfloat16().contiguous(memory_format=torch.channels_last)
    wanted = convolution(x)
    torch.testing.assert_close(convolve(convolution, x), wanted, rtol=2e-2, atol=2e-2)
    assert convolution.weight.packing is WINOGRAD
    monkeypatch.setattr(attention, "_attended", lambda *_: pytest.fail("the head is too wide"))
    attention.attention(*[torch.randn(1, 4, 1, 40).bfloat16()] * 3)
    monkeypatch.setattr(groupnorm, "_normalized", lambda *_: pytest.fail("160 is no multiple"))
    groupnorm.group_norm(nn.GroupNorm(2, 160).bfloat16().requires_grad_(False), x)
