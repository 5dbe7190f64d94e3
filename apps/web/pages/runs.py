"""A run as its page shows it: from the click that begins it to the cards of its results."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from apps.web.files import SavedResult, save, upload_folder
from apps.web.html import results
from apps.web.html.comparison import Side, versus
from apps.web.jobs.compare import Pair
from apps.web.jobs.job import Job
from apps.web.pages.widgets import plain_errors
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.errors import BadInput
from core.request import GenerationResult, Progress

STOPPED_EARLY = "Stopped before the first image was finished."
BUSY = "A run is going on already: wait for its end, or stop it first."


class Turn:
    """A visitor's place for a run on one page; there is room for one, however fast one clicks.

    A copy is a new one: Gradio gives each visitor a copy of what a page's State starts with.
    """

    def __init__(self) -> None:
        self.job: Job | Pair | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, _: Any) -> "Turn":
        return Turn()

    def take(self, start: Callable[[], Job | Pair]) -> None:
        """Keep the job that `start` returns.

        Raises:
            BadInput: another is going on.
            SuiteError: as start.
        """
        with self._lock:
            if self.job is not None and not (self.job.finished or self.job.stopped):
                raise BadInput(BUSY)
            self.job = start()


class Runs:
    """The runs of one page; each visitor's is known by the turn that its events hand over."""

    def __init__(
        self,
        app: Condition | Tool,
        suite: Suite,
        send_to: Sequence[Condition | Tool],
        results: gr.HTML,
    ):
        self.app = app
        self.suite = suite
        self.send_to = send_to
        self.results = results

    def begin(self, turn: Turn, start: Callable[[], Job | Pair]) -> tuple[Any, ...]:
        """Check everything before a place in the queue is taken; return Run, Stop and stage."""
        with plain_errors():
            turn.take(start)
        return gr.Button(visible=False), gr.Button(visible=True), results.WAITING

    def generate(self, turn: Turn, last_seed: int) -> Iterator[tuple[Any, ...]]:
        """Make the pictures: yield what stands above the results, the results, and their seed."""
        with plain_errors():
            try:
                for stage, results, seed in self._watch(turn.job) if turn.job else ():
                    last_seed = seed if isinstance(seed, int) else last_seed
                    yield stage, results, seed
            except Exception:
                yield self._blank(last_seed), gr.skip(), gr.skip()
                raise

    def _watch(self, job: Job | Pair) -> Iterator[tuple[Any, ...]]:
        preview = None
        made: list[tuple[GenerationResult, SavedResult]] = []
        for report in job.run():
            if isinstance(report, Progress):
                preview = preview if report.preview is None else report.preview
                shown = results.running(report, job.request.num_samples, preview)
                yield shown, gr.skip(), gr.skip()
            elif isinstance(report, GenerationResult) and report.images:
                self.suite.measured(report)
                made.append((report, self.save(report)))
                yield "", self._shown(job, made), report.seeds[0]
            elif isinstance(report, GenerationResult) or job.stopped:
                yield results.note(STOPPED_EARLY), gr.skip(), gr.skip()
            else:
                yield gr.skip(), gr.skip(), gr.skip()

    def _shown(self, job: Job | Pair, made: Sequence[tuple[GenerationResult, SavedResult]]) -> str:
        if not isinstance(job, Pair):
            return results.results(*made[0], self.send_to)
        titles = [self.suite.card(name).title for name in job.models]
        there = [Side(title, *one) for title, one in zip(titles, made, strict=False)]
        return versus([*there, *(Side(title) for title in titles[len(made) :])])

    def settle(self, turn: Turn, last_seed: int) -> tuple[Any, ...]:
        """Bring Run and Stop back, whatever happened: done, stopped, refused or failed."""
        never_ran = turn.job is not None and not turn.job.finished
        turn.job = None
        return (
            gr.Button(visible=True),
            gr.Button(visible=False, value="Stop"),
            self._blank(last_seed) if never_ran else gr.skip(),
        )

    def _blank(self, last_seed: int) -> str:
        """Return what stands above the results when nothing runs."""
        return results.empty(self.app) if last_seed < 0 else ""

    def stop(self, turn: Turn) -> Any:
        """End a run soon, and say so on the button that asks for it."""
        if turn.job is not None:
            turn.job.stop()
        return gr.Button(value="Stopping …")

    def save(self, result: GenerationResult) -> SavedResult:
        """Keep a result's files where the browser gets them."""
        saved = save(result, upload_folder(), self.suite.keep)
        self.results.temp_files |= {str(path) for path in saved.all()}  # for delete_cache
        return saved
