"""The kernels for GPUs give what torch gives; here on the CPU, by Triton's own interpreter.

tests/gpu runs them on a GPU, at the sizes of Stable Diffusion.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.engine.kernels import build
from models.engine.kernels.groupnorm import group_norm
from models.engine.layers import multiply_gated

pytest.importorskip("triton", reason="needs Triton, which comes with torch for NVIDIA cards")

CHECK = """
import torch
from torch.nn import functional
from models.engine.kernels import triton_kernels

# (pictures, channels, groups, height, width): groups of a width that is no power of two, a picture
# in one piece and in several, remainders of both, and more groups than a program takes.
SHAPES = [
    *((2, 320, 32, 4, 4), (1, 24, 8, 9, 7), (1, 60, 2, 40, 41)),
    *((2, 96, 32, 65, 65), (1, 256, 64, 60, 60)),
]
NEAR = {torch.float32: 3e-7, torch.float16: 3e-4, torch.bfloat16: 4e-3}
for shape in SHAPES:
    pictures, channels, groups, height, width = shape
    for dtype, offset in [(torch.float32, 0), (torch.float16, 2), (torch.bfloat16, 1)]:
        torch.manual_seed(0)
        x = (2 * torch.randn(pictures, channels, height, width) + offset).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(2, channels).to(dtype)
        for silu in (False, True):
            exact = functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
            exact = functional.silu(exact) if silu else exact
            found = triton_kernels.group_norm(x, weight, bias, groups, 1e-5, silu)
            assert found.dtype == dtype and found.stride() == x.stride()
            far = (found - exact).norm() / exact.norm()
            assert far < NEAR[dtype], (shape, dtype, silu, far)
        if dtype == torch.float32:  # with something added before
            more = torch.randn(channels)
            exact = functional.group_norm(
                x.double() + more.double()[:, None, None], groups, weight.double(), bias.double()
            )
            found = triton_kernels.group_norm(x, weight, bias, groups, 1e-5, False, more)
            assert (found - exact).norm() / exact.norm() < NEAR[dtype], shape

far_from_zero = torch.randn(1, 32, 64, 65) + 100
far_from_zero = far_from_zero.contiguous(memory_format=torch.channels_last)
one, none = torch.ones(32), torch.zeros(32)
found = triton_kernels.group_norm(far_from_zero, one, none, 2, 1e-5, False)
exact = functional.group_norm(far_from_zero.double(), 2, eps=1e-5)
assert (found - exact).norm() / exact.norm() < 1e-5
far_from_zero[0, 3, 5, 5] = float("nan")
found = triton_kernels.group_norm(far_from_zero, one, none, 2, 1e-5, True)
assert found[0, :16].isnan().all() and found[0, 16:].isfinite().all()

both = 3 * torch.randn(2, 77, 2 * 80)
value, gate = both.double().chunk(2, -1)
exact = value * functional.gelu(gate)
assert (triton_kernels.gated(both) - exact).norm() / exact.norm() < 3e-7
target, addend = torch.randn(2, 2, 5, 7, 3).unbind()
wanted = target + 0.7 * addend
found = triton_kernels.add_scaled(target, addend, torch.tensor([0.3, 0.7])[1])
assert found is target
torch.testing.assert_close(target, wanted, rtol=1e-6, atol=1e-6)

target, addend = torch.randn(2, 2, 24, 7, 3).unbind()
target, addend = (t.contiguous(memory_format=torch.channels_last) for t in (target, addend))
bias = torch.randn(24)
wanted = target + bias[:, None, None] + addend
assert triton_kernels.add_with_bias(target, addend, bias) is target
torch.testing.assert_close(target, wanted, rtol=1e-6, atol=1e-6)

target, addend = torch.randn(2, 2, 9, 48).unbind()
weight, bias = torch.randn(2, 48)
wanted = target + addend
found = triton_kernels.add_and_norm(target, addend, weight, bias, 1e-5)
torch.testing.assert_close(target, wanted, rtol=1e-6, atol=1e-6)
exact = functional.layer_norm(wanted.double(), (48,), weight.double(), bias.double(), 1e-5)
assert (found - exact).norm() / exact.norm() < 3e-7
"""


@pytest.mark.slow
def test_they_give_what_torch_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_without_them_torchs_own_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One failure, told once, and no second try; a want of memory is no failure."""
    monkeypatch.setattr(build, "_no_triton", False)
    assert build.on_gpu("there is none of this name") is None
    assert build.on_gpu("gated", None) is None
    assert [one.levelname for one in caplog.records] == ["WARNING"]


def test_on_a_cpu_they_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a kernel for a GPU was asked on a CPU")

    monkeypatch.setattr("models.engine.kernels.groupnorm.on_gpu", asked)
    monkeypatch.setattr("models.engine.layers.on_gpu", asked)
    x = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    assert group_norm(nn.GroupNorm(4, 16), x, silu=True).shape == x.shape
    assert multiply_gated(nn.Linear(8, 16), torch.randn(2, 8)).shape == (2, 8)
