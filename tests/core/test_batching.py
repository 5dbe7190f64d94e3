"""Concurrent requests: each gets its own pictures, in a fair order, whatever the others do."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.batching import Batcher
from core.errors import Busy, SuiteError
from core.networks import PredictCall
from core.pipeline import Pipeline
from core.request import GenerationRequest
from core.shares import HEARTBEAT_S

WAIT_S = 30
CALL = PredictCall(torch.zeros(1, 3, 8, 8), 500, torch.zeros(2, 77, 4))


def ask(condition, image, **settings):
    defaults = {"prompt": "a ball", "image_resolution": 256, "steps": 4, "seed": 5}
    return GenerationRequest.single(condition, image, **(defaults | settings))


def one_by_one(calls):
    return [networks.predict(call) for networks, call in calls]


@pytest.fixture
def shared(networks):
    """The fake model with batches of up to four images; it notes how many calls each had."""
    networks.largest_batch = 4
    networks.batches = []

    def counted(calls):
        networks.batches.append(len(calls))
        return one_by_one(calls)

    networks.predict_batched = counted
    return networks


@pytest.fixture
def occupied(shared):
    """A pipeline and a way to hold its device while requests line up."""
    pipeline = Pipeline(lambda *_, **__: shared)

    @contextmanager
    def held(waiting):
        batcher = pipeline._batcher
        with batcher.lease(shared, "something else", 1, lambda _: None):
            yield
            wait_until(lambda: len(batcher._lease_queue) == waiting)

    return pipeline, held


def wait_until(true):
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def same(found, wanted):
    return all(np.array_equal(a, b) for a, b in zip(found.images, wanted.images, strict=True))


def test_each_gets_what_it_would_have_got_alone(occupied, shared, condition, image):
    pipeline, held = occupied
    requests = [
        ask(condition, image, seed=1),
        ask(condition, 255 - image, seed=2, prompt="a long prompt"),
        ask(condition, image, seed=3, strength=0.5, eta=0.5),
        ask(condition, image, seed=4, guidance_scale=3.0),
    ]
    wanted = [Pipeline(lambda *_, **__: shared).generate(one) for one in requests]
    assert not shared.batches, "alone, nothing is batched"
    with ThreadPoolExecutor(4) as threads:
        with held(waiting=4):
            made = [threads.submit(pipeline.generate, one) for one in requests]
        found = [one.result(WAIT_S) for one in made]
    assert all(map(same, found, wanted))
    assert shared.batches == [4] * 4, "one batch at every step"
    assert not same(found[0], found[1])


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"mode": "fast"},
        {"guidance_scale": 1.0},
        {"image_resolution": 320},
        {"denoising_strength": 0.5},
    ],
)
def test_other_steps_take_a_lease_of_their_own(occupied, shared, condition, image, change):
    pipeline, held = occupied
    requests = [
        ask(condition, image),
        ask(condition, image, **change),
        ask(condition, image, seed=9),
    ]
    with ThreadPoolExecutor(3) as threads:
        with held(waiting=3):
            made = [threads.submit(pipeline.generate, one) for one in requests]
        for one in made:
            assert one.result(WAIT_S).images
    assert shared.batches == [2] * 4


def test_changed_pictures_share_a_lease_where_they_take_the_same_steps(
    occupied, shared, condition, image
):
    """Each with its own picture, mask and strength: 0.5 and 0.7 of four steps are both two."""
    pipeline, held = occupied
    half = np.zeros((256, 256), bool)
    half[64:192, 64:192] = True
    requests = [
        ask(condition, image, denoising_strength=0.5),
        ask(condition, 255 - image, denoising_strength=0.7, mask=half, seed=2),
        ask(condition, image, denoising_strength=0.7, eta=0.5, seed=3),
    ]
    wanted = [Pipeline(lambda *_, **__: shared).generate(one) for one in requests]
    with ThreadPoolExecutor(3) as threads:
        with held(waiting=3):
            made = [threads.submit(pipeline.generate, one) for one in requests]
        found = [one.result(WAIT_S) for one in made]
    assert all(map(same, found, wanted))
    assert shared.batches == [3] * 2


def test_no_more_share_a_lease_than_the_largest_batch(occupied, shared, condition, image):
    pipeline, held = occupied
    with ThreadPoolExecutor(6) as threads:
        with held(waiting=6):
            made = [
                threads.submit(pipeline.generate, ask(condition, image, seed=seed))
                for seed in range(6)
            ]
        for one in made:
            one.result(WAIT_S)
    assert sorted(shared.batches) == [2] * 4 + [4] * 4


def test_leases_begin_in_order_of_arrival(shared):
    """Of a b a c, both a share the first lease; then b, then c."""
    batcher, order = Batcher(), []

    def take(kind):
        with batcher.lease(shared, kind, 1, lambda _: None, max_batch=4):
            order.append(kind)

    with ThreadPoolExecutor(4) as threads, batcher.lease(shared, "first", 1, lambda _: None):
        for count, kind in enumerate("abac", 1):
            threads.submit(take, kind)
            wait_until(lambda count=count: len(batcher._lease_queue) == count)
    assert order == ["a", "a", "b", "c"]


def test_a_cancel_leaves_the_others(occupied, shared, condition, image):
    pipeline, held = occupied
    wanted = pipeline.generate(ask(condition, image, seed=1))
    steps = []

    def heard(progress):
        if progress.stage == "sample" and progress.step:
            steps.append(progress.step)

    with ThreadPoolExecutor(2) as threads:
        with held(waiting=2):
            stays = threads.submit(pipeline.generate, ask(condition, image, seed=1))
            leaves = threads.submit(
                pipeline.generate,
                ask(condition, image, seed=2),
                heard,
                lambda: len(steps) >= 2,
            )
        assert leaves.result(WAIT_S).cancelled
        assert same(stays.result(WAIT_S), wanted)
    assert steps == [1, 2]


@pytest.mark.slow
def test_a_cancel_while_waiting_is_heard(occupied, shared, condition, image):
    pipeline, held = occupied
    stop, heard = threading.Event(), []
    with ThreadPoolExecutor(1) as threads, held(waiting=0):
        made = threads.submit(pipeline.generate, ask(condition, image), heard.append, stop.is_set)
        wait_until(lambda: any(progress.stage == "wait" for progress in heard))
        stop.set()
        assert made.result(WAIT_S).cancelled
    assert not shared.calls


def test_an_error_of_one_is_its_own(occupied, shared, condition, image):
    """A batch that fails is made one by one, and only the one at fault fails."""
    pipeline, held = occupied
    predict = shared.predict

    def fragile(call):
        if call.texts[0, 0, 0] == 3:
            raise SuiteError("This one cannot be.")
        return predict(call)

    shared.predict, shared.predict_batched = fragile, one_by_one
    wanted = pipeline.generate(ask(condition, image, seed=1))
    with ThreadPoolExecutor(2) as threads:
        with held(waiting=2):
            good = threads.submit(pipeline.generate, ask(condition, image, seed=1))
            bad = threads.submit(pipeline.generate, ask(condition, image, negative_prompt="xyz"))
        with pytest.raises(SuiteError, match="cannot be"):
            bad.result(WAIT_S)
        assert same(good.result(WAIT_S), wanted)


def test_a_full_queue_says_so(shared):
    batcher = Batcher(most_admitted=2)
    full = pytest.raises(Busy, match=r"^2 requests are waiting already: please try again")
    with (
        batcher.admitted("a", lambda _: None),
        batcher.admitted("a", lambda _: None),
        full,
        batcher.admitted("a", lambda _: None),
    ):
        pass
    with batcher.admitted("b", lambda _: None):
        pass


def test_one_model_at_a_time_and_none_is_starved():
    """While a is in use, b waits, and an a that comes after b does not pass it."""
    batcher, order = Batcher(), []

    def use(model):
        with batcher.admitted(model, lambda _: None):
            order.append(model)

    with ThreadPoolExecutor(2) as threads, batcher.admitted("a", lambda _: None):
        with batcher.admitted("a", lambda _: None):
            pass
        for count, model in enumerate(("b", "a"), 1):
            threads.submit(use, model)
            wait_until(lambda count=count: len(batcher._model_queue) == count)
    assert order == ["b", "a"]


def test_a_float32_retry_does_not_affect_the_others(shared, condition, image):
    shared.dtype = torch.float16
    poisoned = shared.predict

    def broken(call):
        prediction = poisoned(call)
        return prediction * float("nan") if call.texts[0, 0, 0] == 3 else prediction

    whole = replace(shared, dtype=torch.float32)
    whole.predict_batched = one_by_one
    shared.predict, shared.in_float32 = broken, lambda: whole
    pipeline = Pipeline(lambda *_, **__: shared)
    with ThreadPoolExecutor(2) as threads:
        with pipeline._batcher.lease(shared, "something else", 1, lambda _: None):
            good = threads.submit(pipeline.generate, ask(condition, image))
            bad = threads.submit(pipeline.generate, ask(condition, image, negative_prompt="xyz"))
            wait_until(lambda: len(pipeline._batcher._lease_queue) == 2)
        assert good.result(WAIT_S).dtype == "float16"
        assert bad.result(WAIT_S).dtype == "float32"


@pytest.mark.parametrize("line", ["lease", "admitted"])
def test_who_waits_hears_how_many_are_before_it(shared, line):
    batcher, heard = Batcher(), set()

    def use(name, on_wait=lambda _: None):
        if line == "lease":
            return batcher.lease(shared, name, 1, on_wait)
        return batcher.admitted(name, on_wait)

    def wait(name):
        with use(name, lambda ahead: heard.add((name, ahead))):
            pass

    waiting = batcher._lease_queue if line == "lease" else batcher._model_queue
    with ThreadPoolExecutor(2) as threads, use("first"):
        for count, name in enumerate(("second", "third"), 1):
            threads.submit(wait, name)
            wait_until(lambda count=count: len(waiting) == count)
        wait_until(lambda: {name for name, _ in heard} == {"second", "third"})
        assert heard == {("second", 1), ("third", 2)}


@pytest.mark.slow
def test_who_waits_is_asked_at_heartbeats_alone(shared):
    """Not at each step of those who share the device, hundreds of times a second."""
    batcher, asked = Batcher(), []

    def step(calls):
        with batcher.lease(shared, "a", 1, lambda _: None, max_batch=2) as networks:
            while not calls.wait(0.001):
                networks.predict(CALL)

    stop = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        with batcher.lease(shared, "first", 1, lambda _: None):
            for count in (1, 2):
                threads.submit(step, stop)
                wait_until(lambda count=count: len(batcher._lease_queue) == count)
        began = time.monotonic()
        waiting = threads.submit(take, batcher, shared, lambda _: asked.append(time.monotonic()))
        wait_until(lambda: len(asked) == 2)
        steps, spent = len(shared.batches), time.monotonic() - began
        stop.set()
        waiting.result(WAIT_S)
    assert steps > 50
    assert spent > 1.8 * HEARTBEAT_S


def take(batcher, networks, on_wait):
    with batcher.lease(networks, "b", 1, on_wait):
        pass


def test_the_fast_mode_s_controlnets_run_in_the_batch_too(occupied, shared, condition, image):
    """One thread at a time, also where only some of a lease's controls act at a step."""
    pipeline, held = occupied
    busy, together = threading.Lock(), []
    residuals = shared.control_residuals

    def alone(call):
        with_lock = busy.acquire(blocking=False)
        assert with_lock, "another thread of the lease runs a ControlNet"
        time.sleep(0.002)
        busy.release()
        return residuals(call)

    def batched(calls):
        together.append(len(calls))
        return [alone(call) for _, call in calls]

    requests = [
        ask(condition, image, seed=1, mode="fast", steps=12),
        ask(condition, 255 - image, seed=2, mode="fast", steps=12, control_end=0.5),
        ask(condition, image, seed=3, mode="fast", steps=12, strength=0.5),
    ]
    wanted = [Pipeline(lambda *_, **__: shared).generate(one) for one in requests]
    shared.control_residuals, shared.control_residuals_batched = alone, batched
    with ThreadPoolExecutor(3) as threads:
        with held(waiting=3):
            made = [threads.submit(pipeline.generate, one) for one in requests]
        found = [one.result(WAIT_S) for one in made]
    assert all(map(same, found, wanted))
    assert set(together) == {2, 3}
    assert set(shared.batches) == {3}, "who had no residuals to ask for waits at the same step"


