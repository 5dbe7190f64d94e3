#!/usr/bin/env bash
# One would guess: each page that Blocks.route() adds costs its own components.
# At the end of every page the whole server application and the whole configuration are made again, of
# all pages so far, and thrown away; launch() makes them once more. So the time for pages grows with
# the square of their number, and most of a large site's start is spent on it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import time
from importlib.metadata import version

import gradio as gr
from gradio.routes import App

print("gradio", version("gradio"))
made, create = [], App.create_app


def counted(blocks, *others, **options):
    made.append(len(blocks.blocks))
    return create(blocks, *others, **options)


App.create_app = staticmethod(counted)
PAGES, COMPONENTS = 12, 60
seconds = []
with gr.Blocks() as site:
    gr.Markdown("home")
for number in range(PAGES):
    began = time.process_time()
    with site.route(f"Page {number}", f"/page{number}"):
        for _ in range(COMPONENTS):
            gr.Slider(0, 1)
    seconds.append(time.process_time() - began)
print(f"{PAGES + 1} pages: {len(made)} applications, of up to {max(made)} components")
print(f"the last page takes {seconds[-1] / seconds[0]:.1f} times as long as the first")
assert len(made) > PAGES and seconds[-1] > 1.5 * seconds[0]
PYTHON
# Seen (the last line varies):
# gradio 6.31.0
# 13 pages: 14 applications, of up to 733 components
# the last page takes 2.4 times as long as the first
