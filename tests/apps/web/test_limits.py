"""What one request, one visitor and all together may take, and how a refusal reads."""

import argparse
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from fastapi import Request
from gradio.helpers import special_args
from PIL import Image

import apps
from apps.web.jobs.live import Live
from apps.web.jobs.request import new_job
from apps.web.jobs.several import SLOT_FIELDS, SLOTS, new_several_job
from apps.web.jobs.sweep import new_sweep
from apps.web.limits import RequestLimits, Visits
from apps.web.pages.runs import CurrentJob
from apps.web.pages.visitors import visitor_of
from apps.web.pages.widgets import runs_at_once
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.errors import BadInput, Busy
from core.params import settings_of
from tests.apps.web.conftest import UPLOADS

README = Path(__file__).resolve().parents[3] / "apps" / "README.md"
FIELDS = dataclasses.fields(RequestLimits)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "99999999999"])
def test_a_malformed_limit_ends_the_start_by_its_name(field: dataclasses.Field, value: str) -> None:
    name = field.metadata["variable"]
    with pytest.raises(SystemExit, match=f"^{name} is '{value}'; it must be a whole number from 1"):
        Environment.read({name: value})
    read = RequestLimits.read({name: "7"})
    assert getattr(read, field.name) == 7
    assert dataclasses.replace(read, **{field.name: field.default}) == RequestLimits()


def test_every_limit_stands_in_the_page_for_operators() -> None:
    """With the value that it has where nothing is set."""
    rows = dict(
        re.findall(r"^\| `(CONTROLLOOP_\w+)` \| (\d*) \|", README.read_text(), re.MULTILINE)
    )
    for field in FIELDS:
        assert rows[field.metadata["variable"]] == str(field.default)


@pytest.fixture
def limited(suite: Suite) -> Suite:
    """A suite that makes two million pixels times steps times images at most."""
    return Suite(suite.store, "tiny", limits=RequestLimits(max_work=2))


@pytest.fixture
def picture() -> dict[str, str]:
    path = Path(UPLOADS, "limits.png")
    Image.fromarray(np.full((64, 128, 3), 90, np.uint8)).save(path)
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("settings", "millions"),
    [
        ({"num_samples": 7}, 0),
        ({"num_samples": 12}, 4),
        ({"num_samples": 2, "steps": 15}, 4),
        ({"num_samples": 2, "steps": 15, "denoising_strength": 0.5}, 0),
        ({"num_samples": 2, "image_resolution": 768}, 5),
    ],
)
def test_a_request_that_takes_too_much_is_refused_at_once(
    limited: Suite, picture: dict[str, str], settings: dict[str, float], millions: int
) -> None:
    """At 512 x 256 pixels and two steps an image is 0.26 million."""
    canny = apps.find("canny2image")
    usual = {**limited.defaults("tiny"), "image_resolution": 256, "steps": 2}
    params = {name: one.default for name, one in settings_of(canny.annotator.params).items()}
    given = {**usual, **params, "preprocessor": "", "image": picture, "mask": None, **settings}
    slots = {f"{name}_{slot}": None for slot in SLOTS for name in SLOT_FIELDS}
    values = {f"{name}_1": value for name, value in given.items() if name in SLOT_FIELDS}
    several = {**given, **slots, **values, "control_1": "canny2image"}
    for ask in (lambda: new_job(canny, limited, given), lambda: new_several_job(limited, several)):
        if millions:
            with pytest.raises(
                BadInput, match=rf"asks for {millions} million .* at most 2 million"
            ):
                ask()
        else:
            assert ask().request.work <= 2e6


def test_all_cells_of_a_sweep_count(limited: Suite, picture: dict[str, str]) -> None:
    usual = {**limited.defaults("tiny"), "image_resolution": 256, "steps": 2, "params": {}}
    given = {**usual, "image": picture, "preprocessor": "", "condition": "canny2image"}
    given |= {"x_axis": "seed", "y_axis": "", "y_values": ""}
    assert new_sweep(limited, {**given, "x_values": "1, 2, 3, 4, 5"}).shape == (5, 1)
    with pytest.raises(BadInput, match="asks for 3 million"):
        new_sweep(limited, {**given, "x_values": ", ".join(map(str, range(10)))})


