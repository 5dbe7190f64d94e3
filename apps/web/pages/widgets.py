"""Gradio parts that pages and endpoints share: widgets, kinds of events, error messages."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from pydantic import Field

from apps.web.html import results
from apps.web.html.results import escape, example_names
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.request import for_browser, given_picture
from apps.web.suite import Suite
from core.errors import BadInput, SuiteError
from core.params import Bounds, Choice, Json, Setting, Text, Toggle
from core.request import SETTINGS

TEST_IMAGES = Path(__file__).resolve().parents[3] / "test_imgs"
PICTURES = TEST_IMAGES.parent / "pictures"
"""An example of each app, made by benchmarks.pictures."""

ONE_AT_A_TIME = {"concurrency_id": "every map", "concurrency_limit": 1}
"""For events that draw every map of a picture: they load many networks, of which two are kept."""

AT_ONCE: dict[str, Any] = {"concurrency_limit": None}
"""An event that does not wait; with queue=False, Gradio 6.31 would not show its errors."""

FEW_AT_ONCE: dict[str, Any] = {"concurrency_id": "pictures", "concurrency_limit": 4}
"""An event that decodes an upload, which may take a few hundred MB."""

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
"""An event that is not in the API, without Gradio's progress overlay."""

MOST_SLIDER_STOPS = 10_000
"""A number with more values than this gets a text box: no slider can hit a seed."""


def runs_at_once(runs: int) -> dict[str, Any]:
    """Return the options of an event that runs a job: at most `runs` of all pages at once.

    The pipeline batches or orders them on the device.
    """
    return {"concurrency_id": "runs", "concurrency_limit": runs}


@contextmanager
def plain_errors(as_html: bool = True) -> Iterator[None]:
    """Show any exception as one sentence; a bug is logged under an id that the sentence names.

    `as_html` for the events of a page, which shows the sentence as HTML; not for programs.
    """
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:  # noqa: BLE001 - shown to the user; a bug is logged
        title = "Not yet" if isinstance(error, SuiteError) else "Error"
        sentence = sentence_of(error)
        shown = escape(sentence) if as_html else sentence
        raise gr.Error(shown, title=title, print_exception=False) from None


class SentPicture(ImageData):
    """Gradio's record of a picture, with what an endpoint takes in its description."""

    path: str | None = Field(None, description="The path that an upload has returned")
    url: str | None = Field(
        None, description="Instead of a path: data:image/png;base64,…, as any type of picture"
    )


def picture_input(kind: str = "picture", visible: bool = True, **changes: Any) -> gr.Image:
    """Return the widget for an input picture."""
    options: dict[str, Any] = {
        "visible": visible,
        "label": "Input" if kind == "picture" else kind.capitalize(),
        "type": "filepath",
        "image_mode": None,
        "format": "png",
        "sources": ["upload", "clipboard", "webcam"],
        "height": 280,
        "elem_id": "image",
        "buttons": ["fullscreen"],
        "placeholder": f"Drop, paste or click to add a {kind}",
    }
    picture = gr.Image(**(options | changes))
    picture.data_model = SentPicture
    picture.upload(
        _look_at_upload, [picture], [picture], preprocess=False, **FEW_AT_ONCE, **PRIVATE
    )
    return picture


def _look_at_upload(record: object) -> Any:
    """Say at once, by its name, that a file is no picture; show what no browser can, as a PNG."""
    with plain_errors():
        try:
            given_picture(record)
            shown = for_browser(record)
        except BadInput as error:
            name = record.get("orig_name") if isinstance(record, dict) else None
            gr.Warning(escape(f"{name}: {error}" if name else str(error)), title="Not yet")
            return None
    return shown or gr.skip()


def example_strip(files: Sequence[Path], prompts: Sequence[str] = ()) -> gr.Dataset:
    """Return a row of clickable pictures; its event gets the index of the clicked one.

    Their names, for screen readers, are their `prompts`, or else those of the files.
    """
    names = [prompt or file.stem for file, prompt in zip_longest(files, prompts, fillvalue="")]
    with gr.Row(visible=bool(files)):
        strip = gr.Dataset(
            label="Examples",
            components=[gr.Image(visible=False, format="png")],
            samples=[[str(file)] for file in files],
            type="index",
            elem_classes="cl-examples",
        )
        gr.HTML(example_names(names), elem_classes="cl-example-names", padding=False)
    return strip


def run_and_stop(above: Callable[[], None] | None = None) -> tuple[gr.Button, gr.Button]:
    """Return the two buttons, one visible at a time, with a hint on their keys.

    `above` places what stays in sight with them.
    """
    with gr.Column(elem_classes="cl-foot") if above else nullcontext():
        if above:
            above()
        with gr.Row(elem_classes="cl-run"):
            run = gr.Button("Run", variant="primary", elem_id="run")
            stop = gr.Button("Stop", variant="stop", elem_id="stop", visible=False)
    gr.HTML(
        '<p class="cl-keys"><kbd>Ctrl</kbd> + <kbd>Enter</kbd> runs, <kbd>Esc</kbd> stops, '
        '<button type="button" data-cl="keys" aria-label="All keys"><kbd>?</kbd></button> '
        "shows all keys</p>",
        elem_classes="cl-hint",
    )
    return run, stop


def retention_note(suite: Suite) -> None:
    """Say how long the server keeps a visitor's pictures, and whether somebody else has them."""
    gr.HTML(results.retention(suite.kept_hours, suite.keep is not None), elem_classes="cl-hint")


def in_rows(names: Collection[str]) -> list[str]:
    """Return settings' names in the order of a page's rows."""
    rows = sorted(SETTINGS, key=lambda name: SETTINGS[name].order.row)
    return [name for name in rows if name in names]


def widget(setting: Setting, value: Any, **options: Any) -> gr.components.Component:
    """Return the widget for a setting."""
    options |= {"label": setting.label, "value": value}
    if not isinstance(setting, Json):
        options["info"] = setting.help or None
    match setting:
        case Bounds() if (setting.high - setting.low) / setting.step > MOST_SLIDER_STOPS:
            return gr.Number(precision=0 if setting.whole else None, step=setting.step, **options)
        case Bounds():
            return gr.Slider(setting.low, setting.high, step=setting.step, **options)
        case Choice():
            return gr.Radio(list(setting.options), **options)
        case Toggle():
            return gr.Checkbox(**options)
        case Json():
            found = gr.JSON(**options, visible=False)  # of programs; a page has a canvas
            # Gradio's own description is no JSON Schema, and MCP refuses the tool.
            found.api_info = lambda: {"type": "object"}
            return found
        case Text():
            return gr.Textbox(max_length=setting.max_length, **{"lines": 2, **options})
