"""The papers' ablations in miniature, with fewer steps and scenes than the figures have."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from annotators import find_annotator
from training import study, train_control
from training.base import Base, Networks
from training.examples import FolderExamples, with_maps
from training.study import make_gaussian, make_lite, prompt_scores, prompts
from training.validation import draw_curves

PHOTOS = Path(__file__).parents[2] / "test_imgs"


@pytest.fixture(scope="module")
def diorama() -> Networks:
    """Diorama's networks."""
    networks = Base("diorama").load()
    networks.place("cpu", torch.float32)
    return networks


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


def test_the_time_of_a_step_leaves_validations_out(tmp_path):
    log = [(0, None), (20, 33), (40, 43), (50, None), (60, 75), (80, 87), (100, 96), (100, None)]
    lines = [
        {"step": step, "seconds": at} if at else {"step": step, "score": 1.0} for step, at in log
    ]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    assert study.milliseconds(tmp_path) == "500", "of 500, 600 and 450"
    (tmp_path / "log.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert study.milliseconds(tmp_path) == "–"


@pytest.fixture
def few(monkeypatch):
    """Little of everything."""
    recipe = {"--batch": "2", "--size": "64", "--learning-rate": "1e-3", "--sheet-every": "0"}
    assert recipe.keys() == set(study.RECIPE[::2])
    monkeypatch.setattr(study, "RECIPE", tuple(word for pair in recipe.items() for word in pair))
    monkeypatch.setattr(study, "SIZE", 64)
    monkeypatch.setattr(study, "HELD_OUT_SCENES", 2)
    monkeypatch.setattr(train_control, "SHEET_STEPS", 2)
    monkeypatch.setattr(study, "GUIDANCE_SCENES", 3)


@pytest.mark.slow
def test_a_t2i_adapter_stands_beside_a_controlnet_with_the_time_of_a_step(
    few, tmp_path, monkeypatch
):
    runs = study.STUDIES["t2i-adapter"].runs
    assert [run.options for run in runs.values()] == [study.REWARD] * 2
    short = {name: study.Run((), run.make, 3) for name, run in runs.items()}
    monkeypatch.setitem(study.STUDIES, "t2i-adapter", study.Study(short, is_timed=True))
    head, _, *rows = study.study("t2i-adapter", tmp_path, 2).splitlines()
    assert head.startswith("|  | weights, M | ms a step | step 0 | step 1 | step 2 |")
    names, weights, times, *_ = zip(*(row.strip("| ").split(" | ") for row in rows), strict=True)
    assert names == ("ControlNet", "T2I-Adapter") and set(times) == {"–"}
    assert 0.5 < float(weights[1]) < float(weights[0]) / 2
    assert sorted(one.name for one in tmp_path.glob("timed-*")) == [
        "timed-make_adapter-3-2",
        "timed-make_control-3-2",
    ]


class FollowsWithoutGuidance:
    """A pipeline that gives the picture itself at guidance 1, and grey with more."""

    def __init__(self, _load):
        pass

    def generate(self, request):
        follows = request.guidance_scale == 1
        image = request.controls[0].image
        score = SimpleNamespace(headline=90.0 * follows + request.seed)
        return SimpleNamespace(images=[image if follows else image * 0 + 110], scores=[score])


def test_guidance_is_told_by_score_and_named_colours(few, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "Pipeline", FollowsWithoutGuidance)
    found = study.guidance(tmp_path, 0)
    assert [scale for scale, _ in found.curves["control score"]] == [1, 2, 3, 5, 7.5]
    assert [score for _, score in found.curves["control score"]] == [91, 1, 1, 1, 1]
    colours = [share for _, share in found.curves["named colours, %"]]
    assert colours[0] > 75 and colours[1] == colours[4] < 25
    study.main(["guidance", "--out", str(tmp_path)])
    table = (tmp_path / "guidance.md").read_text().splitlines()
    assert table[0] == "| Guidance scale | 1 | 2 | 3 | 5 | 7.5 |"
    assert table[2] == "| control score | 91 | 1 | 1 | 1 | 1 |"
    assert table[3].startswith(f"| named colours, % | {colours[0]:.0f} |")


@pytest.mark.slow
def test_guidance_is_that_of_the_apps(few, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "GUIDANCE_SCENES", 1)
    monkeypatch.setattr(study, "GUIDANCE_SCALES", (2.0, 7.5))
    first, last = [score for _, score in study.guidance(tmp_path, 0).curves["control score"]]
    assert first > 20 and last > 20 and first != last, "the ControlNet is followed"


def test_curves_are_drawn_where_they_belong():
    curves = {"a": [(1.0, 100.0), (8.0, 0.0)]}
    plain = np.asarray(draw_curves(curves)).astype(int)
    marked = np.asarray(draw_curves(curves, "guidance", "of 100", (1, 4, 8))).astype(int)
    height = plain.shape[0]
    above, below = slice(48, height - 48), slice(height - 48, height)
    assert np.array_equal(plain[above], marked[above]), "only the words are others"
    assert (plain[below] != marked[below]).any() and (plain[:48] != marked[:48]).any()


@pytest.mark.slow
def test_a_study_writes_its_figure_and_table(few, tmp_path, monkeypatch, capsys):
    short = {name: study.Run((), run.make, 3) for name, run in lines().items()}
    monkeypatch.setitem(study.STUDIES, "zero-convolution", study.Study(short, has_prompts=True))
    study.main(["zero-convolution", "--out", str(tmp_path), "--steps", "2"])
    table = (tmp_path / "zero-convolution.md").read_text()
    assert table.strip() in capsys.readouterr().out
    head, _, *rows = table.splitlines()
    assert head.count("prompt: ") == 4 and "step 2" in head
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(short)
    assert all(re.fullmatch(r"(\| [^|]+ ){2}(\| \d+ ){7}\|", row) for row in rows), table
    assert (tmp_path / "zero-convolution.png").stat().st_size > 1000
    study.main(["zero-convolution", "--out", str(tmp_path), "--steps", "2"])
    assert "resumed at step 2" in capsys.readouterr().out, "nothing is trained twice"


def lines() -> dict[str, study.Run]:
    """Return the runs of a study."""
    return study.STUDIES["zero-convolution"].runs
