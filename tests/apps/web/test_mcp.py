"""The apps as MCP tools: their names, their arguments and what a model gets to see."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from mcp import ClientSession, types
from mcp.client.streamable_http import streamable_http_client

import apps
from annotators import find_annotator
from apps.web.pages.mcp_server import ResultServer
from apps.web.site import build_site
from apps.web.suite import Suite
from core.images import read_image
from core.metadata import read_settings
from models.catalog.paths import MODELS
from models.store import Store
from tests.apps.web.conftest import PATIENCE_S

# It needs the whole site.
pytestmark = pytest.mark.slow

PHOTO = Path(__file__).resolve().parents[3] / "test_imgs" / "coffee.jpg"
PICTURE = "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()


async def _ignore(*_: Any) -> None:
    pass


def _tools(address: str) -> list[types.Tool]:
    return _in_session(address, lambda session: session.list_tools()).tools


def _call(address: str, tool: str, progress: Any = None, **given: Any) -> types.CallToolResult:
    given = {"image": PICTURE, "steps": 1} | given
    if tool == "annotator":
        del given["steps"]
    return _in_session(
        address, lambda session: session.call_tool(tool, given, progress_callback=progress)
    )


def _in_session(address: str, use: Any) -> Any:
    async def do() -> Any:
        async with (
            streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await use(session)

    return asyncio.run(asyncio.wait_for(do(), PATIENCE_S))


def test_a_tool_has_the_name_of_its_endpoint(tmp_path: Path) -> None:
    """Gradio names tools after Python functions; those that compare models are there too."""
    for name in ("diorama", "diorama.toml"):
        (tmp_path / name).symlink_to(MODELS / name)
    card = 'title = "Twin"\nblurb = "The same."\nlicence = "none"\nbase_of = "diorama"\n'
    (tmp_path / "twin.toml").write_text(card, encoding="utf-8")
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "controlnet").symlink_to(MODELS / "diorama" / "controlnet")
    names = ("canny2image", "depth2image", "multi2image", "annotator")
    site = build_site([apps.find(name) for name in names], Suite(Store("cpu", "float32", tmp_path)))
    tools = ResultServer(site).tool_to_endpoint
    assert tools == {endpoint.removeprefix("/"): endpoint for endpoint in tools.values()}
    compared = {f"{name}_compare" for name in names if name != "annotator"}
    assert tools.keys() == {*names, *compared}


def test_every_app_is_a_tool_with_a_schema_of_its_arguments(address: str) -> None:
    tools = {tool.name: tool for tool in _tools(address)}
    assert sorted(tools) == apps.names()
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        assert tool.inputSchema["required"] == ["image"]
        for argument in tool.inputSchema["properties"].values():
            assert argument["description"] and "e+" not in argument["description"]
    arguments = tools["canny2image"].inputSchema["properties"]
    assert "1 to 100" in arguments["steps"]["description"]
    assert "-1 to 4294967295" in arguments["seed"]["description"]


@pytest.mark.parametrize("progress", [None, _ignore], ids=["no progress", "progress"])
def test_a_model_sees_every_picture_and_the_report(address: str, progress: Any) -> None:
    result = _call(address, "canny2image", progress, num_samples=2, seed=5, prompt="a ball")
    pictures = [part for part in result.content if part.type == "image"]
    assert {part.mimeType for part in pictures} == {"image/png"}
    control_map, first, second, *found = (base64.b64decode(part.data) for part in pictures)
    assert len(found) == 2
    for data in (control_map, *found):
        assert {*np.unique(read_image(data)[0])} <= {0, 255}
    assert [read_settings(data)[0]["seed"] for data in (first, second)] == [5, 6]
    report = json.loads(result.content[-1].text)
    assert report == result.structuredContent and report["seeds"] == [5, 6]
    addresses = [part.text for part in result.content if part.type == "text"][:-1]
    assert len(addresses) == len(pictures) and all("http://" in one for one in addresses)


@pytest.mark.parametrize(
    ("tool", "given", "pictures"),
    [
        ("annotator", {"names": ["canny: Canny", "scribble: Drawing"]}, 2),
        # Control maps, the image, and its maps; the second control's settings are an object.
        (
            "multi2image",
            {"control_1": "canny2image", "control_2": "canny2image",
             "params_2": {"low_threshold": 250, "high_threshold": 255}},
            5,
        ),
        # The grid, and its pictures.
        ("sweep", {"x_axis": "strength", "x_values": "0, 1", "prompt": "a ball"}, 3),
    ],
)  # fmt: skip
def test_the_tools_with_pages_of_their_own(
    address: str, tool: str, given: dict[str, Any], pictures: int
) -> None:
    result = _call(address, tool, **given)
    assert not result.isError, result.content
    assert [part.type for part in result.content].count("image") == pictures
    assert json.loads(result.content[-1].text) == result.structuredContent


def test_a_result_is_the_next_calls_picture(address: str) -> None:
    first = _call(address, "annotator", names=["canny: Canny"])
    url = first.content[1].text.removeprefix("Image URL: ")
    second = _call(address, "annotator", names=["canny: Canny"], image=url)
    assert not second.isError, second.content
    canny = find_annotator("canny")
    seen = read_image(base64.b64decode(first.content[0].data))[0]
    drawn = read_image(base64.b64decode(second.content[0].data))[0]
    assert np.array_equal(drawn, canny.preprocessors[0].draw(seen, canny.params()))


def test_a_photograph_of_several_megabytes_can_be_sent(address: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), np.uint8)
    data = cv2.imencode(".png", noise)[1].tobytes()
    assert len(data) > 5 * 2**20
    picture = "data:image/png;base64," + base64.b64encode(data).decode()
    result = _call(address, "annotator", names=["canny: Canny"], image=picture)
    assert not result.isError, result.content


@pytest.mark.parametrize("progress", [None, _ignore], ids=["no progress", "progress"])
def test_a_mistake_is_a_sentence(address: str, progress: Any) -> None:
    result = _call(address, "canny2image", progress, prompt="<lora:nowhere:1>")
    assert result.isError and result.structuredContent is None
    (part,) = result.content
    assert "<lora:nowhere:1>" in part.text and part.text.endswith(".")
