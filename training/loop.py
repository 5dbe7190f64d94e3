"""The training loop of every network: schedule, averaged weights (EMA), checkpoints and a log.

Data and loss are the caller's.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from core.errors import BadInput
from training import processes
from training.log import Log
from training.progress import progress_line

SCHEDULES = ("cosine", "constant")
MEMORY_STEP = 2  # the first whose memory is that of all later ones: the optimizer has its state


@dataclass(frozen=True)
class RunConfig:
    """Where a training run keeps its state, how long it lasts, and how it optimises.

    It ends after `steps` or after `minutes` of training, whichever comes first. A step is one of
    the optimizer.
    """

    folder: Path
    steps: int
    minutes: float | None
    learning_rate: float
    checkpoint_every: int = 200
    sheet_every: int = 500
    """0 draws no sheets."""
    seed: int = 0
    lr_scheduler: str = "cosine"
    lr_warmup_steps: int = 100
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.999
    """0 keeps no averaged weights."""
    use_8bit_adam: bool = False
    scale_gradients: bool = False
    """For float16, in which small gradients would be zero."""
    validate_every: int = 0
    """0 validates at the start and the end only."""


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
    parser.add_argument(
        "--gradient-accumulation-steps", type=int, default=1, help="batches to one step"
    )
    parser.add_argument(
        "--lr-scheduler",
        choices=SCHEDULES,
        default=SCHEDULES[0],
        help="cosine falls to 2 %% after a third of the run; it depends on --steps and --minutes",
    )
    parser.add_argument("--lr-warmup-steps", type=int, default=100)
    parser.add_argument(
        "--ema-decay", type=float, default=0.999, help="of the averaged weights; 0 for none"
    )
    parser.add_argument(
        "--use-8bit-adam", action="store_true", help="less memory; needs bitsandbytes"
    )
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--sheet-every", type=int, default=500, help="0 for no sample sheets")
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
        lr_scheduler=options.lr_scheduler,
        lr_warmup_steps=options.lr_warmup_steps,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        ema_decay=options.ema_decay,
        use_8bit_adam=options.use_8bit_adam,
    )


def lr_factor(progress: float) -> float:
    """Factor of the learning rate at `progress` (0..1): 1 for a third, then a cosine to 2 %."""
    if progress < 1 / 3:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((progress - 1 / 3) * 1.5, 1.0)))


Validate = Callable[[int], dict[str, Any]]
"""Called with a step, while the modules have their averaged weights; what it returns is logged:
numbers, and paths of pictures."""


def train(
    run: RunConfig,
    modules: dict[str, nn.Module],
    loss_at: Callable[[int], dict[str, Tensor]],
    sheet: Callable[[dict[str, nn.Module], Path], None],
    validate: Validate | None = None,
) -> dict[str, nn.Module]:
    """Train the parameters of `modules` that require gradients; return them with averaged weights.

    `loss_at(batch)` returns named losses, of which "loss" is minimised and the others logged. Its
    randomness must depend on the batch's number alone, so that a resumed run equals an
    uninterrupted one. `sheet(modules, path)` saves sample pictures.

    Of several processes (processes.py) each takes batches of its own: a step of N has N times as
    many. The first alone validates, logs and saves.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    state = _State(run, modules)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    if processes.rank():
        while state.progress() < 1:
            state.advance(loss_at)
    else:
        _lead(state, modules, loss_at, sheet, validate)
    state.use_average()
    if run.sheet_every and not processes.rank():
        sheet(modules, run.folder / "final.png")
    return modules


def _lead(
    state: "_State",
    modules: dict[str, nn.Module],
    loss_at: Callable[[int], dict[str, Tensor]],
    sheet: Callable[[dict[str, nn.Module], Path], None],
    validate: Validate | None,
) -> None:
    """Train as the first process, or the only one: with log, checkpoints, scores and sheets."""
    run = state.run
    with closing(Log(run.folder, state.step)) as log:
        if state.step == 0:
            _validate(state, validate, log)
        while state.progress() < 1:
            state.advance(loss_at)
            if state.step == MEMORY_STEP:
                print(f"Memory: {peak_memory(state.device) / 1e9:.2f} GB at most", flush=True)
            if state.step % 20 == 0:
                _report(state, log)
            if _due(run.validate_every, state.step):
                _validate(state, validate, log)
            if state.step % run.checkpoint_every == 0:
                state.save()
            if _due(run.sheet_every, state.step):
                with averaged_weights(state.parameters, state.average):
                    sheet(modules, run.folder / f"step-{state.step:06d}.png")
        if not _due(run.validate_every, state.step):
            _validate(state, validate, log)
    state.save()


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _validate(state: "_State", validate: Validate | None, log: Log) -> None:
    if validate:
        with averaged_weights(state.parameters, state.average):
            found = validate(state.step)
            pictures = {name: one for name, one in found.items() if isinstance(one, Path)}
            numbers = {name: one for name, one in found.items() if name not in pictures}
            log.write(state.step, numbers, pictures)


