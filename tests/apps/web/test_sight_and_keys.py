"""What a visitor sees and presses: results in sight, keys, focus, the enlarged view, leaving."""

from typing import Any

import pytest

from tests.apps.web import test_browser
from tests.apps.web.conftest import HeldRun
from tests.apps.web.test_browser import (
    PATIENCE_MS,
    WATCH,
    _finished,
    _moved,
    _open_advanced,
    _set,
    _upload,
    expect,
)

browser, page = test_browser.browser, test_browser.page
canvas_address, canvas_page = test_browser.canvas_address, test_browser.canvas_page
pytestmark = test_browser.pytestmark


def _start_long_run(page: Any) -> None:
    _upload(page)
    page.locator("#run").click()
    expect(page.locator(".cl-progress span")).to_contain_text("step 1 ", timeout=PATIENCE_MS)


def test_a_cards_seed_is_reused_before_advanced_options_were_opened(page: Any) -> None:
    _upload(page)
    page.locator("#run").click()
    card = _finished(page).first
    seed = card.locator("code").inner_text()
    card.get_by_role("button", name="Reuse").click()
    _open_advanced(page)
    expect(page.locator("#seed input")).to_have_value(seed)
    _set(page, "seed", "-1")
    card.get_by_role("button", name="Reuse").click()
    expect(page.locator("#seed input")).to_have_value(seed)


COVERING = """() => Array.from({ length: 60 }, (_, k) => {
  scrollTo(0, 10 * k);
  const run = document.querySelector("#run").getBoundingClientRect();
  const seen = [0.1, 0.5, 0.9].map((part) => document.elementFromPoint(
    run.left + part * run.width, run.top + run.height / 2));
  return seen.every((one) => one?.id === "run") ? "" : `${10 * k}: ${seen[0]?.outerHTML}`;
}).filter(Boolean)"""
"""What lies over Run, or is there in its place, while the page is scrolled past it."""


def test_run_is_in_sight_on_low_screens(page: Any) -> None:
    width = page.viewport_size["width"]
    page.set_viewport_size({"width": width, "height": 720 if width > 500 else 844})
    expect(page.locator("#run")).to_be_in_viewport(ratio=1)
    assert page.evaluate(COVERING) == []


@pytest.mark.parametrize("key", ["Enter", "Control+Enter"])
def test_stage_and_results_are_in_sight(page: Any, held: HeldRun, key: str) -> None:
    _upload(page)
    page.locator("#run" if key == "Enter" else "#prompt textarea").press(key)
    expect(page.locator(".cl-progress")).to_be_in_viewport(ratio=1, timeout=PATIENCE_MS)
    assert held.at_work.wait(60)
    page.keyboard.press("Escape")
    held.must_stop()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator("#run").press(key)  # a run that is not held
    _finished(page)
    expect(page.locator(".cl-bar")).to_be_in_viewport(ratio=1)
    expect(page.locator(".cl-made img")).to_be_in_viewport(ratio=0.5)


def test_the_result_of_a_drawing_is_in_sight(canvas_page: Any) -> None:
    page = canvas_page
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    test_browser._stroke(page, (0.4, 0.4), (0.6, 0.6))
    page.locator("#run").click()
    _finished(page)
    expect(page.locator(".cl-bar")).to_be_in_viewport(ratio=1)


def test_a_drawing_its_prompt_and_run_are_in_sight_together(canvas_page: Any) -> None:
    page = canvas_page
    prompt = page.locator("#prompt textarea")
    expect(page.locator("#canvas .cv-screen")).to_be_visible(timeout=PATIENCE_MS)
    if page.screen == "desktop":
        expect(prompt).to_be_in_viewport(ratio=1)  # before anything is scrolled
    page.evaluate("document.querySelector('#canvas').scrollIntoView()")
    for part in (page.locator("#canvas .cv-screen"), prompt, page.locator("#run")):
        expect(part).to_be_in_viewport(ratio=1)
    tops = [part.bounding_box()["y"] for part in (prompt, page.locator("#run"))]
    assert tops[0] < tops[1], "Run does not cover it"


