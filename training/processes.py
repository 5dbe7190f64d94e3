"""Several processes that train one network together, each on a GPU of its own.

`accelerate launch` and `torchrun` start them and say in the environment which one each is.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=6)
"""How long the others wait for the first, which alone prepares data, validates and saves."""


def rank() -> int:
    """Return which process this is; the first is 0, as is one alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of the processes that a launcher started, for the block; the others print nothing.

    On a GPU, `device` is "cuda": each process has its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        with contextlib.ExitStack() as quiet:
            if rank():
                nowhere = quiet.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find its files."""
    if rank():
        dist.barrier()
    yield
    if count() > 1 and not rank():
        dist.barrier()


def take_from_first(tensors: Sequence[Tensor]) -> None:
    """Give all processes the first one's values."""
    if count() > 1:
        for one in tensors:
            dist.broadcast(one, 0)


def average(tensors: Sequence[Tensor]) -> None:
    """Give all processes the mean of their values."""
    if count() == 1:
        return
    for work in [dist.all_reduce(one, async_op=True) for one in tensors]:
        work.wait()
    for one in tensors:
        one.div_(count())