def peak_memory(device: torch.device) -> int:
    """The most bytes in use so far: torch's on a GPU, all of the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # it does not tell
    import resource  # noqa: PLC0415 - Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _optimizer(run: RunConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, perhaps with its state in 8 bits.

    Raises:
        BadInput: bitsandbytes, which has that one, is not installed.
    """
    settings: Any = {"lr": run.learning_rate, "betas": (0.9, 0.99), "weight_decay": 1e-3}
    if not run.use_8bit_adam:
        return torch.optim.AdamW(parameters, **settings)
    try:
        adam: Any = import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise BadInput(
            "--use-8bit-adam needs bitsandbytes: run `pip install bitsandbytes`."
        ) from error
    optimizer: torch.optim.Optimizer = adam(parameters, **settings)
    return optimizer


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
        self.average = (
            {name: p.detach().clone() for name, p in self.parameters.items()}
            if run.ema_decay
            else {}
        )
        self.losses: dict[str, Tensor] = {}
        """Smoothed over some fifty steps."""
        self.device = next(iter(self.parameters.values())).device
        self._optimizer = _optimizer(run, [*self.parameters.values()])
        self._scaler = GradScaler(self.device.type, enabled=run.scale_gradients)
        self._checkpoint = run.folder / "checkpoint.pt"
        self.step = 0
        self._spent = self._resume() if self._checkpoint.exists() else 0.0
        """Seconds of training so far, by the first process's clock."""
        self.start = time.monotonic() - self._spent
        processes.take_from_first([p.data for p in self.parameters.values()])
        processes.take_from_first([*self.average.values()])

    def _resume(self) -> float:
        """Load the checkpoint; return the seconds spent so far.

        Raises:
            BadInput: it is of another network.
        """
        state = torch.load(self._checkpoint, weights_only=True, map_location=self.device)
        shapes, found = (
            {name: one.shape for name, one in weights.items()}
            for weights in (self.parameters, state["weights"])
        )
        if found != shapes:
            raise BadInput(
                f"The run in {self.run.folder} trains another network: choose another --out."
            )
        for name, p in self.parameters.items():
            p.data.copy_(state["weights"][name])
        for name, average in self.average.items():
            # A run that kept no average so far begins it here.
            average.copy_(state["average"].get(name, state["weights"][name]))
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state.get("scaler", {}))
        self.losses = state.get("losses", {})
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
            "scaler": self._scaler.state_dict(),
            "losses": self.losses,
            "step": self.step,
            "spent": time.monotonic() - self.start,
        }
        torch.save(state, part)
        part.rename(self._checkpoint)

    def use_average(self) -> None:
        """Give the modules their averaged weights, if there are any, for good."""
        for name, average in self.average.items():
            self.parameters[name].data.copy_(average)

    def progress(self) -> float:
        """The finished fraction of the run, by steps or by time, whichever is larger."""
        run = self.run
        by_time = self._spent / 60 / run.minutes if run.minutes else 0.0
        return max(self.step / run.steps, by_time)

    def advance(self, loss_at: Callable[[int], dict[str, Tensor]]) -> None:
        """Take one step of the optimizer, and update the averaged weights and losses."""
        count = self.run.gradient_accumulation_steps
        latest: dict[str, Tensor] = {}
        for batch in range(self.step * count, (self.step + 1) * count):
            losses = loss_at(batch * processes.count() + processes.rank())
            self._scaler.scale(losses["loss"] / count).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():  # they stay on the GPU: reading would wait
                latest[name] = latest.get(name, 0) + value.detach().float() / count
        processes.average([p.grad for p in self.parameters.values() if p.grad is not None])
        processes.average([*latest.values()])
        self._set_learning_rate()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        # A step that overflowed would spoil the weights; the scaler looks at this itself.
        if self._scaler.is_enabled() or bool(torch.isfinite(norm)):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)  # before pictures are made, which need memory
        self.step += 1
        for name, value in latest.items():
            self.losses[name] = value.lerp(self.losses.get(name, value), 0.98)
        if self.average:
            decay = min(self.run.ema_decay, (1 + self.step) / (10 + self.step))
            weights = [p.detach() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)
        spent = torch.tensor([time.monotonic() - self.start], dtype=torch.float64)
        if self.run.minutes:
            spent = spent.to(self.device)
            processes.take_from_first([spent])
        self._spent = float(spent)

    @property
    def learning_rate(self) -> float:
        """That of the latest step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def _set_learning_rate(self) -> None:
        run = self.run
        rate = run.learning_rate * min((self.step + 1) / max(run.lr_warmup_steps, 1), 1.0)
        if run.lr_scheduler == "cosine":
            rate *= lr_factor(self.progress())
        for group in self._optimizer.param_groups:
            group["lr"] = rate


def _report(state: _State, log: Log) -> None:
    """Print a line of progress and append it to the log."""
    run, step = state.run, state.step
    values = {name: float(value) for name, value in state.losses.items()}
    total = run.steps
    if run.minutes:  # time may end the run first: extrapolate the number of steps
        total = max(step + 1, min(run.steps, round(step / max(state.progress(), 1e-6))))
    text = (f"{name} {value:.4f}" for name, value in values.items())
    print(progress_line(step, total, state.start, "steps"), *text, flush=True)
    seconds = round(time.monotonic() - state.start, 2)
    log.write(step, {"seconds": seconds, **values, "learning_rate": state.learning_rate}, {})


@contextmanager
def averaged_weights(
    parameters: dict[str, nn.Parameter], average: dict[str, Tensor]
) -> Iterator[None]:
    """Use the averaged weights, if any, inside the block; both are swapped back after it."""

    def swap() -> None:
        for name, averaged in average.items():
            weights = parameters[name].data.clone()
            parameters[name].data.copy_(averaged)
            averaged.copy_(weights)

    swap()
    try:
        yield
    finally:
        swap()
