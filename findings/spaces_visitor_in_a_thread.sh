#!/usr/bin/env bash
# One would guess: whoever calls a function under @spaces.GPU, a request for a GPU on ZeroGPU carries the
# visitor's token, by which their quota is counted.
# It does if the event's own thread calls it. From a thread that the event started, as one does to
# report progress meanwhile, the request is nobody's, without an error: `spaces` finds the visitor in a
# context variable, and a thread begins with an empty context. contextvars.copy_context().run
# mends it. A stand-in answers for ZeroGPU here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 spaces==0.51.3 pydantic==2.12.5
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files HOME=$folder
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import contextvars
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from urllib.parse import parse_qs, urlsplit

tokens = []


class Lender(BaseHTTPRequestHandler):
    def do_POST(self):
        address = urlsplit(self.path)
        if address.path == "/schedule":
            tokens.append(parse_qs(address.query).get("token", ["nobody's"])[0])
        # None is lent: who asks is all that is to be seen.
        self.send_response(503 if address.path == "/schedule" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


lender = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
threading.Thread(target=lender.serve_forever, daemon=True).start()
os.environ["SPACES_ZERO_GPU"] = "true"
os.environ["SPACES_ZERO_DEVICE_API_URL"] = f"http://127.0.0.1:{lender.server_address[1]}"

import spaces  # it reads the variables
import gradio as gr
import httpx


@spaces.GPU
def work():
    return "done"


def at_once():
    work()


def in_a_thread():
    threading.Thread(target=work).start()


def in_a_thread_with_its_context():
    threading.Thread(target=contextvars.copy_context().run, args=[work]).start()


ways = (at_once, in_a_thread, in_a_thread_with_its_context)
with gr.Blocks() as demo:
    for way in ways:
        gr.Button().click(way, api_name=way.__name__, queue=False)
address = demo.launch(prevent_thread_lock=True, quiet=True)[1]
print("gradio", version("gradio"), "spaces", version("spaces"))
for number, way in enumerate(ways, start=1):
    url = f"{address}gradio_api/run/{way.__name__}"
    httpx.post(url, json={"data": []}, headers={"X-IP-Token": "ann's"}, timeout=60)
    while len(tokens) < number:
        time.sleep(0.1)
    print(f"{way.__name__}: {tokens[-1]}")
assert tokens == ["ann's", "nobody's", "ann's"]
demo.close(verbose=False)
PYTHON
# Seen:
# gradio 6.31.0 spaces 0.51.3
# at_once: ann's
# in_a_thread: nobody's
# in_a_thread_with_its_context: ann's
