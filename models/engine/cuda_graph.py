"""A step of the UNet and its ControlNets, recorded once on a GPU and played again for every other.

A step is about a thousand small kernels, which a GPU finishes faster than Python can start them. A
CUDA graph starts all of them with one call. It reads and writes the very memory it was recorded
with, so what a step depends on is copied into buffers first:

- the latents, at every step;
- what the timestep adds in all residual blocks, which lies behind one another in one buffer, so
  that it is one copy for each network; likewise the keys and values of the text, but only when
  there is another text, and the encoded maps, when there is another map;
- the ControlNets' scales, which are numbers in the GPU's memory: another strength needs no new
  recording.

As it is played so often, it is worth trying before which convolutions and attentions are the
fastest, and joining the weights of a self-attention's queries, keys and values, so that three
products are one.

Of one image the layers are too small to fill a GPU. The ControlNets need nothing of the UNet, nor
the UNet's first half of them, so they are recorded as two branches that run side by side.

Whatever cannot be recorded runs as unet.py has it, which is slower and gives the same.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakSet, WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from core.memory import is_out_of_memory
from core.networks import PredictCall, Residuals
from models.engine.kernels.build import on_gpu
from models.engine.kernels.groupnorm import lie_alike
from models.engine.layers import convolve
from models.engine.unet import (
    Forward,
    StepCache,
    _control,
    _decode,
    _encode,
    _transformer_layers,
)

LOGGER = logging.getLogger(__name__)

KEPT_RECORDINGS = 8
"""Of one model: with and without control, for one image and for several, and the four of the mode
fast. They share their memory, but each has its own buffers, 12 MB for an image in SD 1.5."""
WARM_UPS = 2
"""Runs before a recording: the first chooses algorithms and compiles, which a recording must not;
the second shows that nothing is left to be chosen."""
LONGEST_PATIENCE = 1000
"""Steps after which a recording is tried again at the latest, where weights come and go."""
PAUSE = 100
"""Steps without recordings after memory ran out."""

Run = Callable[[], list[Tensor]]
Record = Callable[[Run], Run]
"""(what to record) -> what plays it again, and returns tensors of its own."""

_LOCK = threading.RLock()
"""Held while recording and playing: recordings share memory, so one runs at a time."""
_recordings: "WeakSet[_Recording]" = WeakSet()
"""All that live, whoever has them: a further one shares their memory."""
_captured: "WeakSet[CudaGraphForward]" = WeakSet()


class CudaGraphForward:
    """Answers as a Forward does; may be called from several threads.

    Its recordings go when it does.
    """

    def __init__(
        self, forward: Forward, gone: Callable[[], int], record: Record | None = None
    ) -> None:
        """Take `gone()`, which counts the weights that left the device so far.

        A recording reads them where they lay. Tests hand in a `record` that needs no GPU.
        """
        self._forward = forward
        self._count_gone = gone
        self._record = record or recorded
        self._steps: OrderedDict[tuple[Any, ...], _Step] = OrderedDict()
        self._gone = gone()
        self._calm, self._patience = 0, 0
        """Steps since weights went, and how many there must be before a recording."""
        self._failed = False
        with _LOCK:
            _captured.add(self)

    def __call__(self, call: PredictCall) -> Tensor:
        """See Forward."""
        found = self._answer(call)
        return found[0] if found else self._forward(call)

    def control_residuals(self, call: PredictCall) -> Residuals:
        """See Forward."""
        found = self._answer(call, only_residuals=True) if call.active_controls else []
        return tuple(found) or self._forward.control_residuals(call)

    def forget(self, wait: int) -> None:
        """Drop the recordings, and their memory with the last; record none for so many steps."""
        with _LOCK:
            self._steps.clear()
            self._calm, self._patience = 0, max(wait, self._patience)

    def _answer(self, call: PredictCall, *, only_residuals: bool = False) -> list[Tensor]:
        """Return what is played, or nothing where there is no recording and none is to be made.

        Raises:
            RuntimeError: memory ran out; then nobody has a recording any more.
        """
        if self._failed:
            return []
        try:
            # A recording is a model's own state, used within and outside of inference mode.
            with ExitStack() as uses, torch.inference_mode(False), torch.no_grad():
                for control in call.active_controls:
                    network = self._forward._controlnets[control.name]
                    uses.enter_context(self._forward.using(network, call.latents))
                uses.enter_context(_LOCK)
                uses.enter_context(_on_its_device(call.latents))
                return self._played(call, only_residuals) if self._settled() else []
        except Exception as error:
            if is_out_of_memory(error):
                forget_all()
                raise
            self._failed = True
            self._steps.clear()
            LOGGER.warning("Steps cannot be recorded here, and run slower.", exc_info=error)
            return []

    def _played(self, call: PredictCall, only_residuals: bool) -> list[Tensor]:
        key = _key(call, only_residuals)
        step = self._steps.get(key)
        if step is None:
            LOGGER.info("Recording a step for %s, once.", tuple(call.latents.shape))
            began = time.perf_counter()
            step = _Step(self._forward, call, only_residuals)
            step.play = self._record(step.run)
            LOGGER.info("Recorded it in %.1f s.", time.perf_counter() - began)
            self._steps[key] = step
            if len(self._steps) > KEPT_RECORDINGS:
                self._steps.popitem(last=False)
        else:
            step.fill(self._forward, call)
        self._steps.move_to_end(key)
        return step.play()

    def _settled(self) -> bool:
        """Tell whether no weight went for long enough; the longer, the more often they went.

        Where a GPU has no room for all parts, they come and go with every step.
        """
        gone = self._count_gone()
        if gone != self._gone:
            self._gone = gone
            self.forget(wait=min(2 * self._patience + 1, LONGEST_PATIENCE))
        self._calm += 1
        return self._calm > self._patience


def _key(call: PredictCall, only_residuals: bool) -> tuple[Any, ...]:
    """Return all that decides which kernels run, on how much."""
    return (
        *(call.latents.shape, call.latents.dtype, call.texts.shape, only_residuals),
        *((control.name, control.hint.shape) for control in call.active_controls),
        *(residual.shape for residual in call.residuals),
    )


def forget_all() -> None:
    """Drop everybody's recordings for a while, as memory is short."""
    with _LOCK:
        for one in list(_captured):
            one.forget(wait=PAUSE)


