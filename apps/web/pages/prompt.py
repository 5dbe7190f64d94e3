"""What stands under a page's prompt: its tokens counted, unknown words named, known ones on offer.

All of it happens in the browser (html/components/prompt.js), which asks here once for a model's
words and for its tokenizer's merges.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from apps.web.suite import Suite
from core.errors import BadInput
from models.text import merges_in

COMPONENTS = Path(__file__).resolve().parents[1] / "html" / "components"
TEMPLATE = """
<p data-part="tokens"></p>
<p data-part="unknown" role="status"></p>
<details data-part="words"{hidden}>
  <summary data-part="title"></summary>
  <div data-part="groups"></div>
</details>
"""
TOLD = """(prompt, added, model) => {
  window.clPrompt = { prompt, added, model };
  window.clShowPrompt?.();
}"""
"""Hands the prompt to html/components/prompt.js, without the server."""


def place_help(suite: Suite) -> gr.HTML:
    """Place it in the open page."""

    def prompt_facts(model: Any) -> dict[str, Any]:
        """Return a model's title, and the words it knows by group; nothing for an unknown one."""
        try:
            card = suite.card(model)
        except BadInput:
            return {}
        return {"title": card.title, "words": {name: list(card.words[name]) for name in card.words}}

    def token_merges(model: Any) -> list[str]:
        """Return the merges of a model's tokenizer, "a b" each; nothing if it is not here."""
        try:
            return merges_in(suite.card(model).base_folder / "tokenizer")
        except BadInput:
            return []

    return gr.HTML(
        # Its place is kept from the start, so that nothing jumps when its words arrive.
        html_template=TEMPLATE.format(hidden="" if suite.card(suite.model).words else " hidden"),
        css_template=(COMPONENTS / "prompt.css").read_text(encoding="utf-8"),
        js_on_load=(COMPONENTS / "prompt.js").read_text(encoding="utf-8"),
        server_functions=[prompt_facts, token_merges],
        apply_default_css=False,
        elem_id="prompt_help",
    )


def wire_help(blocks: gr.Blocks, fields: Mapping[str, gr.components.Component]) -> None:
    """Show it for the prompt that a run would read, whenever that changes."""
    read: list[Any] = [fields[name] for name in ("prompt", "added_prompt", "model")]
    gr.on([blocks.load, *(field.change for field in read)], None, read, None, js=TOLD)
