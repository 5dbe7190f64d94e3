"""Many requests on one device: which are admitted, which has the device, and which share it.

A request is admitted once its model is the one in use and memory holds its ControlNets beside those
in use. For each batch of its images it takes a lease of the device. Requests that wait at the same
time and take the same steps share a lease: at every step their predictions are made as one batch,
and each samples on with its own, so that no prompt, map, seed, error or cancel of one affects
another. What comes before and after a lease, such as drawing maps, scoring and saving, runs while
others have the device.

A request alone pays nothing for this: it gets the networks themselves.
"""

import logging
import math
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from torch import Tensor

from core.errors import Busy
from core.networks import Networks, PredictCall, Residuals
from core.shares import OnWait, wait_until

LOGGER = logging.getLogger(__name__)

MOST_ADMITTED = 1000
"""Default limit of requests, at work or waiting: each holds a thread and its picture."""
Weights = Mapping[Any, int]
"""What of a model a request needs beside its base, and the bytes of each: its ControlNets."""


@dataclass(eq=False)
class _Ticket:
    """A request in one of the two queues; a lease has begun once `group` is set."""

    key: Hashable
    images: int = 0
    max_batch: int = 0
    """The largest batch that its images may be part of."""
    group: "_Group | None" = None


@dataclass(eq=False)
class Admission:
    """A request that was admitted."""

    alone: bool = True
    """Whether no other request was at work at the same time."""
    weights: Weights = field(default_factory=dict)


