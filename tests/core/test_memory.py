"""Where memory runs out, the pictures are made in another way and are the same."""

import ctypes
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core.condition import Preprocessor
from core.diffusion import FEWER, LOW_MEMORY, MAX_BATCH_OF_REQUEST, batches
from core.errors import DeviceUnavailable
from core.memory import OUT_OF_MEMORY, free_bytes, is_out_of_memory, release_freed_memory
from core.pipeline import Pipeline
from core.request import GenerationRequest
from tests.core.conftest import FakeNetworks


@dataclass
class Cramped(FakeNetworks):
    """Runs out of memory beyond so many images at once, and so many in low memory."""

    holds: int = 1
    holds_low_memory: int = 1
    error: type = torch.OutOfMemoryError
    broken_part: str = "predict"

    def _fill(self, part, latents):
        if part != self.broken_part or len(latents) <= (
            self.holds_low_memory if self.low_memory else self.holds
        ):
            return
        if self.error is RuntimeError:
            torch.empty(10**15)  # the CPU's own words
        raise self.error("CUDA out of memory")

    def predict(self, call):
        self._fill("predict", call.latents)
        return super().predict(call)

    def decode(self, latents):
        self._fill("decode", latents)
        return super().decode(latents)


def ask(condition, image, **settings):
    defaults = {"prompt": "a ball", "image_resolution": 256, "steps": 4, "seed": 5}
    return GenerationRequest.single(condition, image, **(defaults | settings))


def made(networks, request):
    return Pipeline(lambda *_, **__: networks).generate(request)


@pytest.fixture
def wanted(condition, image):
    return made(FakeNetworks(), ask(condition, image, num_samples=6)).images


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_too_many_at_once_are_made_one_by_one(condition, image, wanted, error):
    networks = Cramped(largest_batch=4, holds=1, error=error)
    result = made(networks, ask(condition, image, num_samples=6))
    assert result.warnings == (FEWER.format(4),)  # said once, and the second batch not tried
    assert all(np.array_equal(a, b) for a, b in zip(result.images, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["predict", "decode"])
def test_one_that_does_not_fit_is_made_sparing_memory(condition, image, wanted, part):
    networks = Cramped(largest_batch=4, holds=0, broken_part=part)
    result = made(networks, ask(condition, image, num_samples=2))
    assert result.warnings == (FEWER.format(2), LOW_MEMORY)
    assert all(np.array_equal(a, b) for a, b in zip(result.images, wanted, strict=False))
    assert len(result.images) == 2


@pytest.mark.slow
def test_what_fits_in_no_way_is_one_sentence_and_the_next_request_works(condition, image):
    networks = Cramped(holds=0, holds_low_memory=0)
    pipeline = Pipeline(lambda *_, **__: networks)
    with pytest.raises(DeviceUnavailable, match="smaller image resolution"):
        pipeline.generate(ask(condition, image))
    networks.holds = 1
    result = pipeline.generate(ask(condition, image))
    assert len(result.images) == 1 and not result.warnings


@pytest.mark.slow
def test_images_made_before_memory_ran_out_are_kept(condition, image):
    networks = Cramped(holds=1, holds_low_memory=0)
    steps = []

    def stepped(progress):
        steps.append(progress.step)
        if progress.image_index == 1:
            networks.holds = 0

    result = Pipeline(lambda *_, **__: networks).generate(
        ask(condition, image, num_samples=3), stepped
    )
    assert result.seeds == (5,)
    assert result.warnings == (LOW_MEMORY, f"Only 1 of 3 images were made: {OUT_OF_MEMORY}")


def test_what_failed_is_freed_before_it_is_tried_again(condition, image):
    held = []

    class Wasteful(FakeNetworks):
        def predict(self, call):
            activations = torch.ones(1000)
            assert not [one for one in held if one() is not None]
            if not self.low_memory:
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().predict(call)

    assert made(Wasteful(), ask(condition, image)).warnings == (LOW_MEMORY,)
    assert len(held) == 1


def test_running_out_of_memory_while_loading_is_reported(condition, image):
    def load(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceUnavailable, match="too little memory"):
        Pipeline(load).generate(ask(condition, image))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_running_out_of_memory_while_drawing_a_map_is_reported(condition, image, error):
    def draw(*_):
        raise error("CUDA out of memory")

    greedy = replace(condition.annotator, preprocessors=(Preprocessor("Greedy", draw),))
    request = ask(replace(condition, annotator=greedy), image)
    with pytest.raises(DeviceUnavailable, match="too little memory"):
        made(FakeNetworks(), request)
    with pytest.raises(DeviceUnavailable, match="too little memory"):
        Pipeline(lambda *_, **__: FakeNetworks()).draw_map(request)


def test_another_error_is_a_bug_and_rises(condition, image):
    networks = Cramped(holds=0, error=KeyError)
    with pytest.raises(KeyError):
        made(networks, ask(condition, image))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_glibc_keeps_of_freed_memory_goes_back():
    """Pieces too small to have pages of their own, below one that is still in use."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [np.ones(60_000, np.uint8) for _ in range(2000)]
    in_use = pieces.pop()
    pieces.clear()
    before = resident()
    release_freed_memory()
    assert before - resident() > 60e6 and in_use.all()


def _run(program, asked):
    """Run a program in a process of its own: what it sets holds for all of it."""
    command = [sys.executable, "-c", program, asked]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)


ALLOCATE = """
import ctypes, sys, threading
from core.memory import keep_one_arena
if sys.argv[1] == "one":
    keep_one_arena()
libc, together = ctypes.CDLL(None), threading.Barrier(8)
def allocate():
    libc.malloc(10_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="not glibc")
@pytest.mark.parametrize(("asked", "is_one"), [("one", True), ("usual", False)])
def test_all_threads_allocate_from_one_arena(asked, is_one):
    assert (_run(ALLOCATE, asked).stderr.count("Arena ") == 1) == is_one


FREE = """
import ctypes, sys
from pathlib import Path
from core.memory import return_large_blocks
if sys.argv[1] == "returned":
    return_large_blocks()
libc, size = ctypes.CDLL(None), 2 * 2**20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free(libc.malloc(30 * 2**20))  # now glibc takes all that is smaller from its heap
blocks = [libc.malloc(size) for _ in range(100)]
for one in blocks:
    libc.memset(one, 1, size)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
for one in blocks[::2]:
    libc.free(one)
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(("asked", "is_returned"), [("returned", True), ("usual", False)])
def test_large_blocks_between_those_in_use_go_back(asked, is_returned):
    assert (int(_run(FREE, asked).stdout) > 90e6) == is_returned


def test_which_errors_are_meant():
    cudnn = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert is_out_of_memory(cudnn)
    assert not is_out_of_memory(RuntimeError("The size of tensor a must match"))
    assert free_bytes(torch.device("cpu")) == float("inf")


@pytest.mark.parametrize(("max_batch", "largest"), [(1, 1), (3, 3), (100, MAX_BATCH_OF_REQUEST)])
def test_batches_hold_every_seed_once(max_batch, largest):
    seeds = list(range(10))
    groups = batches(seeds, FakeNetworks(largest_batch=max_batch), (64, 64))
    assert [seed for group in groups for seed in group] == seeds
    assert max(len(group) for group in groups) == largest
