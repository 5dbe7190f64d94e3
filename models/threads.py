"""How many threads the networks take on a CPU: as many as there are processors that nobody uses.

A parallel loop ends with its last thread, and a step has hundreds. Where other programs are busy,
one thread or another waits for its turn in every loop, and the rest wait for it: two threads beside
five busy programs on two processors take ten times as long as one thread does (`python -m
benchmarks.speed --beside 5`). With our own kernels a picture is the same to the last bit with any
number of threads; where torch's run, two of ten thousand pixels may differ by one level of 255. For
whom that matters, OMP_NUM_THREADS=1 keeps the number.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import torch

WINDOW_S = 0.25
"""Shortest time over which others' use is measured: the system counts in hundredths of a second."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time, or "max", in each so many microseconds (cgroup version 2)."""


class FreeProcessors:
    """Counts the processors that other programs leave free. May be used from any thread."""

    def __init__(
        self,
        processors: int,
        most: int,
        busy_s: Callable[[], float],
        own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count up to `most` of `processors`.

        busy_s returns the seconds that programs have spent on them so far, own_s those of this one.
        """
        self._processors, self._most = processors, most
        self._busy_s, self._own_s, self._clock = busy_s, own_s, clock
        self._lock = threading.Lock()
        self._free = most
        self._last = self._now()

    def count(self) -> int:
        """Return how many were free since the last count, 1 at least."""
        with self._lock:
            clock, others = self._now()
            elapsed = clock - self._last[0]
            if elapsed >= WINDOW_S:
                used = (others - self._last[1]) / elapsed
                self._free = min(max(1, round(self._processors - used)), self._most)
                self._last = clock, others
            return self._free

    def _now(self) -> tuple[float, float]:
        return self._clock(), self._busy_s() - self._own_s()


def fit_threads() -> None:
    """Have what this thread computes next run on as many threads as processors are free."""
    free = _shared().count()
    if torch.get_num_threads() != free:
        torch.set_num_threads(free)


@cache
def _shared() -> FreeProcessors:
    most = min(torch.get_num_threads(), allowed_processors())
    return FreeProcessors(len(_processors()), most, _busy_seconds)


def allowed_processors(limit: Path = CGROUP_LIMIT) -> int:
    """Return how many processors' time this process may use, of those it may run on.

    A container's limit is one of time; PyTorch starts a thread for every processor all the same.
    """
    try:
        quota, period = limit.read_text(encoding="ascii").split()
        allowed = math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):  # another system, or an older cgroup
        allowed = math.inf
    return max(1, math.floor(min(allowed, len(_processors()))))


def _processors() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _busy_seconds() -> float:
    """Return the seconds that the processors on which this process may run have worked."""
    times = psutil.cpu_times(percpu=True)
    rest = ("idle", "iowait", "guest", "guest_nice")  # guests' times are in user's and nice's
    return sum(
        sum(times[index]) - sum(getattr(times[index], name, 0.0) for name in rest)
        for index in _processors()
        if index < len(times)
    )
