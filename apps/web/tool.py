"""An app that is not tied to one condition, such as the one that draws every map."""

from dataclasses import dataclass

from core.condition import InputKind


@dataclass(frozen=True)
class Tool:
    """One tool's facts; data only, like a Condition."""

    name: str
    title: str
    blurb: str
    page: str
    """The module in apps/web/pages whose place_page(tool, suite, send_to, blocks) places the page
    and its endpoint `/<name>`. A name, because importing it loads Gradio, which `--list` and
    `--help` do without. `send_to` are the apps of the site that take a result, this one first."""
    examples: tuple[str, ...] = ()
    """Files in test_imgs/."""
    input: InputKind = "photo"
    takes_results: bool = False
    """Whether its page takes another app's result, as a condition's does."""
