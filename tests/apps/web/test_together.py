"""Visitors at once: each gets the pictures they would have got alone, whoever stops or comes."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image

from apps.web.serve import Environment, launch
from apps.web.site import build_app
from apps.web.suite import MOST_RUNS, Suite
from core.condition import Condition
from tests.apps.web.html.test_results import _result

pytestmark = pytest.mark.slow

PHOTOS = Path(__file__).resolve().parents[3] / "test_imgs"
WAIT_S = 150
FIRST = {"image": "coffee.jpg", "prompt": "a red ball", "seed": 5}
SECOND = {"image": "astronaut.jpg", "prompt": "a blue box, a tree", "seed": 7, "strength": 0.5}


@pytest.fixture(scope="module")
def busy(suite: Suite) -> Suite:
    """A suite with a line of its own, in which two may stand."""
    return Suite(suite.store, "tiny", max_queue=2)


@pytest.fixture(scope="module")
def visitors(
    busy: Suite, canny: Condition, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Client]]:
    page = build_app(canny, busy)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    address = launch(page, Environment(max_queue=1, output=None), options, block=False)
    clients = [
        Client(address, verbose=False, download_files=tmp_path_factory.mktemp("visitor"))
        for _ in range(2)
    ]
    yield clients
    for client in clients:
        client.close()
    page.close(verbose=False)


@pytest.fixture
def in_line(busy: Suite) -> Callable[..., AbstractContextManager[list[Any]]]:
    """A way to hold the device while requests, each (client, settings), wait for it together."""
    batcher = busy.pipeline._batcher

    @contextmanager
    def held(requests: Iterable[tuple[Client, dict[str, Any]]]) -> Iterator[list[Any]]:
        networks = busy.store.load("tiny", "canny")
        with batcher.lease(networks, "something else", 1, lambda _: None):
            calls: list[Any] = []
            for client, asked in requests:
                # One after another: each needs for a moment the single place in Gradio's queue.
                calls.append(_ask(client, **asked))
                _until(lambda: len(batcher._lease_queue) == len(calls))
            yield calls

    return held


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def _ask(client: Client, image: str, **settings: Any) -> Any:
    given = {"steps": 4} | settings
    return client.submit(image=handle_file(PHOTOS / image), api_name="/canny2image", **given)


def _pictures(call: Any) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)).astype(int) for path in call.result(WAIT_S)[1]]


def _apart(first: list[np.ndarray], second: list[np.ndarray]) -> int:
    pairs = zip(first, second, strict=True)
    return max(int(np.abs(a - b).max()) if a.shape == b.shape else 255 for a, b in pairs)


def test_each_visitor_gets_their_own_pictures(
    visitors: list[Client], busy: Suite, in_line: Any
) -> None:
    pairs = list(zip(visitors, (FIRST, SECOND), strict=True))
    alone = [_pictures(_ask(client, **asked)) for client, asked in pairs]
    with in_line(pairs) as calls:
        pass
    together = [_pictures(call) for call in calls]
    for mine, wanted in zip(together, alone, strict=True):
        assert _apart(mine, wanted) <= 1, "equal up to rounding"
    assert _apart(together[0], together[1]) > 100
    assert "while other requests" not in busy.facts("tiny")[2], (
        "the header keeps what one alone takes"
    )


def test_one_who_leaves_does_not_end_the_other(visitors: list[Client], busy: Suite) -> None:
    wanted = _pictures(_ask(visitors[0], **FIRST, steps=8))
    at_work = busy.pipeline._batcher._at_work
    leaves = _ask(visitors[1], **SECOND, steps=8, num_samples=12)
    _until(lambda: len(at_work) == 1)
    stays = _ask(visitors[0], **FIRST, steps=8)
    _until(lambda: len(at_work) == 2)
    leaves.cancel()
    assert _apart(_pictures(stays), wanted) <= 1
    # Nobody at work may be a moment between two images of the one who left.
    _until(lambda: busy.pipeline._batcher._admitted == 0)


def test_a_full_queue_is_one_sentence(visitors: list[Client], busy: Suite, in_line: Any) -> None:
    with in_line([(client, FIRST) for client in visitors]) as calls:
        calls.append(_ask(visitors[0], **SECOND))
        _until(lambda: calls[-1].status().rank == 0)
        with pytest.raises(QueueError, match=r"^Queue is full! Please try again\.$"):
            _ask(visitors[1], **SECOND).result(WAIT_S)
    for call in calls:
        assert _pictures(call)


def test_a_full_line_is_one_sentence(visitors: list[Client], busy: Suite) -> None:
    with ExitStack() as others:
        for _ in range(3):
            others.enter_context(busy.pipeline._batcher.admitted("tiny", lambda _: None))
        with pytest.raises(AppError) as error:
            _ask(visitors[0], **FIRST).result(WAIT_S)
    assert str(error.value) == "3 requests are waiting already: please try again in a minute."


def test_no_more_run_at_once_than_may_wait(suite: Suite, busy: Suite) -> None:
    assert (busy.runs, suite.runs) == (2, MOST_RUNS)


def test_what_was_made_while_others_ran_gives_way(suite: Suite, canny: Condition) -> None:
    fresh = Suite(suite.store, "tiny")
    fresh._note("tiny", "ready")
    result = _result(canny, 50.0)
    result = replace(result, request=replace(result.request, model="tiny"))
    slow = replace(result, seconds={"sample": 30.0}, alone=False)
    fresh.measured(slow)
    assert fresh.facts("tiny")[2].endswith(", while other requests were running)")
    fresh._speed.clear()
    fresh._estimating = True
    fresh.measured(slow)
    fresh._estimating = False
    assert fresh.facts("tiny")[2].startswith("about 30\N{NO-BREAK SPACE}s")
    assert "other requests" not in fresh.facts("tiny")[2], "the estimate is nobody's request"
    fresh.measured(replace(result, seconds={"sample": 5.0}))
    fresh.measured(slow)
    speed = fresh.facts("tiny")[2]
    assert speed.startswith("about 5.0\N{NO-BREAK SPACE}s") and "other requests" not in speed


def test_a_time_says_whose_it_is(suite: Suite, canny: Condition) -> None:
    fresh = Suite(suite.store, "tiny")
    fresh._note("tiny", "ready")
    result = _result(canny, 50.0)
    result = replace(result, request=replace(result.request, model="tiny"))
    fresh.measured(result, 100)
    assert "estimated at the start" in fresh.facts("tiny")[2]
    own = fresh.measured(replace(result, seconds={"sample": 5.0}))
    assert "the last run on this server" in fresh.facts("tiny")[2], "for another visitor"
    told = fresh.facts("tiny", own_speed=own)[2]
    assert told.startswith("about 5.0\N{NO-BREAK SPACE}s") and "your last run here" in told
    assert fresh.measured(replace(result, cancelled=True)) == ""
