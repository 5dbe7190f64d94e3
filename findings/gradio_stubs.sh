#!/usr/bin/env bash
# One would guess: importing gradio imports it, and stubs for editors (.pyi) were made when the wheel
# was: they lie in it. Every import parses the source of every component again, renders its stub and
# compares it with the file, about a third of the processor time of `import gradio`. A component of
# one's own gets a stub too, in a new file beside one's own source, when its module is imported.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
mkdir "$folder/mine"
cat >"$folder/mine/mine.py" <<'PYTHON'
import gradio as gr


class Mine(gr.HTML):
    """An own component."""
PYTHON
cat >"$folder/watch.py" <<'PYTHON'
import importlib.util
import sys
import time
from importlib.machinery import PathFinder
from importlib.metadata import files, version

sys.path.insert(0, f"{sys.argv[1]}/mine")
spent, made = [0.0], []


class Watch:
    """Times the writer of stubs, by wrapping it as soon as its module is there."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "gradio.component_meta":
            return None
        spec = PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            write = module.create_or_modify_pyi

            def timed(component, class_name, events):
                began = time.process_time()
                write(component, class_name, events)
                spent[0] += time.process_time() - began
                made.append(class_name)

            module.create_or_modify_pyi = timed

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Watch)
began = time.process_time()
import gradio  # noqa: E402, F401

share, count = spent[0] / (time.process_time() - began), len(made)
import mine  # noqa: E402, F401

shipped = [one for one in files("gradio") if one.suffix == ".pyi"]
print("gradio", version("gradio"))
print("stubs in the wheel:", len(shipped))
print("stubs made by the import:", count, "more than a fifth of its time:", share > 0.2)
assert len(shipped) > 40 and count > 70 and share > 0.2
PYTHON
"$folder/venv/bin/python" "$folder/watch.py" "$folder" # the first compiles Python's files
"$folder/venv/bin/python" "$folder/watch.py" "$folder" | tee "$folder/second"
ls "$folder/mine" | grep -v __pycache__
[ -f "$folder/mine/mine.pyi" ] && grep -q "class Mine" "$folder/mine/mine.pyi"
# Seen, the second time:
# gradio 6.31.0
# stubs in the wheel: 62
# stubs made by the import: 81 more than a fifth of its time: True
# mine.py
# mine.pyi
