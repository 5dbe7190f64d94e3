"""The browser counts a prompt's tokens and chunks as the model reads them."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from core.prompt_syntax import MOST_CHUNKS
from models.catalog.paths import MODELS
from models.text import _chunks, fit_prompt, merges_in
from tests.apps.web.test_browser import CHROMIUM, QUIET, playwright

SCRIPT = Path(__file__).resolve().parents[5] / "apps" / "web" / "html" / "components" / "prompt.js"
PROMPTS = [
    "",
    "a red ball, a (blue:1.3) box and a [tree]",
    "don't they've it's we'll I'm O'Neill's rock'n'roll",
    "Ünïcode ÀÉ 😀👍🏽 日本語 straße ﬁ İ naïve",
    "1990s, 3.14 x2 (1024x1024:1.1) 16:9 -- ... !!! ((deep)) :) <|endoftext|>",
    r"miku \(vocaloid\), \[x\] \\ a\b",
    "tabs\tand\nlines\r\n  and   spaces ",
    "the red BREAK ball BREAK",
    "BREAK BREAK a",
    "a <lora:style:0.8> ball, (red <lyco:x:1>:1.2)",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "a red ball, " * 30,
    "a " * 73 + "red, ball ball",
    "a " * 60 + ", " + "red " * 30,
    "red " * 640 + "the (END:1.2), of it",
]
ATOMS = [
    *"()[]\\:,.'",
    " ",
    " BREAK ",
    ":1.3)",
    ":12)",
    ": .5 )",
    "red",
    "Castle ",
    "a1",
    "é",
    "😀",
]


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    """An empty page, with the script's functions."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    code = SCRIPT.read_text(encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.evaluate(
            """(code) => {
              const part = { addEventListener() {} };
              window.made = new Function("element", "server",
                `${code}; return { read, counter, unknown };`)(part, {});
            }""",
            code,
        )
        yield page
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["diorama", "sd15"])
def test_tokens_chunks_and_what_is_left_out_are_counted_as_in_python(model: str, tab: Any) -> None:
    folder = MODELS / model / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    chance = random.Random(0)
    prompts = PROMPTS + [
        "".join(chance.choices(ATOMS, k=chance.randrange(120))) for _ in range(200)
    ]
    found = tab.evaluate(
        "([merges, prompts]) => { const count = window.made.counter(merges);"
        " return prompts.map((prompt) => window.made.read(prompt, count)); }",
        [merges_in(folder), prompts],
    )
    for prompt, one in zip(prompts, found, strict=True):
        plain = prompt.replace("<lora:style:0.8>", "").replace("<lyco:x:1>", "")
        tokens, dropped = fit_prompt(tokenizer, (plain,))
        chunks = min(len(_chunks(tokenizer, (plain,))), MOST_CHUNKS)
        wanted = {"tokens": tokens, "chunks": chunks, "dropped": dropped}
        assert one == wanted, json.dumps(prompt)


@pytest.mark.slow
def test_unknown_words_are_named_once_but_not_while_they_are_typed(tab: Any) -> None:
    def unknown(prompt: str) -> list[str]:
        asked = "(prompt) => window.made.unknown(prompt, new Set(['a', 'red', 'ball', 'é']))"
        found: list[str] = tab.evaluate(asked, prompt)
        return found

    assert unknown("A (Red:1.3) ball, [ball] 12!") == []
    assert unknown("a Castle, a castle and dragon. ") == ["castle", "and", "dragon"]
    assert unknown("a ba") == [] and unknown("a ba ") == ["ba"] and unknown("a bax") == ["bax"]
    assert unknown("a <lora:dragon:1> ball é") == []
