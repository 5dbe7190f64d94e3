"""The editors of maps, driven in Chromium: by mouse in a wide window, by touch on a phone."""

import argparse
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import apps
from annotators.seg import as_classes, palette
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.condition import ControlMap
from core.request import GenerationRequest
from models.catalog.cards import Card
from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, PHOTOS, SCREENS, _opened, _shot, expect

browser = test_browser.browser
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def editors_address(suite: Suite) -> Iterator[str]:
    """The address of a site whose apps have an editor, on the tests' one ControlNet."""
    from apps.web.site import build_site

    known = [app for app in apps.conditions() if app.annotator.editor and app.input == "photo"]
    site = build_site([replace(app, weights="canny") for app in known], suite)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)


def _press(page: Any, x: float, y: float, to: tuple[float, float]) -> None:
    """Drag from a place of the canvas, as shares of its box, to another."""
    screen = page.locator("#canvas .cv-screen")
    screen.scroll_into_view_if_needed()
    box = screen.bounding_box()
    start = (box["x"] + x * box["width"], box["y"] + y * box["height"])
    end = (box["x"] + to[0] * box["width"], box["y"] + to[1] * box["height"])
    _drag_pixels(page, start, end)


def _drag_pixels(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with mouse or finger between two places of the window."""
    if page.screen == "phone":
        touch = page.context.new_cdp_session(page)
        for kind, places in (
            ("touchStart", [start]),
            ("touchMove", [end]),
            ("touchEnd", []),
        ):
            points = [{"x": px, "y": py} for px, py in places]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    else:
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=4)
        page.mouse.up()


def _map_shown(page: Any) -> str:
    return page.locator("#map img").get_attribute("src") or ""


def _next_map(page: Any, before: str) -> str:
    """Wait for a map that is not the one before; return its address."""
    page.wait_for_function(
        "before => ![null, before].includes("
        "document.querySelector('#map img')?.getAttribute('src') ?? null)",
        arg=before,
        timeout=PATIENCE_MS,
    )
    return _map_shown(page)


def _classes_shown(page: Any) -> dict[str, float]:
    """The names of a class map's classes, and their shares of it."""
    found = as_classes(_map_pixels(page).astype(np.uint8))
    counts = zip(*np.unique(found, return_counts=True), strict=True)
    return {palette()[0][index]: count / found.size for index, count in counts}


def _edit(page: Any) -> np.ndarray:
    """Open the editor on the map of one of Diorama's scenes; return the map."""
    page.set_input_files("#image input[type=file]", PHOTOS / "diorama_1.png")
    expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#edit").click()
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    return _map_pixels(page)


def _map_pixels(page: Any) -> np.ndarray:
    body = page.request.get(page.locator("#map img").evaluate("image => image.src")).body()
    with Image.open(io.BytesIO(body)) as shown:
        return np.asarray(shown.convert("RGB")).astype(int)


def _place(page: Any, x: float, y: float) -> tuple[float, float]:
    """The window's pixel of a place given as shares of the picture."""
    screen = page.locator("#canvas .cv-screen")
    screen.scroll_into_view_if_needed()
    box = screen.bounding_box()
    side = min(box["width"], box["height"])  # the tests' pictures are square
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    return left + x * side, top + y * side


def _drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag with mouse or finger between two places, given as shares of the picture."""
    _drag_pixels(page, _place(page, *start), _place(page, *end))


def _changed(page: Any, act: Any) -> np.ndarray:
    """Return the map that stands there once `act` has changed it."""
    before = _map_shown(page)
    act()
    _next_map(page, before)
    return _map_pixels(page)


@pytest.mark.parametrize("screen", SCREENS)
def test_a_joint_is_dragged_and_a_person_added_without_a_picture(
    browser: Any,
    editors_address: str,
    screen: str,
    tmp_path: Path,
) -> None:
    with _opened(browser, screen, f"{editors_address}pose2image") as page:
        page.locator("#edit").click()
        expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#canvas .cv-hint")).to_contain_text("add a person")
        page.get_by_label("Add a person").select_option("Standing")
        expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
        before = _map_shown(page)
        # The right wrist of the standing person, which lies at 0.35, 0.504 of the canvas's height.
        box = page.locator("#canvas .cv-screen").bounding_box()
        side = min(box["width"], box["height"])
        x = 0.5 - 0.15 * 0.8 * side / box["width"]
        _press(page, x, 0.12 + 0.48 * 0.8, (x - 0.1, 0.3))
        expect(page.locator("#canvas .cv-hint")).to_contain_text("Right wrist of person 1")
        page.wait_for_function(
            "before => document.querySelector('#map img')?.getAttribute('src') !== before",
            arg=before,
            timeout=PATIENCE_MS,
        )
        page.get_by_label("Leave out the chosen joint").click()
        expect(page.get_by_label("Bring a missing joint back")).to_contain_text("joints (1)")
        page.get_by_label("Undo").click()
        expect(page.get_by_label("Bring a missing joint back")).to_contain_text("joints (0)")
        page.get_by_label("Undo").click()
        page.get_by_label("Redo").click()
        page.locator("#canvas .cv-more summary").click()
        with page.expect_download() as download:
            page.get_by_label("Save OpenPose JSON").click()
        saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
        wrist = saved["people"][0]["pose_keypoints_2d"][12:14]
        height = saved["canvas_height"]
        assert wrist[1] < 0.45 * height, "the wrist was not lifted"

        # The same file, as fractions and in OpenPose's later order of 25 joints, is the same pose.
        points = np.reshape(saved["people"][0]["pose_keypoints_2d"], (18, 3))
        points[:, :2] /= (saved["canvas_width"], height)
        later = np.insert(points, 8, [0.5, 0.5, 1], axis=0)
        later = np.vstack([later, np.full((6, 3), 0.5)])
        people = [{"pose_keypoints_2d": later.ravel().tolist()}]
        opened = {**saved, "people": people}
        page.locator("#canvas input[type=file]").set_input_files(
            {
                "name": "later.json",
                "mimeType": "application/json",
                "buffer": json.dumps(opened).encode(),
            }
        )
        with page.expect_download() as download:
            page.get_by_label("Save OpenPose JSON").click()
        again = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
        back = again["people"][0]["pose_keypoints_2d"]
        assert back == pytest.approx(saved["people"][0]["pose_keypoints_2d"], abs=0.11)

        # Hidden, the editor's live picture rests.
        page.locator("#canvas .cv-more summary").click()  # on a phone the menu lies over the button
        page.locator("#live").click()
        expect(page.locator(".cl-live")).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_timeout(1500)
        last = page.locator(".cl-live").inner_html()
        page.locator("#hide-editor").click()
        expect(page.locator("#canvas .cv-screen")).to_be_hidden(timeout=PATIENCE_MS)
        page.locator("#prompt textarea").fill("a green ball")
        page.wait_for_timeout(1500)
        assert page.locator(".cl-live").inner_html() == last
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("screen", SCREENS)
def test_a_class_is_found_painted_filled_and_replaced_without_a_picture(
    browser: Any, editors_address: str, screen: str
) -> None:
    with _opened(browser, screen, f"{editors_address}seg2image") as page:
        page.locator("#edit").click()
        canvas, hint = page.locator("#canvas"), page.locator("#canvas .cv-hint")
        expect(canvas.locator(".cv-screen")).to_be_visible(timeout=PATIENCE_MS)
        field = canvas.get_by_role("combobox")
        field.fill("lak")
        field.press("Enter")
        chosen = canvas.locator(".cv-chips [aria-pressed=true]")
        expect(chosen).to_have_text("lake")
        _press(page, 0.4, 0.5, (0.6, 0.5))
        first = _next_map(page, "")
        painted = _classes_shown(page)
        assert set(painted) == {"sky", "lake"} and painted["lake"] < 0.2

        field.fill("grass")
        field.press("ArrowDown")
        field.press("ArrowUp")
        field.press("Enter")
        canvas.get_by_label("Fill a region").click()
        _press(page, 0.5, 0.9, (0.5, 0.9))
        filled = _next_map(page, first)
        assert set(_classes_shown(page)) == {"grass", "lake"}

        canvas.get_by_label("Pick a class").click()
        _press(page, 0.5, 0.5, (0.5, 0.5))
        expect(hint).to_contain_text("In hand: lake")
        canvas.get_by_label("Replace a class").click()
        _press(page, 0.5, 0.9, (0.5, 0.9))
        replaced = _next_map(page, filled)
        assert set(_classes_shown(page)) == {"lake"}
        canvas.get_by_label("Undo").click()
        _next_map(page, replaced)
        assert set(_classes_shown(page)) == {"grass", "lake"}
        if screen == "desktop":
            box = canvas.locator(".cv-screen").bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            expect(hint).to_contain_text("lake")
        canvas.get_by_label("Undo").click()
        canvas.get_by_label("Undo").click()  # nothing is left, and nobody is told off
        expect(page.locator("#map")).to_be_hidden(timeout=PATIENCE_MS)
        expect(page.locator(".toast-body")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_classes_that_the_model_knows_come_first_and_have_a_mark(
    browser: Any, editors_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = palette()[0].index("lake")
    known = property(lambda card: (lake,) if card.name == "tiny" else ())
    monkeypatch.setattr(Card, "classes", known)
    with _opened(browser, "desktop", f"{editors_address}seg2image") as page:
        page.locator("#edit").click()
        canvas = page.locator("#canvas")
        expect(canvas.locator(".cv-screen")).to_be_visible(timeout=PATIENCE_MS)
        field, options = canvas.get_by_role("combobox"), canvas.get_by_role("option")
        field.click()
        expect(options.first).to_have_text("lake✓ Tiny")
        expect(options.filter(has_text="✓")).to_have_count(1)
        expect(options.nth(1)).to_contain_text("not in Tiny")
        options.first.click()
        _press(page, 0.45, 0.5, (0.55, 0.5))
        screen = canvas.locator(".cv-screen").bounding_box()
        page.mouse.move(screen["x"] + screen["width"] / 2, screen["y"] + screen["height"] / 2)
        expect(canvas.locator(".cv-hint")).to_have_text("Here: lake (✓ Tiny knows it).")
        page.mouse.move(screen["x"] + screen["width"] / 2, screen["y"] + 10)
        expect(canvas.locator(".cv-hint")).to_have_text("Here: sky (Tiny does not know it).")
        page.get_by_role("button", name="Advanced options").click()
        page.locator("#model input").click()
        page.get_by_role("option", name="Other").click()
        for _ in range(PATIENCE_MS // 500):  # an open list stays as it is
            field.blur()
            field.click()
            if not options.filter(has_text="✓").count():
                break
            page.wait_for_timeout(500)
        expect(options.first).to_have_text("sky")


@pytest.mark.parametrize("screen", SCREENS)
def test_depth_is_painted_nearer_and_farther_and_tilted(
    browser: Any, editors_address: str, screen: str
) -> None:
    with _opened(browser, screen, f"{editors_address}depth2image") as page:
        before = _edit(page)
        side = before.shape[0]
        row, column = round(0.3 * side), round(0.4 * side)

        page.locator("#canvas").get_by_label("Farther", exact=True).click()
        dark = _changed(page, lambda: _drag(page, (0.2, 0.9), (0.8, 0.9)))
        low = round(0.9 * side)
        assert (before - dark)[low, column].mean() == pytest.approx(32, abs=4)
        page.locator("#canvas").get_by_label("Nearer", exact=True).click()
        light = _changed(page, lambda: _drag(page, (0.2, 0.3), (0.8, 0.3)))
        assert (light - dark)[row, column].mean() == pytest.approx(32, abs=4)
        assert np.array_equal(light[low], dark[low])

        tilt = page.locator("#canvas").get_by_label("Tilt right", exact=True)
        # While it is dragged the map follows, and nothing is there to be undone.
        move = "(one) => { one.value = 0.25; one.dispatchEvent(new Event('input')); }"
        looked_at = _changed(page, lambda: tilt.evaluate(move))
        assert (looked_at - light)[row, -1].mean() == pytest.approx(32, abs=2)
        tilted = _changed(page, lambda: tilt.fill("0.5"))
        assert (tilted - light)[row, -1].mean() == pytest.approx(64, abs=2)
        _shot(page, "depth-editor")
        assert np.array_equal(
            _changed(page, page.locator("#canvas").get_by_label("Undo").click), light
        )
        assert tilt.input_value() == "0"

        page.locator("#hide-editor").click()
        page.locator("#edit").click()
        expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
        assert np.array_equal(_map_pixels(page), light), "opened again, it shows the edited map"
        detected = page.get_by_role("button", name="Back to the detected map")
        assert np.array_equal(_changed(page, detected.click), before)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("how", ["upload", "example"])
def test_an_edit_is_put_away_with_its_picture_and_can_be_brought_back(
    browser: Any, editors_address: str, how: str
) -> None:
    with _opened(browser, "desktop", f"{editors_address}depth2image") as page:
        _edit(page)
        _changed(page, lambda: _drag(page, (0.2, 0.9), (0.8, 0.9)))
        if how == "upload":
            page.set_input_files("#image input[type=file]", PHOTOS / "diorama_2.png")
        else:
            page.locator(".cl-examples button").nth(1).click()
        expect(page.locator("#canvas .cv-screen")).to_be_hidden(timeout=PATIENCE_MS)
        back = page.get_by_role("button", name="The edit was put away")
        back.click()
        expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
        expect(back).to_be_hidden()
        edited = _map_pixels(page)
        detected = page.get_by_role("button", name="Back to the detected map")
        assert not np.array_equal(_changed(page, detected.click), edited)


@pytest.mark.parametrize("screen", SCREENS)
def test_lines_are_drawn_moved_and_deleted(browser: Any, editors_address: str, screen: str) -> None:
    with _opened(browser, screen, f"{editors_address}mlsd2image") as page:
        before = _edit(page)
        side = before.shape[0]

        def has_line(shown: np.ndarray, *places: tuple[float, float]) -> bool:
            spots = [(round(y * side), round(x * side)) for x, y in places]
            return all(shown[r - 2 : r + 3, c - 2 : c + 3].max() == 255 for r, c in spots)

        page.locator("#canvas").get_by_label("Draw a line").click()
        drawn = _changed(page, lambda: _drag(page, (0.1, 0.1), (0.9, 0.1)))
        assert not has_line(before, (0.2, 0.1), (0.8, 0.1))
        assert has_line(drawn, (0.2, 0.1), (0.8, 0.1))
        page.locator("#canvas").get_by_label("Move lines and ends").click()
        turned = _changed(page, lambda: _drag(page, (0.9, 0.1), (0.1, 0.9)))
        assert has_line(turned, (0.1, 0.2), (0.1, 0.8)) and not has_line(turned, (0.8, 0.1))
        moved = _changed(page, lambda: _drag(page, (0.1, 0.5), (0.05, 0.5)))
        assert has_line(moved, (0.05, 0.2), (0.05, 0.8)) and not has_line(moved, (0.1, 0.2))
        _shot(page, "lines-editor")
        removed = _changed(page, page.locator("#canvas").get_by_label("Delete the line").click)
        assert np.array_equal(removed, before), "what is left is not what was found"
        assert np.array_equal(
            _changed(page, page.locator("#canvas").get_by_label("Undo").click), moved
        )

        if screen == "desktop":
            page.locator("#canvas").get_by_label("Draw a line").click()
            page.keyboard.down("Shift")
            level = _changed(page, lambda: _drag(page, (0.2, 0.2), (0.7, 0.23)))
            page.keyboard.up("Shift")
            assert has_line(level, (0.3, 0.2), (0.6, 0.2)) and not has_line(level, (0.65, 0.23))
            joined = _changed(page, lambda: _drag(page, (0.5, 0.05), (0.2, 0.21)))
            below = slice(round(0.2 * side) + 2, round(0.25 * side))
            assert np.array_equal(joined[below], level[below]), "the end did not snap to the other"
            page.locator("#canvas").get_by_label("Move lines and ends").click()
            page.mouse.click(*_place(page, 0.35, 0.125))
            gone = _changed(page, lambda: page.keyboard.press("Delete"))
            assert np.array_equal(gone, level)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("screen", SCREENS)
def test_a_direction_is_picked_on_the_ball_and_painted(
    browser: Any, editors_address: str, screen: str
) -> None:
    with _opened(browser, screen, f"{editors_address}normal2image") as page:
        before = _edit(page)
        side = before.shape[0]
        canvas = page.locator("#canvas")
        ball = canvas.get_by_label("Direction to paint")
        ball.click(position={"x": 61, "y": 36})
        assert "right" in ball.get_attribute("aria-valuetext")
        painted = _changed(page, lambda: _drag(page, (0.3, 0.9), (0.7, 0.9)))
        x, y, z = painted[round(0.9 * side), side // 2] / 127.5 - 1
        assert (x, y) == pytest.approx((-25 / 34, 0), abs=0.06) and z > 0.6
        assert np.array_equal(painted[: side // 2], before[: side // 2])
        _shot(page, "normals-editor")
        strength = canvas.get_by_label("Strength", exact=True)
        flat = _changed(page, lambda: strength.fill("0"))[: side // 2]
        assert np.abs(flat - [127, 127, 255]).max() <= 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_edit_comes_back_on_its_picture(
    browser: Any, editors_address: str, tmp_path: Path
) -> None:
    """After a reload, from the visit's results, and from a saved picture, which holds no input."""
    with _opened(browser, "desktop", f"{editors_address}canny2image") as page:
        screen, source = page.locator("#canvas .cv-screen"), page.locator("#image img")
        _edit(page)
        edited = _changed(page, lambda: _drag(page, (0.3, 0.2), (0.7, 0.2)))
        first = source.get_attribute("src")
        page.locator("#run").click()
        saving = page.locator(".cl-made a[download]").first
        expect(saving).to_be_visible(timeout=PATIENCE_MS)
        with page.expect_download() as saved:
            saving.click()
        saved.value.save_as(tmp_path / "saved.png")
        expect(page.locator(".cl-history summary")).to_contain_text("(1)", timeout=PATIENCE_MS)
        page.wait_for_timeout(500)

        page.reload()
        expect(screen).to_be_visible(timeout=PATIENCE_MS)
        assert np.array_equal(_map_pixels(page), edited)

        page.set_input_files("#image input[type=file]", PHOTOS / "diorama_2.png")
        expect(screen).to_be_hidden(timeout=PATIENCE_MS)
        page.locator(".cl-history summary").click()
        page.locator(".cl-history").get_by_text("Restore").click()
        expect(screen).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator("#restored")).to_contain_text("Edit")
        expect(page.locator("#restored")).not_to_contain_text("not in the file")
        assert (source.get_attribute("src") or "").rpartition("/")[2] == first.rpartition("/")[2]
        assert np.array_equal(_map_pixels(page), edited)

    with _opened(browser, "desktop", f"{editors_address}canny2image") as page:
        page.set_input_files("#restore input[type=file]", tmp_path / "saved.png")
        told = page.locator("#restored")
        expect(told).to_contain_text("not in the file: please add it", timeout=PATIENCE_MS)
        expect(told).to_contain_text("bring the edit back")
        expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)