# What a step reads


class _Behind:
    """Copies of tensors, behind one another in one buffer, so that all are renewed at once."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._whole = torch.cat([one.flatten() for one in tensors])
        parts = torch.split(self._whole, [one.numel() for one in tensors])
        self.parts = [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Take other values of the same shapes."""
        torch.cat([one.flatten() for one in tensors], out=self._whole)


class _Joined:
    """The weights of a network's self-attentions: queries', keys' and values' behind one another.

    A second copy of them (100 MB in SD 1.5), so that three small products are one; it says the
    same wherever the weights are moved.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network  # so that its id is nobody else's
        attentions = [layer.attn1 for layer in _transformer_layers(network)]
        self.by_layer = {
            one: torch.cat([part.weight.detach() for part in (one.to_q, one.to_k, one.to_v)])
            for one in attentions
            if all(part.bias is None for part in (one.to_q, one.to_k, one.to_v))
        }


_joined: WeakValueDictionary[int, _Joined] = WeakValueDictionary()
"""By the network's id, for as long as a recording uses it."""


class _Buffers:
    """What is known of a network before the latents are, in memory that stays."""

    def __init__(self, network: nn.Module, known: StepCache) -> None:
        self._weights = _joined.get(id(network)) or _Joined(network)
        _joined[id(network)] = self._weights
        self._times = _Behind(list(known.times.values()))
        self._text = _Behind(_flat(known.text))
        pairs = zip(self._text.parts[::2], self._text.parts[1::2], strict=True)
        self.known = StepCache(
            dict(zip(known.text, pairs, strict=True)),
            dict(zip(known.times, self._times.parts, strict=True)),
            self._weights.by_layer,
        )

    def fill(self, known: StepCache, *, other_text: bool) -> None:
        """Take another timestep's and, if it is another, another text's."""
        self._times.fill(known.times.values())
        if other_text:
            self._text.fill(_flat(known.text))


