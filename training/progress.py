"""One line of progress with the remaining time."""

import time


def progress_line(done: int, total: int, start: float, unit: str) -> str:
    """`12/100 chunks, 0:31 elapsed, 3:47 left`; `start` is a `time.monotonic()` reading."""
    elapsed = time.monotonic() - start
    left = elapsed / max(done, 1) * (total - done)
    return f"{done}/{total} {unit}, {_minutes(elapsed)} elapsed, {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
