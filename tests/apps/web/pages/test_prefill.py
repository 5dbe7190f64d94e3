"""What fills a page: a file's settings over the new model's defaults, another app's result."""

import io
import json
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.utils import get_upload_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import apps
from apps.web.files import new_folder
from apps.web.pages.condition_page import SingleControl
from apps.web.pages.page import Page
from apps.web.pages.several_page import ControlSlots
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition
from core.png_chunks import write_png
from core.provenance import GENERATED, mark, read_claims

NEW_STEPS = 4
"""The other model's default; see conftest.suite."""


@pytest.fixture(scope="module")
def page(suite: Suite, canny: Condition) -> Page:
    with gr.Blocks(analytics_enabled=False) as blocks:
        return Page(blocks, canny, suite, SingleControl(canny, suite))


@pytest.fixture(scope="module")
def slots_page(suite: Suite) -> Page:
    tool = apps.find("multi2image")
    with gr.Blocks(analytics_enabled=False) as blocks:
        return Page(blocks, tool, suite, ControlSlots(tool, suite))


def _file(**request: Any) -> Path:
    """Return an uploaded PNG that holds these settings."""
    info = PngInfo()
    stored = {"schema": 1, "condition": "canny2image", "request": request}
    info.add_text("controlloop", json.dumps(stored))
    memory = io.BytesIO()
    Image.new("RGB", (8, 8)).save(memory, "PNG", pnginfo=info)
    file = new_folder(Path(get_upload_folder())) / "x.png"
    file.write_bytes(memory.getvalue())
    return file


def _shown(page: Page) -> dict[str, Any]:
    return {name: field.value for name, field in page.layout.fields.items()}


def _restored(page: Page, shown: dict[str, Any], **request: Any) -> dict[str, Any]:
    """Return the fields' values after a file is restored into a page of the tiny model."""
    record = {"path": str(_file(**request))}
    updates = page.prefill.restore(record, "tiny", *shown.values())
    assert len(updates) == len(page.prefill.outputs)
    fields = dict(zip(page.layout.fields, updates[-len(shown) :], strict=True))
    return shown | {name: new for name, new in fields.items() if new != gr.skip()}


def test_what_a_file_for_another_model_lacks_starts_from_that_models_defaults(
    page: Page, slots_page: Page
) -> None:
    for one in (page, slots_page):
        shown = _shown(one)
        assert shown["steps"] == 2
        found = _restored(one, shown, model="other", seed=7)
        assert (found["model"], found["steps"], found["seed"]) == ("other", NEW_STEPS, 7)


def test_what_the_user_chose_and_the_file_lacks_stays(page: Page) -> None:
    shown = _shown(page) | {"steps": 9, "image": {"path": "x.png"}, "low_threshold": 3}
    found = _restored(page, shown, model="other", seed=7)
    assert found == shown | {"model": "other", "seed": 7}
    assert _restored(page, _shown(page), seed=7) == _shown(page) | {"seed": 7}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    in_file=st.dictionaries(st.sampled_from(["steps", "seed", "num_samples"]), st.integers(1, 12)),
    on_page=st.dictionaries(st.sampled_from(["steps", "seed", "num_samples"]), st.integers(1, 12)),
    model=st.sampled_from(["tiny", "other", "gone", None]),
)
def test_the_file_goes_first_then_the_user_then_the_models_defaults(
    page: Page, in_file: dict[str, int], on_page: dict[str, int], model: str | None
) -> None:
    shown = _shown(page) | on_page
    named = {} if model is None else {"model": model}
    wanted = shown | in_file
    if model == "other":
        wanted["model"] = "other"
        if "steps" not in in_file and shown["steps"] == 2:
            wanted["steps"] = NEW_STEPS
    assert _restored(page, shown, **in_file, **named) == wanted


def test_a_model_that_is_not_on_offer_leaves_the_pages_own(page: Page) -> None:
    shown = _shown(page)
    record = {"path": str(_file(model="gone", seed=7))}
    note, _, model, *_ = page.prefill.restore(record, "tiny", *shown.values())
    assert model == gr.skip() and "not on offer" in note


def test_a_result_brings_picture_settings_and_its_models_defaults(page: Page) -> None:
    file = _file(model="other", prompt="a red ball", seed=7)
    name = f"{file.parent.name}/{file.name}"
    note, _, model, header, *updates = page.prefill.take_sent(name, "")
    found = dict(zip(page.layout.fields, updates, strict=True))
    assert (model, found["steps"], found["prompt"]) == ("other", NEW_STEPS, "a red ball")
    assert found["image"] == str(file) and found["seed"] == 7
    assert found["preprocessor"] != ALREADY_A_MAP
    assert "Taken over: Input, Prompt, " in note and "<span>Other</span>" in header
    assert page.prefill.take_sent("", "") == [gr.skip()] * len(page.prefill.outputs)


def test_a_result_sent_on_still_says_that_a_machine_made_it(page: Page) -> None:
    file = new_folder(Path(get_upload_folder())) / "x.png"
    write_png(file, np.zeros((8, 8, 3), np.uint8), mark(GENERATED))
    sent = page.prefill.take_sent(f"{file.parent.name}/{file.name}", "")
    shown = dict(zip(page.layout.fields, sent[-len(page.layout.fields) :], strict=True))["image"]
    served = page.layout.fields["image"].postprocess(shown)
    assert read_claims(served.path).source_types == (GENERATED,)


def test_a_map_is_the_input_as_it_is_with_the_settings_of_its_result(page: Page) -> None:
    sent, control_map = (_file(prompt="a red ball", seed=seed) for seed in (7, 8))
    names = [f"{file.parent.name}/{file.name}" for file in (sent, control_map)]
    for sent_names, prompt in ((names, "a red ball"), (["", names[1]], "")):
        _, _, _, _, *updates = page.prefill.take_sent(*sent_names)
        found = dict(zip(page.layout.fields, updates, strict=True))
        assert found["image"] == str(control_map) and found["preprocessor"] == ALREADY_A_MAP
        assert found["prompt"] == prompt


def test_how_much_of_a_picture_may_change_is_not_sent_with_what_came_of_it(page: Page) -> None:
    """The map has no picture to change; the result is another picture."""
    file = _file(model="tiny", seed=7, denoising_strength=0.5, mask_blur=9)
    sent = f"{file.parent.name}/{file.name}"
    for control_map in ("", sent):
        updates = page.prefill.take_sent(sent, control_map)[-len(page.layout.fields) :]
        found = dict(zip(page.layout.fields, updates, strict=True))
        assert (found["seed"], found["denoising_strength"], found["mask_blur"]) == (7, 1.0, 4)


def test_an_example_that_does_not_exist_is_one_sentence(page: Page) -> None:
    picture, prompt = page.prefill.take_example(0)
    assert Path(picture).is_file() and prompt
    with pytest.raises(gr.Error, match="went wrong on our side"):
        page.prefill.take_example(1000)
