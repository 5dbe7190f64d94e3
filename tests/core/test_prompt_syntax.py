"""What other tools read as weights in a prompt is told once, and ordinary words are not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metadata import read_settings
from core.prompt_syntax import unapplied_note
from core.request import GenerationRequest
from tests.core.test_metadata import with_texts

RULES = [
    "(a red ball:1.2)",
    "(ball: .5 )",
    "(ball:-1)",
    "((ball))",
    "(((ball)))",
    "[grey]",
    "[red:blue:0.5]",
    "[red|blue]",
    "(ball)1.3",
    "(a ball)++",
    "BREAK",
    "AND",
]
PLAIN = [
    "",
    "a ball (red) on grass",
    "a ball (red, round), (on grass)",
    "miku \\(vocaloid\\)",
    "a clock at 10:45, ratio 16:9",
    "<lora:style:0.8> a ball",
    "a band and a break",
    "CATS AND DOGS",
    "a ball :) and (smiling)",
    "BREAKFAST, HAND",
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("around", ["a ball, {}", "a photo of {} on grass", "first,\n{}\nlast"])
def test_a_rule_is_told(rule, around):
    note = unapplied_note("a ball", around.format(rule))
    assert "plain words" in note and len(note) < 120


@pytest.mark.parametrize("prompt", PLAIN)
def test_ordinary_words_are_not_told(prompt):
    assert unapplied_note(prompt) == ""


def test_a_restored_prompt_is_told_once():
    text = "(a red ball:1.2), [grey] AND ((x))\nNegative prompt: (low:1.4)\nSteps: 3"
    fields, notes = read_settings(with_texts(parameters=text))
    assert fields["prompt"] == "(a red ball:1.2), [grey] AND ((x))"
    assert notes == [
        "Weights and rules in prompts, such as (a red ball:1.2), are taken as plain words here."
    ]


@pytest.mark.parametrize("name", ["prompt", "added_prompt", "negative_prompt"])
def test_a_request_is_told_once(name, pipeline, condition, image):
    ask = {"prompt": "a ball", "image_resolution": 256, "steps": 1, "num_samples": 2}
    ask |= {name: "(sharp:1.2), [grey]"}
    made = pipeline.generate(GenerationRequest.single(condition, image, **ask))
    assert [one for one in made.warnings if "plain words" in one] == [
        "Weights and rules in prompts, such as (sharp:1.2), are taken as plain words here."
    ]


def test_a_long_rule_is_cut():
    assert len(unapplied_note(f"({'x' * 4000}:1.2)")) < 120


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    before=st.text("ab (),.:\\0", max_size=30),
    rule=st.sampled_from(["(ball:1.2)", "((ball))", "[ball]"]),
    after=st.text("ab ),.:0", max_size=30),
)
def test_a_rule_is_told_whatever_stands_around_it(before, rule, after):
    if before.endswith("\\"):
        before += " "
    assert unapplied_note(f"{before} {rule}{after}")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_characters="()[]", exclude_categories=["Lu", "Cs"])))
def test_words_without_brackets_and_capitals_are_plain(words):
    assert unapplied_note(words) == ""
