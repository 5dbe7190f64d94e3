"""Endpoints called by hand, with curl's means: values left out, data URLs, errors, progress."""

import asyncio
import base64
import errno
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apps.web import files
from apps.web.jobs.job import Job
from apps.web.pages import calls
from apps.web.pages.widgets import plain_errors
from core.errors import BadInput
from core.images import read_image
from tests.apps.web.conftest import PATIENCE_S

PHOTO = Path(__file__).resolve().parents[3] / "test_imgs" / "coffee.jpg"
FILE_DATA = {"_type": "gradio.FileData"}

Events = list[tuple[str, Any]]


def _answer(address: str, endpoint: str, body: dict[str, Any], form: str = "call") -> Events:
    """Start a call and return its events: each one's name and data."""
    started = httpx.post(f"{address}gradio_api/{form}/{endpoint}", json=body, timeout=PATIENCE_S)
    started.raise_for_status()
    number = started.json()["event_id"]
    told = httpx.get(f"{address}gradio_api/call/{endpoint}/{number}", timeout=PATIENCE_S)
    blocks = [block.split("\n") for block in told.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data[6:])) for name, data in blocks]


def _named(address: str, endpoint: str = "canny2image", **given: Any) -> Events:
    return _answer(address, endpoint, given, "call/v2")


def _result(events: Events) -> Any:
    name, data = events[-1]
    assert name == "complete", data
    return data


def _error(events: Events) -> str:
    name, data = events[-1]
    assert name == "error"
    return data["error"]


def _data_url(kind: str = "image/jpeg", data: bytes = PHOTO.read_bytes()) -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def upload(address: str) -> dict[str, str]:
    with PHOTO.open("rb") as file:
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": file}).json()
    return {"path": path}


# What is left out


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["the red ball"], [None] * 19, [None] * 5 + [1]])
def test_a_value_that_is_missing_or_null_has_its_default(
    address: str, upload: dict[str, str], more: list[Any]
) -> None:
    *_, report = _result(_answer(address, "canny2image", {"data": [upload, *more]}))
    assert (report["model"], report["mode"], len(report["seeds"])) == ("tiny", "exact", 1)
    assert report["steps"] == (1 if 1 in more else 2), "2 is the model's default"


def test_the_maps_endpoint_has_defaults_too(address: str, upload: dict[str, str]) -> None:
    files, report = _result(_answer(address, "annotator", {"data": [upload, ["canny: Canny"]]}))
    assert report["maps"] == ["canny: Canny"]
    assert min(read_image(files[0]["path"])[0].shape[:2]) == 256


def test_no_value_at_all_is_one_sentence(address: str) -> None:
    assert "no picture yet" in _error(_answer(address, "canny2image", {"data": []}))


