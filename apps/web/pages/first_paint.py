"""What a page needs before Gradio's own scripts run.

Gradio adds `head` and `css_paths` when its application starts: too late for a style that keeps the
page from jumping while it loads, and for a listener that must come before Gradio's.
"""

from pathlib import Path
from typing import Any

import gradio.routes

HTML = Path(__file__).resolve().parents[1] / "html"


def install() -> None:
    """Put first.css and the scripts at the start of the HTML that Gradio sends; once is enough."""
    loader: Any = gradio.routes.templates.env.loader
    if getattr(loader, "has_first_paint", False):
        return
    as_gradio = loader.get_source
    added = _head()

    def get_source(environment: Any, template: str) -> tuple[str, str | None, Any]:
        source, *others = as_gradio(environment, template)
        return source.replace("<head>", f"<head>{added}", 1), *others

    loader.get_source = get_source
    loader.has_first_paint = True


def _head() -> str:
    scripts = "".join(
        f"<script>{file.read_text(encoding='utf-8')}</script>" for file in sorted(HTML.glob("*.js"))
    )
    style = (HTML / "first.css").read_text(encoding="utf-8")
    return f"{{% raw %}}<style>{style}</style>{scripts}{{% endraw %}}"  # no template of Jinja's
