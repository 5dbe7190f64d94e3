"""One step of the UNet and its ControlNets, captured as a CUDA graph and replayed for every other.

A step is about a thousand small kernels, which a GPU finishes faster than Python can launch them. A
CUDA graph launches all of them with one call. It reads and writes the very memory it was captured
with, so what a step depends on is copied into static buffers first:

- the latents, at every step;
- each network's time biases, which lie end to end in one buffer, so that they are one copy; the
  keys and values of the text likewise, but only when the text changes, and the encoded hints, when
  a hint changes;
- the ControlNets' scales, which are numbers in GPU memory: another strength needs no new capture.

Because a graph is replayed so often, it pays to benchmark convolutions and attentions before the
capture, and to join the query, key and value weights of each self-attention, so that three products
become one.

For one image the layers are too small to fill a GPU. The ControlNets and the first half of the UNet
do not depend on each other, so they are captured as two branches that run side by side.

Whatever cannot be captured runs as unet.py has it, which is slower and gives the same.
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
    KeysValues,
    StepCache,
    run_controlnet,
    run_down_and_mid,
    run_up,
    transformer_layers,
)

LOGGER = logging.getLogger(__name__)

KEPT_GRAPHS = 8
"""Of one model: with and without control, for one image and for several, and the four of the fast
mode. They share their memory pool, but each has its own buffers, 12 MB for an image in SD 1.5."""
WARM_UPS = 2
"""Runs before a capture: the first chooses algorithms and compiles, which a capture must not; the
second shows that nothing is left to be chosen."""
LONGEST_WAIT = 1000
"""Steps after which a capture is tried again at the latest, where weights are offloaded often."""
WAIT_AFTER_OOM = 100
"""Steps without graphs after memory ran out."""

StepFunction = Callable[[], list[Tensor]]
Capture = Callable[[StepFunction], StepFunction]
"""(what to capture) -> what replays it, and returns tensors of its own."""

_LOCK = threading.RLock()
"""Held while capturing and replaying: graphs share memory, so one runs at a time."""
_graphs: "WeakSet[_Graph]" = WeakSet()
"""All that are alive, of any model: a further one shares their memory pool."""
_forwards: "WeakSet[CudaGraphForward]" = WeakSet()


class CudaGraphForward:
    """Predicts as a Forward does, by replaying graphs; may be called from several threads.

    Its graphs are freed with it.
    """

    def __init__(
        self, forward: Forward, offload_count: Callable[[], int], capture: Capture | None = None
    ) -> None:
        """Take `offload_count()`, which counts the weights that have left the device so far.

        A graph reads them where they lay. Tests pass a `capture` that needs no GPU.
        """
        self._forward = forward
        self._offload_count = offload_count
        self._capture = capture or captured
        self._steps: OrderedDict[tuple[Any, ...], _StaticStep] = OrderedDict()
        self._offloads_seen = offload_count()
        self._stable_steps, self._wait = 0, 0
        """Steps since weights were last offloaded, and how many there must be before a capture."""
        self._failed = False
        with _LOCK:
            _forwards.add(self)

    def __call__(self, call: PredictCall) -> Tensor:
        """See Forward."""
        output = self._replayed(call)
        return output[0] if output else self._forward(call)

    def control_residuals(self, call: PredictCall) -> Residuals:
        """See Forward."""
        output = self._replayed(call, only_residuals=True) if call.active_controls else []
        return tuple(output) or self._forward.control_residuals(call)

    def drop_graphs(self, wait: int) -> None:
        """Drop the graphs, and with the last one their memory; capture none for `wait` steps."""
        with _LOCK:
            self._steps.clear()
            self._stable_steps, self._wait = 0, max(wait, self._wait)

    def _replayed(self, call: PredictCall, *, only_residuals: bool = False) -> list[Tensor]:
        """Return the output of a replay; [] where there is no graph and none is to be captured.

        Raises:
            RuntimeError: memory ran out; then the graphs of all models have been dropped.
        """
        if self._failed or call.active_adapters:  # a graph would hold one request's features
            return []
        try:
            # Static buffers outlive the call, so they must not be inference tensors.
            with ExitStack() as uses, torch.inference_mode(False), torch.no_grad():
                for control in call.active_controls:
                    network = self._forward.controlnets[control.name]
                    uses.enter_context(self._forward.on_device(network, call.latents))
                uses.enter_context(_LOCK)
                uses.enter_context(_device_of(call.latents))
                return self._replay(call, only_residuals) if self._weights_stay() else []
        except Exception as error:
            if is_out_of_memory(error):
                drop_all_graphs()
                raise
            self._failed = True
            self._steps.clear()
            LOGGER.warning("Steps cannot be captured here, and run slower.", exc_info=error)
            return []

    def _replay(self, call: PredictCall, only_residuals: bool) -> list[Tensor]:
        key = _key(call, only_residuals)
        step = self._steps.get(key)
        if step is None:
            LOGGER.info("Capturing a step for %s, once.", tuple(call.latents.shape))
            began = time.perf_counter()
            step = _StaticStep(self._forward, call, only_residuals)
            step.replay = self._capture(step.run)
            LOGGER.info("Captured it in %.1f s.", time.perf_counter() - began)
            self._steps[key] = step
            if len(self._steps) > KEPT_GRAPHS:
                self._steps.popitem(last=False)
        else:
            step.fill(self._forward, call)
        self._steps.move_to_end(key)
        return step.replay()

    def _weights_stay(self) -> bool:
        """Tell whether no weight was offloaded for long enough; drop the graphs if one just was.

        Where a GPU has no room for all parts, they come and go with every step: each time the wait
        for the next capture doubles.
        """
        count = self._offload_count()
        if count != self._offloads_seen:
            self._offloads_seen = count
            self.drop_graphs(wait=min(2 * self._wait + 1, LONGEST_WAIT))
        self._stable_steps += 1
        return self._stable_steps > self._wait


def _key(call: PredictCall, only_residuals: bool) -> tuple[Any, ...]:
    """Return all that decides which kernels run, and on which shapes."""
    return (
        *(call.latents.shape, call.latents.dtype, call.texts.shape, only_residuals),
        *((control.name, control.hint.shape) for control in call.active_controls),
        *(residual.shape for residual in call.residuals),
    )


def drop_all_graphs() -> None:
    """Drop the graphs of all models for a while, because memory is short."""
    with _LOCK:
        for one in list(_forwards):
            one.drop_graphs(wait=WAIT_AFTER_OOM)


# Static buffers


class _FlatBuffer:
    """Copies of tensors, end to end in one buffer, so that one kernel updates all."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._flat = torch.cat([one.flatten() for one in tensors])
        parts = torch.split(self._flat, [one.numel() for one in tensors])
        self.views = [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Copy in tensors of the same shapes."""
        torch.cat([one.flatten() for one in tensors], out=self._flat)


class _QkvWeights:
    """Query, key and value weights of a network's self-attentions, joined into one product each.

    A second copy of them (100 MB in SD 1.5), which stays valid wherever the originals are moved.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network  # kept alive, so that no other network can get its id
        attentions = [layer.attn1 for layer in transformer_layers(network)]
        self.by_layer = {
            one: torch.cat([part.weight.detach() for part in (one.to_q, one.to_k, one.to_v)])
            for one in attentions
            if all(part.bias is None for part in (one.to_q, one.to_k, one.to_v))
        }


_qkv_weights: WeakValueDictionary[int, _QkvWeights] = WeakValueDictionary()
"""By the network's id, for as long as a captured step uses it."""


class _StaticCache:
    """A network's StepCache, in memory that stays."""

    def __init__(self, network: nn.Module, cache: StepCache) -> None:
        self._qkv = _qkv_weights.get(id(network)) or _QkvWeights(network)
        _qkv_weights[id(network)] = self._qkv
        self._biases = _FlatBuffer(list(cache.biases.values()))
        self._text = _FlatBuffer(_flat(cache.keys_values))
        pairs = zip(self._text.views[::2], self._text.views[1::2], strict=True)
        self.cache = StepCache(
            dict(zip(cache.keys_values, pairs, strict=True)),
            dict(zip(cache.biases, self._biases.views, strict=True)),
            self._qkv.by_layer,
        )

    def fill(self, cache: StepCache, *, new_text: bool) -> None:
        """Copy in a timestep's biases and, if the text is new, its keys and values."""
        self._biases.fill(cache.biases.values())
        if new_text:
            self._text.fill(_flat(cache.keys_values))


def _flat(keys_values: Mapping[nn.Module, KeysValues]) -> list[Tensor]:
    return [one for pair in keys_values.values() for one in pair]


class _StaticStep:
    """A step on static buffers of its own."""

    replay: StepFunction
    """Runs it as it was captured; returns tensors of its own."""

    def __init__(self, forward: Forward, call: PredictCall, only_residuals: bool) -> None:
        """Make the buffers and fill them for the first time."""
        controls = call.active_controls
        # The networks, but not the forward: a reference cycle would keep the graph alive.
        self._unet = None if only_residuals else forward.unet
        self._controlnets = [forward.controlnets[control.name] for control in controls]
        self._latents = _picture_like(call.latents)
        self._latents.copy_(call.latents)
        self._residuals = [_picture_like(residual).copy_(residual) for residual in call.residuals]
        networks = [*self._controlnets, *([self._unet] if self._unet is not None else [])]
        self._caches = {
            network: _StaticCache(network, forward.step_cache(network, call))
            for network in networks
        }
        self._text_seen = ref(call.texts)
        self._hints = [forward.encoded_hint(control, call.latents).clone() for control in controls]
        self._hints_seen = [ref(control.hint) for control in controls]
        self._scales_seen = [control.scales for control in controls]
        self._scales = [_scales_on_device(scales, self._latents) for scales in self._scales_seen]

    def fill(self, forward: Forward, call: PredictCall) -> None:
        """Copy in what has changed since the last time; the key is the same."""
        self._latents.copy_(call.latents)
        for buffer, residual in zip(self._residuals, call.residuals, strict=True):
            buffer.copy_(residual)
        new_text = self._text_seen() is not call.texts
        # If anything fails in between, the buffers hold no known text.
        self._text_seen = ref(torch.empty(0))
        for network, static in self._caches.items():
            static.fill(forward.step_cache(network, call), new_text=new_text)
        self._text_seen = ref(call.texts)
        for index, control in enumerate(call.active_controls):
            if self._hints_seen[index]() is not control.hint:
                self._hints[index].copy_(forward.encoded_hint(control, call.latents))
                self._hints_seen[index] = ref(control.hint)
            if self._scales_seen[index] != control.scales:
                self._scales[index].copy_(_scales_on_device(control.scales, self._latents))
                self._scales_seen[index] = control.scales

    def run(self) -> list[Tensor]:
        """Return what a Forward would, for what is in the buffers."""
        if self._unet is None:
            residuals = self._run_controlnets()
            total = [torch.zeros_like(residual) for residual in residuals[0]]
            self._add(total, residuals)
            return total
        if self._latents.is_cuda and torch.cuda.is_current_stream_capturing():
            residuals, (skips, x) = self._run_side_by_side()
        else:
            residuals, (skips, x) = self._run_controlnets(), self._run_down_and_mid()
        self._add((*skips, x), residuals)
        del residuals  # so that the second half can reuse the memory
        if self._residuals:
            for target, residual in zip((*skips, x), self._residuals, strict=True):
                target.add_(residual)
        return [run_up(self._unet, skips, x, self._caches[self._unet].cache)]

    def _add(self, targets: Sequence[Tensor], residuals: Sequence[Sequence[Tensor]]) -> None:
        for of_controlnet, scales in zip(residuals, self._scales, strict=True):
            for target, residual, scale in zip(targets, of_controlnet, scales, strict=True):
                add_scaled(target, residual, scale)

    def _run_side_by_side(self) -> tuple[list[list[Tensor]], tuple[list[Tensor], Tensor]]:
        main = torch.cuda.current_stream(self._latents.device)
        _, side = _streams(main.device_index)
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side):
                residuals = self._run_controlnets()
            return residuals, self._run_down_and_mid()
        finally:
            main.wait_stream(side)  # also after an error: a capture must end on its first stream

    def _run_controlnets(self) -> list[list[Tensor]]:
        return [
            list(
                run_controlnet(
                    network,
                    convolve(network.conv_in, self._latents) + hint,
                    self._caches[network].cache,
                )
            )
            for network, hint in zip(self._controlnets, self._hints, strict=True)
        ]

    def _run_down_and_mid(self) -> tuple[list[Tensor], Tensor]:
        unet: Any = self._unet
        start = convolve(unet.conv_in, self._latents)
        return run_down_and_mid(unet, start, self._caches[unet].cache)


