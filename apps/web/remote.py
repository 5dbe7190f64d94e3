"""Requests whose pictures another process makes: what goes there, and what comes back.

The process is one that has a GPU for a while (zero_gpu.py), or a worker on another machine
(deploy/ray.py). It gets a packed request, and sends packed reports while it is at work.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Partial, Report, watched
from core.condition import Condition
from core.errors import SuiteError
from core.pipeline import Pipeline
from core.request import GenerationRequest, GenerationResult, Progress
from core.wire import packed, unpacked


def work(
    pipeline: Pipeline,
    given: bytes,
    conditions: Mapping[str, Condition],
    closed: threading.Event,
    cancelled: Callable[[], bool],
) -> Iterator[bytes]:
    """Make the pictures of packed (request, preview_every); yield packed reports, the result last.

    A report is None twice a second, if nothing else is to be told; a SuiteError is one too. Closing
    the iterator sets `closed`.
    """
    request, preview_every = unpacked(given, conditions)

    def generate(report: Report) -> GenerationResult | None:
        if not pipeline.fetch(request, report, cancelled):
            return None
        return pipeline.generate(
            request,
            on_progress=report,
            cancelled=cancelled,
            preview_every=preview_every,
            on_images=lambda result: report(Partial(result)),
        )

    try:
        for report in watched(generate, closed):
            yield packed(report)
    except SuiteError as error:
        yield packed(error)


def gather(
    reports: Iterable[bytes],
    conditions: Mapping[str, Condition],
    request: GenerationRequest,
    on_progress: Callable[[Progress], None] | None,
    on_images: Callable[[GenerationResult], None] | None,
) -> GenerationResult:
    """Pass the reports of `work` on; return the result, as Pipeline.generate does.

    If they end before it, the request was cancelled. If they fail, what is made comes with a
    warning.

    Raises:
        Exception: what the reports raise, and SuiteErrors among them, if nothing is made yet.
    """
    made: GenerationResult | None = None
    try:
        for data in reports:
            report = unpacked(data, conditions)
            if isinstance(report, SuiteError):
                raise report
            if isinstance(report, Progress) and on_progress:
                on_progress(report)
            elif isinstance(report, Partial):
                made = report.result
                if on_images:
                    on_images(made)
            elif isinstance(report, GenerationResult):
                return report
    except Exception as error:
        if made is None:
            raise
        images = f"{len(made.images)} of {request.num_samples} images were made"
        return replace(made, warnings=(*made.warnings, f"Only {images}: {sentence_of(error)}"))
    return replace(made or _nothing(request), cancelled=True)


def _nothing(request: GenerationRequest) -> GenerationResult:
    wide, high = request.size
    return GenerationResult(
        images=(),
        controls=(),
        seeds=(),
        seconds={},
        warnings=(),
        request=request,
        model=request.model,
        device="",
        dtype="",
        width=wide,
        height=high,
        hashes={},
        cancelled=True,
    )
