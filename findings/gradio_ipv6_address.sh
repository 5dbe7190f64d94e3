#!/usr/bin/env bash
# One would guess: launch(server_name="::1") listens on IPv6's own address, as a socket and uvicorn take
# it, and GRADIO_SERVER_NAME=::1 is the same.
# The argument must have the brackets of a URL: without them the server starts, and launch raises
# InvalidURL, because it cannot read its own address. In the variable neither is taken: with all ports
# free, launch says that it cannot find an empty one, because it looks for one with a socket of IPv4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
cat >"$folder/serve.py" <<'PYTHON'
import os
import socket
import sys

import gradio as gr

given = sys.argv[1] or None
socket.create_server(("::1", 0), family=socket.AF_INET6).close()  # this machine has IPv6
with gr.Blocks() as demo:
    gr.Markdown("here")
try:
    address = demo.launch(server_name=given, prevent_thread_lock=True, quiet=True)[1]
    told = f"listens on {address.replace(str(demo.server_port), 'PORT')}"
except Exception as error:
    told = f"{type(error).__name__}: {str(error)[:40]}"
asked = f"server_name={given}" if given else f"GRADIO_SERVER_NAME={os.environ['GRADIO_SERVER_NAME']}"
print(f"{asked}: {told}", flush=True)
os._exit(0)
PYTHON
{
  "$folder/venv/bin/pip" list 2>/dev/null | grep '^gradio ' | tr -s ' '
  for name in "::1" "[::1]"; do
    "$folder/venv/bin/python" "$folder/serve.py" "$name" 2>>"$folder/log"
    GRADIO_SERVER_NAME=$name "$folder/venv/bin/python" "$folder/serve.py" "" 2>>"$folder/log"
  done
} | grep -E '^(gradio|server_name|GRADIO)' | tee "$folder/seen"
for line in 'server_name=::1: InvalidURL' 'server_name=\[::1\]: listens on http://\[::1\]:PORT/' \
  'GRADIO_SERVER_NAME=::1: OSError: Cannot find empty port' \
  'GRADIO_SERVER_NAME=\[::1\]: OSError: Cannot find empty port'; do
  grep -q "^$line" "$folder/seen"
done
# Seen:
# gradio 6.31.0
# server_name=::1: InvalidURL: Invalid port: ':1:7860'
# GRADIO_SERVER_NAME=::1: OSError: Cannot find empty port in range: 7860-79
# server_name=[::1]: listens on http://[::1]:PORT/
# GRADIO_SERVER_NAME=[::1]: OSError: Cannot find empty port in range: 7860-79
