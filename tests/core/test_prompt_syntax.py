"""Weights in prompts are read as AUTOMATIC1111 reads them; what is not applied is told once."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metadata import read_settings
from core.prompt_syntax import MAX_WEIGHT, Piece, read_weights, unapplied_note
from core.request import GenerationRequest
from tests.core.test_metadata import with_texts

UP, DOWN = 1.1, 1 / 1.1


def weights(prompt):
    """Return (text, weight) for each piece of a prompt without BREAK."""
    (section,) = read_weights([prompt])
    return [(piece.content, pytest.approx(piece.weight)) for piece in section]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("", []),
        ("a ball", [("a ball", 1)]),
        ("a (red:1.3) ball", [("a ", 1), ("red", 1.3), (" ball", 1)]),
        ("a (red) ball", [("a ", 1), ("red", UP), (" ball", 1)]),
        ("a [red] ball", [("a ", 1), ("red", DOWN), (" ball", 1)]),
        ("((a))", [("a", UP * UP)]),
        ("((a:1.5) b)", [("a", 1.5 * UP), (" b", UP)]),
        ("[(a:1.5)]", [("a", 1.5 * DOWN)]),
        ("( a : .5 )", [(" a ", 0.5)]),
        ("(a:-1)(b:+2.)", [("a", -1), ("b", 2)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] " + "\\", 1)]),
        (r"(a \(b\):1.5)", [("a (b)", 1.5)]),
        ("(unclosed [twice", [("unclosed ", UP), ("twice", 1)]),
        ("a) b] c:1.2)", [("a) b] c:1.2)", 1)]),
        ("(a)(b)", [("ab", UP)]),
        ("ratio 16:9, (at 10:45)", [("ratio 16:9, ", 1), ("at 10:45", UP)]),
        ("(a:1.2.3)(b:)", [("a:1.2.3b:", UP)]),
    ],
)
def test_weights_are_read(prompt, wanted):
    assert weights(prompt) == wanted


def test_break_begins_a_chunk_also_inside_brackets():
    assert read_weights(["a BREAK (b\nBREAK, c:2)BREAK"]) == [
        [Piece("a")],
        [Piece("b", 2.0)],
        [Piece(", c", 2.0)],
        [],
    ]
    assert len(read_weights(["BREAKFAST, a break"])) == 1


def test_what_stands_between_the_texts_is_weighted_with_them():
    class Word:
        pass

    word = Word()
    assert read_weights(["a (", word, " ball:1.5) b"]) == [
        [Piece("a "), Piece(word, 1.5), Piece(" ball", 1.5), Piece(" b")]
    ]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text("ab ()[]:.1\\", max_size=40))
def test_any_prompt_is_read_and_loses_no_letter(prompt):
    (section,) = read_weights([prompt])
    text = "".join(piece.content for piece in section)
    assert [one for one in text if one in "ab"] == [one for one in prompt if one in "ab"]
    assert all(math.isfinite(piece.weight) for piece in section)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text("ab ()[]:1.5\\,", max_size=30))
def test_an_escaped_prompt_is_taken_as_it_is(text):
    escaped = "".join(f"\\{one}" if one in "()[]\\" else one for one in text)
    assert weights(escaped) == ([(text, 1)] if text else [])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-MAX_WEIGHT, MAX_WEIGHT), min_size=1, max_size=5))
def test_nested_weights_multiply(numbers):
    prompt = "(" * len(numbers) + "a" + "".join(f":{one:.4f})" for one in numbers)
    rounded = [float(f"{one:.4f}") for one in numbers]
    wanted = 1.0
    for one in rounded:
        wanted = max(-MAX_WEIGHT, min(wanted * one, MAX_WEIGHT))
    assert weights(prompt) == [("a", pytest.approx(wanted))]


def test_a_thousand_brackets_are_read_at_once():
    began = time.perf_counter()
    assert weights("(" * 2000 + "a" + ")" * 2000) == [("a", MAX_WEIGHT)]
    assert weights("(a " * 1000)[-1][1] == MAX_WEIGHT
    assert time.perf_counter() - began < 5


APPLIED = ["(a red ball:1.2)", "(ball: .5 )", "(ball:-1)", "((ball))", "[grey]", "BREAK", "(:"]
UNAPPLIED = [
    "[red:blue:0.5]",
    "[red:0.5]",
    "[red::7]",
    "[red|blue]",
    "(ball)1.3",
    "(a ball)++",
    "(at 10:45)",
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


@pytest.mark.parametrize("rule", UNAPPLIED)
@pytest.mark.parametrize("around", ["a ball, {}", "a photo of {} on grass", "first,\n{}\nlast"])
def test_a_rule_that_is_not_applied_is_told(rule, around):
    note = unapplied_note("a ball", around.format(rule))
    assert rule in note and "plain words" in note and len(note) < 120


@pytest.mark.parametrize("prompt", PLAIN + APPLIED)
def test_ordinary_words_and_applied_rules_are_not_told(prompt):
    assert unapplied_note(prompt) == ""


def test_a_restored_prompt_with_weights_is_kept_and_nothing_is_told():
    text = "(a red ball:1.2), [grey] BREAK ((x))\nNegative prompt: (low:1.4)\nSteps: 3"
    fields, notes = read_settings(with_texts(parameters=text))
    assert fields["prompt"] == "(a red ball:1.2), [grey] BREAK ((x))"
    assert fields["negative_prompt"] == "(low:1.4)"
    assert notes == []


def test_a_restored_prompt_is_told_once():
    text = "(a red ball:1.2) AND [red|blue]\nNegative prompt: [a:b:3]\nSteps: 3"
    _, notes = read_settings(with_texts(parameters=text))
    assert notes == ["Of the rules in prompts, AND is not applied here: it is plain words."]


@pytest.mark.parametrize("name", ["prompt", "added_prompt", "negative_prompt"])
def test_a_request_is_told_once(name, pipeline, condition, image):
    ask = {"prompt": "a ball", "image_resolution": 256, "steps": 1, "num_samples": 2}
    ask |= {name: "(sharp:1.2), [grey|red]"}
    made = pipeline.generate(GenerationRequest.single(condition, image, **ask))
    assert [one for one in made.warnings if "plain words" in one] == [
        "Of the rules in prompts, [grey|red] is not applied here: it is plain words."
    ]


def test_a_long_rule_is_cut():
    assert len(unapplied_note(f"[{'x' * 4000}|y]")) < 120


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    before=st.text("ab (),.:\\0", max_size=30),
    rule=st.sampled_from(["[ball|box]", "[ball:box:0.5]"]),
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
