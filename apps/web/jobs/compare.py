"""The same pictures by two models on one base: ControlNet beside ControlNet++, seed for seed.

Knows no widgets.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from apps.web.jobs.job import Job
from apps.web.suite import Suite
from core.errors import BadInput
from core.request import GenerationRequest, GenerationResult, Progress


def rivals(suite: Suite, model: str, weights: Collection[str]) -> list[str]:
    """Return the models that a model can be compared with, in the order of their names.

    They bring other ControlNets, one of `weights` among them, for the same base, which is loaded
    once for both.
    """
    card = suite.card(model)
    return sorted(
        other.name
        for other in suite.cards()
        if other.name != model
        and (other.base_folder, other.file) == (card.base_folder, card.file)
        and any(other.has_control(name) for name in weights)
    )


def new_pair(suite: Suite, first: Job, other: object) -> "Pair":
    """Return a job and the same of another model; "" takes the first model there is.

    Raises:
        BadInput: there is none, or not this one.
        WeightsMissing: the other model lacks a control that is asked for.
    """
    model = first.request.model
    weights = [control.condition.weights for control in first.request.controls]
    known = rivals(suite, model, weights)
    if not known:
        raise BadInput("There is no other model on this one's base to compare it with.")
    if other and other not in known:
        raise BadInput(f"{suite.card(model).title} can be compared with: {', '.join(known)}.")
    name = str(other or known[0])
    for control in weights:
        suite.store.registry.require_control(suite.card(name), control)
    return Pair(first, first.again, name)


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
