"""ZeroGPU, the Spaces of Hugging Face that lend a GPU for the seconds of a request.

The process that serves the pages has no GPU there: `spaces` pretends one, so that weights can be
placed on it before the server starts. What `spaces.GPU` wraps runs in a process that is forked with
those weights and gets the GPU; all that goes in and comes out is pickled. Elsewhere nothing of this
is used, and `spaces` need not be installed.

Source: huggingface.co/docs/hub/spaces-zerogpu, and spaces 0.51.
"""

import importlib
import math
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from apps.web.remote import gather, work
from core.condition import Condition
from core.errors import DeviceUnavailable, SuiteError
from core.pipeline import Pipeline
from core.request import GenerationRequest, GenerationResult, Progress
from core.wire import packed
from models.devices import share_device
from models.store import Store

RUNS = 4
"""Requests that wait for a GPU at once: a wait of more than a minute is refused there, so the
others wait in the page's own queue."""
START_S, LONGEST_S = 20, 120
"""Seconds for placing the weights and the first step of a new process, and the most to ask for: a
visitor without an account has two minutes a day. What is not used costs nothing, but those who ask
for less are served first."""
STEP_S = 0.015
"""Of a network's step at 512 x 512: twice what it takes on an H100 (benchmarks/README.md), because
ZeroGPU lends half of an H200."""


def gpu_seconds(request: GenerationRequest) -> int:
    """Return for how long a GPU is asked, an upper estimate: after it the run is ended."""
    wide, high = request.size
    networks = 1 + len(request.controls)
    steps = request.num_samples * request.steps_taken * networks * wide * high / 512**2
    return min(LONGEST_S, START_S + math.ceil(steps * STEP_S))


class LentGPU(Pipeline):
    """Makes pictures in a process that has a GPU for as long."""

    def __init__(self, store: Store, conditions: Iterable[Condition], *parts: Any) -> None:
        """Wrap what runs there; `parts` are Pipeline's own arguments.

        Maps that are drawn alone are drawn on this process's CPU.
        """
        super().__init__(*parts)
        self._store = store
        self._conditions = {one.name: one for one in conditions}
        share_device(torch.device("cpu"))
        gpu = importlib.import_module("spaces").GPU
        self._on_gpu: Callable[..., Iterator[bytes]] = gpu(
            self._work, duration=lambda _given, _stop, seconds: seconds
        )

    def generate(
        self,
        request: GenerationRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        preview_every: int = 0,
        on_images: Callable[[GenerationResult], None] | None = None,
    ) -> GenerationResult:
        """Make the request's pictures as Pipeline.generate does.

        Raises:
            SuiteError: as Pipeline.generate, or no GPU is lent.
        """
        # The other process is told by a file: it shares no memory, only the disk.
        stop = Path(tempfile.gettempdir(), f"controlloop-stop-{uuid.uuid4().hex}")
        given = packed((request, preview_every))

        def reports() -> Iterator[bytes]:
            try:
                for report in self._on_gpu(given, str(stop), gpu_seconds(request)):
                    yield report
                    if cancelled and cancelled():
                        stop.touch()
            except Exception as error:  # noqa: BLE001 - raised again
                raise _as_ours(error) from None

        try:
            return gather(reports(), self._conditions, request, on_progress, on_images)
        finally:
            stop.unlink(missing_ok=True)

    def _work(self, given: bytes, stop: str, seconds: int) -> Iterator[bytes]:
        """Make the pictures, in the process with the GPU; yield reports, the result last.

        `seconds` is for the wrapper alone.
        """
        share_device(self._store.device)
        # Not the one that was forked: another thread may have held its lock at that moment.
        pipeline = Pipeline(self._store.load)
        closed = threading.Event()
        yield from work(
            pipeline,
            given,
            self._conditions,
            closed,
            lambda: closed.is_set() or Path(stop).exists(),
        )


def _as_ours(error: Exception) -> Exception:
    """Return Gradio's error, in which `spaces` says why there is no GPU, as one of ours."""
    said = getattr(error, "message", None)
    if isinstance(error, SuiteError) or not hasattr(error, "title") or said is None:
        return error
    return DeviceUnavailable(f"{error.title}: {said!s}")
