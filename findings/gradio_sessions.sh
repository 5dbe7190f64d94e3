#!/usr/bin/env bash
# One would guess: what a server keeps of a visitor are the values of gr.State, until an hour after the
# page was closed, as the documentation of gr.State says; a page without gr.State keeps nothing.
# Every visitor gets a copy of the configuration of every component of every page, made by the first
# call, which only deep links need, and it is never dropped while there are fewer than 10,000
# visitors: values of gr.State go after an hour, the session itself stays. A site of a thousand
# components so grows by more than a megabyte for everybody who ever came.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import gc
import time
import tracemalloc
from importlib.metadata import version

import gradio as gr
from gradio_client import Client

COMPONENTS, VISITORS = 1000, 10
with gr.Blocks() as demo:
    boxes = [gr.Textbox(label=f"Box {number}") for number in range(COMPONENTS)]
    gr.State(0)  # without one, Gradio is not told that a visitor leaves
    boxes[0].submit(str.upper, boxes[0], boxes[1], api_name="upper")
address = demo.launch(prevent_thread_lock=True, quiet=True)[1]
Client(address, verbose=False).predict("warm", api_name="/upper")
tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
for number in range(VISITORS):
    client = Client(address, verbose=False)
    assert client.predict("hello", api_name="/upper") == "HELLO"
    client.close()
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    sessions = list(demo.state_holder.session_data.values())
    closed = sum(session.is_closed for session in sessions)
    if closed >= VISITORS:
        break
    time.sleep(0.5)
gc.collect()
held = (tracemalloc.get_traced_memory()[0] - before) / VISITORS / 2**20
sessions = list(demo.state_holder.session_data.values())
copies = min(len(session.config_values) for session in sessions)
print("gradio", version("gradio"))
print(f"{closed} of {VISITORS} visitors have left, {len(sessions) - 1} of their sessions are kept")
print(f"each has the configuration of {copies} components")
print("more than half a megabyte a visitor:", held > 0.5)
demo.close()
assert closed == len(sessions) - 1 == VISITORS and copies >= COMPONENTS and held > 0.5
PYTHON
# Seen:
# gradio 6.31.0
# 10 of 10 visitors have left, 10 of their sessions are kept
# each has the configuration of 1002 components
# more than half a megabyte a visitor: True
