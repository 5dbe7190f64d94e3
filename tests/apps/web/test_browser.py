"""The page in a real Chromium, as a person uses it, at desktop and phone width.

Skipped, with the reason, where there is none. Set CONTROLLOOP_SHOTS to a folder to keep pictures
of the page from every stage.
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

import apps
from annotators import canny, scribble
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.condition import Condition, Example
from core.errors import BadInput
from core.images import read_image
from tests.apps.web.conftest import PATIENCE_S, HeldRun

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

PHOTOS = Path(__file__).resolve().parents[3] / "test_imgs"
CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE_MS = 60_000
"""A busy two-core machine takes its time; nothing here waits without need."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def _visited_before(make: Any) -> Any:
    """Make a browser's contexts or pages those of a visitor who has seen each page."""

    def made(**options: Any) -> Any:
        one = make(**options)
        one.add_init_script("localStorage.setItem(`controlloop-visited:${location.pathname}`, '')")
        return one

    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for name in ("new_context", "new_page"):
            setattr(browser, name, _visited_before(getattr(browser, name)))
        yield browser
        browser.close()


@contextmanager
def _opened(browser: Any, screen: str, url: str) -> Iterator[Any]:
    """A page in a wide window by day, or on a phone by night."""
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if screen == "phone" else "light",
        has_touch=screen == "phone",
        accept_downloads=True,
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.screen = screen
    page.broken = []
    page.on("pageerror", lambda error: page.broken.append(str(error)))
    page.goto(url)
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    yield page
    assert page.broken == []
    context.close()


WATCH = """(measures) => {
  const seen = (window.seen = measures.map(() => []));
  const look = () => {
    measures.forEach(([selector, side], k) => {
      const box = document.querySelector(selector)?.getBoundingClientRect();
      if (box?.height) seen[k].push(side === "top" ? box.top + scrollY : box.height);
    });
    requestAnimationFrame(look);
  };
  look();
}"""
"""Notes in every frame where something begins in the page ("top"), or how high it is."""


def _moved(page: Any) -> list[float]:
    """By how many pixels each thing that is watched has moved or grown."""
    assert all(page.evaluate("window.seen.map((one) => one.length)"))
    return [round(max(seen) - min(seen)) for seen in page.evaluate("window.seen")]


@pytest.fixture(params=SCREENS)
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The canny page."""
    with _opened(browser, request.param, f"{address}canny2image") as page:
        yield page


@pytest.fixture(scope="module")
def canvas_address(suite: Suite) -> Iterator[str]:
    """The address of a page that is drawn in, of a condition of our own."""
    from apps.web.site import build_app

    annotator = replace(scribble.CANVAS, reextract=None)  # the tests' model sees no edges
    example = Example("drawing_1.png", "a red ball")
    site = build_app(
        Condition("drawn", "Drawn", "", annotator, "canny", "canvas", (example,)), suite
    )
    options = argparse.Namespace(host=None, port=None, mcp=False)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)


@pytest.fixture(params=SCREENS)
def canvas_page(request: pytest.FixtureRequest, browser: Any, canvas_address: str) -> Iterator[Any]:
    """A page that is drawn in."""
    with _opened(browser, request.param, canvas_address) as page:
        yield page


@pytest.fixture
def maps_address(suite: Suite, ways: list[str]) -> Iterator[str]:
    """The address of the page that shows every map, with the tests' ways to see."""
    from apps.web.site import build_app

    site = build_app(apps.find("annotator"), suite)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)


def _shot(page: Any, stage: str) -> None:
    folder = os.environ.get("CONTROLLOOP_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{page.screen}-{stage}.png", full_page=True)


def _upload(page: Any, file: Path = PHOTOS / "coffee.jpg") -> None:
    page.set_input_files("#image input[type=file]", file)
    expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)


def _open_advanced(page: Any) -> None:
    page.get_by_role("button", name="Advanced options").click()
    expect(page.locator("#seed input")).to_be_visible()


def _set(page: Any, name: str, value: str) -> None:
    box = page.locator(f"#{name} input[type=number]")
    for _ in range(5):  # Gradio may mount a control a moment after its accordion opened, anew
        box.fill(value)
        box.press("Tab")
        page.wait_for_timeout(200)
        if box.input_value() == value:
            return
    expect(box).to_have_value(value)


