"""An app that is no condition: it has a page and an endpoint of its own making."""

from dataclasses import dataclass

from core.condition import InputKind


@dataclass(frozen=True)
class Tool:
    """One tool's facts; data only, as a Condition is."""

    name: str
    title: str
    blurb: str
    page: str
    """The module in apps/web/pages whose build_page(tool, suite, send_to) makes the page and
    publishes `/<name>`; by its name, since it loads Gradio, and `--list` and `--help` do without.
    `send_to` are the other apps of the site that take a result."""
    examples: tuple[str, ...] = ()
    """Files in test_imgs/."""
    input: InputKind = "photo"
    takes_results: bool = False
    """Whether its page takes another app's result from its address, as a condition's does."""
