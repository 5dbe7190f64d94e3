"""A LoRA named in the prompt changes that picture alone, and is remembered with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from apps.web.jobs.job import Job
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import WeightsMissing
from core.metadata import read_settings, save_png
from core.request import GenerationRequest, GenerationResult
from models.store import Store

# It needs the whole site.
pytestmark = pytest.mark.slow

STYLE = "the red ball <lora:style:0.7>"


@pytest.fixture
def suite(models_folder: Path, tmp_path: Path) -> Suite:
    """The tiny model, and a LoRA that shifts what its UNet puts out."""
    (tmp_path / "tiny.toml").symlink_to(models_folder / "tiny.toml")
    (tmp_path / "tiny").symlink_to(models_folder / "tiny")
    (tmp_path / "lora").mkdir()
    factors = {"lora_down": torch.ones(1, 16, 3, 3), "lora_up": torch.ones(4, 1, 1, 1)}
    save_file(
        {f"lora_unet_conv_out.{part}.weight": tensor for part, tensor in factors.items()},
        tmp_path / "lora" / "style.safetensors",
    )
    return Suite(Store("cpu", "float32", tmp_path), "tiny")


def _made(
    suite: Suite, condition: Condition, prompt: str, negative_prompt: str = ""
) -> GenerationResult:
    picture = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    settings = {**suite.defaults("tiny"), "image_resolution": 256, "steps": 1, "seed": 3}
    settings |= {"prompt": prompt, "negative_prompt": negative_prompt}
    request = GenerationRequest.single(condition, picture, **settings)
    job = Job(suite.pipeline, request)
    reports = list(job.run())
    assert isinstance(reports[-1], GenerationResult)
    return reports[-1]


def test_a_lora_in_the_prompt_changes_that_picture_alone(
    suite: Suite, canny: Condition, tmp_path: Path
) -> None:
    plain, style, after = (_made(suite, canny, p) for p in ("the red ball", STYLE, "the red ball"))
    assert np.array_equal(plain.images[0], after.images[0])
    assert not np.array_equal(plain.images[0], style.images[0])
    assert style.report()["model"] == "tiny <lora:style:0.7>"
    assert style.warnings == plain.warnings
    assert set(style.hashes) - set(plain.hashes) == {"lora style"}
    save_png(tmp_path / "made.png", style.images[0], style, 0)
    settings, notes = read_settings(tmp_path / "made.png", canny)
    assert (settings["prompt"], settings["model"], notes) == (STYLE, "tiny", [])
    again = _made(suite, canny, settings["prompt"])
    assert np.array_equal(again.images[0], style.images[0])


@pytest.mark.parametrize("tag", ["<lora:style:0.7>", "<lora:nothere:0.5>", "<lyco:y:1>"])
def test_a_tag_in_the_negative_prompt_is_not_words_and_that_is_said(
    tag: str, suite: Suite, canny: Condition
) -> None:
    idle, plain = (_made(suite, canny, "the red ball", text) for text in (f"{tag} grey", " grey"))
    assert np.array_equal(idle.images[0], plain.images[0])
    assert [one for one in idle.warnings if one not in plain.warnings] == [
        f"{tag} does nothing in the negative prompt: move it into the prompt, perhaps with a "
        "negative weight."
    ]


def test_an_embedding_is_remembered_with_the_picture(
    suite: Suite, canny: Condition, tmp_path: Path
) -> None:
    plain = _made(suite, canny, "the red ball")
    (tmp_path / "embeddings").mkdir()
    save_file({"emb_params": torch.ones(2, 32)}, tmp_path / "embeddings" / "ugly.safetensors")
    made = _made(suite, canny, "the red ball", "ugly")
    assert not np.array_equal(made.images[0], plain.images[0])
    assert set(made.hashes) - set(plain.hashes) == {"embedding ugly"}


def test_the_header_speaks_of_the_model_whatever_its_loras(suite: Suite, canny: Condition) -> None:
    suite.measured(_made(suite, canny, STYLE))
    assert "1 steps" in suite.facts("tiny")[2]
    with pytest.raises(WeightsMissing, match=r"no LoRA 'x' in .*, or take <lora:x> out of the pro"):
        _made(suite, canny, "a ball <lora:x>")
    assert "1 steps" in suite.facts("tiny")[2]
