"""The log of a run: JSON lines, and TensorBoard's events beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from training.log import Log
from training.loop import RunConfig, lr_factor, train


def test_a_run_that_begins_anew_has_a_new_log(tmp_path):
    for score in (1.0, 2.0):  # the first was interrupted before its first checkpoint
        log = Log(tmp_path, 0)
        log.write(0, {"score": score}, {})
        log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"step": 0, "score": 2.0}]


def test_without_tensorboard_the_log_is_all(tmp_path, monkeypatch):
    monkeypatch.setattr("training.log.find_spec", lambda _: None)
    log = Log(tmp_path, 0)
    log.write(1, {"loss": 0.5}, {"validation": tmp_path / "none.png"})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def run(folder: Path, steps: int, validated: list[int]) -> None:
    """Train three weights, validated every 20 steps by a score and a picture in its shade."""
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss_at(batch: int) -> dict[str, torch.Tensor]:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(batch))
        return {"loss": (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()}

    def validate(step: int) -> dict[str, float | Path]:
        validated.append(step)
        picture = folder / "validation.png"
        Image.new("RGB", (6, 4), (step, 0, 255)).save(picture)
        return {"score": step / 2, "validation": picture}

    config = RunConfig(
        *(folder, steps, None, 0.05), checkpoint_every=20, sheet_every=0, validate_every=20
    )
    train(config, {"module": module}, loss_at, lambda *_: None, validate)


def test_tensorboard_has_losses_rates_scores_and_pictures_once_after_a_resumed_run(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    validated: list[int] = []
    run(tmp_path, 40, validated)
    log = Log(tmp_path, 40)  # goes on after its last checkpoint, and is interrupted
    log.write(60, {"score": 99.0, "loss": 99.0}, {"validation": tmp_path / "validation.png"})
    log.close()
    run(tmp_path, 80, validated)
    assert validated == [0, 20, 40, 60, 80]

    found = events.EventAccumulator(str(tmp_path), {events.IMAGES: 0, events.SCALARS: 0}).Reload()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "learning_rate", "score"):
        logged = [(one["step"], one[name]) for one in records if name in one]
        read = [(one.step, one.value) for one in found.Scalars(name)]
        assert [step for step, _ in read] == [step for step, _ in logged]
        assert [value for _, value in read] == pytest.approx([value for _, value in logged])
    assert [one.value for one in found.Scalars("score")] == [0, 10, 20, 30, 40]
    assert len(found.Scalars("loss")) == 4
    # Step 80 of 80 has the rate of the one before, and all are warmed up by a hundredth a step.
    last = found.Scalars("learning_rate")[-1].value
    assert last == pytest.approx(0.05 * 0.8 * lr_factor(79 / 80))
    pictures = found.Images("validation")
    assert [one.step for one in pictures] == [0, 20, 40, 60, 80]
    file = tmp_path / "shown.png"
    file.write_bytes(pictures[3].encoded_image_string)
    assert (np.asarray(Image.open(file)) == (60, 0, 255)).all()
