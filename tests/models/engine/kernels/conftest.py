"""The kernels' tests run on every build that the processor can run, and on the portable one."""

import pytest

from models.engine.kernels import attention, matmul, winograd


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels run even where torch's own, with AMX, is faster."""
    for module in (attention, matmul, winograd):
        monkeypatch.setattr(module, "has_tiles", lambda: False)
