"""T2I-Adapters are trained where a ControlNet may be, and drawn with as the apps do."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import T2IAdapter

from benchmarks._trained import find_trained
from core.networks import ControlInput, PredictCall
from models.__main__ import main as models_command
from models.engine.unet import Forward
from tests.tiny_networks import tiny_adapter
from tests.training.conftest import draw_in_the_apps
from training import train_control
from training.adapter import make_adapter, predict
from training.base import Base


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(train_control, "SHEET_STEPS", 2)


def arguments(base, folder, out, *more):
    few = ["--batch", "1", "--size", "64", "--device", "cpu", "--steps", "2", "--sheet-every", "0"]
    places = ["--base", f"{base}", "--folder", f"{folder}", "--out", f"{out}"]
    return [*few, *places, "--learning-rate", "1e-2", "--lr-warmup-steps", "0", *more]


@torch.no_grad()
def test_a_training_pass_is_that_of_the_apps():
    """Diorama's first level has no attention: there diffusers' own way to add features fails."""
    torch.manual_seed(0)
    base = Base("diorama")
    unet = base.load().unet.float()
    noisy, text = torch.randn(2, 4, 16, 16), torch.randn(1, 77, unet.config.cross_attention_dim)
    hint = torch.rand(1, 1, 128, 128).expand(1, 3, -1, -1)
    grey = T2IAdapter(1, [*unet.config.block_out_channels], 2, 8)
    for adapter in (make_adapter(base, unet, None), grey):
        control = ControlInput("canny", hint, (1.0,) * 3, is_adapter=True)
        call = PredictCall(noisy, 401, text, (control,))
        theirs = Forward(unet, {"canny": adapter})(call)
        many = [one.expand(2, *one.shape[1:]) for one in (text, hint)]
        ours = predict(unet, adapter, noisy, torch.tensor([401, 401]), *many)
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()
        without = unet(noisy, 401, many[0]).sample  # nothing stays behind in the UNet
        assert torch.equal(without, unet(noisy, 401, many[0]).sample)
        assert (ours - without).norm() > 0.01 * theirs.norm()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["diorama", "sd"])
def test_a_saved_adapter_draws_in_the_apps(base, sd_base, folder, tmp_path, capsys):
    source = sd_base if base == "sd" else Base("diorama").card.folder
    saved = tmp_path / "saved"
    validation = ["--validation", f"{folder}", "--save", f"{saved}"]
    train_control.main(arguments(source, folder, tmp_path / "run", "--adapter", *validation))
    told = capsys.readouterr().out
    assert "T2IAdapter " in told and told.count("Score ") == 2
    card = (saved / "README.md").read_text()
    assert "# A T2I-Adapter for canny maps" in card and "tags: [t2i-adapter," in card
    assert find_trained(f"{saved}").condition == "canny"
    networks, pictures = draw_in_the_apps(source, saved, folder, tmp_path / "model")
    assert networks.is_adapter("canny")
    assert np.abs(pictures[0] - pictures[1]).mean() > 1


@pytest.mark.slow
def test_what_is_trained_beside_diorama_is_accepted_at_once(folder, tmp_path, capsys):
    saved = tmp_path / "saved"
    train_control.main(arguments("diorama", folder, tmp_path, "--adapter", "--save", f"{saved}"))
    capsys.readouterr()
    assert models_command(["check", f"{saved}"]) == 0
    told = capsys.readouterr().out
    assert "saved is a T2I-Adapter" in told and "for diorama: put it into" in told


@pytest.mark.slow
def test_an_earlier_adapter_is_trained_further(sd_base, folder, tmp_path):
    unet = Base(str(sd_base)).load().unet
    grey = tiny_adapter(unet, in_channels=1, adapter_type="light_adapter")
    grey.save_pretrained(tmp_path / "start")
    start = ["--adapter", "--start", f"{tmp_path / 'start'}"]
    training = train_control.trained(arguments(sd_base, folder, tmp_path / "run", *start))
    pairs = zip(grey.state_dict().values(), training.control.state_dict().values(), strict=True)
    changes = [float((one - then).abs().max()) for one, then in pairs]
    assert training.control.config.adapter_type == "light_adapter"
    assert min(changes) > 0 and max(changes) < 0.1


@pytest.mark.slow
def test_adapters_and_controlnets_are_not_mixed_up(sd_base, folder, tmp_path):
    controlnet = sd_base / "controlnet" / "canny"
    unet = Base(str(sd_base)).load().unet
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    tiny_adapter(unet).save_pretrained(adapter)
    T2IAdapter(3, [8, 8, 8, 8]).save_pretrained(other)
    out = tmp_path / "run"
    train_control.main(arguments(sd_base, folder, out))
    for more, sentence in (
        (["--start", f"{adapter}"], "is a T2I-Adapter: add --adapter"),
        (["--adapter", "--start", f"{controlnet}"], "is no T2I-Adapter: leave --adapter out"),
        (["--adapter", "--start", f"{other}"], "for a model of another build"),
        (["--adapter"], "trains another network: choose another --out"),
    ):
        with pytest.raises(SystemExit) as refused:
            train_control.main(arguments(sd_base, folder, out, *more))
        assert sentence in str(refused.value) and ". " not in str(refused.value)
    shutil.rmtree(out)


def test_a_run_of_an_adapter_has_a_folder_of_its_own():
    assert str(train_control._options(["--adapter"]).out) == "runs/adapter-canny"
