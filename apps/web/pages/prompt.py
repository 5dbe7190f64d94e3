"""What stands under a page's prompt: its tokens counted, words known and unknown, and styles.

All but the styles happens in the browser (html/components/prompt.js), which asks here once for a
model's words and for its tokenizer's merges.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from apps.web.html.results import escape
from apps.web.jobs.styles import NO_STYLE, restyled, what_it_adds
from apps.web.pages.widgets import PRIVATE, plain_errors
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
        elem_classes="cl-hint",
    )


def place_style(suite: Suite) -> tuple[gr.Dropdown, gr.HTML]:
    """Place the choice of a style in the open page, and what the chosen one adds.

    The choice is hidden for a model without styles.
    """
    choice, note = _styles(suite, suite.model, "")
    return (
        gr.Dropdown(**choice, label="Style", container=False, elem_id="style", interactive=True),
        gr.HTML(**note, elem_id="style_note", elem_classes="cl-hint"),
    )


def _styles(suite: Suite, model: object, chosen: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the properties of the choice of a style and of the note below it."""
    styles = suite.card(model).styles
    choices = [("Style: none", ""), *((f"Style: {name}", name) for name in styles)]
    note = what_it_adds(styles.get(chosen, NO_STYLE))
    return (
        {"choices": choices, "value": chosen, "visible": bool(styles)},
        {"value": f'<p class="cl-restored">{escape(note)}</p>', "visible": bool(note)},
    )


def wire_style(
    suite: Suite,
    placed: tuple[gr.Dropdown, gr.HTML],
    fields: Mapping[str, gr.components.Component],
) -> None:
    """Fill a chosen style's words into the prompts, in place of those of the one before."""
    style, note = placed
    texts: list[Any] = [fields[name] for name in ("prompt", "added_prompt", "negative_prompt")]
    # The style whose words are in the prompts. In the browser, as they are, and no gr.State: Gradio
    # sends the event of a choice twice, and also when the list closes without one.
    filled = gr.Textbox("", visible=False)

    def shown(model: object, chosen: str) -> tuple[gr.Dropdown, gr.HTML]:
        choice, told = _styles(suite, model, chosen)
        return gr.Dropdown(**choice), gr.HTML(**told)

    def fill(model: Any, chosen: Any, before: Any, *prompts: Any) -> tuple[Any, ...]:
        with plain_errors():
            if chosen == before:
                return (gr.skip(),) * (len(texts) + 3)
            styles = suite.card(model).styles
            old, new = (styles.get(str(name), NO_STYLE) for name in (before, chosen))
            prompt, added, negative = (str(text or "") for text in prompts)
            chosen = chosen if new is not NO_STYLE else ""
            made = restyled(prompt, added, negative, old, new)
            return *made, chosen, *shown(model, chosen)

    def change_model(model: Any) -> tuple[Any, ...]:
        """Offer another model's styles; what was filled in are the visitor's words from now on."""
        with plain_errors():
            return "", *shown(model, "")

    event: dict[str, Any] = {"preprocess": False, "queue": False, **PRIVATE}
    read = [fields["model"], style, filled, *texts]
    style.input(fill, read, [*texts, filled, style, note], **event)
    fields["model"].change(change_model, [fields["model"]], [filled, style, note], **event)


def wire_help(blocks: gr.Blocks, fields: Mapping[str, gr.components.Component]) -> None:
    """Show it for the prompt that a run would read, whenever that changes."""
    read: list[Any] = [fields[name] for name in ("prompt", "added_prompt", "model")]
    gr.on([blocks.load, *(field.change for field in read)], None, read, None, js=TOLD)
