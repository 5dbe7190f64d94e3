"""Under the prompt stand its tokens, the words the model does not know, and those it knows."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

import pytest

import apps
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from models.store import Store
from tests.apps.web.test_accessibility import SHIFTS, _faults
from tests.apps.web.test_browser import (  # noqa: F401 - browser and pytestmark are used by name
    PATIENCE_MS,
    SCREENS,
    _open_advanced,
    _opened,
    _shot,
    browser,
    expect,
    pytestmark,
)


@pytest.fixture(scope="module")
def diorama_address() -> Iterator[str]:
    """The address of a page that starts with Diorama, and offers Stable Diffusion 1.5."""
    from apps.web.site import build_app

    suite = Suite(Store("cpu", "float32"), "diorama")
    site = build_app(apps.find("canny2image"), suite)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)


@pytest.fixture(params=SCREENS)
def page(
    request: pytest.FixtureRequest,
    browser: Any,  # noqa: F811
    diorama_address: str,
) -> Iterator[Any]:
    """The canny page on Diorama."""
    with _opened(browser, request.param, diorama_address) as page:
        expect(page.locator("#prompt_help summary")).to_have_text(
            "Words that Diorama knows", timeout=PATIENCE_MS
        )
        yield page


def _part(page: Any, name: str) -> Any:
    return page.locator(f"#prompt_help [data-part={name}]")


def _says(page: Any, name: str, text: str | re.Pattern[str]) -> None:
    expect(_part(page, name)).to_have_text(text, timeout=PATIENCE_MS)


def test_the_prompt_is_counted_and_unknown_words_are_named_while_typing(page: Any) -> None:
    prompt = page.locator("#prompt textarea")
    prompt.press_sequentially("A red ball and a (castle:1.3) ")
    _says(page, "tokens", "9 of 75 tokens")
    _says(page, "unknown", "Diorama does not know: castle")
    prompt.fill("<img src=x onerror=alert(1)> ${alert(1)} {{x}}")
    _says(page, "unknown", "Diorama does not know: img, src, x, onerror, alert")
    assert not page.locator("#prompt_help img").count()
    prompt.fill("red " * 80)
    _says(page, "unknown", "")
    _says(page, "tokens", "80 tokens in 2 chunks of 75")
    prompt.fill("red " * 598 + "a white house")
    _says(page, "tokens", "600 tokens are read, no more; left out: house")
    prompt.fill("")
    _says(page, "tokens", "0 of 75 tokens")


def test_words_that_are_known_are_clicked_into_the_prompt(page: Any) -> None:
    prompt, summary = page.locator("#prompt textarea"), page.locator("#prompt_help summary")
    expect(_part(page, "groups")).to_be_hidden()
    summary.focus()
    page.keyboard.press("Enter")
    word = _part(page, "groups").get_by_role("button", name="red", exact=True)
    expect(word).to_be_visible()
    page.keyboard.press("Tab")
    expect(word).to_be_focused()
    page.keyboard.press("Enter")
    expect(prompt).to_have_value("red")
    for name in ("ball", "on grass", "a sunset", "and", "a grey sky", "a cartoon of"):
        _part(page, "groups").get_by_role("button", name=name, exact=True).click()
    expect(prompt).to_have_value("a cartoon of red ball on grass, a sunset and a grey sky")
    _says(page, "tokens", "14 of 75 tokens")
    _shot(page, "words")
    box, run = (page.locator(one).bounding_box() for one in ("#prompt", "#run"))
    assert run["y"] - box["y"] < 600, "prompt and Run are not in sight together"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SCREENS[page.screen][0]


def test_axe_finds_nothing_wrong_with_the_words_open(page: Any) -> None:
    page.locator("#prompt textarea").fill("a castle ")
    page.locator("#prompt_help summary").click()
    _says(page, "unknown", "Diorama does not know: castle")
    assert _faults(page) == []


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_jumps_when_the_words_arrive(
    browser: Any,  # noqa: F811
    diorama_address: str,
    screen: str,
) -> None:
    width, height = SCREENS[screen]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.add_init_script(SHIFTS)
    page.goto(diorama_address)
    expect(page.locator("#prompt_help summary")).to_have_text(
        "Words that Diorama knows", timeout=PATIENCE_MS
    )
    page.wait_for_timeout(500)
    assert page.evaluate("window.shifts") < 0.1
    page.close()


def test_a_style_fills_the_prompts_and_another_replaces_it(page: Any) -> None:
    prompt = page.locator("#prompt textarea")
    prompt.fill("a red ball")

    def choose(name: str) -> None:
        page.locator("#style input").click()
        page.get_by_role("option", name=f"Style: {name}", exact=True).click()

    choose("Sunset")
    expect(page.locator("#style_note")).to_have_text(
        "Adds “a sunset” to the prompt and “a night sky, a clear blue sky” to the negative prompt.",
        timeout=PATIENCE_MS,
    )
    _says(page, "tokens", "6 of 75 tokens")  # with the added prompt, which is not yet in sight
    _open_advanced(page)
    added, negative = (page.locator(f"#{one}_prompt textarea") for one in ("added", "negative"))
    expect(added).to_have_value("a sunset")
    expect(negative).to_have_value("a night sky, a clear blue sky")
    _shot(page, "style")
    choose("Cartoon")
    expect(prompt).to_have_value("a cartoon of a red ball", timeout=PATIENCE_MS)
    expect(added).to_have_value("", timeout=PATIENCE_MS)
    expect(negative).to_have_value("")
    choose("none")
    expect(prompt).to_have_value("a red ball", timeout=PATIENCE_MS)


def test_another_model_has_its_own_words_and_tokens(page: Any) -> None:
    page.locator("#prompt textarea").fill("a dragon")
    _says(page, "unknown", "Diorama does not know: dragon")
    _open_advanced(page)
    page.locator("#model input").click()
    page.get_by_role("option", name="Stable Diffusion 1.5", exact=False).first.click()
    _says(page, "unknown", "")
    expect(page.locator("#prompt_help summary")).to_be_hidden()
    # With the added prompt, which this model's card brings.
    _says(page, "tokens", re.compile(r"^\d of 75 tokens$"))
    page.locator("#style input").click()
    expect(page.get_by_role("option", name="Style: Oil painting", exact=True)).to_be_visible()
    assert not page.get_by_role("option", name="Style: Cartoon").count()
    page.keyboard.press("Escape")
    page.locator("#added_prompt textarea").fill("")
    _says(page, "tokens", "2 of 75 tokens")
