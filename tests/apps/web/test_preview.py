"""The mode preview as a page runs it; a model without it says so and is none the worse."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from apps.web.jobs.job import Job
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import WeightsMissing
from core.modes import PREVIEW_STEPS
from core.request import GenerationRequest, GenerationResult
from models.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path) -> Path:
    """The tiny model alone, to be changed."""
    shutil.copytree(models_folder / "tiny", tmp_path / "tiny")
    shutil.copy(models_folder / "tiny.toml", tmp_path)
    return tmp_path


def _suite(folder: Path) -> Suite:
    return Suite(Store("cpu", "float32", folder), "tiny")


def _with_lora(folder: Path) -> Suite:
    factors = {"lora_down": torch.ones(1, 16, 3, 3), "lora_up": torch.ones(4, 1, 1, 1)}
    state = {f"lora_unet_conv_out.{part}.weight": tensor for part, tensor in factors.items()}
    save_file(state, folder / "tiny" / "lcm.safetensors")
    return _suite(folder)


def _made(suite: Suite, condition: Condition, mode: str) -> GenerationResult:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    settings = {**suite.defaults("tiny"), "steps": 1, "seed": 3, "mode": mode}
    settings["negative_prompt"] = "word " * 790  # more than a prompt's chunks hold
    *_, result = Job(suite.pipeline, GenerationRequest.single(condition, picture, **settings)).run()
    assert isinstance(result, GenerationResult)
    suite.measured(result)
    return result


def test_a_preview_says_what_it_is(folder: Path, canny: Condition) -> None:
    suite = _with_lora(folder)
    before, draft, after = (_made(suite, canny, mode) for mode in ("exact", "preview", "exact"))
    report = draft.report()
    assert (report["mode"], report["steps"], report["model"]) == ("preview", PREVIEW_STEPS, "tiny")
    assert draft.hashes.keys() - before.hashes.keys() == {"lcm"}
    assert [told.startswith("The negative prompt is longer") for told in before.warnings] == [True]
    assert not draft.warnings  # where it has no say
    assert not np.array_equal(before.images[0], draft.images[0])
    assert np.array_equal(before.images[0], after.images[0])
    assert "1 steps" in suite.facts("tiny")[2]


def test_a_model_without_the_lora_says_so_and_is_none_the_worse(
    folder: Path, canny: Condition
) -> None:
    suite = _suite(folder)
    _made(suite, canny, "exact")
    ready = suite.facts("tiny")
    # The sentence, and after it the note that the log gets.
    with pytest.raises(WeightsMissing, match=r"^Tiny has no LCM-LoRA.*choose another mode.*\.\n"):
        _made(suite, canny, "preview")
    assert suite.facts("tiny") == ready and suite.has_finished_loading("tiny")
