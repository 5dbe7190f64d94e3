"""The apps' pages, each alone or all together with a home page."""

import importlib
from collections.abc import Sequence

import gradio as gr

from apps.web.html import results
from apps.web.pages.condition_page import build_page
from apps.web.pages.widgets import CACHE, TEST_IMAGES
from apps.web.suite import Suite
from apps.web.tool import Tool
from core.condition import Condition


def build_app(
    app: Condition | Tool, suite: Suite, others: Sequence[Condition | Tool] = ()
) -> gr.Blocks:
    """Build one app's page, to be launched alone or rendered into a site with `others`."""
    send_to = [one for one in others if _takes_results(one)]
    if isinstance(app, Condition):
        return build_page(app, suite, send_to)
    module = importlib.import_module(f"apps.web.pages.{app.page}")
    page: gr.Blocks = module.build_page(app, suite, send_to)
    return page


def _takes_results(app: Condition | Tool) -> bool:
    """Return whether an app can start from a generated image."""
    return app.input == "photo" if isinstance(app, Condition) else app.takes_results


def build_site(apps: Sequence[Condition | Tool], suite: Suite) -> gr.Blocks:
    """Build the home page and a page for each app, tools last; all share one queue."""
    apps = sorted(apps, key=lambda app: isinstance(app, Tool))
    pages = [(app, build_app(app, suite, [one for one in apps if one is not app])) for app in apps]
    with gr.Blocks(title="ControlLoop", analytics_enabled=False, delete_cache=CACHE) as site:
        gr.HTML(results.home(apps, TEST_IMAGES), elem_classes="cl-header")
    for app, page in pages:
        with site.route(
            app.title.partition(" (")[0], f"/{app.name}"
        ):  # short, so that all fit in one row
            page.render()
    return site
