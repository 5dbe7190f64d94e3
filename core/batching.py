"""Many requests on one device: who is let in, whose turn it is, and which turns are taken together.

A request is admitted while its model is the one in use, takes a turn for each batch of its images,
and samples in it. Requests that wait at the same time and agree in what fixes their steps share a
turn: at every step their predictions are made as one batch, and each goes on alone with its own,
so that neither prompt, map, seed nor an end by error or cancel of one touches another. Everything
before and after the turn, such as drawing maps, scoring and saving, runs beside other turns.

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
"""Requests let in where nothing else is said: each holds a thread and its picture."""
HEARTBEAT_S = 0.5
"""The longest a waiting request is not asked whether it still wants to wait."""

Waiting = Callable[[], None]
"""Called now and then by who waits; raises to give up."""


@dataclass(eq=False)
class _Ticket:
    """A request in one of the two lines; it may go once `group` is there."""

    kind: Hashable
    images: int = 0
    most: int = 0
    """Images it may be sampled together with, its own included."""
    group: "_Group | None" = None


@dataclass(eq=False)
class Admission:
    """A request that was let in."""

    alone: bool = True
    """Whether no other was at work at the same time."""


class Batcher:
    """The lines before one device. May be used from any number of threads."""

    def __init__(self, most_admitted: int = MOST_ADMITTED) -> None:
        """Let in so many requests, those at work included."""
        self._most_admitted = most_admitted
        self._changed = threading.Condition()
        self._admitted = 0
        self._models: list[_Ticket] = []
        """Before a change of model, in the order they came."""
        self._model: Hashable = None
        self._at_work: list[Admission] = []
        """The requests with that model."""
        self._turns: list[_Ticket] = []
        """Before a turn, in the order they came."""
        self._group: _Group | None = None
        self.decoding = threading.Lock()
        """Held while pictures are decoded: that is where memory peaks."""

    @contextmanager
    def admitted(self, model: Hashable, waiting: Waiting) -> Iterator[Admission]:
        """Let a request in, for as long as the block lasts, once no other model is in use.

        So the networks of one model at a time are in memory. Who waits for a change of model is
        passed by nobody, so that no model is starved.

        Raises:
            Busy: as many are in already as there may be.
        """
        ticket = _Ticket(model)
        with self._changed:
            if self._admitted >= self._most_admitted:
                raise Busy(
                    f"{self._admitted} requests are waiting already: please try again in a minute."
                )
            self._admitted += 1
            self._models.append(ticket)
            try:
                while self._models[0] is not ticket or (self._at_work and self._model != model):
                    self._wait(waiting)
            except BaseException:
                self._admitted -= 1
                raise
            finally:
                self._models.remove(ticket)
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
    def turn(
        self, networks: Networks, kind: Hashable, images: int, waiting: Waiting, most: int = 1
    ) -> Iterator[Networks]:
        """Wait for a turn on the device; give what predicts in it, for as long as the block lasts.

        Who waits with the same `kind` joins the turn of who waited longest, while the images
        together are no more than anybody's `most`. Equal kinds must take equal steps.
        """
        ticket = _Ticket(kind, images, most)
        with self._changed:
            self._turns.append(ticket)
            try:
                self._begin_next()
                while ticket.group is None:
                    self._wait(waiting)
            except BaseException:
                self._give_up(ticket)
                raise
        group = ticket.group
        try:
            yield networks if group.size == 1 else cast(Networks, _Member(networks, group))
        finally:
            with self._changed:
                self._leave(group)

    def _wait(self, waiting: Waiting) -> None:
        """Let others change something, with the lock released also while the caller is asked."""
        self._changed.wait(HEARTBEAT_S)
        self._changed.release()
        try:
            waiting()
        finally:
            self._changed.acquire()

    def _begin_next(self) -> None:
        """Give the free device to who waited longest, and to those that can share the turn."""
        if self._group is not None or not self._turns:
            return
        first, chosen, images = self._turns[0], [], 0
        most = first.most
        for ticket in self._turns:
            fits = images + ticket.images <= min(most, ticket.most) and ticket.kind == first.kind
            if ticket is first or fits:
                chosen.append(ticket)
                images += ticket.images
                most = min(most, ticket.most)
        self._group = _Group(self._changed, len(chosen))
        for ticket in chosen:
            ticket.group = self._group
            self._turns.remove(ticket)
        self._changed.notify_all()

    def _give_up(self, ticket: _Ticket) -> None:
        """Leave the line, or the turn that began just then."""
        if ticket.group is None:
            self._turns.remove(ticket)
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
    """A call whose prediction its thread waits for."""

    networks: Networks
    call: PredictCall
    result: Tensor | Exception | None = None


@dataclass(eq=False)
class _Group:
    """Requests that share a turn; their calls are predicted once every member has made one."""

    changed: threading.Condition
    size: int
    members: int = field(init=False)
    _pending: list[_Pending] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = self.size

    def predict(self, networks: Networks, call: PredictCall) -> Tensor:
        """Return the prediction; the last to call, or one who waits when another leaves, makes all.

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
    # Only here, where the error no longer holds the batch's tensors: memory may be what failed.
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
