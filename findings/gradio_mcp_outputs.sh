#!/usr/bin/env bash
# One would guess: a Gradio function served as an MCP tool hands a client each output in its own form,
# whoever asks: a picture as image content, gr.JSON as JSON.
# It does so only for one output. With two or more, a client that sends no progress token gets a
# single text, Python's repr of the list, with the server's path where the picture was. With a
# progress callback, which changes nothing else for the function, the same call gives the picture as
# image content. gr.JSON is Python's repr in every case: None and single quotes, which no JSON parser
# takes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'gradio[mcp]==6.31.0' pydantic==2.12.5 mcp==1.30.0
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import json
from importlib.metadata import version

import gradio as gr
import numpy as np
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

BLACK = np.zeros((8, 8, 3), np.uint8)
REPORT = {"seed": None, "model": "a"}


def picture():
    """Draw a picture."""
    return BLACK


def both():
    """Draw a picture, and report."""
    return BLACK, REPORT


with gr.Blocks() as demo:
    image, report = gr.Image(format="png"), gr.JSON()
    gr.Button().click(picture, None, image)
    gr.Button().click(both, None, [image, report])
address = demo.launch(prevent_thread_lock=True, mcp_server=True, quiet=True)[1]


async def ignore(*_):
    pass


async def call():
    found = {}
    async with (
        streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        for tool in ("picture", "both"):
            for callback in (None, ignore):
                result = await session.call_tool(tool, {}, progress_callback=callback)
                found[tool, callback is not None] = result.content
                kinds = [part.type for part in result.content]
                print(f"{tool}, {'with' if callback else 'no'} progress callback: {kinds}")
    return found


print("gradio", version("gradio"), "mcp", version("mcp"))
found = asyncio.run(call())
demo.close()
assert [part.type for part in found["picture", False]] == ["image", "text"]
assert [part.type for part in found["both", False]] == ["text"]
assert [part.type for part in found["both", True]] == ["image", "text", "text"]
told = found["both", True][-1].text
print("gr.JSON:", told)
assert told == repr(REPORT) != json.dumps(REPORT)
PYTHON
# Seen:
# gradio 6.31.0 mcp 1.30.0
# picture, no progress callback: ['image', 'text']
# picture, with progress callback: ['image', 'text']
# both, no progress callback: ['text']
# both, with progress callback: ['image', 'text', 'text']
# gr.JSON: {'seed': None, 'model': 'a'}
