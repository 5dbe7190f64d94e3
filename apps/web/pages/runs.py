"""A page's runs, from the click that begins one to its result cards."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from apps.batch.folder import TABLE, Batch
from apps.batch.uploads import UploadRun
from apps.web.files import RunFiles, keep_copies, save_whole, upload_folder, write_archive
from apps.web.html import grid, results
from apps.web.html.comparison import Side, versus
from apps.web.html.many import many
from apps.web.jobs.compare import Pair
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job, Partial
from apps.web.jobs.sweep import Sweep
from apps.web.pages.widgets import plain_errors
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.errors import BadInput
from core.provenance import source_type_of
from core.request import GenerationResult, Progress

AnyJob = Job | Pair | Sweep | UploadRun
STOPPED_EARLY = "Stopped before the first image was finished."
STOPPED_BATCH = "Stopped: {} of {} pictures are done."
BUSY = "A run is already in progress; wait until it ends, or stop it first."


class CurrentJob:
    """A visitor's job on one page: one at a time, however fast they click.

    Gradio copies a State's initial value for each visitor; a copy holds no job.
    """

    def __init__(self) -> None:
        self.job: AnyJob | None = None
        self.speeds: dict[str, str] = {}
        """What Suite.measured said of the visitor's last run with each model."""
        self.has_cards = False
        """Whether results are shown."""
        self._lock = threading.Lock()

    def __deepcopy__(self, _: Any) -> "CurrentJob":
        return CurrentJob()

    def begin(self, new_job: Callable[[], AnyJob]) -> None:
        """Hold the job that `new_job` returns.

        Raises:
            BadInput: another one is in progress.
            SuiteError: as new_job.
        """
        with self._lock:
            if self.job is not None and not (self.job.finished or self.job.stopped):
                raise BadInput(BUSY)
            self.job = new_job()


