"""A whole run of train_control on a small base of Stable Diffusion's shape."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from annotators import find_annotator
from models.__main__ import main as models_command
from tests.training.conftest import draw_in_the_apps
from training import train_control
from training.examples import FolderExamples, default_extractor
from training.train_control import Training
from training.validation import Validation, read_curve
from training.weights import read_metadata

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(train_control, "SHEET_STEPS", 2)


def arguments(sd_base, folder, out, *more):
    few = ["--batch", "1", "--size", "64", "--device", "cpu", "--checkpoint-every", "2"]
    places = ["--base", f"{sd_base}", "--folder", f"{folder}", "--out", f"{out}"]
    return [*few, *places, "--save", f"{out}/saved", "--learning-rate", "1e-3", *more]


@pytest.mark.slow
def test_an_interrupted_run_has_the_losses_of_an_unbroken_one(
    sd_base, folder, tmp_path, monkeypatch
):
    options = ["--steps", "6", "--gradient-accumulation-steps", "2", "--sheet-every", "0"]
    losses, loss_at, stop_at = {}, Training.loss_at, [-1]

    def recorded(self, batch):
        if batch == stop_at[0]:
            raise KeyboardInterrupt
        found = loss_at(self, batch)
        losses[batch] = float(found["loss"].detach())
        return found

    monkeypatch.setattr(Training, "loss_at", recorded)
    train_control.main(arguments(sd_base, folder, tmp_path / "whole", *options))
    unbroken = dict(losses)
    losses.clear()
    stop_at[0] = 9  # in the fifth step, whose first half and the fourth's checkpoint are done
    with pytest.raises(KeyboardInterrupt):
        train_control.main(arguments(sd_base, folder, tmp_path / "broken", *options))
    stop_at[0] = -1
    del losses[8]
    train_control.main(arguments(sd_base, folder, tmp_path / "broken", *options))
    assert len(unbroken) == 12 and losses == unbroken and len(set(losses.values())) > 6
    whole, broken = (
        load_file(tmp_path / run / "saved" / "diffusion_pytorch_model.safetensors")
        for run in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_twice_the_batches(sd_base, folder, tmp_path):
    both = ["--steps", "3", "--sheet-every", "0", "--ema-decay", "0", "--mixed-precision", "no"]
    both += ["--validation", f"{folder}", "--validate-every", "2", "--lr-warmup-steps", "0"]
    twice = ["--gradient-accumulation-steps", "2"]
    train_control.main(arguments(sd_base, folder, tmp_path / "one", *both, *twice))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = ["-m", "training.train_control"]
    two = arguments(sd_base, folder, tmp_path / "two", *both)
    done = subprocess.run(
        [*launch, *command, *two], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Memory: ") == 1, "the first process alone speaks"
    weights = [
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["weights"]
        for run in ("one", "two")
    ]
    assert weights[0]["control.controlnet_mid_block.weight"].any(), "it was zero at first"
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_validated_run_keeps_a_curve_and_loads_in_the_apps(
    sd_base, folder, tmp_path, capsys, monkeypatch
):
    noises, sample_latents = [], train_control.sample_latents

    def recorded(unet, text, empty, noise, *more):
        noises.append(noise)
        return sample_latents(unet, text, empty, noise, *more)

    monkeypatch.setattr(train_control, "sample_latents", recorded)
    out = tmp_path / "run"
    validation = ["--validation", f"{folder}", "--validate-every", "2"]
    train_control.main(arguments(sd_base, folder, out, *validation, "--steps", "5"))
    told = capsys.readouterr().out
    assert told.count("Score ") == 4 and "Memory: " in told
    curve = read_curve(out)
    assert [step for step, _ in curve] == [0, 2, 4, 5]
    # Each picture has noise of its own, the same in every validation.
    assert not torch.equal(noises[0], noises[1])
    assert all(torch.equal(noises[k], noises[k % 2]) for k in range(8))
    with Image.open(out / "score.png") as drawn:
        assert drawn.size == (640, 360)
    with Image.open(out / "validation.png") as sheet:
        assert sheet.size == (2 * 64, 3 * 64)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(isinstance(one, int | float) for record in records for one in record.values())
    card = (out / "saved" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n") and "| 5 | " in card
    assert "| Data | 2 pictures" in card and "| Steps | 5, of 1 pictures each |" in card
    assert (out / "saved" / "score.png").exists()
    best = max(score for _, score in curve)
    recipe = read_metadata(out / "saved")["recipe"]
    assert recipe["score"] == pytest.approx(best, abs=0.01)
    _, pictures = draw_in_the_apps(sd_base, out / "saved", folder, tmp_path / "model")
    assert pictures[1].shape == (256, 256, 3)
    assert pictures[1].std() > 1
    # After five steps its convolutions have hardly left zero: some hundred values differ by one.
    assert (pictures[0] != pictures[1]).any()


def test_the_score_is_the_apps_and_a_jump_is_told(folder, tmp_path, capsys):
    canny, saved = find_annotator("canny"), []
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 16:48] = 255
    Image.fromarray(square).save(tmp_path / "t.png")
    Image.fromarray(canny.preprocessors[0].draw(square, canny.params())).save(tmp_path / "s.png")
    row = {"source": "s.png", "target": "t.png", "prompt": ""}
    (tmp_path / "prompt.json").write_text(json.dumps(row))
    data = FolderExamples(tmp_path, canny, 64)
    made = [np.zeros_like(square)]
    validate = Validation(
        *(data, default_extractor(canny), lambda _: made),
        *(lambda step, score: saved.append((step, score)), tmp_path),
    )
    log = (tmp_path / "log.jsonl").open("a")
    for step, picture in ((0, np.zeros_like(square)), (10, square), (20, square), (30, made[0])):
        made[0] = picture
        log.write(json.dumps({"step": step, "score": validate(step)["score"]}) + "\n")
        log.flush()
    assert read_curve(tmp_path) == [(0, 0.0), (10, 100.0), (20, 100.0), (30, 0.0)]
    assert saved == [(0, 0.0), (10, 100.0)]
    told = [line for line in capsys.readouterr().out.splitlines() if "jumped" in line]
    assert len(told) == 1 and "by 100 points between the steps 0 and 10" in told[0]


@pytest.mark.slow
def test_a_refusal_is_one_sentence(sd_base, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for more, sentence in (
        (["--use-8bit-adam"], "needs bitsandbytes"),
        (["--reward", "HED"], "canny: for photographs there are Kornia (canny), HED (hed), PiDi"),
        (["--condition", "pose", "--reward", "HED"], "HED does not fit --condition pose"),
        (["--reward", "Kornia", "edges"], "take either"),
        (["--reward", "Kornia", "--method", "cpo"], "leave it out"),
        (["--method", "uncertainty"], "name its losses"),
        (["--method", "uncertainty", "--reward", "overlap"], "take classes"),
        (["--method", "cpo", "--reward", "edges"], "leave it out"),
        (["--method", "cpo", "--enable-bucket"], "leave out --enable-bucket"),
        (["--check", "--size", "96"], "multiple of 64"),
    ):
        with pytest.raises(SystemExit) as refused:
            train_control.main(arguments(sd_base, folder, tmp_path / "run", *more))
        assert sentence in str(refused.value) and str(refused.value).count(". ") == 0


@pytest.mark.slow
def test_half_precision_and_few_extras_train(sd_base, folder, tmp_path):
    lean = ["--mixed-precision", "fp16", "--ema-decay", "0", "--gradient-checkpointing"]
    out = tmp_path / "run"
    train_control.main(arguments(sd_base, folder, out, *lean, "--steps", "3", "--enable-bucket"))
    saved = load_file(out / "saved" / "diffusion_pytorch_model.safetensors")
    zero = [one for name, one in saved.items() if name.startswith("controlnet_down")]
    assert all(bool(one.isfinite().all()) for one in saved.values())
    assert any(bool(one.any()) for one in zero)  # they have left zero


@pytest.mark.slow
def test_what_is_trained_beside_diorama_is_accepted_at_once(folder, tmp_path, capsys):
    few = ["--steps", "1", "--sheet-every", "0"]
    train_control.main(arguments("diorama", folder, tmp_path, *few))
    capsys.readouterr()
    assert models_command(["check", f"{tmp_path / 'saved'}"]) == 0
    told = capsys.readouterr().out
    assert "saved is a ControlNet" in told and "for diorama: put it into" in told
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "base_model: diorama" in card and "no `--validation` was given" in card
    assert "The base's is: Apache-2.0" in card
