"""Where kernels can be compiled, they are: a mistake in one would be passed by in silence."""

import shutil

import pytest
import torch

from models.engine.kernels.build import FEATURES, KERNELS, kernel

able = shutil.which("g++") and all(
    torch.cpu.get_capabilities().get(feature) for feature in FEATURES
)


@pytest.mark.skipif(not able, reason="no GCC, or no AVX-512 BF16")
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_compiles(name: str) -> None:
    assert kernel(name) is not None
