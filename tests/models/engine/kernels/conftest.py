"""The kernels' tests run on every build that the processor can run, and on the portable one."""

import shutil
from collections.abc import Iterator

import pytest

from models.engine.kernels import attention, build, matmul, winograd


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


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels run even where torch's own, with AMX, is faster."""
    for module in (attention, matmul, winograd):
        monkeypatch.setattr(module, "has_tiles", lambda: False)
