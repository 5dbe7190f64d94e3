"""What pages and endpoints share of Gradio: a setting's widget, the kinds of event, the errors."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from apps._cards import escape
from core.errors import SuiteError
from core.params import Bounds, Choice, Control, Text, Toggle

log = logging.getLogger(__name__)

ONE_AT_A_TIME = {"concurrency_id": "gpu", "concurrency_limit": 1}
"""The same for every run of every page: one queue for the device."""

AT_ONCE: dict[str, Any] = {"concurrency_limit": None}
"""An event that waits for nothing; with queue=False Gradio 6.31 would not show its errors."""

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
"""An event of the page alone, without Gradio's own progress curtain."""

MOST_SLIDER_STOPS = 10_000
"""A number with more values than this gets a box: nobody hits a seed with a slider."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn any failure into one sentence; a bug gets an id that finds it in the log."""
    try:
        yield
    except SuiteError as error:
        raise gr.Error(escape(str(error)), title="Not yet", print_exception=False) from None
    except gr.Error:
        raise
    except Exception:
        number = uuid.uuid4().hex[:8]
        log.exception("Error %s", number)
        raise gr.Error(
            f"Something went wrong on our side; the server's log has it under {number}.",
            print_exception=False,
        ) from None


def widget(control: Control, value: Any, **options: Any) -> gr.components.Component:
    """Return the widget that fits a setting."""
    options |= {"label": control.label, "info": control.help or None, "value": value}
    match control:
        case Bounds() if (control.high - control.low) / control.step > MOST_SLIDER_STOPS:
            return gr.Number(precision=0 if control.whole else None, step=control.step, **options)
        case Bounds():
            return gr.Slider(control.low, control.high, step=control.step, **options)
        case Choice():
            return gr.Radio(list(control.options), **options)
        case Toggle():
            return gr.Checkbox(**options)
        case Text():
            return gr.Textbox(max_length=control.max_length, **{"lines": 2, **options})
