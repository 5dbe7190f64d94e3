"""Live pictures: one request of a visitor at a time, and the newest wins."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from apps.web.jobs.job import Job
from apps.web.suite import Suite
from core.errors import SuiteError
from core.pipeline import draw_seed
from core.request import GenerationResult


class Live:
    """A visitor's live picture; Gradio copies a State's initial value for each visitor."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._lock = threading.Lock()
        self.seed = draw_seed()
        """Of every live picture while the page leaves it open: only the drawing changes one."""

    def __deepcopy__(self, _: Any) -> "Live":
        return Live()

    def picture(self, new_job: Callable[[], Job]) -> GenerationResult | None:
        """Stop the request before, run the job that new_job returns, and return its result.

        Returns None if a newer request came meanwhile.

        Raises:
            SuiteError: as new_job and Job.run.
        """
        with self._lock:
            if self._job is not None:
                self._job.stop()
            job = self._job = new_job()
        try:
            for report in job.run():
                if isinstance(report, GenerationResult) and report.images and not job.stopped:
                    return report
        except SuiteError:
            if not job.stopped:
                raise
        return None


def live_values(suite: Suite, values: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the raw values of a live picture: one image, in the fastest mode of its model.

    With little memory, for which the mode light is, it stays light: another version would be loaded
    in its place, twice as large.
    """
    mode = "preview" if suite.has_preview(values["model"]) else "fast"
    if values.get("mode") == "light":
        mode = "light"
    open_seed = values.get("seed") in (None, -1)
    return {**values, "num_samples": 1, "mode": mode} | ({"seed": seed} if open_seed else {})
