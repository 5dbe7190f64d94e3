"""What a page needs before Gradio's own scripts run.

Gradio adds `head` and `css_paths` when its application starts: too late for a style that keeps the
page from jumping while it loads, for a listener that must come before Gradio's, and for a storage
where the browser forbids its own.
"""

from pathlib import Path
from typing import Any

import gradio.routes

HTML = Path(__file__).resolve().parents[1] / "html"
STORAGE = """
for (const name of ["localStorage", "sessionStorage"]) {
  try {
    window[name];
  } catch {
    const kept = new Map();
    const value = {
      getItem: (key) => kept.get(String(key)) ?? null,
      setItem: (key, text) => { kept.set(String(key), String(text)); },
      removeItem: (key) => { kept.delete(String(key)); },
      clear: () => { kept.clear(); },
      key: (at) => [...kept.keys()][at] ?? null,
      get length() { return kept.size; },
    };
    Object.defineProperty(window, name, { value });
  }
}
"""
"""In memory where the browser forbids to ask for its own, as within another site's page: there
gr.BrowserState fails, and most often nothing of a page is shown."""


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
    files = [file.read_text(encoding="utf-8") for file in sorted(HTML.glob("*.js"))]
    scripts = "".join(f"<script>{script}</script>" for script in (STORAGE, *files))
    style = (HTML / "first.css").read_text(encoding="utf-8")
    return f"{{% raw %}}<style>{style}</style>{scripts}{{% endraw %}}"  # no template of Jinja's
