"""A run in its own thread: what is told, how it stops, what is let go."""

import contextvars
import threading
import time
from typing import Any

import numpy as np
import pytest

import apps
from apps.web.jobs.job import Job, watched
from core.errors import BadInput
from core.request import Download, GenerationRequest, GenerationResult, Progress

CANNY = apps.find("canny2image")
REQUEST = GenerationRequest.single(CANNY, np.zeros((8, 8, 3), np.uint8), steps=5)


class FakePipeline:
    """Takes five steps of `pause` seconds, looking at `cancelled` after each."""

    def __init__(self, pause: float = 0.0, error: Exception | None = None) -> None:
        self.pause, self.error = pause, error
        self.steps = 0
        self.ended = threading.Event()
        self.fetched = threading.Event()
        self.fetched.set()

    def fetch(self, request: Any, on_progress: Any, cancelled: Any) -> bool:
        while not self.fetched.wait(0.01):
            on_progress(Progress("download", 0, 5, 0, None, None, Download("Far", 1, 2)))
            if cancelled():
                return False
        return True

    def generate(self, request: Any, on_progress: Any, cancelled: Any, **_: Any):
        try:
            if self.error:
                raise self.error
            for step in range(1, 6):
                time.sleep(self.pause)
                self.steps = step
                on_progress(Progress("sample", step, 5, 0, None, None))
                if cancelled():
                    break
            return _result(cancelled())
        finally:
            self.ended.set()


def _result(cancelled: bool) -> GenerationResult:
    facts = dict.fromkeys(("model", "device", "dtype"), "x")
    empty = dict.fromkeys(("images", "controls", "seeds"), ())
    return GenerationResult(
        **facts, **empty, seconds={}, warnings=("second",),
        request=REQUEST, width=8, height=8, hashes={}, cancelled=cancelled,
    )  # fmt: skip


def _job(pipeline: FakePipeline, *notes: str) -> Job:
    return Job(pipeline, REQUEST, notes)  # type: ignore[arg-type]


def test_progress_comes_first_and_the_result_last() -> None:
    job = _job(FakePipeline(pause=0.02), "first")
    reports = [report for report in job.run() if report is not None]
    assert [type(r) for r in reports[-2:]] == [Progress, GenerationResult]
    assert reports[-1].warnings == ("first", "second")
    assert job.finished


def test_stop_ends_within_a_step() -> None:
    pipeline = FakePipeline(pause=0.1)
    job = _job(pipeline)
    for report in job.run():
        if isinstance(report, Progress):
            job.stop()
    assert isinstance(report, GenerationResult) and report.cancelled
    assert pipeline.steps <= 2


def test_a_second_stop_and_one_after_the_end_change_nothing() -> None:
    pipeline = FakePipeline(pause=0.05)
    job = _job(pipeline)
    for report in job.run():
        if isinstance(report, Progress):
            job.stop()
            job.stop()
    assert isinstance(report, GenerationResult) and report.cancelled and pipeline.steps <= 2
    whole = _job(pipeline)
    *_, result = whole.run()
    whole.stop()
    assert whole.finished and not result.cancelled
    *_, after = _job(pipeline).run()
    assert not after.cancelled and pipeline.steps == 5


def test_a_stop_while_waiting_never_starts() -> None:
    pipeline = FakePipeline()
    job = _job(pipeline)
    job.stop()
    assert [r for r in job.run() if r is not None] == []
    assert pipeline.steps == 0


def test_closing_the_iterator_stops_the_work() -> None:
    pipeline = FakePipeline(pause=0.1)
    reports = _job(pipeline).run()
    assert isinstance(next(r for r in reports if r is not None), Progress)
    reports.close()
    assert pipeline.ended.wait(2) and pipeline.steps < 5


def test_a_stop_of_one_leaves_the_other() -> None:
    first, second = FakePipeline(pause=0.05), FakePipeline(pause=0.05)
    stops, stays = _job(first), _job(second)
    others = stays.run()
    for report in stops.run():
        if isinstance(report, Progress):
            assert isinstance(next(one for one in others if one is not None), Progress)
            stops.stop()
    assert isinstance(list(others)[-1], GenerationResult)
    assert first.steps < 5 and second.steps == 5


def test_who_downloads_keeps_nobody_waiting_and_stops_at_once() -> None:
    far, near = FakePipeline(), FakePipeline()
    far.fetched.clear()
    job = _job(far)
    for report in job.run():
        if isinstance(report, Progress):
            assert report.stage == "download"
            assert isinstance(list(_job(near).run())[-1], GenerationResult)
            job.stop()
    assert near.steps == 5 and far.steps == 0 and job.finished


def test_the_work_sees_the_context_of_its_caller() -> None:
    """There Gradio keeps the visitor's request, which ZeroGPU asks for."""
    visitor = contextvars.ContextVar("visitor", default="nobody")
    visitor.set("ann")
    assert list(watched(lambda _: visitor.get(), threading.Event())) == ["ann"]


def test_an_error_rises_where_it_is_watched() -> None:
    with pytest.raises(BadInput, match="no good"):
        list(_job(FakePipeline(error=BadInput("no good"))).run())