class Runs:
    """The handlers of a page's events that run jobs; each event passes its visitor's job."""

    def __init__(
        self,
        app: Condition | Tool,
        suite: Suite,
        send_to: Sequence[Condition | Tool],
    ):
        self.app = app
        self.suite = suite
        self.send_to = send_to

    def begin(self, current: CurrentJob, new_job: Callable[[], AnyJob]) -> tuple[Any, ...]:
        """Check everything before the event queues; return updates of Run, Stop, stage and cards.

        The results before stay until others come; where there are none, several images get room.
        """
        with plain_errors():
            current.begin(new_job)
        job = current.job
        waiting = results.WAITING_MANY if isinstance(job, UploadRun) else results.WAITING
        cards = gr.skip()
        if isinstance(job, Job) and job.request.num_samples > 1 and not current.has_cards:
            cards = results.to_come(job.request)
        return gr.Button(visible=False), gr.Button(visible=True), waiting, cards

    def generate(self, current: CurrentJob) -> Iterator[tuple[Any, ...]]:
        """Run the job; yield updates of the stage, of the result cards and of the last seed."""
        with plain_errors():
            try:
                watch = self._watch_many if isinstance(current.job, UploadRun) else self._watch
                for stage, cards, seed in watch(current) if current.job else ():
                    if isinstance(cards, str):
                        current.has_cards = bool(cards)
                    yield stage, cards, seed
            except Exception:
                yield *self._blank(current), gr.skip()
                raise

    def _watch(self, current: CurrentJob) -> Iterator[tuple[Any, ...]]:
        job, preview = current.job, ""
        assert isinstance(job, Job | Pair)  # generate asks
        made: list[tuple[GenerationResult, RunFiles]] = []
        files = self.new_files()
        kind = source_type_of(job.request)
        for report in job.run():
            if isinstance(report, Progress):
                if report.preview is not None:
                    preview = results.inline(report.preview, kind)
                shown = results.running(report, job.request.num_samples, preview)
                yield shown, gr.skip(), gr.skip()
            elif isinstance(report, Partial):
                saved = files.save(report.result)  # now, so that nothing later can lose them
                # Two models' images stand side by side once both are made.
                done = results.so_far(report.result, saved)
                yield gr.skip(), gr.skip() if isinstance(job, Pair) else done, gr.skip()
            elif isinstance(report, GenerationResult) and report.images:
                speed = self.suite.measured(report)
                current.speeds |= {report.request.model: speed} if speed else {}
                made.append((report, files))
                files = self.new_files()  # for the other model
                yield "", self._shown(job, made), report.seeds[0]
            elif isinstance(report, GenerationResult) or job.stopped:
                _, no_cards = self._blank(current)
                yield results.note(STOPPED_EARLY), no_cards, gr.skip()
            else:
                yield gr.skip(), gr.skip(), gr.skip()

    def _watch_many(self, current: CurrentJob) -> Iterator[tuple[Any, ...]]:
        """Show every picture of a batch as soon as it is done."""
        job, settled, batch = current.job, 0, Batch([], {})
        assert isinstance(job, UploadRun)  # generate asks
        for report in job.run():
            if isinstance(report, Progress):
                words = f"{batch.current}: {results.progress_words(report)}"
                yield grid.under_way(settled, batch.total, words), gr.skip(), gr.skip()
            elif isinstance(report, Batch):
                batch, settled = report, report.settled
                yield gr.skip(), many(batch, job.out), gr.skip()
            else:
                yield gr.skip(), gr.skip(), gr.skip()
        yield "", self._finished_batch(job, batch), gr.skip()

    def _finished_batch(self, job: UploadRun, batch: Batch) -> str:
        """Return the HTML of a batch with all that can be saved of it."""
        images = [job.out / image for done in batch.done.values() for image in done.images]
        maps = [job.out / done.control_map for done in batch.done.values()]
        notes = [keep_copies(images, self.suite.keep)]
        if job.stopped:
            notes.insert(0, STOPPED_BATCH.format(len(batch.done), batch.total))
        table, archive = job.out / TABLE, job.out / "controlloop.zip"
        kept = [*images, *maps, *batch.sheets, table]
        links = {"Scores (CSV)": table} | {
            f"Contact sheet {number}" if len(batch.sheets) > 1 else "Contact sheet": sheet
            for number, sheet in enumerate(batch.sheets, start=1)
        }
        try:
            write_archive(archive, {str(path.relative_to(job.out)): path for path in kept}, {})
            links["Save all"] = archive
        except OSError as error:
            notes.append(sentence_of(error))
        return many(batch, job.out, links, notes)

    def _shown(self, job: Job | Pair, runs: Sequence[tuple[GenerationResult, RunFiles]]) -> str:
        made = [(result, saved) for (result, _), saved in zip(runs, save_whole(runs), strict=True)]
        if not isinstance(job, Pair):
            card = self.suite.card(job.request.model)
            # A checkpoint of the visitor's own is another model than the one that was measured.
            references = {} if card.file else card.references
            return results.results(*made[0], self.send_to, references)
        titles = [self.suite.card(name).title for name in job.models]
        there = [Side(title, *one) for title, one in zip(titles, made, strict=False)]
        return versus([*there, *(Side(title) for title in titles[len(made) :])])

    def settle(self, current: CurrentJob) -> tuple[Any, ...]:
        """Return updates of Run, Stop, stage and cards after a run, however it ended."""
        never_ran = current.job is not None and not current.job.finished
        current.job = None
        blank = self._blank(current) if never_ran else (gr.skip(), gr.skip())
        return gr.Button(visible=True), gr.Button(visible=False, value="Stop"), *blank

    def _blank(self, current: CurrentJob) -> tuple[Any, Any]:
        """Return the updates of stage and cards when nothing runs; results that are shown stay."""
        return ("", gr.skip()) if current.has_cards else (results.empty(self.app), "")

    def stop(self, current: CurrentJob) -> Any:
        """Stop the run within a step; return the update of Stop."""
        if current.job is not None:
            current.job.stop()
        return gr.Button(value="Stopping …")

    def new_files(self) -> RunFiles:
        """Return the files of a new run, where the browser can fetch them."""
        return RunFiles(upload_folder(), self.suite.keep)