def test_the_map_is_asked_for_below_the_picture_and_comes_into_sight(page: Any) -> None:
    _upload(page)
    page.evaluate("document.querySelector('#image').scrollIntoView()")
    for button in (page.locator("#preview"), page.locator("#edit")):
        expect(button).to_be_in_viewport(ratio=1)
    page.locator("#preview").click()
    expect(page.locator("#map img")).to_be_in_viewport(ratio=0.9, timeout=PATIENCE_MS)
    page.locator("#edit").click()
    expect(page.locator("#canvas .cv-screen")).to_be_in_viewport(ratio=0.9, timeout=PATIENCE_MS)


def test_the_stage_and_the_facts_keep_their_height(page: Any) -> None:
    _upload(page)
    stage, facts = ["#stage .cl-running", "height"], [".cl-chips", "height"]
    page.evaluate(WATCH, [stage, facts])
    page.locator("#run").click()
    _finished(page)
    expect(page.locator(".cl-chips")).to_contain_text("your last run here")
    assert max(_moved(page)) <= 1


def test_images_that_are_done_stay_where_they_are(page: Any) -> None:
    _upload(page)
    _open_advanced(page)
    _set(page, "num_samples", "6")
    _set(page, "steps", "4")  # a busy machine may see nothing of shorter runs
    page.evaluate(WATCH, [["#results .cl-bar", "top"], ["#results .cl-so-far", "height"]])
    page.locator("#run").click()
    expect(page.locator(".cl-so-far img").first).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator(".cl-progress")).to_be_in_viewport(ratio=1)
    if page.screen == "phone":  # what follows is out of sight, where it cannot be seen to move
        expect(page.locator("#history")).not_to_be_in_viewport()
    assert _finished(page).count() == 6
    assert max(_moved(page)) <= 1
    page.evaluate(WATCH, [["#results .cl-results", "top"]])
    page.locator("#run").click()  # over the results before it
    expect(page.locator(".cl-progress")).to_be_in_viewport(ratio=1, timeout=PATIENCE_MS)
    page.wait_for_function("!document.querySelector('#stage .cl-running')", timeout=PATIENCE_MS)
    assert max(_moved(page)) <= 1


def test_a_run_that_was_stopped_without_an_image_says_so_in_sight(
    page: Any, request: pytest.FixtureRequest
) -> None:
    _upload(page)
    page.locator("#run").click()
    _finished(page)
    held = request.getfixturevalue("held")
    page.locator("#run").click()
    assert held.at_work.wait(60)
    page.locator("#stop").click()
    held.must_stop()
    expect(page.locator(".cl-note")).to_be_in_viewport(ratio=1, timeout=PATIENCE_MS)
    expect(page.locator(".cl-card")).to_have_count(1)  # the result before stays


def test_a_page_does_not_scroll_under_a_pen(canvas_page: Any) -> None:
    page = canvas_page
    screen = page.locator("#canvas .cv-screen")
    expect(screen).to_be_visible(timeout=PATIENCE_MS)
    test_browser._stroke(page, (0.4, 0.4), (0.6, 0.6))
    page.locator("#preview").click()
    box = screen.bounding_box()
    at = [max(box["y"], 0) + 40, max(box["y"], 0) + 90]
    page.mouse.move(box["x"] + 60, at[0])
    page.mouse.down()  # before the map comes, or before the page has gone to it
    before = page.evaluate("scrollY")
    expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(1200)  # for so long the page follows what a button opens
    assert page.evaluate("scrollY") == before
    page.mouse.up()


def test_the_enlarged_views_buttons_stand_in_one_row(page: Any) -> None:
    _upload(page)
    page.locator("#run").click()
    _finished(page)
    page.locator(".cl-zoom").first.click()
    tops = page.locator(".cl-large-bar .cl-button").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert len(tops) == 4 and max(tops) - min(tops) <= 1


def test_a_visitor_who_scrolls_away_is_left_alone(page: Any, held: HeldRun) -> None:
    _start_long_run(page)
    page.mouse.move(200, 400)
    page.mouse.wheel(0, 3000)
    page.wait_for_function("scrollY > 100")
    page.wait_for_timeout(200)
    there = page.evaluate("scrollY")
    page.keyboard.press("Escape")
    held.must_stop()
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    most = page.evaluate("document.documentElement.scrollHeight - innerHeight")
    assert abs(page.evaluate("scrollY") - min(there, most)) < 200


