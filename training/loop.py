"""The one training loop; it knows nothing of data or loss.

It has a learning-rate schedule, averaged weights, checkpoints, a log and progress.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from training.progress import clock

WARMUP_STEPS = 100
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Run:
    """Where a training run keeps its state, and when it ends.

    It ends after `steps`, or after `minutes` of training if that comes first.
    """

    folder: Path
    steps: int
    minutes: float | None
    learning_rate: float
    checkpoint_every: int = 200
    sheet_every: int = 500
    seed: int = 0


def add_run_options(
    parser: argparse.ArgumentParser, folder: str, steps: int, learning_rate: float
) -> None:
    """The options every training command shares."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(folder),
        help="checkpoints, log and sheets; resumes from it",
    )
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument(
        "--minutes", type=float, default=None, help="stop after this much training time"
    )
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--sheet-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run_from(options: argparse.Namespace) -> Run:
    """The run that the shared options describe."""
    return Run(
        folder=options.out,
        steps=options.steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        checkpoint_every=options.checkpoint_every,
        sheet_every=options.sheet_every,
        seed=options.seed,
    )


def decay(done: float) -> float:
    """Share of the full learning rate at a share `done` (0..1) of the run.

    Flat for a third, then a cosine to 2 %.
    """
    if done < 1 / 3:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((done - 1 / 3) * 1.5, 1.0)))


def train(
    run: Run,
    modules: dict[str, nn.Module],
    loss_at: Callable[[int], dict[str, Tensor]],
    sheet: Callable[[dict[str, nn.Module], Path], None],
) -> dict[str, nn.Module]:
    """Trains the parameters of `modules` that need gradients.

    Returns the modules holding the averaged weights.

    `loss_at(step)` returns named losses whose sum under "loss" is minimised; its own randomness
    must follow from the step, so that a resumed run goes on as an unbroken one would.
    `sheet(modules, path)` draws samples to look at.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    state = _State(run, modules)
    recent: dict[str, Tensor] = {}
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    with (run.folder / "log.jsonl").open("a") as log:
        while state.share() < 1:
            state.set_rate()
            losses = loss_at(state.step)
            state.descend(losses["loss"])
            for name, value in losses.items():
                now = value.detach()  # left where it is: to read it would wait for a GPU
                recent[name] = now.lerp(recent.get(name, now), 0.98)
            if state.step % 20 == 0:
                _report(state, recent, log)
            if state.step % run.checkpoint_every == 0:
                state.save()
            if state.step % run.sheet_every == 0:
                with swapped(state.trained, state.average):
                    sheet(modules, run.folder / f"step-{state.step:06d}.png")
        state.save()
        for name, p in state.trained.items():
            p.data.copy_(state.average[name])
        sheet(modules, run.folder / "final.png")
    return modules


class _State:
    """All that a run must remember between two steps, and between two sittings."""

    def __init__(self, run: Run, modules: dict[str, nn.Module]) -> None:
        self.run = run
        self.trained = {
            f"{m}.{n}": p
            for m, module in modules.items()
            for n, p in module.named_parameters()
            if p.requires_grad
        }
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self._optimizer = torch.optim.AdamW(
            self.trained.values(), lr=run.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
        )
        self._checkpoint = run.folder / "checkpoint.pt"
        self.step = 0
        spent = self._resume() if self._checkpoint.exists() else 0.0
        self.began = time.monotonic() - spent

    def _resume(self) -> float:
        """Takes up the checkpoint and returns the seconds spent so far."""
        device = next(iter(self.trained.values())).device
        state = torch.load(self._checkpoint, weights_only=True, map_location=device)
        for name, p in self.trained.items():
            p.data.copy_(state["weights"][name])
            self.average[name].copy_(state["average"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"resumed at step {self.step}", flush=True)
        return float(state["spent"])

    def save(self) -> None:
        """Writes the checkpoint, complete or not at all."""
        part = self._checkpoint.with_suffix(".part")
        state = {
            "weights": {name: p.detach() for name, p in self.trained.items()},
            "average": self.average,
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "spent": time.monotonic() - self.began,
        }
        torch.save(state, part)
        part.rename(self._checkpoint)

    def share(self) -> float:
        """How much of the run is done, by steps or by time, whichever is further; 1 is the end."""
        run = self.run
        by_time = (time.monotonic() - self.began) / 60 / run.minutes if run.minutes else 0.0
        return max(self.step / run.steps, by_time)

    def set_rate(self) -> None:
        """Gives the optimizer the learning rate of the coming step."""
        warm = min((self.step + 1) / WARMUP_STEPS, 1.0)
        rate = self.run.learning_rate * decay(self.share()) * warm
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def descend(self, loss: Tensor) -> None:
        """Takes one step down the gradient of `loss` and moves the averages after the weights."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        # A step that overflowed is left out rather than let it spoil the weights.
        if bool(torch.isfinite(norm)):
            self._optimizer.step()
        self.step += 1
        keep = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in self.trained.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - keep)


def _report(state: _State, losses: dict[str, Tensor], log: TextIO) -> None:
    """Prints a line of progress and writes it to the log."""
    run, step = state.run, state.step
    recent = {name: float(value) for name, value in losses.items()}
    total = run.steps
    if run.minutes:  # the time may end the run first: guess how far it will get
        total = max(step + 1, min(run.steps, round(step / max(state.share(), 1e-6))))
    shown = (f"{name} {value:.4f}" for name, value in recent.items())
    print(clock(step, total, state.began, "steps"), *shown, flush=True)
    seconds = round(time.monotonic() - state.began)
    log.write(json.dumps({"step": step, "seconds": seconds, **recent}) + "\n")
    log.flush()


class swapped:  # noqa: N801 - reads as a statement: `with swapped(...)`
    """Puts the averaged weights in place of the trained ones for a while."""

    def __init__(self, trained: dict[str, nn.Parameter], average: dict[str, Tensor]) -> None:
        self._trained, self._average = trained, average

    def _exchange(self) -> None:
        for name, p in self._trained.items():
            held = p.data.clone()
            p.data.copy_(self._average[name])
            self._average[name].copy_(held)

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()
