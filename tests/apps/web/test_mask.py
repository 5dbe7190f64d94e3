"""Painting over what may change: the canvas for a mask on the page, and masks it is given."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import apps
from apps.web.files import new_folder, upload_folder
from apps.web.jobs.mask import mask_of
from apps.web.pages.condition_page import SingleControl
from apps.web.pages.several_page import ControlSlots
from apps.web.suite import Suite
from core.images import read_image, resize
from core.metadata import read_mask
from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, PHOTOS, _finished, _upload, expect

browser, page = test_browser.browser, test_browser.page
pytestmark = test_browser.pytestmark


def _paint(page: Any, *points: tuple[float, float]) -> None:
    """Draw one stroke over the picture, in fractions of it; by finger on a phone."""
    screen = page.locator("#mask .cv-screen")
    screen.scroll_into_view_if_needed()
    box, ratio = screen.bounding_box(), 3 / 2  # coffee.jpg's
    width = min(box["width"], box["height"] * ratio)
    left = box["x"] + (box["width"] - width) / 2
    top = box["y"] + (box["height"] - width / ratio) / 2
    (x, y), *rest = [(left + a * width, top + b * width / ratio) for a, b in points]
    if page.screen == "phone":
        session = page.context.new_cdp_session(page)
        for kind, (a, b) in (("Start", (x, y)), *(("Move", p) for p in rest)):
            touch = {"type": f"touch{kind}", "touchPoints": [{"x": a, "y": b}]}
            session.send("Input.dispatchTouchEvent", touch)
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        return
    page.mouse.move(x, y)
    page.mouse.down()
    for a, b in rest:
        page.mouse.move(a, b, steps=4)
    page.mouse.up()


def _made(page: Any, folder: Path) -> Path:
    """Run, and return the file of the result."""
    page.evaluate("document.querySelectorAll('.cl-card').forEach((card) => card.remove())")
    page.locator("#run").click()
    card = _finished(page).first
    with page.expect_download() as download:
        card.locator(".cl-made a").click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_only_what_is_painted_changes_and_a_file_brings_the_mask_back(
    page: Any, tmp_path: Path
) -> None:
    photo = read_image(PHOTOS / "coffee.jpg")[0]
    _upload(page)
    expect(page.locator("#mask-panel")).to_be_hidden()
    page.locator("#paint-mask").click()
    expect(page.locator("#mask .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    page.locator('#mask button[aria-label="Rectangle"]').click()
    _paint(page, (0.25, 0.25), (0.5, 0.75))
    page.wait_for_timeout(300)
    file = _made(page, tmp_path)
    made, mask = read_image(file)[0], read_mask(file)
    assert mask is not None and mask.shape == made.shape[:2]
    high, wide = mask.shape
    wanted = np.zeros(mask.shape, bool)
    wanted[high // 4 : 3 * high // 4, wide // 4 : wide // 2] = True
    assert (mask != wanted).mean() < 0.02
    original = resize(photo, (wide, high), 256)
    assert np.array_equal(made[~mask], original[~mask])
    assert (made[mask] != original[mask]).any(axis=1).mean() > 0.8

    page.locator("#unmask").click()
    expect(page.locator("#mask-panel")).to_be_hidden()
    page.set_input_files("#restore input[type=file]", file)
    expect(page.locator(".cl-restored")).to_contain_text("Mask", timeout=PATIENCE_MS)
    expect(page.locator("#mask .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(300)
    again = read_mask(_made(page, tmp_path))
    assert again is not None and (again != mask).mean() < 0.002

    page.locator("#unmask").click()
    expect(page.locator("#mask-panel")).to_be_hidden()
    assert read_mask(_made(page, tmp_path)) is None


def test_another_picture_has_no_mask_until_it_is_brought_back(page: Any, tmp_path: Path) -> None:
    _upload(page, PHOTOS / "diorama_1.png")
    page.locator("#paint-mask").click()
    expect(page.locator("#mask .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    _paint(page, (0.25, 0.25), (0.5, 0.75))
    page.locator(".cl-examples button").nth(1).click()  # of the same size
    expect(page.locator("#mask-panel")).to_be_hidden(timeout=PATIENCE_MS)
    back = page.get_by_role("button", name="The mask was put away")
    back.click()
    expect(page.locator("#mask .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    expect(back).to_be_hidden()
    page.wait_for_timeout(300)
    assert read_mask(_made(page, tmp_path)) is not None


def test_a_mask_is_of_the_first_controls_own_picture(suite: Suite) -> None:
    slots = ControlSlots(apps.find("multi2image"), suite)
    values = {"image": "shared", "image_1": None, "image_2": "own"}
    values |= {"control_1": "canny2image", "control_2": "depth2image", "control_3": ""}
    assert slots.original(values) == "shared"
    assert slots.original(values | {"control_1": ""}) == "own"
    assert SingleControl(apps.find("canny2image"), suite).original(values) == "shared"


def test_the_page_sends_strokes_and_they_are_the_mask(suite: Suite) -> None:
    canny = apps.find("canny2image")
    file = new_folder(Path(upload_folder())) / "grey.png"
    Image.new("RGB", (96, 64), "grey").save(file)
    strokes = [{"points": [[20, 32], [70, 32]], "width": 9}]
    edit: dict[str, Any] = {"size": [96, 64], "strokes": strokes}
    given = suite.defaults("tiny") | {"image": {"path": str(file)}, "prompt": "a ball"}
    given |= {"low_threshold": 100, "high_threshold": 200, "mask": edit}
    request = SingleControl(canny, suite).job(given).request
    assert request.mask is not None and np.array_equal(request.mask, mask_of(edit))
    assert SingleControl(canny, suite).job(given | {"mask": None}).request.mask is None
