"""Editors of surfaces: what is refused, and strokes with soft rims."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotators import find_annotator
from annotators._surfaces import soft_cover
from core.errors import BadInput

EDITORS = {name: find_annotator(name).editor for name in ("depth", "normal")}


def test_a_soft_stroke_fades_from_its_middle_line_to_half_a_width_beyond_its_rim():
    line = {"points": [[0, 64.5], [256, 64.5]], "width": 32}
    across = soft_cover(line, [256, 128], (128, 256))[:, 128, 0]
    assert across[64] == pytest.approx(1, abs=0.01)
    assert across[[48, 80]] == pytest.approx(0.5, abs=0.05)
    assert (np.diff(across[64:]) <= 0).all() and (np.diff(across[:64]) >= 0).all()
    assert across[:30].max() == across[99:].max() == 0


def test_a_soft_stroke_scales_with_the_map():
    stroke = {"points": [[20, 20], [90, 50]], "width": 16}
    small = soft_cover(stroke, [128, 64], (64, 128))
    large = soft_cover(stroke, [128, 64], (128, 256))
    averaged = large.reshape(64, 2, 128, 2, 1).mean(axis=(1, 3))
    assert np.abs(averaged - small).mean() < 0.01


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_that_changes_nothing_gives_the_same_map(name):
    before = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    editor = EDITORS[name]
    neutral = {one["name"]: one["neutral"] for one in editor.facts["sliders"]}
    edit = editor.check({"size": [64, 48], **neutral})
    assert edit == {"size": [64, 48], "strokes": []}  # so that without a picture it is empty
    assert np.array_equal(editor.draw(edit, before), before)


@pytest.mark.parametrize("name", EDITORS)
def test_a_slider_out_of_its_bounds_is_refused_in_a_sentence(name):
    for one in EDITORS[name].facts["sliders"]:
        for wrong in (one["low"] - 1, one["high"] + 1, math.nan, "1", [1]):
            with pytest.raises(BadInput, match=rf"^The edit's {one['name']} must be .*\.$"):
                EDITORS[name].check({"size": [64, 64], one["name"]: wrong})


@pytest.mark.parametrize("name", EDITORS)
def test_the_page_gets_its_facts_as_json(name):
    facts = EDITORS[name].facts
    assert json.loads(json.dumps(facts)) == facts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NUMBER = st.floats(-200, 300)


@pytest.mark.parametrize("name", EDITORS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_edit_is_refused_or_draws_a_map_of_the_same_size(name, data):
    editor = EDITORS[name]
    values = {
        one["name"]: st.floats(one["low"], one["high"]) | JSON for one in editor.facts["sliders"]
    }
    stroke = st.fixed_dictionaries(
        {
            "points": st.lists(st.tuples(NUMBER, NUMBER).map(list), min_size=1, max_size=3),
            "width": st.floats(0.1, 64),
        },
        optional={
            "by": st.integers(-64, 64) | JSON,
            "direction": st.lists(st.floats(-1, 1), min_size=3, max_size=3) | JSON,
        },
    )
    raw = data.draw(
        st.fixed_dictionaries(
            {"size": st.just([64, 48]), "strokes": st.lists(stroke, max_size=3)}, optional=values
        )
    )
    try:
        edit = editor.check(raw)
    except BadInput:
        return
    assert editor.check(edit) == edit
    before = np.full((48, 64, 3), 100, np.uint8)
    drawn = editor.draw(edit, before)
    assert drawn.shape == before.shape and drawn.dtype == np.uint8
    assert (before == 100).all()
