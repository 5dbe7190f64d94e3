"""Generations and map drawings in threads of their own, watched and stopped from outside."""

import logging
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TypeVar

from apps.web.telemetry import observed
from core.condition import ControlMap
from core.pipeline import Pipeline
from core.progress import Stopped
from core.request import GenerationRequest, GenerationResult, Progress
from core.shares import HEARTBEAT_S
from models.catalog.lora_tags import tags_in

log = logging.getLogger(__name__)

PREVIEW_EVERY = 2
"""Steps between two live previews."""


@dataclass(frozen=True, eq=False)
class Partial:
    """The images that are done while more are made."""

    result: GenerationResult


Report = Callable[[Progress | Partial], None]
Done = TypeVar("Done")


def watched(
    work: Callable[[Report], Done], stopped: threading.Event
) -> Iterator[Progress | Partial | Done | None]:
    """Run `work` in a thread; yield its reports as they come, then what it returns.

    Yields None after HEARTBEAT_S without a report, so that a closed tab is noticed. Closing the
    iterator sets `stopped`, which the work must check.

    Raises:
        BaseException: as the work.
    """
    reports: queue.SimpleQueue[Progress | Partial | Done | BaseException] = queue.SimpleQueue()

    def do() -> None:
        try:
            reports.put(work(reports.put))
        except BaseException as error:  # noqa: BLE001 - raised again in the watching thread
            reports.put(error)

    # With the caller's context, in which Gradio keeps the visitor's request, and ZeroGPU finds it.
    threading.Thread(target=copy_context().run, args=[do], name="work", daemon=True).start()
    try:
        while True:
            try:
                report = reports.get(timeout=HEARTBEAT_S)
                while isinstance(report, Progress) and not reports.empty():
                    report = reports.get()  # a slow consumer gets only the newest
            except queue.Empty:
                yield None
                continue
            if isinstance(report, BaseException):
                raise report
            yield report  # maybe None: stopped before there was a result
            if not isinstance(report, Progress | Partial):
                return
    finally:
        stopped.set()


def drawn_map(
    pipeline: Pipeline, request: GenerationRequest, index: int = 0
) -> Iterator[Progress | ControlMap | None]:
    """Download what is needed and draw a control's map as Pipeline.draw_map; yield as `watched`.

    Raises:
        SuiteError: as Pipeline.fetch and Pipeline.draw_map.
    """
    stopped = threading.Event()

    def stop_if_left(_: int) -> None:
        if stopped.is_set():
            raise Stopped

    def draw(report: Report) -> ControlMap | None:
        try:
            if pipeline.fetch(request, report, stopped.is_set, map_only=True):
                return pipeline.draw_map(request, stop_if_left, index)
        except Stopped:
            log.info("Whoever asked for a map has left before it was drawn.")
        return None

    for told in watched(draw, stopped):
        if not isinstance(told, Partial):  # a map comes in one piece
            yield told


class Job:
    """A checked request and its run; `notes` are put before the result's warnings.

    LoRA tags in the prompt, <lora:name:0.8>, select the model with those LoRAs; in the negative
    prompt they do nothing, with a warning.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        request: GenerationRequest,
        notes: Sequence[str] = (),
    ):
        self._pipeline = pipeline
        self.request = request
        self._notes = tuple(notes)
        self._stopped = threading.Event()
        self.finished = False

    def again(self, request: GenerationRequest) -> "Job":
        """Return a job on the same pipeline for another request."""
        return Job(self._pipeline, request)

    def stop(self) -> None:
        """Stop within one step; finished images are kept. May be called in any thread."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether stop was called."""
        return self._stopped.is_set()

    def run(self) -> Iterator[Progress | Partial | GenerationResult | None]:
        """Make the images; yield as `watched`, the result last.

        Yields no result if stopped before the first step. Closing the iterator stops the run.

        Raises:
            SuiteError: as Pipeline.generate.
        """
        try:
            yield from watched(self._generate, self._stopped)
        finally:
            self.finished = True

    def _generate(self, report: Report) -> GenerationResult | None:
        with observed(uuid.uuid4().hex[:8], self.request) as observe:
            result = self._make(report)
            observe(result)
            return result

    def _make(self, report: Report) -> GenerationResult | None:
        # Before waiting for the device: a download takes minutes.
        stopped = self._stopped.is_set
        fetched = self._pipeline.fetch(self.request, report, stopped)
        if not fetched or self.stopped:
            return None

        def told(result: GenerationResult) -> None:
            if len(result.images) < self.request.num_samples:
                report(Partial(self._plain(result)))

        model, prompt = self.request.model, self.request.full_prompt
        result = self._pipeline.generate(
            replace(self.request, model=" ".join([model, *tags_in(prompt)])),
            on_progress=report,
            cancelled=stopped,
            preview_every=PREVIEW_EVERY,
            on_images=told,
        )
        notes = (*self._notes, *_idle_tags(self.request.negative_prompt))
        return replace(self._plain(result), warnings=(*notes, *result.warnings))

    def _plain(self, result: GenerationResult) -> GenerationResult:
        """Have saved settings name the plain model, which is on offer: tags are in the prompt."""
        return replace(result, request=replace(result.request, model=self.request.model))


def _idle_tags(negative_prompt: str) -> list[str]:
    return [
        f"{tag} does nothing in the negative prompt: move it into the prompt, perhaps with a "
        "negative weight."
        for tag in dict.fromkeys(tags_in(negative_prompt))
    ]
