"""What all pages share: the states of models, also when loading one fails."""

from dataclasses import replace

import numpy as np
import pytest

import apps
from apps.web.suite import NOT_LOADED, Suite
from core.errors import SuiteError
from core.request import GenerationRequest
from models.store import Store


@pytest.fixture
def suite() -> Suite:
    return Suite(Store("cpu"), "diorama")


@pytest.mark.parametrize("step", ["_fetch", "_estimate"])
def test_any_failure_in_the_background_ends_the_waiting(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The page asks until loading has ended; a bug that nobody expected ends it too."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(suite, step, fail)
    suite.load_in_background(apps.find("canny2image")).join()
    assert suite.has_finished_loading("diorama")
    assert suite.facts("diorama")[2] == NOT_LOADED


def test_states_do_not_grow_with_what_visitors_type(suite: Suite) -> None:
    for number in range(5):
        with pytest.raises(SuiteError, match="LoRA"):
            suite._load(f"diorama <lora:typed-{number}:1>", "canny")
    assert suite._state == {}
    suite._load("diorama", "canny")
    assert suite._state.keys() == {"diorama"}


def test_a_run_with_fewer_images_than_asked_for_is_not_timed(suite: Suite) -> None:
    """Its seconds were spent on those too that failed, or were withheld."""
    grey = np.full((64, 64, 3), 127, np.uint8)
    settings = {"steps": 1, "num_samples": 2, "image_resolution": 256, "model": "diorama"}
    request = GenerationRequest.single(apps.find("canny2image"), grey, **settings)
    result = suite.pipeline.generate(request)
    assert suite.measured(replace(result, images=result.images[:1])) == ""
    assert suite.measured(result).startswith("about ")
