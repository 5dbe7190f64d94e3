#!/usr/bin/env bash
# One would guess: dynamicprompts (the parser behind the sd-dynamic-prompts extension) leaves a prompt
# without its own signs, {a|b} and __wildcard__, as it was written.
# A "#" anywhere, also in the middle of a word, begins a comment: the rest of the line is dropped without
# a word, so "a C# manual, on a desk" is "a C". A "%" or "$" beside other text raises ParseException. A
# backslash does not keep braces: they are taken out and the backslashes stay.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dynamicprompts==0.31.0 pyparsing==3.3.3
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from dynamicprompts.generators import RandomPromptGenerator
from pyparsing import ParseException

print("dynamicprompts", version("dynamicprompts"), "pyparsing", version("pyparsing"))
generator = RandomPromptGenerator()
for prompt, expected in {
    "(a ball:1.2), [red], <lora:x:0.8>": "(a ball:1.2), [red], <lora:x:0.8>",
    "a C# manual, on a desk": "a C",
    "colour #ff8800, a ball": "colour ",
    r"a \{red\} ball": "a \\red\\ ball",
    "50% off, a poster": ParseException,
    "a $ sign": ParseException,
}.items():
    try:
        got = generator.generate(prompt, 1)[0]
    except ParseException as error:
        got = type(error)
    print(f"{prompt!r}: {got!r}")
    assert got == expected, prompt
PYTHON
# Seen:
# dynamicprompts 0.31.0 pyparsing 3.3.3
# '(a ball:1.2), [red], <lora:x:0.8>': '(a ball:1.2), [red], <lora:x:0.8>'
# 'a C# manual, on a desk': 'a C'
# 'colour #ff8800, a ball': 'colour '
# 'a \\{red\\} ball': 'a \\red\\ ball'
# '50% off, a poster': <class 'pyparsing.exceptions.ParseException'>
# 'a $ sign': <class 'pyparsing.exceptions.ParseException'>
