"""Requests on a lent GPU: the same pictures, and what is refused or cut off is told."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import apps
from apps.web.suite import Suite
from apps.web.zero_gpu import LONGEST_S, START_S, LentGPU, gpu_seconds
from core.errors import BadInput, DeviceUnavailable
from core.request import GenerationRequest, GenerationResult, Progress
from core.wire import packed, unpacked

PICTURE = np.zeros((256, 256, 3), np.uint8)
PICTURE[:, 100:] = 255


def _request(**settings: Any) -> GenerationRequest:
    usual = {"steps": 2, "image_resolution": 256, "seed": 5, "model": "tiny"}
    return GenerationRequest.single(apps.find("canny2image"), PICTURE, **(usual | settings))


@pytest.fixture
def lent(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LentGPU]:
    """Return a pipeline whose `spaces` runs the work here, and lets `between` see each report."""

    def make(between: Callable[[int], None] = lambda _: None) -> LentGPU:
        def wrapped(task: Any, duration: Callable[..., int]) -> Any:
            def run(*given: Any) -> Iterator[bytes]:
                pipeline.asked = duration(*given)
                for number, report in enumerate(task(*given)):
                    between(number)
                    yield report

            return run

        monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=wrapped))
        pipeline = LentGPU(suite.store, apps.conditions(), suite.store.load)
        return pipeline

    return make


def test_the_pictures_are_those_of_any_other_machine(
    suite: Suite, lent: Callable[..., LentGPU]
) -> None:
    told: list[Any] = []
    pipeline, request = lent(), _request(num_samples=2, prompt="the red ball")
    made = pipeline.generate(request, told.append, lambda: False, 1, told.append)
    wanted = suite.pipeline.generate(request)
    assert np.array_equal(made.images, wanted.images)
    assert (made.seeds, made.headlines) == (wanted.seeds, wanted.headlines)
    assert made.request.controls[0].condition is request.controls[0].condition
    assert any(isinstance(one, Progress) and one.preview is not None for one in told)
    assert any(isinstance(one, GenerationResult) and len(one.images) == 1 for one in told)
    assert pipeline.asked == gpu_seconds(request)


def test_a_stop_reaches_the_other_process(lent: Callable[..., LentGPU]) -> None:
    told: list[Progress] = []
    made = lent().generate(
        _request(steps=100), told.append, lambda: any(one.stage == "sample" for one in told)
    )
    assert made.cancelled and made.images == ()
    assert max(one.step for one in told) < 50


def test_a_mistake_has_its_own_sentence(lent: Callable[..., LentGPU]) -> None:
    with pytest.raises(BadInput, match="no model"):
        lent().generate(_request(model="gone"))


def _refused(number: int) -> None:
    raise gr.Error("No GPU was available after 60s", title="ZeroGPU queue timeout")


def test_why_no_gpu_is_lent_is_told(lent: Callable[..., LentGPU]) -> None:
    with pytest.raises(DeviceUnavailable, match="queue timeout: No GPU was available after 60s"):
        lent(_refused).generate(_request())


def test_what_was_made_before_a_gpu_is_taken_away_is_kept(
    suite: Suite, lent: Callable[..., LentGPU]
) -> None:
    made: list[GenerationResult] = []

    def taken_away(_: int) -> None:
        if made:
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error")

    result = lent(taken_away).generate(_request(num_samples=3), on_images=made.append)
    assert len(result.images) == 1
    assert "Only 1 of 3 images were made: ZeroGPU worker error: GPU task aborted" in result.warnings
    alone = suite.pipeline.generate(_request())
    assert np.array_equal(result.images[0], alone.images[0])


def test_a_bug_stays_a_bug(lent: Callable[..., LentGPU]) -> None:
    def broken(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lent(broken).generate(_request())


@given(
    few=st.integers(1, 99), more=st.integers(1, 100), samples=st.integers(1, 12),
    resolution=st.sampled_from([256, 512, 768]),
)  # fmt: skip
def test_longer_requests_ask_for_more_within_a_bound(
    few: int, more: int, samples: int, resolution: int
) -> None:
    short = _request(steps=few, image_resolution=resolution, num_samples=samples)
    long = replace(short, steps=min(few + more, 100))
    assert START_S < gpu_seconds(short) <= gpu_seconds(long) <= LONGEST_S
    assert gpu_seconds(_request(steps=20, image_resolution=512)) < gpu_seconds(
        _request(steps=100, image_resolution=512, num_samples=12)
    )


def test_every_condition_goes_and_comes_by_its_name() -> None:
    known = {one.name: one for one in apps.conditions()}
    for condition in known.values():
        request = GenerationRequest.single(condition, PICTURE)
        again = unpacked(packed(request), known)
        assert again.controls[0].condition is condition
        assert np.array_equal(again.controls[0].image, PICTURE)
