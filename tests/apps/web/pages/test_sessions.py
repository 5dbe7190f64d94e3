"""A visitor's session is small, its own, and dropped when it is old."""

import argparse
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta

import gradio as gr
import pytest
from gradio_client import Client

from apps.web.pages import sessions
from apps.web.pages.sessions import MOST_SESSIONS, Session, drop_old
from apps.web.serve import Environment, launch


@pytest.fixture
def page() -> Iterator[gr.Blocks]:
    """A served page that counts each visitor's presses, and shows them in a box."""
    with gr.Blocks(analytics_enabled=False) as page:
        count, shown = gr.State(0), gr.Number(label="Presses")
        gr.Button().click(lambda n: (n + 1, n + 1), count, [count, shown], api_name="press")
    options = argparse.Namespace(host=None, port=None, mcp=False)
    launch(page, Environment(max_queue=4, output=None), options, block=False)
    yield page
    page.close(verbose=False)


def _visit(page: gr.Blocks) -> Client:
    return Client(page.local_url, verbose=False)


@pytest.mark.slow
def test_each_visitor_has_a_small_session_of_their_own(page: gr.Blocks) -> None:
    first, second = _visit(page), _visit(page)
    presses = [one.predict(api_name="/press") for one in (first, first, second)]
    assert presses == [1, 2, 1]
    assert page.state_holder.capacity == MOST_SESSIONS
    held = list(page.state_holder.session_data.values())
    assert len(held) == 2
    for session in held:
        assert isinstance(session, Session)
        assert len(session.config_values) <= 1, "that of the gr.State at most"


def test_a_visitor_costs_what_was_changed_for_them_and_not_the_site() -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        boxes = [gr.Textbox() for _ in range(500)]
        for box in boxes:
            box.change(lambda text: text, box, box)
    changed, other = Session(page), Session(page)
    mine = gr.Textbox(label="Mine", render=False)
    changed[boxes[3]._id] = mine
    assert changed[boxes[3]._id] is mine and changed[boxes[4]._id] is boxes[4]
    assert other[boxes[3]._id] is boxes[3] is page.blocks[boxes[3]._id]
    assert list(other.blocks_config.fns.values()) == list(page.fns.values())
    tracemalloc.start()
    held = [Session(page) for _ in range(20)]
    each = tracemalloc.get_traced_memory()[0] / len(held)
    tracemalloc.stop()
    assert each < 10_000, "bytes; the tables of the page alone would be more than three times that"


@pytest.mark.slow
def test_old_sessions_are_dropped_and_others_stay(
    page: gr.Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, leaves = _visit(page), _visit(page)
    for one in (stays, leaves):
        one.predict(api_name="/press")
    held = page.state_holder.session_data
    held[leaves.session_hash].is_closed = True  # as Gradio sets it some time after
    drop_old(page)
    assert len(held) == 2, "it may come back"
    monkeypatch.setattr(sessions, "KEPT_CLOSED", timedelta())
    drop_old(page)
    assert list(held) == [stays.session_hash]
    assert stays.predict(api_name="/press") == 2
    assert leaves.predict(api_name="/press") == 1, "it begins anew"
    monkeypatch.setattr(sessions, "KEPT_UNUSED", timedelta())
    drop_old(page)
    assert not held and not page.state_holder.time_last_used