def _picture_like(picture: Tensor) -> Tensor:
    return torch.empty_like(picture, memory_format=torch.channels_last)


def _scales_on_device(scales: Sequence[float], like: Tensor) -> Tensor:
    """Return the scales in float32, as a number passed to a kernel would be."""
    return torch.tensor(scales, dtype=torch.float32).to(like.device)


def add_scaled(target: Tensor, addend: Tensor, scale: Tensor) -> None:
    """Add a multiple to a tensor in place, rounding once; `scale` is a float32 scalar tensor."""
    suits = target.is_cuda and lie_alike(target, addend)
    if suits and on_gpu("add_scaled", target, addend, scale) is not None:
        return
    target.copy_(torch.addcmul(target.float(), addend.float(), scale))


# The capture


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    guard: Any = torch.cuda.device_of
    return cast(AbstractContextManager[None], guard(tensor))


def captured(run: StepFunction) -> StepFunction:
    """Capture what `run` does on the current device, and return what replays it.

    `run` must do the same work at each call, on memory that stays, and read nothing back from the
    device. All threads replay on the device's default stream, which keeps them in order.

    Raises:
        RuntimeError: it cannot be captured, or memory ran out.
    """
    device = torch.cuda.current_device()
    current, (stream, _) = torch.cuda.current_stream(), _streams(device)
    was_benchmarking = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        # A capture allocates from a pool of its own and cannot use what the allocator has cached.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        with torch.cuda.stream(stream):
            graph = _captured_here(run, device)
    finally:
        torch.backends.cudnn.benchmark = was_benchmarking
        current.wait_stream(stream)

    def replay() -> list[Tensor]:
        graph.cuda_graph.replay()
        # Copied before another graph is replayed into the same memory.
        return [one.clone() for one in graph.output]

    return replay


