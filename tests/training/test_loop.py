"""The loop learns, resumes as if it had never stopped, and hands back averaged weights."""

from pathlib import Path

import torch
from torch import nn

from training.loop import Run, decay, train


def run(folder: Path, steps: int) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    wanted = torch.tensor([[1.0, -2.0, 0.5]])

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(step))
        return {"loss": (module(x) - x @ wanted.T).square().mean()}

    settings = Run(folder, steps, None, learning_rate=0.05, checkpoint_every=10, sheet_every=1000)
    train(settings, {"module": module}, loss_at, lambda _modules, path: path.write_bytes(b"sheet"))
    return module


def test_it_learns(tmp_path):
    module = run(tmp_path, 200)
    assert torch.allclose(module.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05)
    assert (tmp_path / "final.png").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 10


def test_a_resumed_run_is_the_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.decay", lambda done: 1.0)  # the schedule knows the end
    whole = run(tmp_path / "whole", 40)
    run(tmp_path / "halves", 20)
    resumed = run(tmp_path / "halves", 40)
    assert torch.equal(whole.weight, resumed.weight)


def test_the_rate_falls_at_the_end():
    assert decay(0.0) == 1.0 and decay(0.3) == 1.0
    assert 0.4 < decay(2 / 3) < 0.6
    assert decay(1.0) < 0.03
