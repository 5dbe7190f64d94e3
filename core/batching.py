"""Many requests on one device: which are admitted, which has the device, and which share it.

A request is admitted once its model is the one in use. For each batch of its images it takes a
lease of the device. Requests that wait at the same time and take the same steps share a lease: at
every step their predictions are made as one batch, and each samples on with its own, so that no
prompt, map, seed, error or cancel of one affects another. What comes before and after a lease, such
as drawing maps, scoring and saving, runs while others have the device.

A request alone pays nothing for this: it gets the networks themselves.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from core.errors import Busy
from core.networks import Networks, PredictCall

LOGGER = logging.getLogger(__name__)

MOST_ADMITTED = 1000
"""Default limit of requests, at work or waiting: each holds a thread and its picture."""
HEARTBEAT_S = 0.5
"""Longest time between two calls of a waiting request's OnWait."""

OnWait = Callable[[], None]
"""Called now and then while a request waits; raises to give up."""


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


class Batcher:
    """The queues for one device. May be used from any number of threads."""

    def __init__(self, most_admitted: int = MOST_ADMITTED) -> None:
        """Admit at most so many requests, at work or waiting."""
        self._most_admitted = most_admitted
        self._changed = threading.Condition()
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
    def admitted(self, model: Hashable, on_wait: OnWait) -> Iterator[Admission]:
        """Admit a request for the duration of the block, once no other model is in use.

        So the networks of one model at a time are in memory. No request overtakes one that waits
        for another model, so that none is starved.

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
            try:
                while self._model_queue[0] is not ticket or (
                    self._at_work and self._model != model
                ):
                    self._wait(on_wait)
            except BaseException:
                self._admitted -= 1
                raise
            finally:
                self._model_queue.remove(ticket)
                self._changed.notify_all()
            self._model = model
            admission = Admission(alone=not self._at_work)
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
                while ticket.group is None:
                    self._wait(on_wait)
            except BaseException:
                self._give_up(ticket)
                raise
        group = ticket.group
        try:
            yield networks if group.size == 1 else cast(Networks, _Member(networks, group))
        finally:
            with self._changed:
                self._leave(group)

    def _wait(self, on_wait: OnWait) -> None:
        """Wait for a change or a heartbeat; the lock is also released while `on_wait` runs."""
        self._changed.wait(HEARTBEAT_S)
        self._changed.release()
        try:
            on_wait()
        finally:
            self._changed.acquire()

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
        self._group = _Group(self._changed, len(chosen))
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
        if not group.members:
            self._group = None
            self._begin_next()
        self._changed.notify_all()


@dataclass(eq=False)
class _Pending:
    """A call whose thread waits for the prediction."""

    networks: Networks
    call: PredictCall
    result: Tensor | Exception | None = None


@dataclass(eq=False)
class _Group:
    """Requests that share a lease; their calls are predicted once every member has made one."""

    changed: threading.Condition
    size: int
    members: int = field(init=False)
    _pending: list[_Pending] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = self.size

    def predict(self, networks: Networks, call: PredictCall) -> Tensor:
        """Return the prediction.

        The last member to call predicts for all; after a member has left, one that waits may.

        Raises:
            Exception: as Networks.predict for this call alone.
        """
        mine = _Pending(networks, call)
        with self.changed:
            self._pending.append(mine)
            self.changed.notify_all()
            while mine.result is None and len(self._pending) < self.members:
                self.changed.wait()
            batch: list[_Pending] = []
            if mine.result is None:
                batch, self._pending = self._pending, batch
        if batch:
            _predict(batch)
            with self.changed:
                self.changed.notify_all()
        if isinstance(mine.result, Exception):
            raise mine.result
        return cast(Tensor, mine.result)


def _predict(batch: Sequence[_Pending]) -> None:
    """Predict all as one batch; where that fails, each alone, so that only the faulty one fails."""
    try:
        results = batch[0].networks.predict_batched([(one.networks, one.call) for one in batch])
    except Exception:  # it rises again from the call that is at fault
        LOGGER.warning("A batch of %d calls failed; each is made alone.", len(batch), exc_info=True)
    else:
        for one, result in zip(batch, results, strict=True):
            one.result = result
        return
    # Outside the except block, which would keep the batch's tensors: memory may be what failed.
    for one in batch:
        try:
            one.result = one.networks.predict(one.call)
        except Exception as error:  # noqa: BLE001 - raised again in its own thread
            one.result = error


class _Member:
    """The networks of one member: its predictions are batched with those of the group."""

    def __init__(self, networks: Networks, group: _Group) -> None:
        self._networks, self._group = networks, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def predict(self, call: PredictCall) -> Tensor:
        """Return what the networks predict."""
        return self._group.predict(self._networks, call)
