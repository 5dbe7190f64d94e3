#!/usr/bin/env bash
# One would guess: sd-parsers, a library made for the settings in generated pictures, reads those of
# AUTOMATIC1111's web UI with its ControlNet extension, the most common extension there is.
# It splits at every ", " and so into quoted values: the ControlNet's "Model:" replaces the name of the
# checkpoint, whose hash stays, and a quoted note that mentions "Seed: 5" replaces the seed. Nothing is
# said; without quoted values all is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sd-parsers==0.6 pillow==12.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
from importlib.metadata import version

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

print("sd-parsers", version("sd-parsers"), "pillow", version("pillow"))
numbers = "Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 11, Size: 512x512"
numbers += ", Model hash: 0123456789, Model: painter"
unit = 'ControlNet 0: "Module: canny, Model: edges [abcdef01], Weight: 1"'
note = 'Note: "from sheet 2, Seed: 5 was darker, kept"'
for name, line, model, seed in (
    ("plain", numbers, "painter", "11"),
    ("with a ControlNet", f"{numbers}, {unit}", "edges [abcdef01]", "11"),
    ("with a note", f"{numbers}, {note}", "painter", "5 was darker"),
):
    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", f"a ball\nNegative prompt: low quality\n{line}")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    file.seek(0)
    found = ParserManager().parse(file)
    (checkpoint,), (sampler,) = found.models, found.samplers
    print(f"{name}: model {checkpoint.name!r} of hash {checkpoint.hash}", end=", ")
    print(f"seed {sampler.parameters['seed']!r}")
    assert (checkpoint.name, checkpoint.hash) == (model, "0123456789")
    assert sampler.parameters["seed"] == seed
PYTHON
# Seen:
# sd-parsers 0.6 pillow 12.3.0
# plain: model 'painter' of hash 0123456789, seed '11'
# with a ControlNet: model 'edges [abcdef01]' of hash 0123456789, seed '11'
# with a note: model 'painter' of hash 0123456789, seed '5 was darker'