def test_the_focus_follows_from_run_to_stop_and_back(page: Any, held: HeldRun) -> None:
    _upload(page)
    page.locator("#run").press("Enter")
    expect(page.locator("#stop")).to_be_focused(timeout=PATIENCE_MS)
    assert held.at_work.wait(60)
    page.keyboard.press("Enter")  # on Stop
    held.must_stop()
    expect(page.locator("#run")).to_be_focused(timeout=PATIENCE_MS)


def test_escape_closes_what_covers_the_page_before_it_stops_a_run(page: Any, held: HeldRun) -> None:
    _start_long_run(page)
    page.locator('#image button[aria-label="Fullscreen"]').click()
    expect(page.locator("#image.fullscreen")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#image.fullscreen")).to_have_count(0)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.wait_for_timeout(300)
    expect(page.locator("#stop")).to_have_text("Stop")
    assert not held.ended.is_set()
    page.keyboard.press("Escape")
    held.must_stop()


def test_a_reload_during_a_run_asks(page: Any, held: HeldRun) -> None:
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    _start_long_run(page)
    page.evaluate("void location.reload()")
    page.wait_for_timeout(500)
    assert asked == ["beforeunload"] and not held.ended.is_set()
    page.locator("#stop").click()
    held.must_stop()
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    page.reload()
    expect(page.locator("#run")).to_be_visible(timeout=PATIENCE_MS)
    assert asked == ["beforeunload"], "nothing runs, so nothing is asked"


def test_on_the_first_visit_one_press_gives_a_picture(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.add_init_script("localStorage.clear()")
    page.goto(f"{address}canny2image")
    expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.locator("#run").click()
    expect(_finished(page)).to_have_count(1)
    page.close()


UNHEARD = """localStorage.clear();
addEventListener("click", (event) => {
  if (window.unheard || !event.target.closest(".gallery-item")) return;
  window.unheard = true;
  event.stopImmediatePropagation();
}, true);"""
"""The first press of an example is lost, as when Gradio does not listen to it yet."""


def test_an_example_that_was_not_heard_on_the_first_visit_is_asked_for_again(
    browser: Any, address: str
) -> None:
    page = browser.new_page()
    page.add_init_script(UNHEARD)
    page.goto(f"{address}canny2image")
    expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    assert page.evaluate("window.unheard")
    page.close()


def test_a_question_mark_is_typed_into_a_prompt(page: Any) -> None:
    page.locator("#prompt textarea").press_sequentially("what?")
    expect(page.locator("#prompt textarea")).to_have_value("what?")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_enlarged_view_has_arrows_and_saves(page: Any) -> None:
    _upload(page)
    page.locator("#run").click()
    _finished(page)
    page.locator(".cl-made .cl-zoom").click()
    view = page.get_by_role("dialog", name="Enlarged picture")
    shown = view.locator("img")
    expect(view).to_contain_text("Generated")
    first = shown.get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(shown).not_to_have_attribute("src", first)
    page.keyboard.press("ArrowLeft")
    expect(shown).to_have_attribute("src", first)
    seen = set()
    for _ in range(3):
        seen.add(shown.get_attribute("src"))
        view.get_by_role("button", name="Next picture").click()
    assert len(seen) == 3 and shown.get_attribute("src") == first, "round and round"
    with page.expect_download() as download:
        view.get_by_role("link", name="Save PNG").click()
    assert download.value.suggested_filename.startswith("canny2image-")
    view.get_by_role("button", name="Close").click()
    expect(view).to_have_count(0)
    expect(page.locator(".cl-made .cl-zoom")).to_be_focused()


def test_the_wipe_follows_a_pointer_on_the_picture(page: Any) -> None:
    _upload(page)
    page.locator("#run").click()
    card = _finished(page).first
    card.locator(".cl-compare summary").click()
    pair = card.locator(".cl-pair")
    pair.scroll_into_view_if_needed()
    box = pair.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 9)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 9, steps=4)
    page.mouse.up()
    assert float(card.locator("input[type=range]").input_value()) == pytest.approx(25, abs=1)
