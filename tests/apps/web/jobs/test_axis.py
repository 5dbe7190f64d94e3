"""The values that people type for an axis: every form, and one sentence for what is wrong."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apps
from apps.web.jobs.axis import MOST_CELLS, Axis, axis_settings, parsed_axis, suggested_values
from apps.web.suite import Suite
from core.errors import BadInput
from core.params import Json
from core.request import SETTINGS

CANNY = apps.find("canny2image")
TYPED = {name: one for name, one in SETTINGS.items() if not isinstance(one, Json)}


def values(name: str, text: str, known: Any = TYPED) -> tuple[Any, ...]:
    return parsed_axis(name, text, known).values


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("strength", "0.5, 1, 1.5", (0.5, 1.0, 1.5)),
        ("strength", "0..2 step 0.5", (0.0, 0.5, 1.0, 1.5, 2.0)),
        ("strength", "0 .. 1 step .25", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("strength", "0..1 step 0.4", (0.0, 0.4, 0.8)),
        ("strength", "1..0 step 0.5", (1.0, 0.5, 0.0)),
        ("strength", "0..0.3 step 0.1", (0.0, 0.1, 0.2, 0.3)),
        ("strength", " 1 ;; 1\n1.0, 0,", (1.0, 0.0)),
        ("steps", "1..4", (1, 2, 3, 4)),
        ("steps", "10..30 step 10, 50", (10, 20, 30, 50)),
        ("seed", "4294967295, 0", (4294967295, 0)),
        ("guess_mode", "on, off", (True, False)),
        ("guess_mode", "", (False, True)),
        ("sampler", "LCM", ("lcm",)),
        ("mode", "", ("exact", "fast", "preview", "light")),
        ("prompt", 'a red ball, a box\n\n  ""\na cat', ("a red ball, a box", "", "a cat")),
    ],
)
def test_values_as_people_type_them(name: str, text: str, wanted: tuple[Any, ...]) -> None:
    found = values(name, text)
    assert found == wanted and [type(one) for one in found] == [type(one) for one in wanted]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("strength", "", "Control strength has no values yet: please write values such as 0.5"),
        ("prompt", "\n \n", "Prompt has no values yet: please write one in each line"),
        ("strength", "much", "Control strength: 'much' is not a number; please write values such"),
        ("strength", "1...2...3", "is not a number"),
        ("strength", "3", "Control strength is 3; it must be from 0.0 to 2.0"),
        ("strength", "0..2", "the range 0..2 needs a step, as in 0..2 step 0.5"),
        ("strength", "0..2 step 0", "the step of 0..2 step 0 must not be 0"),
        ("strength", "0..2 step 0.01", "has 201 values; a sweep makes at most 36"),
        ("seed", "0..999999999999", "has 1000000000000 values; a sweep makes at most 36"),
        ("seed", ",".join(map(str, range(37))), "Seed has 37 values; a sweep makes at most 36"),
        ("steps", "2.5", "Steps must be a whole number"),
        ("steps", "9" * 5000, "is not a number"),
        ("guess_mode", "perhaps", "Guess mode: 'perhaps' is neither on nor off"),
        ("sampler", "euler", "there is no 'euler'; there are: ddim, lcm"),
        ("colour", "1", "There is no setting 'colour' to vary here; there are: "),
        (["strength"], "1", "There is no setting"),
        ("strength", 1, "its values must be given as text"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name: Any, text: Any, told: str) -> None:
    with pytest.raises(BadInput) as caught:
        values(name, text)
    said = str(caught.value)
    assert told in said and said.endswith(".") and len(said) < 400


def test_a_drawn_seed_is_drawn() -> None:
    found = values("seed", "-1, 5")
    assert found[0] >= 0 and found[1] == 5


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 200),
    step=st.integers(1, 60),
    count=st.integers(1, MOST_CELLS),
    places=st.integers(0, 2),
)
def test_a_range_has_its_start_its_steps_and_nothing_beyond_its_end(
    start: int, step: int, count: int, places: int
) -> None:
    def written(hundredths: int) -> str:
        return f"{hundredths / 10**places:.{places}f}"

    end = start + step * (count - 1)
    if end / 10**places > SETTINGS["guidance_scale"].high or start / 10**places < 0.1:
        return
    found = values("guidance_scale", f"{written(start)}..{written(end)} step {written(step)}")
    wanted = [float(written(start + k * step)) for k in range(count)]
    assert list(found) == wanted, "exactly, without a float's sums"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(max_size=60), name=st.sampled_from([*TYPED, "?"]))
def test_any_text_is_allowed_values_or_one_sentence(text: str, name: str) -> None:
    try:
        found = values(name, text)
    except BadInput as error:
        assert str(error).endswith(".")
        return
    assert 0 < len(found) <= MOST_CELLS
    for value in found:
        assert SETTINGS[name].check(value) == value
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    ("name", "value", "label"),
    [
        ("strength", 1.0, "1"),
        ("strength", 0.25, "0.25"),
        ("seed", 4294967295, "4294967295"),
        ("guess_mode", True, "on"),
        ("prompt", "", "no prompt"),
        ("prompt", "a ball", "a ball"),
    ],
)
def test_labels_beside_the_grid(name: str, value: Any, label: str) -> None:
    assert Axis(name, SETTINGS[name], (value,)).label(0) == label


@pytest.mark.slow
def test_what_can_be_varied_depends_on_the_condition(suite: Suite) -> None:
    known = axis_settings(CANNY, suite)
    assert list(known)[:8] == [
        *("strength", "guidance_scale", "steps", "seed", "guess_mode", "prompt"),
        *("low_threshold", "high_threshold"),
    ]
    assert values("model", "", known)[0] == "tiny" and "other" in values("model", "", known)
    assert values("preprocessor", "canny, none", known) == ("Canny", "None")
    assert values("low_threshold", "50, 100", known) == (50, 100)
    assert not {"num_samples", "detect_resolution", "pixel_perfect"} & known.keys()
    of_depth = axis_settings(apps.find("depth2image"), suite)
    assert {"detect_resolution", "pixel_perfect"} <= of_depth.keys()
    assert "low_threshold" not in of_depth


@pytest.mark.slow
def test_every_suggestion_can_be_used(suite: Suite) -> None:
    for condition in apps.conditions():
        known = axis_settings(condition, suite)
        for name, setting in known.items():
            text = suggested_values(name, setting, ["a ball", "a box"])
            assert len(parsed_axis(name, text, known).values) > 1 or name in (
                "preprocessor",
                "model",
            )