@dataclass(frozen=True, eq=False)
class _Graph:
    """A CUDA graph, and the tensors that it writes to."""

    cuda_graph: torch.cuda.CUDAGraph
    output: list[Tensor]


def _captured_here(run: StepFunction, device: int) -> _Graph:
    """Capture on the current stream, which nobody else uses."""
    living = next(iter(_graphs), None)
    cuda_graph = torch.cuda.CUDAGraph()
    # A pool whose last graph is gone must not be used again.
    pool = torch.cuda.graph_pool_handle() if living is None else living.cuda_graph.pool()
    # cuBLAS keeps a workspace for each stream; a capture's must be allocated from its own pool.
    _drop_workspaces()
    # Other threads may go on meanwhile: they do not use this stream.
    cuda_graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        output = run()
    except BaseException:
        _end(cuda_graph, pool, device, failed=True)  # quietly: the first error is the one to raise
        raise
    else:
        _end(cuda_graph, pool, device, failed=False)
    finally:
        _drop_workspaces()
    graph = _Graph(cuda_graph, output)
    _graphs.add(graph)
    return graph


def _end(cuda_graph: torch.cuda.CUDAGraph, pool: Any, device: int, *, failed: bool) -> None:
    """End a capture; one that failed is discarded, and ends without an error of its own."""
    try:
        cuda_graph.capture_end()
        if failed:
            cuda_graph.reset()
    except RuntimeError as error:
        _stop_pooling(pool, device)
        if not failed:
            raise
        LOGGER.debug("The failed capture had no clean end: %s", error)


def _stop_pooling(pool: Any, device: int) -> None:
    """Make torch's allocator leave a capture's pool; by itself it does so only at a clean end."""
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    except RuntimeError as error:
        LOGGER.debug("The allocator had left the pool already: %s", error)


def _drop_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()


_STREAMS: dict[int, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}


def _streams(device: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return a device's two streams for captures: always the same, since a pool belongs to one."""
    if device not in _STREAMS:
        stream: Any = torch.cuda.Stream
        _STREAMS[device] = (stream(device), stream(device))
    return _STREAMS[device]
