"""The UNet's decoder is left unconnected, or is trained and saved with the whole model."""

import pytest
import torch
from diffusers.utils import logging

from models.__main__ import main as models_command
from tests.training.conftest import draw_with
from training import train_control
from training.base import Base
from training.decoder import decoder_of


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(train_control, "SHEET_STEPS", 2)


def arguments(base, folder, out, *more):
    few = ["--batch", "1", "--size", "64", "--device", "cpu", "--steps", "3", "--sheet-every", "0"]
    places = ["--base", f"{base}", "--folder", f"{folder}", "--out", f"{out}"]
    return [*few, *places, "--learning-rate", "1e-2", "--lr-warmup-steps", "0", *more]


@pytest.mark.slow
def test_the_middle_begins_and_the_rest_follows(sd_base, folder, tmp_path):
    saved = tmp_path / "saved"
    middle = ["--only-mid-control", "--save", f"{saved}"]
    control = train_control.trained(arguments(sd_base, folder, tmp_path / "1", *middle)).control
    assert control.controlnet_mid_block.weight.any()
    assert not any(one.any() for one in control.controlnet_down_blocks.parameters())
    start = ["--start", f"{saved}"]
    control = train_control.trained(arguments(sd_base, folder, tmp_path / "2", *start)).control
    assert all(one.weight.any() for one in control.controlnet_down_blocks)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_with_its_decoder_is_drawn_with_at_once(
    precision, sd_base, folder, tmp_path, capsys, caplog, monkeypatch
):
    logging.enable_propagation()
    monkeypatch.setattr(train_control.Validation, "__call__", validated)
    saved = tmp_path / "a.model"
    more = ["--unlock-decoder", "--save", f"{saved}", "--mixed-precision", precision]
    more += ["--validation", f"{folder}", "--validate-every", "1"]
    training = train_control.trained(arguments(sd_base, folder, tmp_path / "run", *more))
    kinds = {one.dtype for one in training.modules["decoder"].parameters()}
    assert kinds == {torch.float32}
    assert {one.dtype for one in training._unet.down_blocks.parameters()} == {
        train_control.PRECISIONS[precision]
    }
    told = capsys.readouterr().out
    assert models_command(["check", f"{saved}"]) == 0
    assert "--model" in capsys.readouterr().out and "Saved: " in told
    assert "with a decoder trained too" in (saved / "README.md").read_text()
    before = Base(f"{sd_base}").load().unet.half().float()
    networks, pictures = draw_with(saved, folder)
    assert "not expected" not in caplog.text  # of a key in a config
    learnt = {name for name, _ in decoder_of(before).named_parameters()}
    changed = {
        name
        for name, weight in networks.unet.named_parameters()
        if not torch.equal(weight, before.get_parameter(name))
    }
    assert changed <= learnt and len(changed) > 0.9 * len(learnt)
    assert (pictures[0] != pictures[1]).any()

    # It is a base to go on from; resumed, the run has the decoder that it had.
    start = ["--start", f"{saved / 'controlnet' / 'canny'}", "--steps", "1"]
    again = train_control.trained(arguments(saved, folder, tmp_path / "again", *start))
    frozen = decoder_of(again._unet).state_dict()
    for name, weight in decoder_of(networks.unet).state_dict().items():
        assert torch.allclose(frozen[name].float(), weight, atol=1e-2), name
    resumed = train_control.trained(arguments(sd_base, folder, tmp_path / "run", *more))
    for name, weight in training.modules["decoder"].state_dict().items():
        assert torch.equal(resumed.modules["decoder"].state_dict()[name], weight), name


def validated(self, step):
    """Find every step better than the one before, so that the last is kept."""
    self._save_best(step, float(step))
    return {}


@pytest.mark.slow
def test_what_does_not_go_together_is_refused(sd_base, folder, tmp_path):
    connected = ["--start", f"{sd_base / 'controlnet' / 'canny'}"]
    unlocked, kept = ["--unlock-decoder"], tmp_path / "control"
    kept.mkdir()
    (kept / "config.json").write_text("{}")
    for base, more, sentence in (
        (sd_base, ["--adapter", "--only-mid-control"], "are for ControlNets, not --adapter"),
        (sd_base, ["--adapter", *unlocked], "are for ControlNets, not --adapter"),
        (sd_base, ["--method", "cpo", *unlocked], "leave out --unlock-decoder"),
        (sd_base, ["--only-mid-control", *connected], "connected to the UNet's decoder already"),
        (sd_base, ["--start", f"{sd_base}"], f"--start {sd_base / 'controlnet' / 'canny'}"),
        (sd_base, ["--save", f"{sd_base}"], "holds a model of another kind"),
        (sd_base, [*unlocked, "--save", f"{kept}"], "holds a model of another kind"),
        (sd_base, [*unlocked, "--save", f"{sd_base}"], "that was not trained here"),
        ("diorama", unlocked, "train Diorama's base with training.train_base"),
    ):
        with pytest.raises(SystemExit) as refused:
            train_control.main(arguments(base, folder, tmp_path / "run", *more))
        assert sentence in str(refused.value) and ". " not in str(refused.value)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_runs_of_other_kinds_have_folders_of_their_own():
    assert str(train_control._options(["--only-mid-control"]).out) == "runs/control-middle-canny"
    assert str(train_control._options(["--unlock-decoder"]).out) == "runs/control-decoder-canny"
