"""The apps' pages, each alone or all together with a home page."""

import importlib
from collections.abc import Sequence

import gradio as gr

from apps.web.html import results
from apps.web.pages.calls import CallableBlocks
from apps.web.pages.widgets import PICTURES
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition


def build_app(
    app: Condition | Tool, suite: Suite, others: Sequence[Condition | Tool] = ()
) -> gr.Blocks:
    """Build one app's page, to be launched alone; its results can be sent to `others`."""
    with _new_blocks(f"{app.title} · ControlLoop") as blocks:
        _place(app, suite, others, blocks)
    return blocks


def build_site(apps: Sequence[Condition | Tool], suite: Suite) -> gr.Blocks:
    """Build the home page and a page for each app, tools last; all share one queue."""
    apps = sorted(apps, key=lambda app: isinstance(app, Tool))
    with _new_blocks("ControlLoop") as site:
        site.more_pages = bool(apps)
        page = results.home(apps, PICTURES, suite.card(suite.model), suite.cards())
        gr.HTML(page, elem_classes="cl-header")
    for place, app in enumerate(apps, start=1):
        site.more_pages = place < len(apps)
        short_title = app.title.partition(" (")[0]  # so that the navigation bar is one row
        # Placed in the route itself: rendering a Blocks of its own takes Gradio twice as long.
        with site.route(short_title, f"/{app.name}"):
            _place(app, suite, [app, *(one for one in apps if one is not app)], site)
    return site


def _new_blocks(title: str) -> CallableBlocks:
    return CallableBlocks(title=title, analytics_enabled=False)


def _place(
    app: Condition | Tool, suite: Suite, others: Sequence[Condition | Tool], blocks: gr.Blocks
) -> None:
    send_to = [one for one in others if _takes_results(one)]
    module = "condition_page" if isinstance(app, Condition) else app.page
    importlib.import_module(f"apps.web.pages.{module}").place_page(app, suite, send_to, blocks)


def _takes_results(app: Condition | Tool) -> bool:
    """Return whether an app can start from a generated image; a canvas has it below, to trace."""
    return app.input in ("photo", "canvas") if isinstance(app, Condition) else app.takes_results
