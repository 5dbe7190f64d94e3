"""The kernels' tests run on both builds: AVX-512's, and the portable one on any processor."""

import shutil
from collections.abc import Iterator

import pytest

from models.engine.kernels import attention, build, matmul, winograd


@pytest.fixture(params=["avx512", "portable"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the kernels compiled for a target, and every packing at hand."""
    if shutil.which("g++") is None:
        pytest.skip("no GCC")
    target = build.AVX512 if request.param == "avx512" else build.PORTABLE
    if not build.is_supported(target):
        pytest.skip("no AVX-512 BF16")
    monkeypatch.setattr(build, "target", target)
    build.kernel.cache_clear()
    yield
    build.kernel.cache_clear()


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels run even where torch's own, with AMX, is faster."""
    for module in (attention, matmul, winograd):
        monkeypatch.setattr(module, "has_tiles", lambda: False)
