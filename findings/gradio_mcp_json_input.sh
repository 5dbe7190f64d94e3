#!/usr/bin/env bash
# One would guess: a Gradio function with a gr.JSON input is served as an MCP tool with an argument
# that may be any JSON.
# The tool is listed and every call is refused, also one that leaves the argument out: gr.JSON
# describes itself as {"type": {}}, which is no JSON Schema, and mcp checks a call's arguments against
# the schema of the tool. Other clients of the same endpoint do not look at it and are served.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'gradio[mcp]==6.31.0' pydantic==2.12.5 mcp==1.30.0
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
from importlib.metadata import version

import gradio as gr
import jsonschema
from gradio_client import Client
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


def count(words, settings=None):
    """Count words."""
    return len(words.split())


with gr.Blocks() as demo:
    gr.Button().click(count, [gr.Textbox(), gr.JSON()], gr.Number(), api_name="count")
address = demo.launch(prevent_thread_lock=True, mcp_server=True, quiet=True)[1]


async def call():
    async with (
        streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        (tool,) = (await session.list_tools()).tools
        return tool, await session.call_tool("count", {"words": "one two"})


print("gradio", version("gradio"), "mcp", version("mcp"))
tool, result = asyncio.run(call())
client = Client(address, verbose=False)
counted = client.predict("one two", {"a": 1}, api_name="/count")
client.close()
demo.close()
print("gradio_client:", counted)
print("the tool's argument:", tool.inputSchema["properties"]["settings"])
print("MCP:", "refused" if result.isError else "served", "-", result.content[0].text.splitlines()[0])
assert counted == 2 and result.isError
try:
    jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
except jsonschema.SchemaError:
    pass
else:
    raise AssertionError("the schema is right now")
PYTHON
# Seen:
# gradio 6.31.0 mcp 1.30.0
# gradio_client: 2
# the tool's argument: {'type': {}, 'description': ''}
# MCP: refused - {} is not valid under any of the given schemas
