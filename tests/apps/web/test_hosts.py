"""The names that a server answers to."""

import argparse

import gradio as gr
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.web.hosts import answered_names, is_allowed, read_hosts
from apps.web.serve import Environment, launch

NAMES = ("pictures.example.org", "*.example.net")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("pictures.example.org", True),
        ("Pictures.Example.ORG:8080", True),
        ("pictures.example.org.", True),
        ("a.example.net", True),
        ("example.net", False),
        ("evil-example.net", False),
        ("pictures.example.org.evil.com", False),
        ("evil.com", False),
        ("localhost:7860", True),
        ("127.0.0.1:7860", True),
        ("[::1]:7860", True),
        ("10.1.2.3", True),
        ("127.0.0.1.evil.com", False),
    ],
)
def test_a_name_is_allowed_only_if_it_is_listed(host: str, allowed: bool) -> None:
    assert is_allowed(host, NAMES) is allowed


@given(st.text(max_size=30))
def test_no_other_text_is_taken_for_a_name(host: str) -> None:
    assert not is_allowed(f"x{host}.evil.com", NAMES)


def test_names_are_read() -> None:
    assert read_hosts(" A.example.org,,*.b.net ") == ("a.example.org", "*.b.net")
    assert read_hosts("") == ()
    assert Environment.read({"CONTROLLOOP_ALLOWED_HOSTS": "a.org"}).hosts == ("a.org",)


@pytest.mark.parametrize(
    ("listed", "listens_on", "answered"),
    [
        ((), "127.0.0.1", ()),
        ((), "127.1.2.3", ()),
        ((), "localhost", ()),
        ((), "[::1]", ()),
        ((), "0.0.0.0", None),
        ((), "::", None),
        ((), "10.1.2.3", None),
        ((), "pictures.example.org", None),
        ((), "", None),  # another server serves the pages, and it is not known where
        (NAMES, "127.0.0.1", NAMES),
        (NAMES, "", NAMES),
    ],
)
def test_which_names_are_answered(
    listed: tuple[str, ...], listens_on: str, answered: tuple[str, ...] | None
) -> None:
    assert answered_names(listed, listens_on) == answered


@pytest.mark.parametrize("text", ["a.org:80", "http://a.org", "*", "a b", "*.*.org"])
def test_what_is_no_name_stops_the_start(text: str) -> None:
    with pytest.raises(SystemExit, match=r"^CONTROLLOOP_ALLOWED_HOSTS has "):
        Environment.read({"CONTROLLOOP_ALLOWED_HOSTS": text})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listens_on", "hosts", "status"),
    [(None, (), 403), ("0.0.0.0", (), 200), (None, NAMES, 403), ("0.0.0.0", NAMES, 403)],
)
def test_another_name_is_refused_on_this_machine_alone_and_where_names_are_listed(
    listens_on: str | None, hosts: tuple[str, ...], status: int
) -> None:
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Textbox(label="Nothing")
    environment = Environment(max_queue=1, output=None, hosts=hosts)
    options = argparse.Namespace(host=listens_on, port=None, mcp=False)
    address = launch(page, environment, options, block=False)
    address = address.replace("0.0.0.0", "127.0.0.1")
    try:
        for path in ("", "gradio_api/info", "healthz"):
            answer = httpx.get(f"{address}{path}", headers={"host": "evil.com"}, trust_env=False)
            assert answer.status_code == status
            assert httpx.get(f"{address}{path}", trust_env=False).status_code == 200
        if status == 403:
            assert "does not answer as 'evil.com'" in answer.text
        if hosts:
            known = {"host": "pictures.example.org"}
            assert httpx.get(address, headers=known, trust_env=False).status_code == 200
    finally:
        page.close(verbose=False)
