#!/usr/bin/env bash
# One would guess: what a handler returns for gr.Image is pixels, so a picture it makes from an uploaded
# one tells no more than can be seen.
# What the uploaded file says of itself comes along in a PIL picture's info, and Pillow's resize, filter
# and convert hand it on. As WebP, the default, the answer carries the upload's EXIF; with format="png"
# it carries its text chunks, such as the prompt and seed in "parameters": a blurred or shrunk copy tells
# how, or where, the first was made. With type="numpy" there is nothing to carry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gradio==6.31.0 pydantic==2.12.5 pillow==12.3.0
export GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR=$folder/files
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import gradio as gr
from gradio_client import Client, handle_file
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo


def smaller(image):
    return image.resize((8, 8))


def blurred(image):
    return image.filter(ImageFilter.GaussianBlur(2)).convert("L")


def unchanged(array):
    return array


with gr.Blocks() as demo:
    pil, array = gr.Image(type="pil"), gr.Image(type="numpy")
    png, webp = gr.Image(format="png"), gr.Image()
    gr.Button().click(smaller, pil, png, api_name="smaller")
    gr.Button().click(blurred, pil, png, api_name="blurred")
    gr.Button().click(smaller, pil, webp, api_name="smaller_webp")
    gr.Button().click(unchanged, array, png, api_name="array")
address = demo.launch(prevent_thread_lock=True, quiet=True)[1]
info, exif = PngInfo(), Image.Exif()
info.add_text("parameters", "a red ball, Seed: 7")
exif[0x010E] = "a description"
given = f"{sys.argv[1]}/given.png"
Image.new("RGB", (32, 32), "red").save(given, pnginfo=info, exif=exif)
client = Client(address, verbose=False, download_files=f"{sys.argv[1]}/answers")
print("gradio", version("gradio"), "pillow", version("pillow"))
for name, carried in (
    ("smaller", (True, False)),
    ("blurred", (True, False)),
    ("smaller_webp", (False, True)),
    ("array", (False, False)),
):
    with Image.open(client.predict(handle_file(given), api_name=f"/{name}")) as answer:
        text, described = answer.info.get("parameters"), 0x010E in answer.getexif()
    print(f"{name}: {answer.format}, parameters {text!r}, EXIF {described}")
    assert (text == "a red ball, Seed: 7", described) == carried
demo.close()
PYTHON
# Seen:
# gradio 6.31.0 pillow 12.3.0
# smaller: PNG, parameters 'a red ball, Seed: 7', EXIF False
# blurred: PNG, parameters 'a red ball, Seed: 7', EXIF False
# smaller_webp: WEBP, parameters None, EXIF True
# array: PNG, parameters None, EXIF False
