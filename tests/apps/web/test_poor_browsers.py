"""A browser that lacks something, or forbids it, has pages that run all the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.apps.web import test_browser
from tests.apps.web.test_browser import CHROMIUM, PATIENCE_MS, QUIET, _finished, _upload, expect

pytestmark = test_browser.pytestmark

NO_SITE_DATA = {"profile": {"default_content_setting_values": {"cookies": 2}}}
"""Chromium's settings where a visitor forbids cookies, and so what a page may keep."""
NO_CANVAS = "HTMLCanvasElement.prototype.getContext = () => null; delete window.OffscreenCanvas;"


@pytest.mark.parametrize("lacking", ["site data", "canvas"])
def test_what_a_browser_lacks_costs_no_page(address: str, lacking: str, tmp_path: Path) -> None:
    if lacking == "site data":
        (tmp_path / "Default").mkdir()
        (tmp_path / "Default" / "Preferences").write_text(json.dumps(NO_SITE_DATA))
    with test_browser.playwright.sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            tmp_path, executable_path=CHROMIUM, args=QUIET
        )
        page: Any = browser.new_page()
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        if lacking == "canvas":
            page.add_init_script(NO_CANVAS)
        for name in ("", "scribble2image_interactive", "depth2image", "canny2image"):
            page.goto(f"{address}{name}")
            expect(page.locator("#run, .cl-home").first).to_be_visible(timeout=PATIENCE_MS)
            if lacking == "canvas" and name == "scribble2image_interactive":
                expect(page.get_by_text("gives pages no canvas to draw on")).to_be_visible()
        if lacking == "site data":  # by which a page would know that it is the first visit
            _upload(page)
        expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
        page.locator("#run").click()
        assert _finished(page).count() == 1 and broken == []
        browser.close()
