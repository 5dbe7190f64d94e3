"""The engine as on other processors."""

import shutil
from collections.abc import Iterator

import pytest

from models.engine import layers
from models.engine.kernels import build, winograd


@pytest.fixture(params=[one.isa or "portable" for one in (*build.TARGETS, build.PORTABLE)])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the kernels compiled for a target, and every packing at hand."""
    if shutil.which("g++") is None:
        pytest.skip("no GCC")
    target = next((one for one in build.TARGETS if one.isa == request.param), build.PORTABLE)
    if not build.is_supported(target):
        pytest.skip(f"no {target.isa}")
    monkeypatch.setattr(build, "target", target)
    build.kernel.cache_clear()
    yield
    build.kernel.cache_clear()


@pytest.fixture
def without_bfloat16(compiled: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the engine run as on a processor without instructions for bfloat16."""
    for module in (layers, winograd):
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)
    layers._has_onednn.cache_clear()
    yield
    layers._has_onednn.cache_clear()
