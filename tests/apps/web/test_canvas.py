"""Drawings and edits of maps through the endpoints: as an object, as text, and as nonsense."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import apps
from apps.web.files import new_folder, upload_folder
from apps.web.jobs.request import checked_request
from apps.web.pages.canvas import Canvas
from apps.web.suite import Suite
from core.errors import BadInput
from core.metadata import read_settings, save_png
from core.pipeline import Pipeline

HOUSE = json.loads(Path("test_imgs/drawing_1.json").read_text(encoding="utf-8"))
LINE = {"size": [96, 64], "strokes": [{"points": [[10, 32], [80, 32]], "width": 8}]}
DRAWN = apps.find("scribble2image_interactive")
CANNY = apps.find("canny2image")


def given(suite: Suite, **values: Any) -> dict[str, Any]:
    usual = {"image": None, "params": {}, "low_threshold": 100, "high_threshold": 200}
    return suite.defaults("tiny") | usual | {"preprocessor": ""} | values


def uploaded(picture: Path) -> dict[str, Any]:
    """Put a picture where uploads are; return Gradio's record of it."""
    file = new_folder(upload_folder()) / picture.name
    shutil.copyfile(picture, file)
    return {"path": str(file)}


def a_map(suite: Suite, condition: Any, **values: Any) -> np.ndarray:
    request, _ = checked_request(condition, suite, given(suite, **values))
    return Pipeline(suite._load).draw_map(request)


@pytest.mark.parametrize("sent", [HOUSE, json.dumps(HOUSE)])
def test_a_drawing_becomes_the_map(suite: Suite, sent: Any) -> None:
    drawn = a_map(suite, DRAWN, edit=sent)
    assert set(np.unique(drawn)) == {0, 255}
    with Image.open("test_imgs/drawing_1.png") as picture:
        ink = np.asarray(picture.convert("L").resize(drawn.shape[1::-1])) < 128
    assert (drawn[:, :, 0] > 0)[ink].mean() > 0.95


def test_a_canvas_gives_the_picture_its_aspect_ratio(suite: Suite) -> None:
    height, width = a_map(suite, DRAWN, edit=LINE).shape[:2]
    assert width / height == 1.5


@pytest.mark.parametrize("sent", [None, "", {}, {"size": [64, 64], "strokes": []}])
def test_an_untouched_canvas_asks_for_a_drawing(suite: Suite, sent: Any) -> None:
    with pytest.raises(BadInput, match="please draw something first"):
        checked_request(DRAWN, suite, given(suite, edit=sent))


@pytest.mark.parametrize("sent", ["{", "[1]", 7, [], "NaN", '{"size": [Infinity, 1]}', {"size": 7}])
def test_what_is_no_edit_is_one_sentence(suite: Suite, sent: Any) -> None:
    with pytest.raises(BadInput, match=r"[Ee]dit.*\.$"):
        checked_request(DRAWN, suite, given(suite, edit=sent))


def test_an_edit_changes_the_detected_map_only_where_it_was_drawn(
    suite: Suite,
) -> None:
    record = uploaded(Path("test_imgs/diorama_1.png"))
    before = a_map(suite, CANNY, image=record)
    hole = {"points": [[0, 128], [256, 128]], "width": 64, "erase": True}
    after = a_map(suite, CANNY, image=record, edit={"size": [256, 256], "strokes": [hole]})
    scale = before.shape[0] / 256
    band = slice(round(98 * scale), round(158 * scale))
    assert before[band].any() and not after[band].any()
    kept = round(94 * scale)
    assert (before[:kept] == after[:kept]).all()


def test_a_map_without_an_editor_says_so(suite: Suite) -> None:
    plain = replace(CANNY, annotator=replace(CANNY.annotator, editor=None))
    with pytest.raises(BadInput, match="cannot be edited"):
        checked_request(plain, suite, given(suite, edit=LINE))


def test_the_picture_keeps_the_edit(suite: Suite, tmp_path: Path) -> None:
    known = replace(DRAWN, weights="canny")  # the tests' model has no other
    request, _ = checked_request(known, suite, given(suite, edit=HOUSE))
    result = suite.pipeline.generate(request)
    save_png(tmp_path / "house.png", result.images[0], result, 0)
    settings, notes = read_settings(tmp_path / "house.png", DRAWN)
    assert notes == [] and settings["edit"] == request.controls[0].edit


def test_programs_are_told_what_an_edit_is(address: str) -> None:
    info = httpx.get(f"{address}gradio_api/info", timeout=60).json()["named_endpoints"]
    for name in ("/scribble2image_interactive", "/canny2image"):
        (edit,) = [p for p in info[name]["parameters"] if p["parameter_name"] == "edit"]
        assert edit["type"]["type"] == "object" and edit["parameter_has_default"]


def test_no_property_of_the_canvas_is_taken_for_an_event() -> None:
    """Gradio takes every name that stands quoted in the script for an event of the component."""
    for app in apps.conditions():
        if app.annotator.editor:
            canvas = Canvas(app.annotator.editor, "Editor", render=False)
            assert not hasattr(canvas, "scene")
            json.dumps(canvas.get_config())


def test_margins_of_a_filled_map_stay_when_what_was_found_is_edited(suite: Suite) -> None:
    record = uploaded(Path("test_imgs/chelsea.jpg"))
    mlsd = apps.find("mlsd2image")
    usual = {"image": record, "preprocessor": "LSD", "resize_mode": "resize and fill"}
    values = given(suite, **usual, **asdict(mlsd.annotator.params()))
    request, _ = checked_request(mlsd, suite, values)
    pipeline = Pipeline(suite._load)
    edit = pipeline.begin_edit(request)
    edited, _ = checked_request(mlsd, suite, values | {"edit": edit})
    assert len(edit["lines"]) > 20
    assert np.array_equal(pipeline.draw_map(edited), pipeline.draw_map(request))
