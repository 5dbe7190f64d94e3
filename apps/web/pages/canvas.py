"""The canvas: a Gradio component whose value is an edit, the vectors that a person has drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from apps.web import html
from apps.web.pages.widgets import PRIVATE
from core.condition import Editor
from core.request import SETTINGS

FOLDER = Path(html.__file__).parent / "canvas"
TEMPLATE = "<div data-canvas></div>"
"""Constant, like all of the component's code: text of a user in a template would be run."""
START = "openCanvas({{ element, props, trigger, watch }}, {});"
PUT_AWAY = """(value, before) => {
  const kept = value?.size ? value : before ?? null; // Gradio's empty value is ""
  const offered = { __type__: "update", visible: Boolean(kept) };
  return [{ __type__: "update", visible: false }, null, kept, offered];
}"""
"""In the browser: a server's answer could come after that of a click that opens the panel again."""
SHARED = ("core", "strokes", "surfaces")
"""The files that every editor stands on."""


class Canvas(gr.HTML):
    """Draws and changes vectors in the page. Its value is an edit as in core.condition.Editor.

    Events: `edit` when a stroke has ended, `live` when besides that a picture is asked for; neither
    while a stroke is drawn. Its property `scene`, a dict, is what lies under the drawing: "size"
    [width, height] for a value that is None, the URLs "photo", "drawn" (the map) and "trace",
    "shows", the value that the map shows, and "model", {"title", "classes"} as of its card.
    """

    def __init__(self, editor: Editor, title: str, can_follow: bool = False, **options: Any):
        """Make one; its label, by default that of an edit, is what restoring calls it."""
        names = dict.fromkeys((*SHARED, editor.name))
        files = [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in names]
        # In the script: an update of a component that is not on screen yet replaces all properties.
        # Their names are none of the arguments': Gradio takes a quoted name for that of an event.
        constants = {
            "kind": editor.name,
            "facts": dict(editor.facts),
            "heading": title,
            "canFollow": can_follow,
        }
        super().__init__(
            None,
            html_template=TEMPLATE,
            css_template=(FOLDER / "canvas.css").read_text(encoding="utf-8"),
            js_on_load="\n".join([*files, START.format(json.dumps(constants))]),
            apply_default_css=False,
            **{"label": SETTINGS["edit"].label, **options},
        )

    def postprocess(self, value: Any) -> Any:
        """Send an edit to the page as it is."""
        return value

    def api_info(self) -> dict[str, Any]:
        """Say what an endpoint takes."""
        return {
            "type": "object",
            "description": 'An edit: {"size": [width, height], …}; see "Edits" in apps/README.md',
            "additionalProperties": True,
        }

    def example_payload(self) -> Any:
        """Return an edit that says nothing."""
        return None

    def example_value(self) -> Any:
        """Return an edit that says nothing."""
        return None

    def get_block_name(self) -> str:
        """Return what Gradio's own page knows this as."""
        return "html"


def back_button(what: str) -> gr.Button:
    """Return the button that brings back what was drawn on the picture before."""
    return gr.Button(
        f"The {what} was put away: bring it back",
        size="sm",
        visible=False,
        elem_id=f"back-{what}",
    )


def put_away(
    canvas: Canvas, panel: gr.Column, back: gr.Button, *events: Callable[..., Any]
) -> gr.JSON:
    """On each of `events`, close a canvas's panel, take its value, and show the button `back`.

    Returns the component that holds the value which was taken last.
    """
    kept = gr.JSON(visible=False)
    outputs = [panel, canvas, kept, back]
    for event in events:
        event(None, [canvas, kept], outputs, js=PUT_AWAY, **PRIVATE)
    hide = "() => ({ __type__: 'update', visible: false })"
    back.click(None, None, [back], js=hide, **PRIVATE)
    return kept
