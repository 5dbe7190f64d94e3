"""Everybody can use the pages: contrast, names, targets and focus, checked by axe-core in Chromium.

axe-core's rules are those of WCAG 2.2 AA and its best practices (github.com/dequelabs/axe-core).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT

import apps
from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, SCREENS, expect

browser = test_browser.browser
pytestmark = test_browser.pytestmark

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SMALLEST_TARGET = 24
"""CSS pixels, WCAG 2.5.8."""

TARGETS = """() => [...document.querySelectorAll("a, button, summary, input, textarea, select")]
  .filter((node) => node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }))
  .map((node) => {
    const target = /^(radio|checkbox)$/.test(node.type) ? node.closest("label") ?? node : node;
    const { width, height } = target.getBoundingClientRect();
    return [node.outerHTML.slice(0, 160), width, height];
  })"""
"""The size of everything that is touched; a radio or checkbox is touched on its label too."""

PLACEHOLDER = """(box) => {
  const levels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((level) => level / 255);
  const light = (colour) => levels(colour)
    .map((level) => level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4)
    .reduce((sum, level, at) => sum + level * [0.2126, 0.7152, 0.0722][at], 0);
  const both = [light(getComputedStyle(box, "::placeholder").color),
    light(getComputedStyle(box).backgroundColor)];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""
"""The contrast of a box's placeholder, which axe-core does not look at (WCAG 1.4.3)."""


@contextmanager
def _page(browser: Any, scheme: str, screen: str, url: str) -> Iterator[Any]:
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        has_touch=screen == "phone",
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#run, .cl-home").first).to_be_visible(timeout=PATIENCE_MS)
    yield page
    context.close()


def _faults(page: Any) -> list[str]:
    """What axe-core finds wrong, and targets that are too small."""
    # There Run stands in its own place; elsewhere it lies over what is scrolled below it.
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("(rules) => axe.run(document, {runOnly: rules})", RULES)
    wrong = [
        f"{rule['id']}: {node['html'][:160]}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
    small = [
        f"{width:.0f} x {height:.0f}: {html}"
        for html, width, height in page.evaluate(TARGETS)
        if 0 < min(width, height) < SMALLEST_TARGET - 0.5
    ]
    return wrong + small


SHIFTS = """window.shifts = 0;
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) window.shifts += one.value;
}).observe({ type: "layout-shift", buffered: true });"""


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_jumps_while_a_page_loads(browser: Any, address: str, screen: str) -> None:
    """Cumulative layout shift: below 0.1 is good (web.dev/articles/cls)."""
    width, height = SCREENS[screen]
    for name in ("", "canny2image", "annotator", "multi2image"):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.add_init_script(SHIFTS)
        page.goto(f"{address}{name}")
        expect(page.locator("#run, .cl-home").first).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_timeout(1500)
        assert page.evaluate("window.shifts") < 0.1, name
        page.close()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(browser: Any, address: str, scheme: str, screen: str) -> None:
    for name in ("", "annotator", "multi2image", "scribble2image_interactive"):
        with _page(browser, scheme, screen, f"{address}{name}") as page:
            assert _faults(page) == [], name
    with _page(browser, scheme, screen, f"{address}canny2image") as page:
        assert page.locator("#prompt textarea").evaluate(PLACEHOLDER) >= 4.5
        page.locator(".cl-examples button.gallery-item").first.click()
        expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
        page.get_by_role("button", name="Advanced options").click()
        expect(page.locator("#seed input")).to_be_visible(timeout=PATIENCE_MS)
        assert _faults(page) == [], "settings"
        page.locator("#preview").click()
        expect(page.locator("#map img")).to_be_visible(timeout=PATIENCE_MS)
        assert _faults(page) == [], "a map"
        page.locator("#run").click()
        expect(page.locator(".cl-card")).to_be_visible(timeout=PATIENCE_MS)
        page.locator(".cl-compare summary").click()
        expect(page.locator(".cl-pair")).to_be_visible()
        assert _faults(page) == [], "result"
        handle = page.locator(".cl-tools input").bounding_box()
        assert screen == "desktop" or min(handle["width"], handle["height"]) >= 44
        page.locator(".cl-zoom").first.click()
        assert _faults(page) == [], "enlarged"
        page.keyboard.press("Escape")


def test_each_page_has_a_title_of_its_own(browser: Any, address: str) -> None:
    page = browser.new_page()
    titles = set()
    for name in apps.names():
        page.goto(f"{address}{name}")
        page.wait_for_function("document.title.endsWith(' · ControlLoop')")
        titles.add(page.title())
    assert len(titles) == len(apps.names())
    page.close()


def test_an_example_is_named_by_its_prompt(browser: Any, address: str) -> None:
    with _page(browser, "light", "desktop", f"{address}canny2image") as page:
        example = apps.find("canny2image").examples[1]
        page.get_by_role("button", name=f"Example: {example.prompt}", exact=True).click()
        expect(page.locator("#prompt textarea")).to_have_value(example.prompt)
    with _page(browser, "light", "desktop", f"{address}annotator") as page:
        page.get_by_role("button", name="Example: coffee", exact=True).click()
        expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_has_the_focus_is_marked(browser: Any, address: str, scheme: str) -> None:
    with _page(browser, scheme, "desktop", f"{address}canny2image") as page:
        seen = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            kind, line, width = page.evaluate(
                """() => {
                  const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
                  const { tagName, type, id } = document.activeElement;
                  return [`${tagName} ${type} ${id}`, outlineStyle, parseFloat(outlineWidth)];
                }"""
            )
            if kind.startswith("BODY"):
                break
            assert line != "none" and width >= 2, kind
            seen.add(" ".join(kind.split()[:2]))
        assert {"INPUT range", "BUTTON submit", "TEXTAREA textarea", "INPUT radio"} <= seen
