"""What a visitor's browser keeps: settings over a reload, and results to restore and compare."""

import re
import time
from typing import Any

import pytest

from apps.web.pages.prefill import Prefill
from tests.apps.web import test_browser
from tests.apps.web.test_browser import (
    PATIENCE_MS,
    PHOTOS,
    SCREENS,
    _finished,
    _opened,
    _upload,
    expect,
)

browser = test_browser.browser
pytestmark = test_browser.pytestmark


@pytest.mark.parametrize("screen", SCREENS)
def test_settings_survive_a_reload_and_results_can_be_restored(
    browser: Any, address: str, screen: str
) -> None:
    with _opened(browser, screen, f"{address}canny2image") as page:
        prompt = page.locator("#prompt textarea")
        _upload(page)
        summary = page.locator(".cl-history summary")
        for made, text in enumerate(("a red ball", "a blue ball"), start=1):
            prompt.fill(text)
            page.locator("#run").click()
            expect(summary).to_contain_text(f"({made})", timeout=PATIENCE_MS)
            _finished(page)
        prompt.fill("a green ball")
        page.wait_for_function(
            "localStorage.getItem('controlloop-canny2image') !== null", timeout=PATIENCE_MS
        )
        page.wait_for_timeout(500)

        page.reload()
        expect(prompt).to_have_value("a green ball", timeout=PATIENCE_MS)
        history = page.locator(".cl-history")
        expect(history.locator("summary")).to_contain_text("(2)", timeout=PATIENCE_MS)
        history.locator("summary").click()
        expect(history.get_by_text("Compare two")).to_be_disabled()
        for at in range(2):
            history.locator("input").nth(at).check()
        expect(history.locator("label span").first).to_have_text(
            re.compile(r"^\d+ of 100 · a blue")
        )
        for row in (".cl-actions", "figure:first-child .cl-history-do"):
            boxes = [one.bounding_box() for one in history.locator(f"{row} .cl-button").all()]
            assert len({box["height"] for box in boxes}) == 1, "links and buttons look alike"
        tiles = [tile.bounding_box() for tile in history.locator("figure").all()]
        assert tiles[0]["y"] == tiles[1]["y"], "two beside each other, also on a phone"
        history.get_by_text("Compare two").click()
        beside = page.locator("dialog.cl-beside")
        expect(beside.locator("img")).to_have_count(2)
        page.keyboard.press("Escape")
        expect(beside).to_have_count(0)
        history.get_by_text("Restore").last.click()
        expect(prompt).to_have_value("a red ball", timeout=PATIENCE_MS)
        history.get_by_text("Forget all").click()
        expect(history).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_result_of_another_app_comes_back_with_its_own_picture(
    browser: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_remembered = Prefill.take_remembered

    def late(*arguments: Any) -> Any:
        time.sleep(1.5)
        return take_remembered(*arguments)

    with _opened(browser, "desktop", f"{address}canny2image") as page:
        _upload(page, PHOTOS / "coffee.jpg")
        page.fill("#prompt textarea", "a cup")
        page.locator("#run").click()
        _finished(page)
        page.locator('#image button[aria-label="Remove Image"]').click()
        _upload(page, PHOTOS / "astronaut.jpg")
        page.wait_for_function(
            "sessionStorage.getItem('controlloop-canny2image').includes('astronaut')"
        )
        page.goto(f"{address}depth2image")
        page.locator(".cl-history summary").click()
        # What the browser remembers of the page came after the result's picture, and replaced it.
        monkeypatch.setattr(Prefill, "take_remembered", late)
        page.locator(".cl-history").get_by_text("Restore").click()
        page.wait_for_url("**/canny2image*")
        expect(page.locator(".cl-restored")).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_timeout(2000)
        expect(page.locator("#prompt textarea")).to_have_value("a cup")
        assert "coffee" in page.locator("#image img").get_attribute("src")


def test_a_reload_brings_back_the_tabs_own_settings(browser: Any, address: str) -> None:
    with _opened(browser, "desktop", f"{address}canny2image") as page:
        _upload(page)
        page.fill("#prompt textarea", "a red ball")
        with page.context.expect_page() as opened:
            page.evaluate("open(location.href, '_blank', 'noopener')")
        other = opened.value
        # What all tabs share is where a new one begins.
        expect(other.locator("#prompt textarea")).to_have_value("a red ball", timeout=PATIENCE_MS)
        other.fill("#prompt textarea", "a blue box")
        other.get_by_label("Remove Image").first.click()
        expect(other.locator("#image img")).to_have_count(0)
        other.wait_for_function(
            "sessionStorage.getItem('controlloop-canny2image').includes('a blue box')"
        )
        page.reload()
        expect(page.locator("#prompt textarea")).to_have_value("a red ball", timeout=PATIENCE_MS)
        expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
        other.close()