HOLD_LATE_MAPS = """window.late = new Set();
const begin = window.setTimeout, end = window.clearTimeout;
window.setTimeout = (call, ...rest) => {
  const id = begin(call?.name === "tell" ? () => {} : call, ...rest);
  if (call?.name === "tell") window.late.add(id);
  return id;
};
window.clearTimeout = (id) => { window.late.delete(id); end(id); };"""
"""Keeps the maps that are asked for after a live picture from being asked for."""


def test_a_map_that_waits_for_a_live_picture_is_of_the_value_that_is_there(
    browser: Any, editors_address: str
) -> None:
    with _opened(browser, "desktop", f"{editors_address}canny2image") as page:
        detected = _edit(page)
        page.evaluate(HOLD_LATE_MAPS)
        page.locator("#canvas .cv-live").click()
        expect(page.locator(".cl-live .cl-made img")).to_be_visible(timeout=PATIENCE_MS)
        _press(page, 0.4, 0.25, (0.6, 0.25))
        page.wait_for_function("window.late.size === 1")
        page.get_by_role("button", name="Back to the detected map").click()
        page.wait_for_function("window.late.size === 0", timeout=PATIENCE_MS)
        assert np.array_equal(_map_pixels(page), detected)


@pytest.mark.parametrize("screen", SCREENS)
def test_what_a_button_opens_and_what_run_makes_come_into_sight(
    browser: Any, editors_address: str, screen: str
) -> None:
    with _opened(browser, screen, f"{editors_address}canny2image") as page:
        page.set_input_files("#image input[type=file]", PHOTOS / "diorama_1.png")
        expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
        for button, editor in (("#paint-mask", "#mask"), ("#edit", "#canvas")):
            page.locator(button).click()
            tools = page.locator(f"{editor} .cv-bar")
            expect(tools).to_be_visible(timeout=PATIENCE_MS)
            expect(tools).to_be_in_viewport(ratio=1)
        page.locator("#run").click()
        expect(page.locator(".cl-score").first).to_be_in_viewport(ratio=1, timeout=PATIENCE_MS)
        expect(page.locator(".cl-card img").first).to_be_in_viewport(ratio=0.9)


