"""A page is filled from what the visitor's browser has kept of it."""

from typing import Any

import gradio as gr
import pytest

import apps
from apps.web.pages.condition_page import SingleControl
from apps.web.pages.page import Page
from apps.web.suite import Suite


@pytest.fixture
def page(suite: Suite) -> Page:
    """The canny page, not served."""
    canny = apps.find("canny2image")
    with gr.Blocks(analytics_enabled=False) as blocks:
        return Page(blocks, canny, suite, SingleControl(canny, suite))


def remembered(page: Page, **changes: Any) -> dict[str, Any]:
    """What the page is filled with from what a browser has kept, by field name."""
    fields = page.layout.fields
    kept = {name: getattr(field, "value", None) for name, field in fields.items()} | changes
    updates = page.prefill.take_remembered(list(kept.values()), apps.find("canny2image"))
    return dict(zip(fields, updates[-len(fields) :], strict=True))


def test_what_a_browser_keeps_is_clamped_and_what_is_gone_is_left_out(
    page: Page,
) -> None:
    kept = {
        "prompt": "a ball",
        "steps": 10**9,
        "low_threshold": 60,
        "model": "gone",
        "preprocessor": "gone",
        "image": {"path": "/etc/hosts"},
        "edit": {"size": [64, 64], "strokes": []},
    }
    filled = remembered(page, **kept)
    assert (filled["prompt"], filled["steps"], filled["low_threshold"]) == ("a ball", 100, 60)
    assert filled["edit"] == kept["edit"]
    for name in ("model", "preprocessor", "image"):
        assert filled[name] == {"__type__": "update"}, name  # stays as it is


@pytest.mark.parametrize("kept", [None, "", {}, [], [1, 2]])
def test_what_another_version_has_kept_changes_nothing(page: Page, kept: Any) -> None:
    updates = page.prefill.take_remembered(kept, apps.find("canny2image"))
    assert all(update == {"__type__": "update"} for update in updates)
