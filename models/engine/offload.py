"""Which parts of a model are on a GPU: all of them while it has room, else only what is in use.

A part (text encoder, UNet, a ControlNet, autoencoder) is brought when it is used. Where that leaves
too little room for the part and for the work with it, those go that were used longest ago and are
not in use. Their weights stay in the CPU's memory from then on, so going costs nothing and coming
one copy; the numbers do not change, so nor do pictures. With room for everything nothing moves.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from core.memory import free_bytes


class Offloader:
    """The parts on one device. May be used from any number of threads."""

    def __init__(self, device: torch.device, free: Callable[[], float] | None = None) -> None:
        """Take `free()` for the device's free memory in bytes; without it the device is asked."""
        self.device = device
        self.free = free or functools.partial(free_bytes, device)
        self._changed = threading.Condition()
        self._known: OrderedDict[ref[nn.Module], None] = OrderedDict()
        """The parts that were used, the longest ago first."""
        self._whole: set[ref[nn.Module]] = set()
        """Those of them that need not be looked through, since nothing has gone."""
        self._in_use: list[tuple[int, nn.Module]] = []
        """By which thread; a thread may use one part within the use of another."""
        self._home = WeakTensorKeyDictionary()
        """The CPU's copy of a weight that was away once."""
        self.gone = 0
        """How many weights went so far; what was recorded with them would read where they lay."""

    @contextmanager
    def using(self, part: nn.Module, work: float = 0, alone: bool = False) -> Iterator[None]:
        """Have a part on the device while the block runs, with `work` bytes free beside it.

        Waits for other threads to end where their parts stand in the way; if there is no such room
        even then, the block runs all the same. With `alone` all goes that is not in use.
        """
        mine = (threading.get_ident(), part)
        with self._changed:
            while not self._make_room(part, work, alone) and self._others():
                self._changed.wait()
            self._in_use.append(mine)
            try:
                self._bring(part)
            except BaseException:
                self._in_use.remove(mine)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._in_use.remove(mine)
                self._changed.notify_all()

    def room(self, parts: Iterable[nn.Module]) -> float:
        """Return the bytes that would be free beside these parts, with nothing sent home."""
        with self._changed:
            return self.free() - sum(self._missing(part) for part in parts)

    def _make_room(self, part: nn.Module, work: float, alone: bool) -> bool:
        """Send parts home until there is room, or none is left to send; tell whether there is."""
        needed = work + self._missing(part)
        used = {id(one) for one in (part, *(one for _, one in self._in_use))}
        for known in [one for one in self._known if id(one()) not in used]:
            if not alone and self.free() >= needed:
                return True
            self._send_home(known, part)
        return self.free() >= needed

    def _missing(self, part: nn.Module) -> int:
        """Return the bytes of its weights that are not here."""
        if ref(part) in self._whole:
            return 0
        return sum(one.nbytes for one in _tensors(part) if not self._is_here(one))

    def _others(self) -> bool:
        return any(thread != threading.get_ident() for thread, _ in self._in_use)

    def _is_here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type

    def _copied(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    # Weights are ordinary tensors, also where they are moved in inference mode: they outlive it.

    def _bring(self, part: nn.Module) -> None:
        for known in [one for one in self._known if one() in (None, part)]:
            del self._known[known]
        self._known[ref(part)] = None  # the latest
        if ref(part) in self._whole:
            return
        with torch.inference_mode(False), torch.no_grad():
            for tensor in _tensors(part):
                if not self._is_here(tensor):
                    self._home[tensor] = tensor.data
                    tensor.data = self._copied(tensor.data)
        self._whole.add(ref(part))

    def _send_home(self, known: ref[nn.Module], wanted: nn.Module) -> None:
        """Parts may share weights, as a UNet and its version with a LoRA do."""
        del self._known[known]
        self._whole.clear()
        part = known()
        if part is None:  # dropped by who loaded it
            return
        in_use = (wanted, *(one for _, one in self._in_use))
        staying = {id(tensor) for one in in_use for tensor in _tensors(one)}
        with torch.inference_mode(False), torch.no_grad():
            for tensor in _tensors(part):
                if id(tensor) not in staying and self._is_here(tensor):
                    was_away = tensor in self._home
                    tensor.data = self._home[tensor] if was_away else tensor.data.cpu()
                    self.gone += 1


@functools.cache
def offloader_of(device: torch.device) -> Offloader:
    """Return the one of a device, whose memory all models share."""
    return Offloader(device)


def _tensors(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(), *part.buffers()]