class Batcher:
    """The queues for one device. May be used from any number of threads."""

    def __init__(self, most_admitted: int = MOST_ADMITTED, most_weights: float = math.inf) -> None:
        """Admit at most so many requests, at work or waiting.

        Those at work need `most_weights` bytes of weights at most, unless one alone needs more.
        """
        self._most_admitted = most_admitted
        self._most_weights = most_weights
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Notified when a queue moves. A group has a condition of its own, with the same lock:
        its members call at every step, which must not wake all who wait."""
        self._admitted = 0
        self._model_queue: list[_Ticket] = []
        """Requests that wait until their model may be used, in order of arrival."""
        self._model: Hashable = None
        self._at_work: list[Admission] = []
        """Requests that use that model."""
        self._lease_queue: list[_Ticket] = []
        """Requests that wait for a lease, in order of arrival."""
        self._group: _Group | None = None
        self.decoding = threading.Lock()
        """Held while pictures are encoded or decoded: that is where memory peaks."""

    @contextmanager
    def admitted(
        self, model: Hashable, on_wait: OnWait, weights: Weights | None = None
    ) -> Iterator[Admission]:
        """Admit a request for the duration of the block, once no other model is in use.

        So the networks of one model at a time are in memory, with no more ControlNets than fit. No
        request overtakes one that waits for that, so that none is starved.

        Raises:
            Busy: the limit is reached.
        """
        ticket = _Ticket(model)
        with self._changed:
            if self._admitted >= self._most_admitted:
                raise Busy(
                    f"{self._admitted} requests are waiting already: please try again in a minute."
                )
            self._admitted += 1
            self._model_queue.append(ticket)
            admission = Admission(weights=weights or {})
            try:
                wait_until(
                    self._changed,
                    lambda: self._model_queue[0] is ticket and self._may_work(model, admission),
                    on_wait,
                    lambda: self._model_queue.index(ticket) + len(self._at_work),
                )
            except BaseException:
                self._admitted -= 1
                raise
            finally:
                self._model_queue.remove(ticket)
                self._changed.notify_all()
            self._model = model
            admission.alone = not self._at_work
            for other in self._at_work:
                other.alone = False
            self._at_work.append(admission)
        try:
            yield admission
        finally:
            with self._changed:
                self._admitted -= 1
                self._at_work.remove(admission)
                self._changed.notify_all()

    @contextmanager
    def lease(
        self, networks: Networks, key: Hashable, images: int, on_wait: OnWait, max_batch: int = 1
    ) -> Iterator[Networks]:
        """Wait for the device and have it during the block; yield the networks to predict with.

        Waiting requests with the key of the one that waited longest share its lease, as long as all
        their images fit into each one's `max_batch`. Equal keys must mean equal steps.
        """
        ticket = _Ticket(key, images, max_batch)
        with self._changed:
            self._lease_queue.append(ticket)
            try:
                self._begin_next()
                wait_until(
                    self._changed,
                    lambda: ticket.group is not None,
                    on_wait,
                    lambda: (
                        self._lease_queue.index(ticket)
                        + (self._group.members if self._group else 0)
                    ),
                )
            except BaseException:
                self._give_up(ticket)
                raise
        group = cast(_Group, ticket.group)
        try:
            yield networks if group.size == 1 else cast(Networks, _Member(networks, group))
        finally:
            with self._changed:
                self._leave(group)

    def _may_work(self, model: Hashable, admission: Admission) -> bool:
        """Tell whether a request may join those at work."""
        if not self._at_work:
            return True
        weights: dict[Any, int] = {}
        for one in (*self._at_work, admission):
            weights |= one.weights
        return self._model == model and sum(weights.values()) <= self._most_weights

    def _begin_next(self) -> None:
        """Lease the free device to the first in the queue and to those that can share with it."""
        if self._group is not None or not self._lease_queue:
            return
        first, chosen, images = self._lease_queue[0], [], 0
        most = first.max_batch
        for ticket in self._lease_queue:
            fits = images + ticket.images <= min(most, ticket.max_batch)
            if ticket is first or (fits and ticket.key == first.key):
                chosen.append(ticket)
                images += ticket.images
                most = min(most, ticket.max_batch)
        self._group = _Group(threading.Condition(self._lock), len(chosen))
        for ticket in chosen:
            ticket.group = self._group
            self._lease_queue.remove(ticket)
        self._changed.notify_all()

    def _give_up(self, ticket: _Ticket) -> None:
        """Leave the queue, or the lease that began just then."""
        if ticket.group is None:
            self._lease_queue.remove(ticket)
        else:
            self._leave(ticket.group)

    def _leave(self, group: "_Group") -> None:
        group.members -= 1
        group.changed.notify_all()
        if not group.members:
            self._group = None
            self._begin_next()


Method = Literal["predict", "control_residuals"]
"""Of Networks; each has a twin for several calls, with the suffix _batched."""


@dataclass(eq=False)
class _Pending:
    """A call whose thread waits for the result."""

    networks: Networks
    method: Method
    call: PredictCall
    result: Tensor | Residuals | Exception | None = None


@dataclass(eq=False)
class _Group:
    """Requests that share a lease; their calls are made together once every member has one."""

    changed: threading.Condition
    size: int
    members: int = field(init=False)
    _pending: list[_Pending] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = self.size

    def run(self, networks: Networks, method: Method, call: PredictCall) -> Tensor | Residuals:
        """Return what the networks' method returns for the call.

        The last member to call runs the calls of all; after a member has left, one that waits may.

        Raises:
            Exception: as the method for this call alone.
        """
        mine = _Pending(networks, method, call)
        with self.changed:
            self._pending.append(mine)
        while mine.result is None:
            with self.changed:
                self.changed.notify_all()
                self.changed.wait_for(lambda: mine.result is not None or self._is_complete())
                batch = self._take() if mine.result is None else []
            if batch:
                _run(batch)
        with self.changed:
            self.changed.notify_all()
        if isinstance(mine.result, Exception):
            raise mine.result
        return mine.result

    def _is_complete(self) -> bool:
        return len(self._pending) >= self.members

    def _take(self) -> list[_Pending]:
        """Take the calls to run now out of those that wait.

        Residuals first: whoever asks for them predicts at the same step, as the others wait to do.
        """
        first: list[_Pending] = [one for one in self._pending if one.method == "control_residuals"]
        taken = first or self._pending
        self._pending = [one for one in self._pending if one not in taken]
        return taken


def _run(batch: Sequence[_Pending]) -> None:
    """Run calls of one method together; where that fails, each alone, so that only one may fail."""
    batched = getattr(batch[0].networks, f"{batch[0].method}_batched")
    try:
        results = batched([(one.networks, one.call) for one in batch])
    except Exception:  # it rises again from the call that is at fault
        LOGGER.warning("A batch of %d calls failed; each is made alone.", len(batch), exc_info=True)
    else:
        for one, result in zip(batch, results, strict=True):
            one.result = result
        return
    # Outside the except block, which would keep the batch's tensors: memory may be what failed.
    for one in batch:
        try:
            one.result = getattr(one.networks, one.method)(one.call)
        except Exception as error:  # noqa: BLE001 - raised again in its own thread
            one.result = error


class _Member:
    """The networks of one member: its calls are batched with those of the group."""

    def __init__(self, networks: Networks, group: _Group) -> None:
        self._networks, self._group = networks, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def predict(self, call: PredictCall) -> Tensor:
        """Return what the networks predict."""
        return cast(Tensor, self._group.run(self._networks, "predict", call))

    def control_residuals(self, call: PredictCall) -> Residuals:
        """Return what the networks' controls add."""
        return cast(Residuals, self._group.run(self._networks, "control_residuals", call))
