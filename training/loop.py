"""The one training loop: learning-rate schedule, averaged weights, checkpoints, log, progress. Knows nothing of data or loss."""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.progress import clock

WARMUP_STEPS = 100
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Run:
    """Where a training run keeps its state, and when it ends: after `steps`, or after `minutes` if that comes first."""

    folder: Path
    steps: int
    minutes: float | None
    learning_rate: float
    checkpoint_every: int = 200
    sheet_every: int = 500
    seed: int = 0


def add_run_options(parser: argparse.ArgumentParser, folder: str, steps: int, learning_rate: float) -> None:
    """The options every training command shares."""
    parser.add_argument("--out", type=Path, default=Path(folder), help="checkpoints, log and sheets; resumes from it")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=None, help="stop after this much training time")
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--sheet-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run_from(options: argparse.Namespace) -> Run:
    """The run that the shared options describe."""
    return Run(options.out, options.steps, options.minutes, options.learning_rate, options.checkpoint_every,
               options.sheet_every, options.seed)  # fmt: skip


def decay(done: float) -> float:
    """Share of the full learning rate at a share `done` of the run: flat for a third, then a cosine to 2 %."""
    if done < 1 / 3:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((done - 1 / 3) * 1.5, 1.0)))


def train(
    run: Run,
    modules: dict[str, nn.Module],
    loss_at: Callable[[int], dict[str, Tensor]],
    sheet: Callable[[dict[str, nn.Module], Path], None],
) -> dict[str, nn.Module]:
    """Trains the parameters of `modules` that need gradients and returns the modules holding their averaged weights.

    `loss_at(step)` returns named losses whose sum under "loss" is minimised; its own randomness must follow from the
    step, so that a resumed run goes on as an unbroken one would. `sheet(modules, path)` draws samples to look at.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    trained = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}
    average = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=run.learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    checkpoint = run.folder / "checkpoint.pt"
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=next(iter(trained.values())).device)
        for name, p in trained.items():
            p.data.copy_(state["weights"][name])
            average[name].copy_(state["average"][name])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
        print(f"resumed at step {step}", flush=True)
    began = time.monotonic() - spent
    log = (run.folder / "log.jsonl").open("a")
    recent: dict[str, float] = {}

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        weights = {name: p.detach() for name, p in trained.items()}
        torch.save({"weights": weights, "average": average, "optimizer": optimizer.state_dict(), "step": step,
                    "spent": time.monotonic() - began}, part)  # fmt: skip
        part.rename(checkpoint)

    def share() -> float:
        by_time = (time.monotonic() - began) / 60 / run.minutes if run.minutes else 0.0
        return max(step / run.steps, by_time)

    while share() < 1:
        done = share()
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * decay(done) * min((step + 1) / WARMUP_STEPS, 1.0)
        losses = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trained.values(), 1.0)
        if bool(torch.isfinite(norm)):  # a step that overflowed is left out rather than let it spoil the weights
            optimizer.step()
        step += 1
        keep = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in trained.values()], 1 - keep)
        for name, value in losses.items():
            now = float(value.detach())
            recent[name] = 0.98 * recent.get(name, now) + 0.02 * now
        if step % 20 == 0:
            total = run.steps if not run.minutes else max(step + 1, min(run.steps, round(step / max(share(), 1e-6))))
            print(clock(step, total, began, "steps"), *(f"{k} {v:.4f}" for k, v in recent.items()), flush=True)
            log.write(json.dumps({"step": step, "seconds": round(time.monotonic() - began), **recent}) + "\n")
            log.flush()
        if step % run.checkpoint_every == 0:
            save()
        if step % run.sheet_every == 0:
            with swapped(trained, average):
                sheet(modules, run.folder / f"step-{step:06d}.png")
    save()
    for name, p in trained.items():
        p.data.copy_(average[name])
    sheet(modules, run.folder / "final.png")
    log.close()
    return modules


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
