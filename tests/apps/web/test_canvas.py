"""What a canvas's record may hold when a program made it: uploaded layers, or a sentence comes."""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import apps
from apps.web.jobs import request
from apps.web.jobs.request import MOST_LAYERS, given_drawing
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.errors import BadInput

FILE = {"meta": {"_type": "gradio.FileData"}}
Take = Callable[[Any], dict[str, Any]]


def _png(picture: Image.Image) -> bytes:
    memory = io.BytesIO()
    picture.save(memory, "PNG")
    return memory.getvalue()


def _layer() -> np.ndarray:
    """A thick black stroke with a soft rim, on nothing."""
    layer = np.zeros((64, 96, 4), np.uint8)
    layer[20:28, 10:80, 3] = 255
    layer[28:30, 10:80, 3] = 20
    return layer


@pytest.fixture(scope="module")
def server(suite: Suite) -> Iterator[tuple[str, int]]:
    """The address of a page that is drawn in, and its number for taking the drawing."""
    from apps.web.site import build_app

    condition = next(one for one in apps.conditions() if one.input == "canvas")
    page = build_app(condition, suite)
    number = next(key for key, fn in page.fns.items() if fn.name == "_take_drawing")
    options = argparse.Namespace(host=None, port=None, mcp=False)
    yield launch(page, Environment(max_queue=4, output=None), options, block=False), number
    page.close(verbose=False)


@pytest.fixture
def take(server: tuple[str, int]) -> Take:
    """Send a canvas's record to the event; returns what the event ends with."""
    address, number = server

    def call(record: Any) -> dict[str, Any]:
        body = {"data": [record], "fn_index": number, "session_hash": "test"}
        httpx.post(f"{address}gradio_api/queue/join", json=body).raise_for_status()
        told = httpx.get(f"{address}gradio_api/queue/data?session_hash=test", timeout=60).text
        events = [json.loads(line[5:]) for line in told.splitlines() if line.startswith("data:")]
        return next(event for event in events if event["msg"] == "process_completed")

    return call


@pytest.fixture
def drawing_of(server: tuple[str, int]) -> Callable[[bytes], dict[str, Any]]:
    """Upload a file, and return the record of a canvas whose layer it is."""

    def upload(data: bytes) -> dict[str, Any]:
        files = {"files": ("layer_0.png", data)}
        (path,) = httpx.post(f"{server[0]}gradio_api/upload", files=files).json()
        return {"background": None, "layers": [{"path": path} | FILE], "composite": None}

    return upload


def test_a_drawing_is_taken_as_black_on_white(take: Take, drawing_of: Any) -> None:
    layer = _layer()
    done = take(drawing_of(_png(Image.fromarray(layer))))
    assert done["success"], done
    with Image.open(done["output"]["data"][0]["path"]) as taken:
        paper = np.asarray(taken.convert("RGB"))
    assert np.array_equal(paper[:, :, 0], np.where(layer[:, :, 3] == 255, 0, 255))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"hello", "not an image we can read"),
        (_png(Image.new("1", (12_000, 10_000))), "million pixels"),
        (_png(Image.new("RGBA", (64, 64))), "draw something first"),
    ],
    ids=["text", "bomb", "blank"],
)
def test_what_is_no_drawing_is_one_sentence(
    take: Take, drawing_of: Any, data: bytes, sentence: str
) -> None:
    done = take(drawing_of(data))
    assert not done["success"] and sentence in done["output"]["error"]


@pytest.mark.parametrize("record", [None, {"background": None, "layers": [], "composite": None}])
def test_no_layer_is_an_empty_canvas(take: Take, record: Any) -> None:
    assert "draw something first" in take(record)["output"]["error"]


@pytest.mark.parametrize("told", [FILE, {}, {"meta": {"_type": "x"}}], ids=["file", "bare", "x"])
def test_a_file_of_the_server_is_no_drawing(take: Take, tmp_path: Path, told: Any) -> None:
    secret = tmp_path / "private.png"
    Image.fromarray(_layer()).save(secret)
    record = {"background": None, "layers": [{"path": str(secret)} | told], "composite": None}
    done = take(record)
    assert not done["success"] and not done["output"].get("data")
    with pytest.raises(BadInput, match="not an upload"):  # whatever Gradio lets through
        given_drawing(record)


@pytest.mark.parametrize("layers", [[None], [5], [{}], [{"path": None}], [{"path": ["x"]}]])
def test_a_layer_that_names_no_file_is_one_sentence(layers: Any) -> None:
    with pytest.raises(BadInput, match="not an upload"):
        given_drawing({"layers": layers})


@pytest.mark.parametrize("layers", ["x", 5, {"path": "x"}])
def test_what_are_no_layers_is_an_empty_canvas(layers: Any) -> None:
    with pytest.raises(BadInput, match="draw something first"):
        given_drawing({"layers": layers})


def test_layers_that_do_not_fit_are_one_sentence(
    drawing_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (
        drawing_of(_png(Image.new("RGB", (side, 64))))["layers"][0] for side in (64, 96)
    )
    given_drawing({"layers": [small] * MOST_LAYERS})
    with pytest.raises(BadInput, match="differ in size"):
        given_drawing({"layers": [small, large]})
    monkeypatch.setattr(request, "MAX_PIXELS", 3 * 64 * 64)
    given_drawing({"layers": [small] * 3})
    with pytest.raises(BadInput, match="million pixels; please shrink it"):  # all together
        given_drawing({"layers": [small] * 4})
    with pytest.raises(BadInput, match=f"at most {MOST_LAYERS} layers"):
        given_drawing({"layers": [small] * (MOST_LAYERS + 1)})
