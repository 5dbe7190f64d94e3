"""The papers' ablations in miniature, with fewer steps and scenes than the figures have."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from annotators import find_annotator
from models.checkpoints import loading
from training import study, train_control
from training.base import Base
from training.examples import FolderExamples, with_maps
from training.study import make_gaussian, make_lite, prompt_scores, prompts

PHOTOS = Path(__file__).parents[2] / "test_imgs"


@pytest.fixture(scope="module")
def diorama() -> loading.Base:
    """Diorama's networks."""
    return Base("diorama").load("cpu")


def _residuals(control: torch.nn.Module, unet: torch.nn.Module) -> list[torch.Tensor]:
    """Return a ControlNet's residuals, and check that the UNet takes them."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    maps = torch.rand(2, 3, 128, 128, generator=generator)
    timesteps = torch.tensor([10, 900])
    with torch.no_grad():
        down, middle = control(noisy, timesteps, text, maps, return_dict=False)
        unet(
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )
    return [*down, middle]


def test_a_lite_controlnet_begins_without_effect_and_is_smaller(diorama):
    base, unet = Base("diorama"), diorama.unet
    lite, whole = make_lite(base, unet, None), train_control.make_control(base, unet, None)
    ours, theirs = _residuals(lite, unet), _residuals(whole, unet)
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    assert not any(one.any() for one in [*ours, *theirs])
    sizes = [sum(one.numel() for one in net.parameters()) for net in (lite, whole)]
    assert sizes[0] < sizes[1] / 2


def test_gaussian_convolutions_begin_with_an_effect(diorama):
    residuals = _residuals(make_gaussian(Base("diorama"), diorama.unet, None), diorama.unet)
    assert all(float(one.std()) > 0.1 for one in residuals)


def test_the_four_settings_of_the_prompt():
    found = prompts(["a red ball", "a blue box", "a house"])
    assert found["none"] == [""] * 3 and found["perfect"] == ["a red ball", "a blue box", "a house"]
    assert found["conflicting"] == ["a blue box", "a house", "a red ball"]
    assert len(set(found["insufficient"])) == 1


def test_pictures_that_follow_one_setting_of_the_prompt_score_there_alone(tmp_path):
    for name in ("diorama_1", "diorama_2"):
        shutil.copy(PHOTOS / f"{name}.png", tmp_path)
        (tmp_path / f"{name}.txt").write_text(f"scene of {name}")
    canny = find_annotator("canny")
    data = FolderExamples(with_maps(tmp_path, canny, 128, tmp_path / "out"), canny, 128)
    captions = list(data.captions)

    def follows(examples):
        rows = range(len(examples))
        return [examples.batch([row])[0] * (examples.captions == captions) for row in rows]

    scores = prompt_scores(SimpleNamespace(validation_pictures=follows), data, canny)
    assert scores["perfect"] > 90
    assert scores["none"] == scores["insufficient"] == scores["conflicting"] == 0


@pytest.mark.slow
def test_a_study_writes_its_figure_and_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "HELD_OUT_SCENES", 2)
    monkeypatch.setattr(train_control, "SHEET_STEPS", 2)
    few = {name: study.Run((), run.make, 3) for name, run in lines().items()}
    monkeypatch.setitem(study.STUDIES, "zero-convolution", study.Study(few, has_prompts=True))
    study.main(["zero-convolution", "--out", str(tmp_path), "--steps", "2"])
    table = (tmp_path / "zero-convolution.md").read_text()
    assert table.strip() in capsys.readouterr().out
    head, _, *rows = table.splitlines()
    assert head.count("prompt: ") == 4 and "step 2" in head
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(few)
    assert all(re.fullmatch(r"(\| [^|]+ ){2}(\| \d+ ){7}\|", row) for row in rows), table
    assert (tmp_path / "zero-convolution.png").stat().st_size > 1000
    study.main(["zero-convolution", "--out", str(tmp_path), "--steps", "2"])
    assert "resumed at step 2" in capsys.readouterr().out, "nothing is trained twice"


def lines() -> dict[str, study.Run]:
    """Return the runs of a study."""
    return study.STUDIES["zero-convolution"].runs