@pytest.mark.parametrize(
    ("call", "body", "status", "sentence"),
    [
        ("call/v2/canny2image", {"image": None, "stepz": 4}, 400, "`stepz` is not a valid"),
        ("call/v2/canny2image", {}, 400, "required argument: image"),
        ("call/v2/nowhere", {"image": None}, 404, "There is no endpoint /nowhere"),
        ("call/nowhere", {"data": []}, 404, "There is no endpoint /nowhere"),
    ],
)
def test_a_call_that_cannot_begin_is_told_why(
    address: str, call: str, body: dict[str, Any], status: int, sentence: str
) -> None:
    answer = httpx.post(f"{address}gradio_api/{call}", json=body)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["None", "Canny", "canny: Canny", "canny2image", "lcm", "fast", "other"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["path", "url", "meta", "low_threshold", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.slow
@example(app="canny2image", values={1: [{"path": "", "meta": None}]}, kept=2)
@settings(max_examples=150, deadline=None)
@given(
    app=st.sampled_from(["canny2image", "multi2image", "annotator"]),
    values=st.dictionaries(st.integers(0, 30), JSON, max_size=4),
    kept=st.integers(0, 40),
)
def test_whatever_is_sent_is_taken_or_refused_in_one_sentence(
    page_of: Callable[[str], Any], app: str, values: dict[int, Any], kept: int
) -> None:
    page = page_of(app)
    endpoint = next(fn for fn in page.fns.values() if fn.api_name == app)
    sent = [{"url": _data_url()}, *[None] * (len(endpoint.inputs) - 1)]
    for place, value in values.items():
        sent[place % len(sent)] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "run", lambda _: iter(()))
        patch.setattr("apps.web.pages.maps_page.draw_maps", lambda *_: iter(()))
        try:
            given_ = asyncio.run(page.preprocess_data(endpoint, sent[:kept], None))
            list(endpoint.fn(*given_))
        except gr.Error as error:
            assert error.message.endswith(".") and "\n" not in error.message
            assert "our side" not in error.message


# Pictures


@pytest.mark.slow
@pytest.mark.parametrize("form", ["record", "text", "lines", "path and url", "own address"])
def test_a_picture_may_be_sent_as_a_url(address: str, upload: dict[str, str], form: str) -> None:
    url = _data_url()
    image = {
        "record": {"url": url},
        "text": url,
        "lines": {"url": "\n".join(url[at : at + 76] for at in range(0, len(url), 76))},
        "own address": {"url": f"{address}gradio_api/file={upload['path']}"},
        "path and url": upload | {"url": "http://127.0.0.1:9/it-is-here-already.png"},
    }[form]
    files, _ = _result(_named(address, "annotator", image=image, names=["canny: Canny"]))
    wanted, _ = _result(_named(address, "annotator", image=upload, names=["canny: Canny"]))
    drawn, same = (read_image(found[0]["path"])[0] for found in (files, wanted))
    assert drawn.any() and np.array_equal(drawn, same)


def test_a_picture_that_others_send_too_is_never_half_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first call may still read it while the second one's is written."""
    write, seen = Path.write_bytes, []
    first = calls._received({"url": _data_url()}, gr.Image())

    def slowly(path: Path, data: bytes) -> int:
        write(path, data[:10])
        seen.append(Path(first["path"]).read_bytes())
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    assert calls._received({"url": _data_url()}, gr.Image()) == first
    assert seen == [PHOTO.read_bytes()]
    assert not list(Path(first["path"]).parent.glob("*.part"))


@pytest.mark.slow
def test_a_data_url_of_several_controls(address: str) -> None:
    events = _named(address, "multi2image", image=None, image_1={"url": _data_url()}, control_2="")
    maps, *_ = _result(events)
    assert len(maps) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ({"url": "data:image/png;base64,%%%"}, "base64 is damaged"),
        ({"url": "data:image/svg+xml,<svg/>"}, "must be \"data:image/png;base64,…\""),
        ({"url": _data_url("image/png", b"hello")}, "not an image we can read"),
        ({"url": "/gradio_api/file=x.png"}, "must be uploaded"),
        ({"url": f"http://127.0.0.1:7860/gradio_api/file={PHOTO}"}, "must be uploaded"),
        ({"path": 5}, "must be uploaded"),
        ({"path": "x.png", "meta": 5}, "must be uploaded"),
        ({"path": str(PHOTO)}, "not an upload"),
        ({"path": str(PHOTO), "meta": FILE_DATA}, "not an upload"),
        ({"orig_name": "x.png"}, "must be uploaded"),
        ([], "must be uploaded"),
    ],
)  # fmt: skip
def test_a_picture_that_is_not_there_is_one_sentence(
    address: str, image: Any, sentence: str
) -> None:
    assert sentence in _error(_named(address, image=image))


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """The address of a picture on another server of this machine, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PHOTO.read_bytes())

        do_HEAD = do_GET  # noqa: N815 - the same

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/coffee.jpg", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["url", "path", "text"])
def test_an_address_within_the_servers_network_is_not_fetched(
    address: str, elsewhere: tuple[str, list[str]], form: str
) -> None:
    url, asked = elsewhere
    image = {"url": {"url": url}, "path": {"path": url, "meta": FILE_DATA}, "text": url}[form]
    error = _error(_named(address, image=image))
    assert "must be uploaded" in error or "could not be fetched" in error
    assert asked == []


# Errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(errno.ENOSPC, 507, "The server's disk is full"), (errno.EIO, 500, "Internal Server Error")],
)
def test_an_upload_that_finds_no_room_is_told_why(
    address: str, monkeypatch: pytest.MonkeyPatch, number: int, status: int, told: str
) -> None:
    def full(**_: Any) -> None:
        raise OSError(number, "No space left on device", "/srv/secret")

    monkeypatch.setattr("gradio.route_utils.NamedTemporaryFile", full)
    sent = {"files": ("picture.jpg", PHOTO.read_bytes())}
    answer = httpx.post(f"{address}gradio_api/upload", files=sent, timeout=PATIENCE_S)
    assert answer.status_code == status
    assert answer.text.startswith(told) and "secret" not in answer.text


@pytest.mark.slow
def test_a_full_disk_is_told_after_the_images_were_made(
    address: str, upload: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "new_folder", full)
    assert "server's disk is full" in _error(_named(address, image=upload))


@pytest.mark.slow
def test_a_program_gets_plain_text_and_a_page_html(address: str, upload: dict[str, str]) -> None:
    told = _error(_named(address, image=upload, prompt="<lora:nowhere:1>"))
    assert "<lora:nowhere:1>" in told and "&lt;" not in told
    for as_html, shown in ((True, "&lt;b&gt; &amp;"), (False, "<b> &")):
        with pytest.raises(gr.Error) as error, plain_errors(as_html):
            raise BadInput("<b> &")
        assert error.value.message == shown


# Progress


@pytest.mark.slow
def test_what_a_run_does_is_told_while_it_runs(address: str, upload: dict[str, str]) -> None:
    events = _named(address, image=upload, steps=5, num_samples=2)
    told = [data for name, data in events if name == "generating"][:-1]  # the last is the result
    assert all(outputs[:3] == [None] * 3 for outputs in told)
    reports = [outputs[3] for outputs in told]
    steps = [(one["image"], one["step"]) for one in reports if one["stage"] == "sample"]
    # A slow reader gets only the newest, so not every step must be there.
    assert steps == sorted(steps) and {image for image, _ in steps} == {1, 2}
    assert max(step for _, step in steps) > 2
    assert {(one["steps"], one["images"]) for one in reports} == {(5, 2)}
    previews = [one["preview"] for one in reports if "preview" in one]
    data = base64.b64decode(previews[-1].removeprefix("data:image/png;base64,"))
    picture, _ = read_image(data)
    assert picture.std() > 0
    *_, report = _result(events)
    assert len(report["seeds"]) == 2 and "stage" not in report


def test_maps_are_told_one_by_one(address: str, upload: dict[str, str]) -> None:
    names = ["canny: Canny", "scribble: Drawing"]
    events = _named(address, "annotator", image=upload, names=names)
    told = [data[1] for name, data in events if name == "generating"][:-1]
    assert {one["map"]: (one["step"], one["steps"]) for one in told} == {
        names[0]: (0, 2),
        names[1]: (1, 2),
    }


@pytest.mark.slow
def test_gradio_client_sees_the_steps_and_gets_the_result(address: str) -> None:
    client = Client(address, verbose=False)
    job = client.submit(image=handle_file(PHOTO), steps=6, api_name="/canny2image")
    seen = set()
    while not job.done():
        time.sleep(0.005)
        for unit in job.status().progress_data or []:
            seen.add((unit.index, unit.length))
    client.close()
    assert seen and seen <= {(step, 6) for step in range(7)}
    control_map, images, found, report = job.result()
    assert Path(control_map).is_file() and len(images) == len(found) == len(report["seeds"]) == 1
    *running, last = job.outputs()
    assert last[3] == report and {outputs[3]["steps"] for outputs in running[:-1]} == {6}
