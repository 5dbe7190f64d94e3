"""The training loop of every network: schedule, averaged weights (EMA), checkpoints and a log.

Data and loss are the caller's.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from training.progress import progress_line

WARMUP_STEPS = 100
EMA_DECAY = 0.999


@dataclass(frozen=True)
class RunConfig:
    """Where a training run keeps its state, and how long it lasts.

    It ends after `steps` or after `minutes` of training, whichever comes first.
    """

    folder: Path
    steps: int
    minutes: float | None
    learning_rate: float
    checkpoint_every: int = 200
    sheet_every: int = 500
    seed: int = 0


def add_run_options(
    parser: argparse.ArgumentParser, folder: str, steps: int, learning_rate: float | None
) -> None:
    """Add the options that all training commands share."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        help="folder of checkpoints, log and sheets; a run resumes from it",
    )
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=None, help="stop after this training time")
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--sheet-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run_config(options: argparse.Namespace) -> RunConfig:
    """The configuration given by the shared options."""
    return RunConfig(
        folder=options.out,
        steps=options.steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        checkpoint_every=options.checkpoint_every,
        sheet_every=options.sheet_every,
        seed=options.seed,
    )


def lr_factor(progress: float) -> float:
    """Factor of the learning rate at `progress` (0..1): 1 for a third, then a cosine to 2 %."""
    if progress < 1 / 3:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((progress - 1 / 3) * 1.5, 1.0)))


def train(
    run: RunConfig,
    modules: dict[str, nn.Module],
    loss_at: Callable[[int], dict[str, Tensor]],
    sheet: Callable[[dict[str, nn.Module], Path], None],
) -> dict[str, nn.Module]:
    """Train the parameters of `modules` that require gradients; return them with averaged weights.

    `loss_at(step)` returns named losses, of which "loss" is minimised and the others logged. Its
    randomness must depend on the step alone, so that a resumed run equals an uninterrupted one.
    `sheet(modules, path)` saves sample pictures.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    state = _State(run, modules)
    smoothed: dict[str, Tensor] = {}
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    with (run.folder / "log.jsonl").open("a") as log:
        while state.progress() < 1:
            state.set_learning_rate()
            losses = loss_at(state.step)
            state.optimize(losses["loss"])
            for name, value in losses.items():
                latest = value.detach()  # stays on the GPU: reading it would wait
                smoothed[name] = latest.lerp(smoothed.get(name, latest), 0.98)
            if state.step % 20 == 0:
                _report(state, smoothed, log)
            if state.step % run.checkpoint_every == 0:
                state.save()
            if state.step % run.sheet_every == 0:
                with averaged_weights(state.parameters, state.average):
                    sheet(modules, run.folder / f"step-{state.step:06d}.png")
        state.save()
        for name, p in state.parameters.items():
            p.data.copy_(state.average[name])
        sheet(modules, run.folder / "final.png")
    return modules


class _State:
    """A run's state, saved in and resumed from its checkpoint."""

    def __init__(self, run: RunConfig, modules: dict[str, nn.Module]) -> None:
        self.run = run
        self.parameters = {
            f"{m}.{n}": p
            for m, module in modules.items()
            for n, p in module.named_parameters()
            if p.requires_grad
        }
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=run.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
        )
        self._checkpoint = run.folder / "checkpoint.pt"
        self.step = 0
        spent = self._resume() if self._checkpoint.exists() else 0.0
        self.start = time.monotonic() - spent

    def _resume(self) -> float:
        """Load the checkpoint; return the seconds spent so far."""
        device = next(iter(self.parameters.values())).device
        state = torch.load(self._checkpoint, weights_only=True, map_location=device)
        for name, p in self.parameters.items():
            p.data.copy_(state["weights"][name])
            self.average[name].copy_(state["average"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"resumed at step {self.step}", flush=True)
        return float(state["spent"])

    def save(self) -> None:
        """Write the checkpoint atomically."""
        part = self._checkpoint.with_suffix(".part")
        state = {
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "spent": time.monotonic() - self.start,
        }
        torch.save(state, part)
        part.rename(self._checkpoint)

    def progress(self) -> float:
        """The finished fraction of the run, by steps or by time, whichever is larger."""
        run = self.run
        by_time = (time.monotonic() - self.start) / 60 / run.minutes if run.minutes else 0.0
        return max(self.step / run.steps, by_time)

    def set_learning_rate(self) -> None:
        """Set the optimizer's learning rate for the next step."""
        warmup = min((self.step + 1) / WARMUP_STEPS, 1.0)
        rate = self.run.learning_rate * lr_factor(self.progress()) * warmup
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def optimize(self, loss: Tensor) -> None:
        """Take one optimizer step and update the averaged weights."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        if bool(torch.isfinite(norm)):  # a step that overflowed would spoil the weights
            self._optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)


def _report(state: _State, losses: dict[str, Tensor], log: TextIO) -> None:
    """Print a line of progress and append it to the log."""
    run, step = state.run, state.step
    values = {name: float(value) for name, value in losses.items()}
    total = run.steps
    if run.minutes:  # time may end the run first: extrapolate the number of steps
        total = max(step + 1, min(run.steps, round(step / max(state.progress(), 1e-6))))
    text = (f"{name} {value:.4f}" for name, value in values.items())
    print(progress_line(step, total, state.start, "steps"), *text, flush=True)
    seconds = round(time.monotonic() - state.start)
    log.write(json.dumps({"step": step, "seconds": seconds, **values}) + "\n")
    log.flush()


@contextmanager
def averaged_weights(
    parameters: dict[str, nn.Parameter], average: dict[str, Tensor]
) -> Iterator[None]:
    """Use the averaged weights inside the block; both are swapped back after it."""

    def swap() -> None:
        for name, p in parameters.items():
            weights = p.data.clone()
            p.data.copy_(average[name])
            average[name].copy_(weights)

    swap()
    try:
        yield
    finally:
        swap()
