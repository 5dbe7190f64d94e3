"""The UNet's decoder is left unconnected, or is trained and saved with the whole model."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks._shared import at_strength
from benchmarks.controllability import conditions_by_annotator
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.__main__ import main as models_command
from models.store import Store
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
@pytest.mark.parametrize("base", ["diorama", "sd"])
def test_a_model_with_its_decoder_is_drawn_with_at_once(
    base, sd_base, folder, tmp_path, capsys, caplog
):
    source, saved = "diorama" if base == "diorama" else sd_base, tmp_path / "saved"
    more = ["--unlock-decoder", "--save", f"{saved}"]
    training = train_control.trained(arguments(source, folder, tmp_path / "run", *more))
    capsys.readouterr()
    assert models_command(["check", f"{saved}"]) == 0
    assert "--model" in capsys.readouterr().out
    store, before = Store("cpu", "float32"), Base(f"{source}").load().unet.float()
    networks = store.load(f"{saved}", "canny")
    assert "not expected" not in caplog.text  # of a key in a config
    learnt = {name for name, one in decoder_of(before).named_parameters()}
    changed = {
        name
        for name, one in networks.unet.named_parameters()
        if not torch.equal(one, before.get_parameter(name).half().float())
    }
    assert changed and changed <= learnt and len(changed) > 0.9 * len(learnt)
    assert store.registry.card(f"{saved}").defaults == Base(f"{source}").card.defaults
    request = GenerationRequest.single(
        conditions_by_annotator()["canny"],
        np.asarray(Image.open(folder / "target0.png")),
        model=f"{saved}",
        image_resolution=256,
        steps=2,
        seed=1,
    )
    pictures = [
        Pipeline(store.load).generate(at_strength(request, strength)).images[0].astype(int)
        for strength in (0.0, 1.0)
    ]
    assert (pictures[0] != pictures[1]).any()
    training.save_best(3, 50.0)
    best = tmp_path / "run" / "best"
    found = {one.relative_to(best) for one in best.rglob("*.safetensors")}
    assert found == {one.relative_to(saved) for one in saved.rglob("*.safetensors")}


@pytest.mark.slow
def test_what_does_not_go_together_is_refused(sd_base, folder, tmp_path):
    for more, sentence in (
        (["--adapter", "--only-mid-control"], "are for ControlNets, not --adapter"),
        (["--adapter", "--unlock-decoder"], "are for ControlNets, not --adapter"),
        (["--method", "cpo", "--unlock-decoder"], "leave out --unlock-decoder"),
    ):
        with pytest.raises(SystemExit) as refused:
            train_control.main(arguments(sd_base, folder, tmp_path / "run", *more))
        assert sentence in str(refused.value) and ". " not in str(refused.value)
    assert not (tmp_path / "run").exists()
