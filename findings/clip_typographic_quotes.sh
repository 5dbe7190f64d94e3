#!/usr/bin/env bash
# One would guess: with CLIP's vocabulary and merges, transformers' CLIPTokenizer gives the ids that
# CLIP was trained with, whatever the prompt.
# It gives them for plain text. CLIP's own tokenizer (open_clip has it) first repairs text with ftfy and
# undoes HTML's escapes; transformers 5 does neither, even where ftfy is installed. So the curly
# apostrophe of every phone's keyboard ends in other tokens (don’t: four in place of two), and curly
# quotes, ligatures and full-width digits do too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 ftfy==6.3.1
"$folder/venv/bin/pip" install -q --no-deps open_clip_torch==3.3.0 # for its vocabulary; no torch
"$folder/venv/bin/python" - <<'PYTHON'
import gzip
import html
from importlib.metadata import distribution, version

import ftfy
from transformers import CLIPTokenizer

print(*(f"{name} {version(name)}" for name in ("transformers", "ftfy", "open_clip_torch")))
open_clip = distribution("open_clip_torch")
code = open_clip.locate_file("open_clip/tokenizer.py").read_text(encoding="utf-8")
assert "ftfy.fix_text(" in code and "html.unescape(" in code  # so CLIP's own cleans a prompt

with gzip.open(open_clip.locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz"), "rt") as file:
    merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
symbols = [chr(code) for code in shown] + [chr(256 + n) for n in range(256 - len(shown))]
tokens = [*symbols, *(one + "</w>" for one in symbols), *("".join(merge) for merge in merges)]
tokens += ["<|startoftext|>", "<|endoftext|>"]
tokenizer = CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=merges)


def ids(prompt):
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


for prompt, equal in {
    "a photo of a cat": True,
    "café, naïve, 100 %": True,
    "don't": True,
    "don’t": False,
    "“quoted”": False,
    "salt &amp; pepper": False,
    "a ﬁne day": False,
    "２０２４": False,
}.items():
    own, cleaned = ids(prompt), ids(html.unescape(ftfy.fix_text(prompt)))
    print(f"{prompt}: {own}" + ("" if own == cleaned else f", CLIP {cleaned}"))
    assert (own == cleaned) == equal, prompt
PYTHON
# Seen:
# transformers 5.23.0 ftfy 6.3.1 open_clip_torch 3.3.0
# a photo of a cat: [320, 1125, 539, 320, 2368]
# café, naïve, 100 %: [15304, 267, 1097, 35689, 563, 267, 272, 271, 271, 260]
# don't: [847, 713]
# don’t: [847, 728, 503, 339], CLIP [847, 713]
# “quoted”: [728, 506, 27706, 728, 507], CLIP [257, 27706, 257]
# salt &amp; pepper: [6611, 261, 6259, 282, 8253], CLIP [6611, 261, 8253]
# a ﬁne day: [320, 171, 105, 223, 1422, 575], CLIP [320, 3797, 575]
# ２０２４: [171, 120, 496, 171, 120, 494, 171, 120, 496, 171, 120, 498], CLIP [273, 271, 273, 275]
