"""AUTOMATIC1111's infotext, with what extensions and forks make of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.infotext import control_units, pairs, parse, quoted

NUMBERS = "Steps: 25, Sampler: DDIM, CFG scale: 7, Seed: 11, Size: 512x512"
KNOWN = {"Steps": "25", "Sampler": "DDIM", "CFG scale": "7", "Seed": "11", "Size": "512x512"}


@pytest.mark.parametrize(
    ("tail", "more"),
    [
        ("", ()),
        (
            "\nTemplate: a {red|blue} ball\nNegative Template: low",
            ("Template", "Negative Template"),
        ),
        ("\nTemplate: a {red|blue} ball,\non grass", ("Template",)),
    ],
)
def test_lines_after_the_pairs(tail, more):
    found = parse(f"a ball,\non grass\nNegative prompt: low\nbad\n{NUMBERS}{tail}")
    assert (found.prompt, found.negative_prompt) == ("a ball,\non grass", "low\nbad")
    assert found.pairs == KNOWN and found.more == more


def test_the_first_of_two_pairs_with_one_name():
    found = parse(f'p\n{NUMBERS}, Note: "a sign \\"open\\", Steps: up, Seed: of doubt", Steps: 3')
    assert found.pairs == KNOWN | {"Note": 'a sign "open", Steps: up, Seed: of doubt'}


def test_a_quoted_value_with_a_line_end():
    found = parse(f'p\n{NUMBERS}, Wildcard: "a\nb", Version: v1.10.1')
    assert found.pairs["Wildcard"] == "a\nb" and found.pairs["Version"] == "v1.10.1"


def test_pairs_parted_by_bars():
    assert pairs("Steps: 20 | Seed: 3 | Sampler: UniPC, fast | Size: 512x768") == {
        "Steps": "20",
        "Seed": "3",
        "Sampler": "UniPC, fast",
        "Size": "512x768",
    }


def test_units_of_sd_webui_controlnet():
    unit = "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8"
    found = control_units(pairs(f'{NUMBERS}, ControlNet 1: "Module: none", ControlNet 0: "{unit}"'))
    assert [one["Module"] for one in found] == ["canny", "none"] and found[0]["Weight"] == "0.8"


def test_a_text_without_pairs_is_none():
    assert parse("a prompt that speaks of Steps: many") is None


NAMES = st.from_regex(r"[A-Z][A-Za-z ]{0,10}[a-z]", fullmatch=True).filter(
    lambda name: name != "Steps"
)
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).map(
    str.strip
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values=st.dictionaries(NAMES, VALUES, max_size=6), prompt=VALUES)
def test_what_is_quoted_is_read_again(values, prompt):
    line = ", ".join(["Steps: 4", *(f"{name}: {quoted(value)}" for name, value in values.items())])
    found = parse(f"{prompt}\nNegative prompt: n\n{line}")
    assert found.pairs == {"Steps": "4"} | values
    assert (found.prompt, found.negative_prompt) == (prompt, "n")
