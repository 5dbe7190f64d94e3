#!/usr/bin/env bash
# One would guess: a property of gr.HTML that its script follows with watch("name", ...), as the guide
# on custom components shows, is set from Python by gr.update(name=...), and nothing else is sent.
# A name that stands in quotes anywhere in the script is also an attribute of the component: the
# listener of an event of that name. The update carries that too, as the text of a Python function with
# its address in memory, beside the property. A script that builds the name gets the property alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import re
from importlib.metadata import version

import gradio as gr
import httpx

SCRIPTS = {
    "quoted": 'watch("scene", () => { element.textContent = props.scene })',
    "built": "watch(Object.keys({ scene: 0 }), () => { element.textContent = props.scene })",
}
ran = []


def change():
    ran.append(True)
    return gr.update(scene="sea")


with gr.Blocks() as demo:
    for name, script in SCRIPTS.items():
        shown = gr.HTML("", html_template="<p></p>", js_on_load=script, scene="land")
        gr.Button().click(change, None, shown, api_name=name, queue=False)
address = demo.launch(prevent_thread_lock=True, quiet=True)[1]
print("gradio", version("gradio"))
found = {}
for name in SCRIPTS:
    answer = httpx.post(f"{address}gradio_api/run/{name}", json={"data": []}, timeout=60)
    (found[name],) = answer.json()["data"]
    print(f"{name}: {re.sub('0x[0-9a-f]+', '0x…', str(found[name]))}")
demo.close()
update = {"props": {"scene": "sea", "__type__": "update"}, "__type__": "update"}
assert len(ran) == 2 and found["built"] == update
listener = found["quoted"].pop("scene")
assert found["quoted"] == update and listener.startswith("functools.partial(<function EventListener")
PYTHON
# Seen:
# gradio 6.31.0
# quoted: {'scene': 'functools.partial(<function EventListener._setup.<locals>.event_trigger at 0x…>,
#   <gradio.components.html.HTML object at 0x…>)', 'props': {'scene': 'sea', '__type__': 'update'},
#   '__type__': 'update'}
# built: {'props': {'scene': 'sea', '__type__': 'update'}, '__type__': 'update'}
