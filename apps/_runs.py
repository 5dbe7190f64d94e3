"""A run as its page shows it: from the click that begins it to the cards of its results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from apps import _cards
from apps._files import SavedResult, save
from apps._job import Job
from apps._pair import Pair
from apps._suite import Suite
from apps._tool import Tool
from apps._versus import Side, versus
from apps._widgets import plain_errors
from core.condition import Condition
from core.request import GenerationResult, Progress

STOPPED_EARLY = "Stopped before the first image was finished."


class Runs:
    """The runs of one page; each visitor's is known by the job that its events hand over."""

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

    def generate(self, job: Job | Pair, last_seed: int) -> Iterator[tuple[Any, ...]]:
        """Make the pictures: yield what stands above the results, the results, and their seed."""
        with plain_errors():
            try:
                for stage, results, seed in self._watch(job):
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
                shown = _cards.running(report, job.request.num_samples, preview)
                yield shown, gr.skip(), gr.skip()
            elif isinstance(report, GenerationResult) and report.images:
                self.suite.measured(report)
                made.append((report, self.save(report)))
                yield "", self._shown(job, made), report.seeds[0]
            elif isinstance(report, GenerationResult) or job.stopped:
                yield _cards.note(STOPPED_EARLY), gr.skip(), gr.skip()
            else:
                yield gr.skip(), gr.skip(), gr.skip()

    def _shown(self, job: Job | Pair, made: Sequence[tuple[GenerationResult, SavedResult]]) -> str:
        if not isinstance(job, Pair):
            return _cards.results(*made[0], self.send_to)
        titles = [self.suite.card(name).title for name in job.models]
        there = [Side(title, *one) for title, one in zip(titles, made, strict=False)]
        return versus([*there, *(Side(title) for title in titles[len(made) :])])

    def settle(self, job: Job | Pair | None, last_seed: int) -> tuple[Any, ...]:
        """Bring Run and Stop back, whatever happened: done, stopped, refused or failed."""
        never_ran = job is not None and not job.finished
        return (
            None,
            gr.Button(visible=True),
            gr.Button(visible=False, value="Stop"),
            self._blank(last_seed) if never_ran else gr.skip(),
        )

    def _blank(self, last_seed: int) -> str:
        """Return what stands above the results when nothing runs."""
        return _cards.empty(self.app) if last_seed < 0 else ""

    def stop(self, job: Job | Pair | None) -> Any:
        """End a run soon, and say so on the button that asks for it."""
        if job is not None:
            job.stop()
        return gr.Button(value="Stopping …")

    def save(self, result: GenerationResult) -> SavedResult:
        """Keep a result's files where the browser gets them."""
        saved = save(result, Path(get_upload_folder()), self.suite.keep)
        self.results.temp_files |= {str(path) for path in saved.all()}  # for delete_cache
        return saved