def request_from(host: str, **scope: object) -> Request:
    return Request({"type": "http", "client": (host, 1), "headers": [], **scope})


@pytest.mark.parametrize(
    ("host", "visitor"),
    [
        ("127.0.0.1", ""),
        ("::1", ""),
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("not an address", "not an address"),
    ],
)
def test_visitors_are_told_apart_by_their_address(host: str, visitor: str) -> None:
    assert visitor_of(request_from(host), None) == visitor
    assert visitor_of(request_from(host), "ada") == "user ada"
    session = {"oauth_info": {"userinfo": {"preferred_username": "bob"}}}
    assert visitor_of(request_from(host, session=session), None) == "user bob"


def test_past_the_queue_a_visitor_has_no_more_either() -> None:
    """As with live pictures; whoever leaves makes room, and nothing is remembered."""
    visits = Visits(2)
    with visits.one_of("a"), visits.one_of("a"), visits.one_of("b"), visits.one_of(""):
        with (
            pytest.raises(Busy, match=r"^One visitor may have 2 live pictures"),
            visits.one_of("a"),
        ):
            pass
        with visits.one_of(""), visits.one_of(""), visits.one_of("b"):
            pass
    with visits.one_of("a"):
        assert dict(visits._now) == {"a": 1}


def test_a_live_picture_is_told_who_asks(suite: Suite, page_of: Callable[[str], Any]) -> None:
    """Gradio gives the request to the handler by its annotation."""
    page = page_of("scribble2image_interactive")
    (function,) = [one for one in page.fns.values() if one.name == "_draw_live"]
    request = gr.Request(request_from("203.0.113.7"), username="ada")
    given, *_ = special_args(function.fn, [CurrentJob(), Live()], request)
    assert given[0] is request and len(given) == 3


@pytest.fixture
def busy() -> Iterator[tuple[httpx.Client, threading.Event]]:
    """A page with a run that waits for the event, where a visitor may have two."""
    go_on = threading.Event()
    with gr.Blocks(analytics_enabled=False) as page:
        text = gr.Textbox()
        button = gr.Button()
        button.click(lambda _: [go_on.wait(60)][1:], [text], api_name="run", **runs_at_once(1))
        button.click(lambda text: text, [text], [text], api_name="small")
    options = argparse.Namespace(host=None, port=None, mcp=False)
    environment = Environment(max_queue=6, output=None, requests=RequestLimits(max_per_visitor=2))
    address = launch(page, environment, options, block=False)
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
        yield client, go_on
        go_on.set()
    page.close(verbose=False)


def test_one_visitor_leaves_places_for_others(
    busy: tuple[httpx.Client, threading.Event],
) -> None:
    client, go_on = busy

    def ask(host: str, name: str = "run") -> httpx.Response:
        headers = {"X-Forwarded-For": host} if host else {}
        return client.post(f"gradio_api/call/{name}", json={"data": ["x"]}, headers=headers)

    answers = [ask("203.0.113.7") for _ in range(4)]
    assert [one.status_code for one in answers] == [200, 200, 429, 429]
    assert answers[2].json()["detail"] == (
        "You have 2 requests here already, and one visitor may have 2: please try again when one "
        "is done."
    )
    assert ask("203.0.113.7", "small").status_code == 200, "nobody waits for what is small"
    assert [ask("203.0.113.8").status_code for _ in range(2)] == [200, 200]
    assert [ask("").status_code for _ in range(3)] == [200] * 3, "this machine's own"
    assert ask("203.0.113.9").status_code == 503, "all places are taken"
    go_on.set()
    until = time.monotonic() + 30
    while (answer := ask("203.0.113.7")).status_code != 200:
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)


def test_no_call_passes_by_the_queue(busy: tuple[httpx.Client, threading.Event]) -> None:
    client, _ = busy
    for path in ("gradio_api/run/run", "gradio_api/api/run"):
        assert client.post(path, json={"data": ["x"]}).status_code == 404
