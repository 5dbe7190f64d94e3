"""Shares of an amount: never more than there is, in order of arrival; a wait can be given up."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.shares import Shares

WAIT_S = 30


class Left(Exception):
    pass


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_never_more_is_taken_than_there_is(wishes):
    """Also where one wants more than there is: it has all of it, alone."""
    shares, lock = Shares(8), threading.Lock()
    now, most = 0, 0

    def work(wish):
        nonlocal now, most
        with shares.taken(wish):
            with lock:
                now += min(wish, 8)
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= min(wish, 8)

    with ThreadPoolExecutor(len(wishes)) as threads:
        for one in [threads.submit(work, wish) for wish in wishes]:
            one.result(WAIT_S)
    assert most <= 8 and now == 0
    assert most == 8 or sum(wishes) < 8 or max(wishes) < 8


def test_who_came_first_is_not_overtaken_by_a_smaller_wish():
    shares, order = Shares(10), []

    def work(wish):
        with shares.taken(wish):
            order.append(wish)

    with ThreadPoolExecutor(2) as threads, shares.taken(6):
        for count, wish in enumerate((5, 1), 1):
            threads.submit(work, wish)
            while len(shares._queue) < count:
                time.sleep(0.001)
        time.sleep(0.02)
        assert order == []
    assert order == [5, 1]


@pytest.mark.slow
def test_who_gives_up_leaves_the_place_to_others():
    shares = Shares(10)

    def give_up(_):
        raise Left

    with shares.taken(10), pytest.raises(Left), shares.taken(1, give_up):
        pass
    with shares.taken(10):
        pass
