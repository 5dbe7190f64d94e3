"""As many threads as processors are free: counted from what other programs use of them."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from annotators._diorama import predict
from models import threads
from models.networks import DiffusersNetworks
from models.threads import WINDOW_S, FreeProcessors, allowed_processors, fit_threads


class Machine:
    """Four processors, of which other programs use `others` and this one `own`."""

    def __init__(self) -> None:
        self.now = self.busy = self.spent = 0.0

    def run(self, seconds: float, others: float, own: float) -> None:
        self.now += seconds
        self.busy += seconds * (others + own)
        self.spent += seconds * own

    def free(self, most: int) -> FreeProcessors:
        return FreeProcessors(4, most, lambda: self.busy, lambda: self.spent, lambda: self.now)


@pytest.mark.parametrize(
    ("others", "own", "most", "expected"),
    [
        (0, 0, 4, 4),
        (0, 4, 4, 4),  # what we use ourselves is free
        (0.4, 3.6, 4, 4),
        (1, 3, 4, 3),
        (2.7, 1.3, 4, 1),
        (4, 0, 4, 1),  # never none
        (1, 2, 2, 2),  # half of the processors are enough
    ],
)
def test_what_others_use_is_not_free(others: float, own: float, most: int, expected: int) -> None:
    machine = Machine()
    free = machine.free(most)
    machine.run(1, others, own)
    assert free.count() == expected


def test_it_follows_what_others_do_window_by_window() -> None:
    machine = Machine()
    free, counts = machine.free(4), []
    for others in (0, 3, 3, 0):
        machine.run(WINDOW_S, others, 1)
        counts.append(free.count())
        machine.run(WINDOW_S / 10, 4, 0)
        assert free.count() == counts[-1], "too short to tell"
    assert counts == [4, 1, 1, 4]


@pytest.fixture
def machine_with_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine, before = Machine(), torch.get_num_threads()
    free = machine.free(2)
    monkeypatch.setattr(threads, "_shared", lambda: free)
    yield machine
    torch.set_num_threads(before)


def test_the_networks_get_as_many_threads(machine_with_two: Machine) -> None:
    found = []
    for others in (0, 3, 0):
        machine_with_two.run(1, others, 1)
        fit_threads()
        found.append(torch.get_num_threads())
    assert found == [2, 1, 2]


def test_networks_and_annotators_ask_before_they_work(
    machine_with_two: Machine, networks: "DiffusersNetworks"
) -> None:
    latents = torch.zeros(1, networks.latent_channels, 8, 8)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for work in (
        lambda: networks.decode(latents),
        lambda: networks.encode_text(["never asked for before"]),
        lambda: predict(picture),
    ):
        torch.set_num_threads(2)
        machine_with_two.run(1, 3, 1)
        work()
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", 8), ("300000 100000\n", 3), ("250000 100000\n", 2), ("50000 100000\n", 1),
     ("900000 100000\n", 8), ("", 8), (None, 8)],
)  # fmt: skip
def test_a_container_may_use_less_than_the_machine_has(
    text: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_processors", lambda: list(range(8)))
    limit = tmp_path / "cpu.max"
    if text is not None:
        limit.write_text(text)
    assert allowed_processors(limit) == expected


def test_this_machine_tells_what_others_used() -> None:
    def others_s() -> float:
        return threads._busy_seconds() - time.process_time()

    before = others_s()
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while psutil.Process(other.pid).cpu_times().user < 1:
            time.sleep(0.05)
        assert others_s() - before > 0.8, "it is counted in hundredths for each processor"
    finally:
        other.kill()
        other.wait()
