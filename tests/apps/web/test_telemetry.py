"""What the server tells those who run it: lines of its log, metrics, and whether it is ready."""

import argparse
import io
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest

import apps
from apps.web import telemetry
from apps.web.jobs import errors
from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job
from apps.web.serve import Environment, _hindrance, _prepared, launch
from apps.web.suite import LOADING, READY, Suite
from core.errors import BadInput
from core.request import GenerationRequest, GenerationResult
from models.store import Store


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> telemetry.Counts:
    fresh = telemetry.Counts()
    for module in (telemetry, errors):
        monkeypatch.setattr(module, "COUNTS", fresh)
    return fresh


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the suite logs as JSON."""
    text, logger = io.StringIO(), logging.getLogger("apps")
    handler = telemetry.log_handler("json", text)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield text
    logger.setLevel(level)
    logger.removeHandler(handler)


class FakePipeline:
    """Makes nothing; fails as it is told, or is stopped before it begins."""

    def __init__(self, end: Exception | GenerationResult | None) -> None:
        self.end = end

    def fetch(self, *_: object, **__: object) -> bool:
        logging.getLogger("apps.test").info("fetching")
        return self.end is not None

    def generate(self, request: GenerationRequest, **_: object) -> GenerationResult | None:
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


REQUEST = GenerationRequest.single(
    apps.find("canny2image"), np.zeros((64, 64, 3), np.uint8), num_samples=2
)
RESULT = GenerationResult(
    images=(np.zeros((64, 64, 3), np.uint8),), controls=(), seeds=(1,),
    seconds={"map": 0.25, "sample": 2.0}, warnings=(), request=REQUEST, model="diorama",
    device="cpu", dtype="float32", width=64, height=64, hashes={}, cancelled=False,
)  # fmt: skip


def run(end: Exception | GenerationResult | None) -> None:
    pipeline: Any = FakePipeline(end)
    list(Job(pipeline, REQUEST).run())


def test_a_request_is_one_line_and_its_id_stands_in_all_of_its_lines(
    counts: telemetry.Counts, lines: io.StringIO
) -> None:
    run(RESULT)
    run(RESULT)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [one["message"].split()[0] for one in told] == ["fetching", "app=canny2image"] * 2
    assert told[0]["request"] == told[1]["request"] != told[2]["request"] == told[3]["request"]
    facts = told[1]
    assert (facts["outcome"], facts["images"], facts["asked"]) == ("done", 1, 2)
    assert facts["stages"] == {"map": 0.25, "sample": 2.0} and facts["seconds"] >= 0
    assert counts.requests == {("canny2image", "done"): 2} and counts.images == 2
    assert counts.stages == {"map": [2, 0.5], "sample": [2, 4.0]} and counts.at_work == 0


def test_a_bug_is_logged_with_its_request(counts: telemetry.Counts, lines: io.StringIO) -> None:
    with pytest.raises(KeyError) as caught:
        run(KeyError("ours"))
    sentence = sentence_of(caught.value)
    assert counts.requests == {("canny2image", "failed"): 1} and counts.errors == {"Bug": 1}
    facts = json.loads(lines.getvalue().splitlines()[1])
    assert facts["outcome"] == "failed" and facts["images"] == 0
    assert caught.value.__notes__ == [f"Request {facts['request']}"]
    assert "log has details" in sentence
    with pytest.raises(BadInput) as refused:
        run(BadInput("no"))
    assert sentence_of(refused.value) == "no" and counts.errors["BadInput"] == 1


def test_a_stopped_request_counts_as_that(counts: telemetry.Counts) -> None:
    run(None)
    assert counts.requests == {("canny2image", "stopped"): 1} and counts.at_work == 0


def test_a_line_is_json_whatever_it_says() -> None:
    text = io.StringIO()
    logger = logging.Logger("odd")
    logger.addHandler(telemetry.log_handler("json", text))
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logger.exception('quoted "so" and %s', "ü\n")
    (line,) = text.getvalue().splitlines()
    told = json.loads(line)
    assert told["message"] == 'quoted "so" and ü\n' and told["level"] == "ERROR"
    assert "ValueError: one" in told["traceback"] and told["request"] == "-"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_metrics_are_those_that_prometheus_reads(counts: telemetry.Counts, tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    run(RESULT)
    counts.count_error("Busy")
    port = free_port()
    server, thread = telemetry.serve_metrics(port, lambda: 3, [tmp_path])
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    server.shutdown()
    thread.join()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["controlloop_waiting",] == 3 and found["controlloop_images_total",] == 1
    assert found["controlloop_requests_total", "canny2image", "done"] == 1
    assert found["controlloop_errors_total", "Busy"] == 1
    assert found["controlloop_stage_seconds_sum", "sample"] == 2.0
    assert found["controlloop_disk_free_bytes", str(tmp_path)] > 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_metrics_without_their_library_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(telemetry.importlib, "import_module", missing)
    with pytest.raises(SystemExit, match=r"pip install -r requirements-metrics\.txt"):
        telemetry.serve_metrics(free_port(), lambda: 0, [])


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("CONTROLLOOP_LOG", "xml", "'xml'; it must be text or json"),
        ("CONTROLLOOP_METRICS_PORT", "99999", "it must be a whole number from 1 to 65535"),
    ],
)
def test_a_malformed_variable_ends_the_start(variable: str, value: str, told: str) -> None:
    with pytest.raises(SystemExit, match=f"^{variable} is {value!r}; .*|{told}"):
        Environment.read({variable: value})


def test_the_server_is_alive_before_it_is_ready() -> None:
    store = SimpleNamespace(safety_note=lambda: "")
    suite: Any = SimpleNamespace(hindrance=lambda: told[0], store=store)
    told = [LOADING]
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox()
    options = argparse.Namespace(host=None, port=None, mcp=False)
    environment = Environment(max_queue=2, output=None)
    address = launch(page, environment, options, block=False, suite=suite)
    try:
        with httpx.Client(base_url=address, trust_env=False) as client:
            assert client.get("healthz").status_code == 200
            answer = client.get("readyz")
            assert (answer.status_code, answer.text) == (503, LOADING)
            told[0] = ""
            assert client.get("readyz").status_code == 200
    finally:
        page.close(verbose=False)


def test_what_keeps_the_server_from_being_ready() -> None:
    environment, blocks = Environment(max_queue=2, output=None), SimpleNamespace(_queue=[1])
    ready: Any = blocks
    assert _hindrance(ready, environment, None) == ""
    blocks._queue.append(2)
    assert _hindrance(ready, environment, None) == "2 requests are waiting, as many as may."
    blocks.is_closing = True
    assert _hindrance(ready, environment, None) == "The server is stopping."
    suite = Suite(Store("cpu"), "diorama")
    assert suite.hindrance() == "", "its model loads on demand"
    for state in (LOADING, "it failed"):
        suite._note("diorama", state)
        assert suite.hindrance() == state
    suite._note("diorama", READY)
    assert suite.hindrance() == ""
    suite._estimating = True
    assert suite.hindrance() == LOADING


@pytest.mark.parametrize("note", ["", "These models are not checked: diorama."])
def test_the_log_says_at_the_start_what_is_not_checked(
    note: str, caplog: pytest.LogCaptureFixture
) -> None:
    suite: Any = SimpleNamespace(store=SimpleNamespace(safety_note=lambda: note))
    with caplog.at_level(logging.WARNING):
        _prepared(gr.Blocks(), Environment(max_queue=4, output=None), suite)
    assert [one for one in caplog.messages if "checked" in one] == [note] * bool(note)