SIGHT = """window.seen = [];
const screen = document.querySelector("#canvas .cv-screen");
const bright = (share) => screen.getContext("2d")
  .getImageData(screen.width / 2, Math.round(screen.height * share), 1, 1).data[0];
const look = () => {
  window.seen.push([0.25, 0.75].map(bright));
  requestAnimationFrame(look);
};
look();"""
"""Notes how bright two places of the canvas are in every frame."""


def test_strokes_stay_in_sight_until_their_map_is_there(
    browser: Any, editors_address: str, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_map, both_drawn, maps = suite.pipeline.draw_map, threading.Event(), []

    def late(request: GenerationRequest, *options: Any) -> ControlMap:
        assert both_drawn.wait(PATIENCE_MS / 1000)
        maps.append(request.controls[0].edit)
        return draw_map(request, *options)

    with _opened(browser, "desktop", f"{editors_address}canny2image") as page:
        page.locator("#edit").click()
        expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
        page.locator("#canvas").get_by_label("Size").fill("30")
        monkeypatch.setattr(suite.pipeline, "draw_map", late)
        page.evaluate(SIGHT)
        _press(page, 0.4, 0.25, (0.6, 0.25))
        _press(page, 0.4, 0.75, (0.6, 0.75))
        both_drawn.set()
        for _ in range(PATIENCE_MS // 500):
            page.wait_for_timeout(500)
            if len(maps) == 2:
                break
        page.wait_for_timeout(1500)
        assert [len(edit["strokes"]) for edit in maps] == [1, 2]
        for seen in zip(*page.evaluate("window.seen"), strict=True):
            first = next(frame for frame, bright in enumerate(seen) if bright > 200)
            assert min(seen[first:]) > 200
