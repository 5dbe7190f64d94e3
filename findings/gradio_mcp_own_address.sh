#!/usr/bin/env bash
# One would guess: the image URL in the result of a Gradio MCP tool can be given to the next tool of
# the same server, whose schema asks for "a http or https url to a file".
# On a server of one's own machine or network it cannot: Gradio fetches every URL, also one of its
# own files, and refuses addresses that are not public. The caller learns nothing of the reason.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'gradio[mcp]==6.31.0' pydantic==2.12.5 mcp==1.30.0
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import asyncio
from importlib.metadata import version
from urllib.request import urlopen

import gradio as gr
import numpy as np
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


def draw():
    """Draw a picture."""
    return np.zeros((8, 8, 3), np.uint8)


def turn(picture):
    """Turn a picture."""
    return picture[::-1]


with gr.Blocks() as demo:
    gr.Button().click(draw, None, gr.Image(format="png"))
    gr.Button().click(turn, gr.Image(), gr.Image(format="png"))
address = demo.launch(prevent_thread_lock=True, mcp_server=True, quiet=True)[1]


async def call():
    async with (
        streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        drawn = await session.call_tool("draw", {})
        url = drawn.content[-1].text.removeprefix("Image URL: ")
        return url, await session.call_tool("turn", {"picture": url})


print("gradio", version("gradio"), "mcp", version("mcp"))
url, result = asyncio.run(call())
there = urlopen(url).read()
demo.close()
print("the URL itself:", len(there) > 0)
print("as the next tool's picture:", "refused" if result.isError else "taken")
print("the reason given:", result.content[0].text.splitlines()[0][:80])
assert there and result.isError
PYTHON
# Seen:
# gradio 6.31.0 mcp 1.30.0
# the URL itself: True
# as the next tool's picture: refused
# the reason given: The upstream Gradio app has raised an exception but has not enabled verbose erro
