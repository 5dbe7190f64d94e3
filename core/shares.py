"""Shares of an amount, such as of memory, for those who work at the same time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HEARTBEAT_S = 0.5
"""Time between two calls of a waiting thread's OnWait."""

OnWait = Callable[[int], None]
"""Called now and then while a thread waits, with how many are before it; raises to give up."""


def wait_until(
    changed: threading.Condition,
    true: Callable[[], bool],
    on_wait: OnWait,
    ahead: Callable[[], int],
) -> None:
    """Wait on a condition that is held until `true()`, with a call of `on_wait` at every heartbeat.

    `ahead` returns how many are before this thread. The condition is released while `on_wait` runs.
    """
    while not changed.wait_for(true, HEARTBEAT_S):
        before = ahead()
        changed.release()
        try:
            on_wait(before)
        finally:
            changed.acquire()


class Shares:
    """An amount that threads take from and give back, in order of arrival."""

    def __init__(self, amount: int) -> None:
        """Give out at most so much at once."""
        self.amount = amount
        self._changed = threading.Condition()
        self._taken = 0
        self._queue: list[object] = []

    @contextmanager
    def taken(self, amount: int, on_wait: OnWait = lambda _: None) -> Iterator[None]:
        """Have so much of it during the block; whoever wants more than there is has all of it."""
        mine, amount = object(), min(amount, self.amount)
        with self._changed:
            self._queue.append(mine)
            try:
                wait_until(
                    self._changed,
                    lambda: self._queue[0] is mine and self._taken + amount <= self.amount,
                    on_wait,
                    lambda: self._queue.index(mine) + 1,
                )
                self._taken += amount
            finally:
                self._queue.remove(mine)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()
