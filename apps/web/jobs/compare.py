"""The same request with two models on one base, such as ControlNet and ControlNet++."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from apps.web.jobs.job import Job, Partial
from apps.web.suite import Suite
from core.errors import BadInput
from core.request import GenerationRequest, GenerationResult, Progress


def rivals(suite: Suite, model: str, weights: Collection[str]) -> list[str]:
    """Return the names of the models that a model can be compared with, sorted.

    They have the same base, which is loaded once for both, and one of the ControlNets in `weights`.
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
    """Return a job paired with the same on another model; "" takes the first rival.

    Raises:
        BadInput: there is no rival, or `other` is not one.
        WeightsMissing: the other model lacks one of the request's ControlNets.
    """
    model = first.request.model
    weights = [control.condition.weights for control in first.request.controls]
    known = rivals(suite, model, weights)
    if not known:
        raise BadInput("No other model on the same base is here to compare with.")
    if other and other not in known:
        raise BadInput(f"{suite.card(model).title} can be compared with: {', '.join(known)}.")
    name = str(other or known[0])
    for control in weights:
        suite.store.registry.require_control(suite.card(name), control)
    return Pair(first, first.again, name)


class Pair:
    """Two jobs, one after the other, with the interface of a Job.

    The second runs the first's resolved request, seed included, with another model.
    """

    def __init__(self, first: Job, again: Callable[[GenerationRequest], Job], other: str):
        self._current = first
        self._again = again
        self.request = first.request
        self.models = (first.request.model, other)
        """In the order of their runs."""
        self.stopped = False
        """Whether stop was called."""
        self.finished = False

    def stop(self) -> None:
        """Stop within one step; finished images are kept, and the second job is not started."""
        self.stopped = True
        self._current.stop()

    def run(self) -> Iterator[Progress | Partial | GenerationResult | None]:
        """Make the images with both models, as Job.run.

        Raises:
            SuiteError: as Pipeline.generate.
        """
        last = None
        try:
            for report in self._current.run():
                last = report
                yield report
            if not isinstance(last, GenerationResult) or not last.images:
                return
            self._current = self._again(replace(last.request, model=self.models[1]))
            if not self.stopped:  # until here stop() reached the first job, from here the second
                yield from self._current.run()
        finally:
            self.finished = True