def _flat(text: Mapping[nn.Module, tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [one for pair in text.values() for one in pair]


class _Step:
    """A step on buffers of its own."""

    play: Run
    """Runs it as it was recorded; returns tensors of its own."""

    def __init__(self, forward: Forward, call: PredictCall, only_residuals: bool) -> None:
        """Take the first values."""
        controls = call.active_controls
        # The networks, but not the forward: it may hold what holds this.
        self._unet = None if only_residuals else forward._unet
        self._controlnets = [forward._controlnets[control.name] for control in controls]
        self._latents = _picture_like(call.latents)
        self._latents.copy_(call.latents)
        self._given = [_picture_like(residual).copy_(residual) for residual in call.residuals]
        self._buffers = {
            network: _Buffers(network, forward._known(network, call)) for network in self._networks
        }
        self._texts = ref(call.texts)
        self._hints = [forward._hint(control, call.latents).clone() for control in controls]
        self._maps = [ref(control.hint) for control in controls]
        self._scales = [control.scales for control in controls]
        self._scalars = [_scalars(scales, self._latents) for scales in self._scales]

    @property
    def _networks(self) -> list[Any]:
        return [*self._controlnets, *([self._unet] if self._unet is not None else [])]

    def fill(self, forward: Forward, call: PredictCall) -> None:
        """Copy in what differs from the last time; the key is the same."""
        self._latents.copy_(call.latents)
        for mine, residual in zip(self._given, call.residuals, strict=True):
            mine.copy_(residual)
        other_text = self._texts() is not call.texts
        # Should anything fail in between, nobody knows what the buffers hold.
        self._texts = ref(torch.empty(0))
        for network, buffers in self._buffers.items():
            buffers.fill(forward._known(network, call), other_text=other_text)
        self._texts = ref(call.texts)
        for index, control in enumerate(call.active_controls):
            if self._maps[index]() is not control.hint:
                self._hints[index].copy_(forward._hint(control, call.latents))
                self._maps[index] = ref(control.hint)
            if self._scales[index] != control.scales:
                self._scalars[index].copy_(_scalars(control.scales, self._latents))
                self._scales[index] = control.scales

    def run(self) -> list[Tensor]:
        """Return what a Forward would, of what is in the buffers."""
        if self._unet is None:
            found = self._residuals()
            total = [torch.zeros_like(residual) for residual in found[0]]
            self._add(total, found)
            return total
        if self._latents.is_cuda and torch.cuda.is_current_stream_capturing():
            found, (skips, x) = self._side_by_side()
        else:
            found, (skips, x) = self._residuals(), self._encoded()
        self._add((*skips, x), found)
        del found  # so that the second half can have its memory
        if self._given:
            for target, residual in zip((*skips, x), self._given, strict=True):
                target.add_(residual)
        return [_decode(self._unet, skips, x, self._buffers[self._unet].known)]

    def _add(self, targets: Sequence[Tensor], found: Sequence[Sequence[Tensor]]) -> None:
        for residuals, scales in zip(found, self._scalars, strict=True):
            for target, residual, scale in zip(targets, residuals, scales, strict=True):
                add_scaled(target, residual, scale)

    def _side_by_side(self) -> tuple[list[list[Tensor]], tuple[list[Tensor], Tensor]]:
        main = torch.cuda.current_stream(self._latents.device)
        _, side = _streams(main.device_index)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                found = self._residuals()
            return found, self._encoded()
        finally:
            main.wait_stream(side)  # also after an error: a recording ends where it began

    def _residuals(self) -> list[list[Tensor]]:
        return [
            list(_control(network, self._latents, hint, self._buffers[network].known))
            for network, hint in zip(self._controlnets, self._hints, strict=True)
        ]

    def _encoded(self) -> tuple[list[Tensor], Tensor]:
        unet: Any = self._unet
        start = convolve(unet.conv_in, self._latents)
        return _encode(unet, start, self._buffers[unet].known)


def _picture_like(picture: Tensor) -> Tensor:
    return torch.empty_like(picture, memory_format=torch.channels_last)


def _scalars(scales: Sequence[float], like: Tensor) -> Tensor:
    """Return the numbers on its device, in float32, as a number handed to a kernel would be."""
    return torch.tensor(scales, dtype=torch.float32).to(like.device)


def add_scaled(target: Tensor, addend: Tensor, scale: Tensor) -> None:
    """Add a multiple to a tensor in place, rounding once; `scale` is a float32 number there."""
    suits = target.is_cuda and lie_alike(target, addend)
    if suits and on_gpu("add_scaled", target, addend, scale) is not None:
        return
    target.copy_(torch.addcmul(target.float(), addend.float(), scale))


# The recording


def _on_its_device(tensor: Tensor) -> AbstractContextManager[None]:
    guard: Any = torch.cuda.device_of
    return cast(AbstractContextManager[None], guard(tensor))


def recorded(run: Run) -> Run:
    """Record what `run` does on the current device.

    `run` must do the same work at each call, on memory that stays, and read nothing back from the
    device. All threads play on the device's default stream, which keeps them in order.

    Raises:
        RuntimeError: it cannot be recorded, or memory ran out.
    """
    device = torch.cuda.current_device()
    current, (stream, _) = torch.cuda.current_stream(), _streams(device)
    by_trying = torch.backends.cudnn.benchmark
    # It is to run many times, so it is worth while to try which algorithms are the fastest.
    torch.backends.cudnn.benchmark = True
    try:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        # What is in the reserve cannot serve a recording, which has memory of its own.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        with torch.cuda.stream(stream):
            recording = _captured_run(run, device)
    finally:
        torch.backends.cudnn.benchmark = by_trying
        current.wait_stream(stream)

    def play() -> list[Tensor]:
        recording.graph.replay()
        # Before another is played into the same memory.
        return [one.clone() for one in recording.output]

    return play


@dataclass(frozen=True, eq=False)
class _Recording:
    """A CUDA graph, and the tensors that it writes to."""

    graph: torch.cuda.CUDAGraph
    output: list[Tensor]


def _captured_run(run: Run, device: int) -> _Recording:
    """Record on the current stream, which is one that nobody else uses."""
    living = next(iter(_recordings), None)
    graph = torch.cuda.CUDAGraph()
    # One that has lost its last recording must not be used again.
    pool = torch.cuda.graph_pool_handle() if living is None else living.graph.pool()
    # cuBLAS keeps a workspace for each stream; a recording's are to lie in the recording's memory.
    _drop_workspaces()
    # Other threads may go on meanwhile: they use no stream of ours.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        output = run()
    except BaseException:
        _end(graph, pool, device)  # quietly: the error that rises is to be the first
        raise
    else:
        _end(graph, pool, device, quietly=False)
    finally:
        _drop_workspaces()
    recording = _Recording(graph, output)
    _recordings.add(recording)
    return recording


def _end(graph: torch.cuda.CUDAGraph, pool: Any, device: int, *, quietly: bool = True) -> None:
    """End a recording; one that failed quietly, and for nothing."""
    try:
        graph.capture_end()
        if quietly:
            graph.reset()
    except RuntimeError as error:
        _stop_pooling(pool, device)
        if not quietly:
            raise
        LOGGER.debug("The recording that failed had no clean end: %s", error)


def _stop_pooling(pool: Any, device: int) -> None:
    """Have torch's allocator forget a recording; by itself it does so only at a clean end."""
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    except RuntimeError as error:
        LOGGER.debug("The allocator had forgotten it: %s", error)


def _drop_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()


_STREAMS: dict[int, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}


def _streams(device: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return a device's two for recording: always the same, for memory goes with the stream."""
    if device not in _STREAMS:
        stream: Any = torch.cuda.Stream
        _STREAMS[device] = (stream(device), stream(device))
    return _STREAMS[device]
