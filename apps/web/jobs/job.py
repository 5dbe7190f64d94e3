"""One generation in a thread of its own, watched and stopped from outside. Knows no widgets."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from core.batching import HEARTBEAT_S
from core.condition import ControlMap
from core.pipeline import Pipeline
from core.request import GenerationRequest, GenerationResult, Progress
from models.catalog.lora_tags import tags_in

PREVIEW_EVERY = 2
"""Steps from one live preview to the next."""

Report = Callable[[Progress], None]
Done = TypeVar("Done")


def watched(
    work: Callable[[Report], Done], stopped: threading.Event
) -> Iterator[Progress | Done | None]:
    """Do work in a thread: yield its reports as they come, and what it returns last.

    None is yielded every HEARTBEAT_S without a report, so that a closed tab is noticed. Closing the
    iterator sets `stopped`, which the work heeds.

    Raises:
        BaseException: as the work.
    """
    reports: queue.SimpleQueue[Progress | Done | BaseException] = queue.SimpleQueue()

    def do() -> None:
        try:
            reports.put(work(reports.put))
        except BaseException as error:  # noqa: BLE001 - raised again in the watching thread
            reports.put(error)

    threading.Thread(target=do, name="work", daemon=True).start()
    try:
        while True:
            try:
                report = reports.get(timeout=HEARTBEAT_S)
                while isinstance(report, Progress) and not reports.empty():
                    report = reports.get()  # a slow watcher sees the newest only
            except queue.Empty:
                yield None
                continue
            if isinstance(report, BaseException):
                raise report
            yield report  # None too: who watches can say that it was stopped
            if not isinstance(report, Progress):
                return
    finally:
        stopped.set()


def drawn_map(
    pipeline: Pipeline, request: GenerationRequest
) -> Iterator[Progress | ControlMap | None]:
    """Draw a map as Pipeline.draw_map, with what is to be downloaded first; yield as `watched`.

    Raises:
        SuiteError: as Pipeline.fetch and Pipeline.draw_map.
    """
    stopped = threading.Event()

    def draw(report: Report) -> ControlMap | None:
        if pipeline.fetch(request, report, stopped.is_set, map_only=True):
            return pipeline.draw_map(request)
        return None

    return watched(draw, stopped)


class Job:
    """A checked request on its way to pictures; notes on its picture join the warnings.

    LoRA tags in its prompt, <lora:name:0.8>, choose the model with those LoRAs; in the negative
    prompt they do nothing, which the warnings say.
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
        """End within one step; finished images are kept. May be called at any time, by anyone."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopped.is_set()

    def run(self) -> Iterator[Progress | GenerationResult | None]:
        """Make the pictures: yield progress as it comes, None in silence, and the result last.

        A stop before the first step yields no result. Closing the iterator stops the work.

        Raises:
            SuiteError: as Pipeline.generate.
        """
        try:
            yield from watched(self._generate, self._stopped)
        finally:
            self.finished = True

    def _generate(self, report: Report) -> GenerationResult | None:
        # Before a place in the pipeline's line is taken: a download takes minutes.
        stopped = self._stopped.is_set
        fetched = self._pipeline.fetch(self.request, report, stopped)
        if not fetched or self.stopped:
            return None
        model, prompt = self.request.model, self.request.full_prompt
        result = self._pipeline.generate(
            replace(self.request, model=" ".join([model, *tags_in(prompt)])),
            on_progress=report,
            cancelled=stopped,
            preview_every=PREVIEW_EVERY,
        )
        # Who restores these settings finds the tags in the prompt, and a model that is offered.
        request = replace(result.request, model=model)
        notes = (*self._notes, *_idle_tags(request.negative_prompt))
        return replace(result, request=request, warnings=(*notes, *result.warnings))


def _idle_tags(negative_prompt: str) -> list[str]:
    return [
        f"{tag} does nothing in the negative prompt: move it into the prompt, perhaps with a "
        "negative weight."
        for tag in dict.fromkeys(tags_in(negative_prompt))
    ]
