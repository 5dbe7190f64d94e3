"""The training loop learns, resumes exactly, and returns averaged weights."""

import json
from pathlib import Path

import torch
from torch import nn

from training.loop import RunConfig, lr_factor, train


def run(folder: Path, steps: int) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    target = torch.tensor([[1.0, -2.0, 0.5]])

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(step))
        return {"loss": (module(x) - x @ target.T).square().mean()}

    settings = RunConfig(
        folder, steps, None, learning_rate=0.05, checkpoint_every=10, sheet_every=1000
    )
    train(settings, {"module": module}, loss_at, lambda _modules, path: path.write_bytes(b"sheet"))
    return module


def test_it_learns(tmp_path):
    module = run(tmp_path, 200)
    assert torch.allclose(module.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05)
    assert (tmp_path / "final.png").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 10


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.lr_factor", lambda progress: 1.0)  # it depends on --steps
    whole = run(tmp_path / "whole", 40)
    run(tmp_path / "halves", 20)
    resumed = run(tmp_path / "halves", 40)
    assert torch.equal(whole.weight, resumed.weight)


def test_a_resumed_log_has_each_step_once(tmp_path):
    run(tmp_path, 50)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 60, "loss": 1.0}\n{"step": 80, "lo')  # after the checkpoint
    run(tmp_path, 80)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [20, 40, 60, 80] and log.read_text().startswith(whole)


def test_batches_to_one_step_are_one_larger_batch(tmp_path):
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def trained(name: str, batches: int) -> nn.Module:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)

        def loss_at(batch: int) -> dict[str, torch.Tensor]:
            return {"loss": module(data.chunk(batches)[batch % batches]).square().mean()}

        settings = RunConfig(
            tmp_path / name, 5, None, 0.05, sheet_every=0, gradient_accumulation_steps=batches
        )
        train(settings, {"module": module}, loss_at, lambda *_: None)
        return module

    assert torch.allclose(trained("one", 1).weight, trained("four", 4).weight, atol=1e-6)


def test_without_averaging_the_last_weights_are_returned_and_validated(tmp_path):
    seen = []
    module = nn.Linear(1, 1)
    settings = RunConfig(
        tmp_path, 4, None, 0.1, sheet_every=0, ema_decay=0, validate_every=3, lr_warmup_steps=0
    )

    def validate(step: int) -> dict[str, float]:
        seen.append((step, module.weight.item()))
        return {"score": step}

    train(
        settings,
        {"module": module},
        lambda _: {"loss": module(torch.ones(1, 1)).square().sum()},
        lambda *_: None,
        validate,
    )
    assert [step for step, _ in seen] == [0, 3, 4] and seen[2][1] == module.weight.item()
    assert seen[0][1] != seen[1][1]


def test_pictures_are_made_without_gradients_in_memory(tmp_path):
    seen, module = [], nn.Linear(1, 1)
    settings = RunConfig(tmp_path, 2, None, 0.1, sheet_every=1)
    train(
        settings,
        {"module": module},
        lambda _: {"loss": module(torch.ones(1, 1)).square().sum()},
        lambda modules, _: seen.extend(one.grad for one in modules["module"].parameters()),
    )
    assert len(seen) == 6 and not any(one is not None for one in seen)


def test_a_loss_may_have_another_number_format_in_each_step(tmp_path):
    """A reward is in bfloat16, and zero in float32 where no sample gets it."""
    module, formats = nn.Linear(1, 1), (torch.float32, torch.bfloat16)

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        loss = module(torch.ones(1, 1)).square().sum()
        return {"loss": loss, "reward": torch.ones((), dtype=formats[step % 2])}

    settings = RunConfig(tmp_path, 20, None, 0.1, sheet_every=0)
    train(settings, {"module": module}, loss_at, lambda *_: None)
    assert json.loads((tmp_path / "log.jsonl").read_text())["reward"] == 1.0


def test_the_learning_rate_falls_at_the_end():
    assert lr_factor(0.0) == 1.0 and lr_factor(0.3) == 1.0
    assert 0.4 < lr_factor(2 / 3) < 0.6
    assert lr_factor(1.0) < 0.03
