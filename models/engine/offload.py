"""Model offload: all parts of a model stay on a GPU while it has room, else only those in use.

A part (text encoder, UNet, a ControlNet, VAE) is loaded onto the device when it is used. Where that
leaves too little memory for the part and its work, the least recently used parts that are not in
use are offloaded to the CPU. The CPU keeps its copy from then on, so that offloading again costs
nothing and loading one copy; the numbers do not change, so nor do pictures.
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
    """The parts of all models on one device. May be used from any number of threads."""

    def __init__(self, device: torch.device, free: Callable[[], float] | None = None) -> None:
        """Take `free()`, the device's free memory in bytes; by default the device is asked."""
        self.device = device
        self.free = free or functools.partial(free_bytes, device)
        self._changed = threading.Condition()
        self._used: OrderedDict[ref[nn.Module], None] = OrderedDict()
        """Parts that were loaded, least recently used first."""
        self._complete: set[ref[nn.Module]] = set()
        """Those known to be on the device whole, until something is offloaded."""
        self._in_use: list[tuple[int, nn.Module]] = []
        """With the thread that uses each; a thread may use one part while it uses another."""
        self._cpu_copies = WeakTensorKeyDictionary()
        """By weight, of those that were loaded from the CPU."""
        self.offload_count = 0
        """Weights offloaded so far; a CUDA graph captured with one would read where it lay."""

    @contextmanager
    def using(self, part: nn.Module, work: float = 0, alone: bool = False) -> Iterator[None]:
        """Have a part on the device during the block, with `work` more bytes free.

        Waits for parts that other threads use, if they stand in the way; where even then there is
        too little memory, the block runs all the same. With `alone`, everything that is not in use
        is offloaded.
        """
        use = (threading.get_ident(), part)
        with self._changed:
            while not self._make_room(part, work, alone) and self._others_in_use():
                self._changed.wait()
            self._in_use.append(use)
            try:
                self._load(part)
            except BaseException:
                self._in_use.remove(use)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._in_use.remove(use)
                self._changed.notify_all()

    def free_with(self, parts: Iterable[nn.Module]) -> float:
        """Return the bytes that would be free with these parts loaded and nothing offloaded."""
        with self._changed:
            return self.free() - sum(self._missing(part) for part in parts)

    def _make_room(self, part: nn.Module, work: float, alone: bool) -> bool:
        """Offload parts until there is room or none is left to offload; tell whether there is."""
        needed = work + self._missing(part)
        kept = {id(one) for one in (part, *(one for _, one in self._in_use))}
        for other in [one for one in self._used if id(one()) not in kept]:
            if not alone and self.free() >= needed:
                return True
            self._offload(other, part)
        return self.free() >= needed

    def _missing(self, part: nn.Module) -> int:
        """Return the bytes of its weights that are not on the device."""
        if ref(part) in self._complete:
            return 0
        return sum(one.nbytes for one in _tensors(part) if not self._is_here(one))

    def _others_in_use(self) -> bool:
        return any(thread != threading.get_ident() for thread, _ in self._in_use)

    def _is_here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    # Outside inference mode: weights moved within it would be inference tensors, and outlive it.

    def _load(self, part: nn.Module) -> None:
        for other in [one for one in self._used if one() in (None, part)]:
            del self._used[other]
        self._used[ref(part)] = None  # the most recent
        if ref(part) in self._complete:
            return
        with torch.inference_mode(False), torch.no_grad():
            for tensor in _tensors(part):
                if not self._is_here(tensor):
                    self._cpu_copies[tensor] = tensor.data
                    tensor.data = self._to_device(tensor.data)
        self._complete.add(ref(part))

    def _offload(self, other: ref[nn.Module], wanted: nn.Module) -> None:
        """Offload a part, but for weights that it shares, as a UNet and its LoRA version do."""
        del self._used[other]
        self._complete.clear()
        part = other()
        if part is None:  # its owner has dropped it
            return
        in_use = (wanted, *(one for _, one in self._in_use))
        shared = {id(tensor) for one in in_use for tensor in _tensors(one)}
        with torch.inference_mode(False), torch.no_grad():
            for tensor in _tensors(part):
                if id(tensor) not in shared and self._is_here(tensor):
                    has_copy = tensor in self._cpu_copies
                    tensor.data = self._cpu_copies[tensor] if has_copy else tensor.data.cpu()
                    self.offload_count += 1


@functools.cache
def offloader_of(device: torch.device) -> Offloader:
    """Return a device's offloader, which all models share."""
    return Offloader(device)


def _tensors(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(), *part.buffers()]
