"""The same pictures by two models on one base: ControlNet beside ControlNet++, seed for seed.

Knows no widgets.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from apps._job import Job
from apps._request import new_job
from apps._suite import Suite
from core.condition import Condition
from core.errors import BadInput
from core.request import GenerationRequest, GenerationResult, Progress


def rival(suite: Suite, condition: Condition, model: str) -> str:
    """Return the model that a model is compared with, "" where there is none.

    It brings other weights of the condition for the same base, which is loaded once for both.
    """
    card = suite.card(model)
    for name in sorted(suite.models(condition)):
        other = suite.card(name)
        same_base = (other.base_folder, other.file) == (card.base_folder, card.file)
        if name != model and same_base and other.has_control(condition.weights):
            return name
    return ""


def new_pair(condition: Condition, suite: Suite, given: dict[str, Any]) -> "Pair":
    """Return the jobs of raw values, checked, for their model and the one it is compared with.

    Raises:
        SuiteError: as checked_request, or there is none to compare with.
    """
    first = new_job(condition, suite, given)
    other = rival(suite, condition, first.request.model)
    if not other:
        raise BadInput("There is no other model on this one's base to compare it with.")
    return Pair(first, lambda request: Job(suite.pipeline, condition, request), other)


class Pair:
    """Two jobs, one after the other; stands where a Job does and yields both results.

    The second is the first's request as it was run, seed included, with another model.
    """

    def __init__(self, first: Job, again: Callable[[GenerationRequest], Job], other: str):
        self._now = first
        self._again = again
        self.request = first.request
        self.models = (first.request.model, other)
        """In the order they are used in."""
        self.stopped = False
        """Whether a stop was asked for."""
        self.finished = False

    def stop(self) -> None:
        """End within one step; finished images are kept, and the second job is not begun."""
        self.stopped = True
        self._now.stop()

    def run(self) -> Iterator[Progress | GenerationResult | None]:
        """Make the pictures of both models, as Job.run.

        Raises:
            SuiteError: as Pipeline.generate.
        """
        first = None
        try:
            for report in self._now.run():
                first = report
                yield report
            if not isinstance(first, GenerationResult) or not first.images:
                return
            self._now = self._again(replace(first.request, model=self.models[1]))
            if not self.stopped:  # a stop up to here met the first job, one from here the second
                yield from self._now.run()
        finally:
            self.finished = True