def _by_place(page: Any, part: str) -> list[str]:
    """The text of a part of every card, from the top of the page to its end."""
    places = {card: card.bounding_box() for card in page.locator(".cl-card").all()}
    cards = sorted(places, key=lambda card: (places[card]["y"], places[card]["x"]))
    return [card.locator(part).inner_text() for card in cards]


def _finished(page: Any) -> Any:
    cards = page.locator(".cl-card")
    expect(cards.first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    return cards


def test_upload_run_compare_and_restore(page: Any, tmp_path: Path) -> None:
    expect(page.locator(".cl-empty")).to_be_visible()
    _shot(page, "1-empty")
    _upload(page)
    page.fill("#prompt textarea", "the red ball ${window.broken=1} <b>bold</b>")
    _open_advanced(page)
    _set(page, "num_samples", "3")
    _set(page, "seed", "41")
    _shot(page, "2-settings")
    page.locator("#prompt textarea").press("Control+Enter")
    expect(page.locator(".cl-so-far img").first).to_be_visible(timeout=PATIENCE_MS)
    cards = _finished(page)
    assert cards.count() == 3
    seeds = page.locator(".cl-card code").all_inner_texts()
    assert seeds == ["41", "42", "43"], "as made"
    expect(page.locator(".cl-shared img")).to_have_count(1)
    expect(cards.first.locator("img")).to_have_count(2)
    for figure in page.locator(".cl-results img").all():
        assert figure.evaluate("i => i.complete && i.naturalWidth === 384")
    _shot(page, "3-results")

    def best_first():
        seen = _by_place(page, ".cl-score b")
        return seen == sorted(seen, key=float, reverse=True)

    by_score = page.get_by_role("button", name="Order by score")
    option = page.get_by_label("Best first")
    by_score.click()
    assert best_first()
    by_score.click()
    assert _by_place(page, "code") == ["41", "42", "43"], "as made"
    option.check()
    assert best_first() and not by_score.is_visible()
    option.uncheck()
    assert _by_place(page, "code") == ["41", "42", "43"], "as made"

    card = cards.first
    card.locator(".cl-compare summary").click()
    pair = card.locator(".cl-pair")
    slider = card.locator("input[type=range]")
    slider.fill("20")
    assert pair.evaluate("e => getComputedStyle(e).getPropertyValue('--split')") == "20%"
    for layer in ("wanted", "found"):
        picture = pair.locator(f".cl-{layer}").evaluate("e => getComputedStyle(e).backgroundImage")
        url = re.search(r'url\("(.+)"\)', picture).group(1)
        assert page.request.get(url).status == 200
    card.get_by_role("button", name="Overlay").click()
    expect(pair).to_have_class(re.compile("cl-both"))
    _shot(page, "4-compare")

    with page.expect_download() as download:
        page.get_by_role("link", name="Save all").click()
    download.value.save_as(tmp_path / "all.zip")
    with ZipFile(tmp_path / "all.zip") as archive:
        names = archive.namelist()
        assert json.loads(archive.read("report.json"))["seeds"] == [41, 42, 43]
        assert archive.testzip() is None
    assert "contact-sheet.png" in names and len([n for n in names if "map" in n]) == 1
    assert len([n for n in names if "reextracted" in n]) == 3 and len(names) == 9

    with page.expect_download() as download:
        card.locator(".cl-made a").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    with Image.open(saved) as picture:
        assert picture.size == (384, 256)

    page.fill("#prompt textarea", "something else")
    _set(page, "num_samples", "1")
    _set(page, "seed", "-1")
    page.set_input_files("#restore input[type=file]", saved)
    expect(page.locator(".cl-restored")).to_contain_text("Restored", timeout=PATIENCE_MS)
    expect(page.locator("#seed input")).to_have_value("41")
    expect(page.locator("#prompt textarea")).to_have_value(
        "the red ball ${window.broken=1} <b>bold</b>"
    )
    assert page.evaluate("window.broken") is None
    _shot(page, "5-restored")
    page.locator("#run").click()
    expect(page.locator(".cl-card")).to_have_count(1, timeout=PATIENCE_MS)
    _finished(page)
    again = page.request.get(page.locator(".cl-made img").evaluate("i => i.src")).body()
    (tmp_path / "again.png").write_bytes(again)
    first, second = (np.asarray(Image.open(p)) for p in (saved, tmp_path / "again.png"))
    assert np.array_equal(first, second), "restored settings make the same picture"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


def test_stop_keeps_what_is_finished(page: Any) -> None:
    _upload(page)
    _open_advanced(page)
    _set(page, "num_samples", "12")
    _set(page, "steps", "6")
    page.locator("#run").click()
    expect(page.locator(".cl-progress span")).to_contain_text("image 2 of 12", timeout=PATIENCE_MS)
    expect(page.locator(".cl-frame img")).to_be_visible()
    expect(page.locator(".cl-progress span")).to_contain_text("left")
    expect(page.locator(".cl-frame img")).to_be_in_viewport()
    expect(page.locator("#stop")).to_be_in_viewport(ratio=1)
    _shot(page, "6-running")
    page.keyboard.press("Escape")
    cards = _finished(page)
    assert 1 <= cards.count() < 12
    expect(page.locator(".cl-bar")).to_contain_text("stopped")
    page.locator(".cl-card [data-cl=seed]").first.click()
    seed = page.locator(".cl-card code").first.inner_text()
    expect(page.locator("#seed input")).to_have_value(seed)


def test_the_map_follows_the_sliders(page: Any) -> None:
    _upload(page)
    page.locator("#preview").click()
    shown = page.locator("#map img")
    expect(shown).to_be_visible(timeout=PATIENCE_MS)
    before = shown.get_attribute("src")
    _set(page, "high_threshold", "250")
    expect(shown).not_to_have_attribute("src", before, timeout=PATIENCE_MS)
    page.get_by_label("Show maps inverted").check()
    assert shown.evaluate("i => getComputedStyle(i).filter") == "invert(1)"
    _shot(page, "7-map")


def test_an_empty_map_says_so_and_one_that_failed_is_gone(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (300, 300), "gray").save(tmp_path / "flat.png")
    page.set_input_files("#image input[type=file]", tmp_path / "flat.png")
    page.wait_for_function("document.querySelector('#image img')")
    page.locator("#preview").click()
    expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#map")).to_contain_text(canny.ANNOTATOR.empty_message)
    _shot(page, "7-empty-map")

    def fail(*_: Any) -> Iterator[Any]:
        raise BadInput("Such a picture cannot be seen.")
        yield

    monkeypatch.setattr("apps.web.pages.condition_page.drawn_map", fail)
    page.locator("#preview").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("cannot be seen", timeout=PATIENCE_MS)
    expect(page.locator("#map img")).to_be_hidden()


def test_mistakes_are_told_and_nothing_is_lost(page: Any, tmp_path: Path) -> None:
    page.fill("#prompt textarea", "kept")
    page.locator("#run").click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("There is no picture yet", timeout=PATIENCE_MS)
    expect(page.locator("#run")).to_be_visible()
    expect(page.locator("#prompt textarea")).to_have_value("kept")
    _shot(page, "8-mistake")
    toast.get_by_test_id("toast-close").click()
    expect(toast).to_have_count(0)

    (tmp_path / "text.png").write_text("hello")
    page.set_input_files("#image input[type=file]", tmp_path / "text.png")
    expect(toast).to_contain_text("text.png: ", timeout=PATIENCE_MS)
    expect(toast).to_contain_text("not an image we can read")
    expect(page.locator("#image img")).to_have_count(0)
    expect(page.locator("#prompt textarea")).to_have_value("kept")


def test_an_example_fills_picture_and_prompt(page: Any) -> None:
    page.locator(".cl-examples button.gallery-item").first.click()
    expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#prompt textarea")).not_to_have_value("")


def test_a_closed_tab_ends_its_run(browser: Any, address: str, held: HeldRun) -> None:
    page = browser.new_page()
    page.goto(f"{address}canny2image")
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    _upload(page)
    _open_advanced(page)
    _set(page, "num_samples", "12")
    _set(page, "steps", "100")
    page.locator("#run").click()
    expect(page.locator(".cl-progress span")).to_contain_text("step 1 ", timeout=PATIENCE_MS)
    assert held.at_work.is_set()
    page.close()
    held.must_stop()


def _stroke(page: Any, *points: tuple[float, float]) -> None:
    """Draw a line through places given as shares of the canvas's box."""
    screen = page.locator("#canvas .cv-screen")
    screen.dispatch_event("wheel")  # whoever scrolls to the canvas is no longer taken elsewhere
    screen.scroll_into_view_if_needed()
    box = screen.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def _lines_in(page: Any, image: Any) -> float:
    """The share of a shown map that is white."""
    body = page.request.get(image.evaluate("image => image.src")).body()
    with Image.open(io.BytesIO(body)) as shown:
        return float((np.asarray(shown.convert("L")) > 127).mean())


def test_what_is_drawn_becomes_the_map(canvas_page: Any) -> None:
    page = canvas_page
    expect(page.locator(".cl-empty")).to_contain_text("Draw something")
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#run").click()
    toast = page.locator(".toast-body")
    expect(toast).to_contain_text("draw something first", timeout=PATIENCE_MS)
    page.locator(".toast-close").click()

    _stroke(page, (0.4, 0.4), (0.6, 0.4), (0.6, 0.6))
    page.locator("#preview").click()
    drawn_map = page.locator("#map img")
    expect(drawn_map).to_be_visible(timeout=PATIENCE_MS)
    _shot(page, "canvas-map")
    first = _lines_in(page, drawn_map)
    assert 0.002 < first < 0.1
    _stroke(page, (0.4, 0.6), (0.5, 0.5))  # and further strokes count too
    page.locator("#run").click()
    cards = _finished(page)
    expect(cards).to_have_count(1)
    _shot(page, "canvas-result")
    control_map = page.locator(".cl-card .cl-map img").first
    assert _lines_in(page, control_map) > 1.1 * first


def test_a_picture_to_trace_keeps_its_shape(canvas_page: Any, tmp_path: Path) -> None:
    page = canvas_page
    screen = page.locator("#canvas .cv-screen")
    expect(screen).to_be_visible(timeout=PATIENCE_MS)
    Image.new("RGB", (300, 100), "red").save(tmp_path / "wide.png")
    page.locator("#canvas input[type=file]").set_input_files(tmp_path / "wide.png")
    blue_at = """(screen, share) => screen.getContext("2d").getImageData(
      screen.width / 2, Math.round(screen.height * share), 1, 1).data[2]"""
    page.wait_for_function(
        f"({blue_at})(document.querySelector('#canvas .cv-screen'), 0.5) < 200",
        timeout=PATIENCE_MS,
    )
    assert screen.evaluate(blue_at, 0.1) == screen.evaluate(blue_at, 0.9) == 255, "paper"


def test_a_saved_drawing_is_as_thick_as_the_pen_pressed(canvas_page: Any, tmp_path: Path) -> None:
    screen = canvas_page.locator("#canvas .cv-screen")
    screen.scroll_into_view_if_needed()
    box, pen = screen.bounding_box(), canvas_page.context.new_cdp_session(canvas_page)
    y = box["y"] + box["height"] / 2
    for kind, share, force in (
        ("mousePressed", 0.3, 0.25),
        ("mouseMoved", 0.5, 0.5),
        ("mouseMoved", 0.7, 1.0),
        ("mouseReleased", 0.7, 0.0),
    ):
        event = {"type": kind, "x": box["x"] + share * box["width"], "y": y, "force": force}
        event |= {"button": "left", "buttons": 1, "pointerType": "pen", "clickCount": 1}
        pen.send("Input.dispatchMouseEvent", event)
    canvas_page.get_by_text("Size and files").click()
    with canvas_page.expect_download() as saved:
        canvas_page.get_by_role("button", name="Save as SVG").click()
    saved.value.save_as(tmp_path / "drawing.svg")
    text = (tmp_path / "drawing.svg").read_text(encoding="utf-8")
    widths = re.findall(r'd="M[^"]+" stroke="#000" stroke-width="([^"]+)"', text)
    assert widths == ["3", "6"], "8 times the mean pressure of each piece's ends"


def test_a_drawing_outlives_mistakes_runs_and_another_model(canvas_page: Any) -> None:
    page = canvas_page
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    _stroke(page, (0.4, 0.4), (0.6, 0.4), (0.6, 0.6))
    page.locator("#preview").click()
    drawn_map = page.locator("#map img")
    expect(drawn_map).to_be_visible(timeout=PATIENCE_MS)
    drawn = _lines_in(page, drawn_map)
    assert drawn > 0.002

    _open_advanced(page)
    _set(page, "control_start", "1")
    page.locator("#run").click()
    expect(page.locator(".toast-body")).to_contain_text("must be less", timeout=PATIENCE_MS)
    page.locator(".toast-close").click()
    _set(page, "control_start", "0")
    page.locator("#model input").click()
    page.get_by_role("option", name="Other").click()
    expect(page.locator(".cl-chips")).to_contain_text("Other", timeout=PATIENCE_MS)
    for run in range(2):
        _set(page, "seed", str(run))
        page.locator("#run").click()
        seed = page.locator(".cl-card code")
        expect(seed).to_have_text(str(run), timeout=PATIENCE_MS)
        _finished(page)
        assert _lines_in(page, page.locator(".cl-card .cl-map img").first) == drawn


def test_strokes_lie_where_they_were_drawn_when_the_window_turns(canvas_page: Any) -> None:
    page = canvas_page
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    _stroke(page, (0.45, 0.3), (0.55, 0.3))
    size = page.viewport_size
    page.set_viewport_size({"width": size["height"], "height": size["width"]})
    page.wait_for_timeout(500)
    _stroke(page, (0.45, 0.6), (0.55, 0.6))
    page.locator("#preview").click()
    image = page.locator("#map img")
    expect(image).to_be_visible(timeout=PATIENCE_MS)
    body = page.request.get(image.evaluate("image => image.src")).body()
    with Image.open(io.BytesIO(body)) as shown:
        rows = np.flatnonzero((np.asarray(shown.convert("L")) > 127).any(axis=1)) / shown.height
    assert np.abs(rows - 0.3).min() < 0.02 and np.abs(rows - 0.6).min() < 0.02
    assert (np.minimum(np.abs(rows - 0.3), np.abs(rows - 0.6)) < 0.04).all()


def test_a_live_picture_follows_the_pen_and_the_settings(canvas_page: Any) -> None:
    page = canvas_page
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#live").click()
    page.wait_for_timeout(500)
    assert page.locator(".cl-live").count() == 0, "there is nothing to follow yet"

    def lines_after(act: Any) -> float:
        """The share of lines in the live picture's map, once another one is there."""
        shown = page.locator(".cl-live .cl-map img").first
        before = page.locator(".cl-live").evaluate_all("all => all[0]?.innerHTML ?? ''")
        act()
        page.wait_for_function(
            "before => (document.querySelector('.cl-live')?.innerHTML ?? before) !== before",
            arg=before,
            timeout=PATIENCE_MS,
        )
        data = base64.b64decode(shown.get_attribute("src").partition(",")[2])
        with Image.open(io.BytesIO(data)) as control_map:
            return float((np.asarray(control_map.convert("L")) > 127).mean())

    first = lines_after(lambda: _stroke(page, (0.3, 0.4), (0.6, 0.4)))
    assert 0.002 < first < 0.1
    page.evaluate("document.getElementById('canvas').scrollIntoView()")
    for seen in ("#canvas .cv-screen", ".cl-live .cl-made img"):
        expect(page.locator(seen)).to_be_in_viewport(ratio=0.95)
    _shot(page, "live")
    seed = page.locator(".cl-live .cl-bar").inner_text().partition("seed ")[2]
    second = lines_after(lambda: _stroke(page, (0.4, 0.6), (0.6, 0.7)))
    assert second > 1.3 * first
    third = lines_after(lambda: page.locator("#prompt textarea").fill("a blue ball"))
    assert third == second
    assert page.locator(".cl-live .cl-bar").inner_text().partition("seed ")[2] == seed

    page.locator("#live").click()
    last = page.locator(".cl-live").inner_html()
    _stroke(page, (0.2, 0.2), (0.3, 0.8))
    page.wait_for_timeout(1500)
    assert page.locator(".cl-live").inner_html() == last, "it is off"


def test_every_map_of_a_picture_stands_in_its_place(
    browser: Any, maps_address: str, tmp_path: Path
) -> None:
    for screen in SCREENS:
        with _opened(browser, screen, maps_address) as page:
            page.locator("#run").click()
            toast = page.get_by_test_id("toast-body")
            expect(toast).to_contain_text("There is no picture yet", timeout=PATIENCE_MS)
            toast.get_by_test_id("toast-close").click()
            _upload(page)
            page.get_by_label("canny: Blind (10 MB from the hub)").check()
            page.evaluate(WATCH, [[".cl-maps figure", "top"], ["#results .cl-bar", "top"]])
            page.locator("#run").click()
            places = page.locator(".cl-maps figure")
            expect(places).to_have_count(3, timeout=PATIENCE_MS)
            expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
            assert max(_moved(page)) <= 1
            expect(places.nth(0)).to_contain_text("The eyes are not here: fetch <them>.")
            expect(places.nth(1)).to_contain_text("the server's log has details")
            assert (
                places.nth(2).locator("img").evaluate("i => i.complete && i.naturalWidth === 384")
            )
            _shot(page, "maps")
            with page.expect_download() as download:
                places.nth(2).get_by_text("Save PNG").click()
            assert download.value.suggested_filename == "canny-seeing.png"
            download.value.save_as(tmp_path / "map.png")
            with Image.open(tmp_path / "map.png") as saved:
                assert saved.size == (384, 256)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_another_model_brings_its_defaults(page: Any) -> None:
    _open_advanced(page)
    _set(page, "guidance_scale", "5")
    page.locator("#model input").click()
    page.get_by_role("option", name="Other").click()
    expect(page.locator(".cl-chips")).to_contain_text("Other", timeout=PATIENCE_MS)
    expect(page.locator("#steps input[type=number]")).to_have_value("4")
    expect(page.locator("#guidance_scale input[type=number]")).to_have_value("5")


def test_settings_without_effect_are_disabled_and_say_why(page: Any) -> None:
    _open_advanced(page)
    page.locator("#mode").get_by_label("preview").check()
    steps = page.locator("#steps")
    expect(steps).to_contain_text("The mode preview sets it to 4.", timeout=PATIENCE_MS)
    expect(steps.locator("input[type=number]")).to_be_disabled()
    expect(page.locator("#negative_prompt textarea")).to_be_disabled()
    _shot(page, "mode-preview")
    page.locator("#mode").get_by_label("exact").check()
    expect(steps.locator("input[type=number]")).to_be_enabled(timeout=PATIENCE_MS)
    expect(steps).not_to_contain_text("sets it")
    assert (
        page.locator("#preview").bounding_box()["y"]
        < page.locator("#preprocessor").bounding_box()["y"]
    )


def test_the_home_page_leads_to_every_app(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    link = page.locator(".cl-home a", has_text="Canny edges")
    expect(link).to_be_visible(timeout=PATIENCE_MS)
    page.screen = "home"
    _shot(page, "0")
    assert page.locator(".cl-home a").count() == len(apps.names())
    for picture in page.locator(".cl-home img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("(image) => image.naturalWidth > 0", arg=picture.element_handle())
    link.click()
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    page.close()


def test_the_apps_links_stand_in_one_row_that_a_phone_swipes(browser: Any, address: str) -> None:
    for screen, (width, height) in SCREENS.items():
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(f"{address}multi2image")
        links = page.locator(".nav-holder nav a")
        expect(links).to_have_count(len(apps.names()) + 1, timeout=PATIENCE_MS)
        assert len({link.bounding_box()["y"] for link in links.all()}) == 1, screen
        expect(page.locator(".nav-holder nav a.active")).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), screen
        page.close()


def test_a_result_is_sent_to_another_app_with_its_prompt(page: Any) -> None:
    _upload(page)
    page.fill("#prompt textarea", "the red ball & <b>more</b>")
    page.locator("#run").click()
    _finished(page)
    made = page.locator(".cl-made img").evaluate("i => i.src")
    menu = page.locator(".cl-seed .cl-send")
    menu.locator("summary").click()
    page.keyboard.press("Escape")
    expect(menu.get_by_role("link").first).to_be_hidden()
    expect(menu.locator("summary")).to_be_focused()
    menu.locator("summary").click()
    links = menu.get_by_role("link")
    assert links.all_inner_texts()[0] == "Canny edges", "this app first"
    _shot(page, "send-menu")
    with page.context.expect_page() as opened:
        links.get_by_text("Several controls").click()
    target = opened.value
    target.screen = page.screen
    expect(target.locator("#prompt textarea")).to_have_value(
        "the red ball & <b>more</b>", timeout=PATIENCE_MS
    )
    expect(target.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    expect(target.locator("#control_1 input")).to_have_value("Canny edges")
    sent = target.request.get(target.locator("#image img").evaluate("i => i.src")).body()
    assert _pixels(sent) == _pixels(page.request.get(made).body())
    expect(page.locator("#prompt textarea")).to_have_value("the red ball & <b>more</b>")
    expect(page.locator(".cl-card")).to_have_count(1)
    target.close()
    with page.context.expect_page() as opened:
        menu.get_by_text("Interactive scribbles").click()
    canvas = opened.value
    expect(canvas.locator("#prompt textarea")).to_have_value(
        "the red ball & <b>more</b>", timeout=PATIENCE_MS
    )
    expect(canvas.locator(".cl-restored")).to_contain_text("Taken over: ")
    canvas.wait_for_function(
        """() => {
          const screen = document.querySelector("#canvas .cv-screen");
          const middle = [screen.width / 2, Math.round(screen.height / 2), 1, 1];
          const { data } = screen.getContext("2d").getImageData(...middle);
          return Math.min(...data) < 250;
        }""",
        timeout=PATIENCE_MS,
    )  # it lies on the paper, to be traced
    canvas.close()


HIGHEST = "all => Math.max(...all.map((one) => Number(getComputedStyle(one).zIndex) || 0))"


def test_a_control_map_is_used_as_an_input_with_its_settings(page: Any) -> None:
    _upload(page)
    page.fill("#prompt textarea", "the red ball")
    _open_advanced(page)
    _set(page, "steps", "3")
    page.locator("#preview").click()
    expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#run").click()
    seed = _finished(page).locator("code").inner_text()
    given = page.locator(".cl-map img").first.evaluate("i => i.src")
    page.get_by_text("Use this map").click()
    _shot(page, "use-map-menu")
    menu, shown = (page.locator(one).evaluate_all(HIGHEST) for one in (".cl-send ul", "#map *"))
    assert menu > shown, "on a phone it can hang over this map and its label"
    with page.context.expect_page() as opened:
        page.locator(".cl-map .cl-send").get_by_role("link", name="Canny edges").click()
    target = opened.value
    expect(target.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    expect(target.locator("#prompt textarea")).to_have_value("the red ball")
    expect(target.get_by_label("None: my image is already a control map")).to_be_checked()
    shown = target.request.get(target.locator("#image img").evaluate("i => i.src")).body()
    assert _pixels(shown) == _pixels(page.request.get(given).body())
    _open_advanced(target)
    expect(target.locator("#steps input[type=number]")).to_have_value("3")
    expect(target.locator("#seed input")).to_have_value(seed)
    target.locator("#run").click()
    expect(target.locator(".cl-card")).to_be_visible(timeout=PATIENCE_MS)
    again, made = (one.locator(".cl-made img").evaluate("i => i.src") for one in (target, page))
    bodies = [target.request.get(one).body() for one in (again, made)]
    assert _pixels(bodies[0]) == _pixels(bodies[1]), "the map gives what the picture gave"
    target.close()


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB").tobytes()


def test_a_picture_that_was_not_made_here_is_not_taken(browser: Any, address: str) -> None:
    lost = f"{address}multi2image?from=controlloop-{'0' * 32}/x.png"
    with _opened(browser, "desktop", lost) as page:
        toast = page.get_by_test_id("toast-body")
        expect(toast).to_contain_text("no longer here", timeout=PATIENCE_MS)
        assert page.locator("#image img").count() == 0


def test_several_controls_run_and_are_restored(browser: Any, address: str, tmp_path: Path) -> None:
    for screen in SCREENS:
        with _opened(browser, screen, f"{address}multi2image") as page:
            page.locator("#run").click()
            toast = page.get_by_test_id("toast-body")
            expect(toast).to_contain_text("There is no picture yet", timeout=PATIENCE_MS)
            toast.get_by_test_id("toast-close").click()
            _upload(page)
            page.fill("#prompt textarea", "the red ball")
            page.locator("#control_2 input").click()
            page.get_by_role("option", name="Canny edges").click()
            _set(page, "strength_2", "0.5")
            _shot(page, "several-settings")
            page.locator("#run").click()
            cards = _finished(page)
            expect(cards).to_have_count(1)
            expect(page.locator(".cl-control")).to_have_count(2)
            for figure in page.locator(".cl-card img").all():
                assert figure.evaluate("i => i.complete && i.naturalWidth === 384")
            _shot(page, "several-results")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            with page.expect_download() as download:
                page.locator(".cl-made a").click()
            download.value.save_as(tmp_path / "several.png")
        with _opened(browser, screen, f"{address}multi2image") as page:
            page.set_input_files("#restore input[type=file]", tmp_path / "several.png")
            expect(page.locator(".cl-restored")).to_contain_text("Control 2", timeout=PATIENCE_MS)
            expect(page.locator("#prompt textarea")).to_have_value("the red ball")
            expect(page.locator("#control_2 input")).to_have_value("Canny edges")
            expect(page.locator("#strength_2 input[type=number]")).to_have_value("0.5")
            expect(page.locator("#control_3 input")).to_have_value("No control")


# A sweep


def test_several_maps_are_previewed_and_follow_their_settings(browser: Any, address: str) -> None:
    for screen in SCREENS:
        with _opened(browser, screen, f"{address}multi2image") as page:
            page.locator("#preview").click()
            toast = page.get_by_test_id("toast-body")
            expect(toast).to_contain_text("There is no picture yet", timeout=PATIENCE_MS)
            toast.get_by_test_id("toast-close").click()
            _upload(page)
            page.locator("#control_2 input").click()
            page.get_by_role("option", name="Canny edges").click()
            page.locator("#preview").click()
            maps = page.locator("#previews .cl-map img")
            expect(maps).to_have_count(2, timeout=PATIENCE_MS)
            expect(maps.first).to_be_in_viewport(ratio=0.9)
            assert page.locator(".cl-card").count() == 0, "nothing was generated"
            _shot(page, "several-previews")
            before = maps.last.evaluate("image => image.src")
            page.get_by_role("button", name="Map settings").nth(1).click()
            _set(page, "canny2image-high_threshold_2", "60")
            page.wait_for_function(
                "before => [...document.querySelectorAll('#previews .cl-map img')]"
                ".map(({ src }) => src).every((src, k, all) => all.length === 2 && src !== before)",
                arg=before,
                timeout=PATIENCE_MS,
            )
            page.get_by_label("Remove Image").first.click()
            expect(maps).to_have_count(0, timeout=PATIENCE_MS)


def _sweep_values(page: Any, across: str, down: str) -> None:
    page.locator("#preset-strength").click()
    expect(page.locator("#y_values textarea, #y_values input")).to_have_value("1..3")
    for axis, values in (("x", across), ("y", down)):
        page.locator(f"#{axis}_values").locator("textarea, input").fill(values)


def test_a_sweep_shows_its_cells_with_scores_and_saves_the_grid(browser: Any, address: str) -> None:
    for screen in SCREENS:
        with _opened(browser, screen, f"{address}sweep") as page:
            _sweep_values(page, "0, 1", "3, 4")
            _upload(page)
            cell = ".cl-grid tr:last-child td:last-child figure"
            page.evaluate(WATCH, [[cell, "top"], [cell, "height"], ["#results .cl-bar", "top"]])
            page.locator("#run").click()
            cells = page.locator(".cl-grid td .cl-made")
            expect(cells).to_have_count(4, timeout=PATIENCE_MS)
            expect(page.locator(".cl-grid thead th span")).to_have_text(["0", "1"])
            expect(page.locator(".cl-grid tbody th span")).to_have_text(["3", "4"])
            expect(cells.first).to_contain_text("/ 100")
            with page.expect_download() as saved:
                page.get_by_text("Save the grid as PNG").click()
            assert read_image(saved.value.path())[0].shape[1] > 2 * 64
            expect(page.locator("#run")).to_be_visible()
            assert max(_moved(page)) <= 1
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, "the grid scrolls in its own frame"
            _shot(page, "sweep")


def test_one_click_makes_the_papers_figure(browser: Any, address: str) -> None:
    with _opened(browser, "desktop", f"{address}sweep") as page:
        page.locator("#preset-papers").click()
        expect(page.locator("#told")).to_contain_text("The figure of the ControlNet paper")
        expect(page.locator("#stop")).to_be_hidden()  # there is no picture yet
        _upload(page)
        page.locator("#preset-papers").click()
        expect(page.locator(".cl-grid td .cl-made")).to_have_count(4, timeout=PATIENCE_MS)
        heads = page.locator(".cl-grid thead th span").all_inner_texts()
        assert len(set(heads)) == 4


def test_a_stopped_sweep_keeps_what_is_done(browser: Any, address: str, held: HeldRun) -> None:
    """The first cell is held in its first step, so nothing is done yet when it is stopped."""
    with _opened(browser, "desktop", f"{address}sweep") as page:
        _sweep_values(page, "1", "3, 4")
        _upload(page)
        page.locator("#run").click()
        assert held.at_work.wait(PATIENCE_S)
        page.locator("#stop").click()
        held.must_stop()
        expect(page.locator("#run")).to_be_visible()
        expect(page.locator("#results")).to_contain_text("Stopped: 0 of 2 pictures are done.")


def test_a_sweep_says_what_is_wrong_with_typed_values(browser: Any, address: str) -> None:
    with _opened(browser, "desktop", f"{address}sweep") as page:
        _sweep_values(page, "much", "3")
        _upload(page)
        page.locator("#run").click()
        expect(page.get_by_text("'much' is not a number")).to_be_visible()
        expect(page.locator("#run")).to_be_visible()
        page.locator("#x_axis input").click()
        page.get_by_role("option", name="Canny low threshold").click()
        expect(page.locator("#x_values").locator("textarea, input")).to_have_value("1, 100, 255")
