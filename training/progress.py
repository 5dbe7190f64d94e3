"""One line of progress with the time left."""

import time


def clock(done: int, total: int, began: float, unit: str) -> str:
    """`12/100 chunks, 0:31 gone, 3:47 left`; `began` is a `time.monotonic()` reading."""
    gone = time.monotonic() - began
    left = gone / max(done, 1) * (total - done)
    return f"{done}/{total} {unit}, {_minutes(gone)} gone, {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
