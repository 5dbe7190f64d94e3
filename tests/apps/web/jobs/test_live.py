"""Live pictures: the newest request wins, and the one before is stopped."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from apps.web.jobs.live import Live, live_values
from apps.web.suite import Suite
from core.errors import BadInput
from core.request import GenerationResult


class HeldJob:
    """A job that waits until it may end, or is stopped."""

    def __init__(self, result: Any, holds: bool = True):
        self.began, self._free = threading.Event(), threading.Event()
        self.stopped = False
        self._result = result
        if not holds:
            self._free.set()

    def stop(self) -> None:
        self.stopped = True
        self._free.set()

    def run(self) -> Any:
        self.began.set()
        assert self._free.wait(30)
        yield self._result


def result(name: str) -> Any:
    made = object.__new__(GenerationResult)
    object.__setattr__(made, "images", (name,))
    return made


def test_the_newest_request_stops_the_one_before_and_wins() -> None:
    live, first, second = Live(), HeldJob(result("old")), HeldJob(result("new"), holds=False)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(live.picture(lambda: first)))
    waiting.start()
    assert first.began.wait(30)
    newest = live.picture(lambda: second)
    waiting.join(30)
    assert first.stopped and not second.stopped
    assert newest is not None and newest.images == ("new",)
    assert found == [None], "an old picture must not replace a newer one"


def test_a_request_that_is_refused_still_stops_the_one_before() -> None:
    live, first = Live(), HeldJob(result("old"))
    waiting = threading.Thread(target=lambda: live.picture(lambda: first))
    waiting.start()
    assert first.began.wait(30)

    def refused() -> Any:
        raise BadInput("The canvas is empty: please draw something first.")

    with pytest.raises(BadInput):
        live.picture(refused)
    waiting.join(30)
    assert first.stopped
    last = live.picture(lambda: HeldJob(result("later"), holds=False))  # type: ignore[arg-type,return-value]
    assert last is not None and last.images == ("later",)


def test_a_live_picture_is_one_draft_with_a_seed_that_stays(suite: Suite) -> None:
    given = suite.defaults("tiny") | {"num_samples": 4, "seed": -1, "mode": "exact"}
    values = live_values(suite, given, 7)
    # The tests' model has no LCM-LoRA, which the mode preview needs.
    assert (values["num_samples"], values["seed"], values["mode"]) == (1, 7, "fast")
    assert live_values(suite, given | {"seed": 3}, 7)["seed"] == 3
    had = SimpleNamespace(card=suite.card, has_preview=lambda _: True)
    assert live_values(had, given, 7)["mode"] == "preview"  # type: ignore[arg-type]
    with_little_memory = given | {"mode": "light"}
    assert live_values(had, with_little_memory, 7)["mode"] == "light"  # type: ignore[arg-type]


def test_each_visitor_has_a_seed_of_their_own() -> None:
    from copy import deepcopy

    live = Live()
    assert len({deepcopy(live).seed for _ in range(4)}) > 1