def test_a_request_waits_until_memory_holds_its_controlnets():
    """One that needs no more than is in use joins at once, also one that alone is too large."""
    batcher = Batcher(most_weights=10)
    order = []

    def use(name, weights):
        with batcher.admitted("model", lambda _: None, weights):
            order.append(name)

    with ThreadPoolExecutor(3) as threads, batcher.admitted("model", lambda _: None, {"a": 6}):
        use("the same", {"a": 6})
        use("small", {"b": 4})
        larger = threads.submit(use, "larger", {"b": 4, "c": 1})
        wait_until(lambda: len(batcher._model_queue) == 1)
        after = threads.submit(use, "after it", {"a": 6})
        wait_until(lambda: len(batcher._model_queue) == 2)
        assert order == ["the same", "small"]
    for one in (larger, after):
        one.result(WAIT_S)
    assert order[2:] == ["larger", "after it"]
    use("too large", {"d": 11})
    assert order[4:] == ["too large"]


def test_a_request_loads_after_it_was_admitted(shared, condition, image):
    """Its ControlNet is not in memory while it waits for others' to leave."""
    loaded, free = [], threading.Event()

    def load(model, name, **_):
        loaded.append(model)
        assert free.wait(WAIT_S)
        return shared

    pipeline = Pipeline(load, weigh=lambda *_, **__: {threading.get_ident(): 6}, most_weights=10)
    with ThreadPoolExecutor(2) as threads:
        made = [threads.submit(pipeline.generate, ask(condition, image)) for _ in range(2)]
        wait_until(lambda: len(loaded) == 1 and len(pipeline._batcher._model_queue) == 1)
        time.sleep(0.05)
        assert len(loaded) == 1
        free.set()
        for one in made:
            assert one.result(WAIT_S).images
    assert len(loaded) == 2
