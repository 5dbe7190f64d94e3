#!/usr/bin/env bash
# One would guess: Gradio's two clients call an endpoint alike, so that arguments left out take the
# defaults of their components in JavaScript as in Python.
# In JavaScript it depends on the brackets. An object of named arguments, {} too, is filled with the
# defaults. An array is sent as it is: what is undefined or missing in it reaches the function as None,
# or, where the component takes no null, as a slider, the call ends in "An error occurred". view_api()
# lists the defaults in either case.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5
npm install --silent --no-audit --no-fund --prefix "$folder/node" @gradio/client@2.7.0
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
cat >"$folder/node/call.mjs" <<'JAVASCRIPT'
import { Client } from "@gradio/client";
const client = await Client.connect(process.argv[2]);
const found = [];
for (const given of [["a"], {}, { param_0: "a" }, ["a", undefined, 3]]) {
  try {
    found.push((await client.predict("/run", given)).data[0]);
  } catch (error) {
    found.push(error.message);
  }
}
console.log(JSON.stringify(found));
process.exit(0);
JAVASCRIPT
"$folder/venv/bin/python" - "$folder/node/call.mjs" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import json
import subprocess
import sys
from importlib.metadata import version

import gradio as gr
from gradio_client import Client

with gr.Blocks() as demo:
    inputs = [gr.Textbox("-"), gr.Checkbox(True), gr.Slider(0, 9, value=7)]
    inputs.append(gr.Radio(["x", "y"], value="y"))
    gr.Button().click(lambda *given: list(given), inputs, gr.JSON(), api_name="run")
address = demo.launch(prevent_thread_lock=True, quiet=True)[1]
print("gradio", version("gradio"), "@gradio/client 2.7.0")
client = Client(address, verbose=False)
python = [client.predict("a", api_name="/run"), client.predict(api_name="/run")]
script = subprocess.run(["node", sys.argv[1], address], capture_output=True, text=True, timeout=60)
demo.close()
script.check_returncode()
array, empty, named, holes = json.loads(script.stdout)
print(f"Python: 'a': {python[0]}, nothing: {python[1]}")
print(f"JavaScript: ['a']: {array}, {{}}: {empty}, {{param_0: 'a'}}: {named}")
print(f"JavaScript: ['a', undefined, 3]: {holes}")
assert python == [["a", True, 7, "y"], ["-", True, 7, "y"]] == [named, empty]
assert array == "An error occurred" and holes == ["a", None, 3, None]
PYTHON
# Seen:
# gradio 6.31.0 @gradio/client 2.7.0
# Python: 'a': ['a', True, 7, 'y'], nothing: ['-', True, 7, 'y']
# JavaScript: ['a']: An error occurred, {}: ['-', True, 7, 'y'], {param_0: 'a'}: ['a', True, 7, 'y']
# JavaScript: ['a', undefined, 3]: ['a', None, 3, None]
