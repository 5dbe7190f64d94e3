"""Edits of class maps: what is refused, and which pixels get which class."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apps
from annotators._segments_edit import check_segments, edited, is_emptied
from annotators.seg import ANNOTATOR, as_classes, as_map, map_colours, palette
from core.condition import ControlMap, Preprocessor
from core.errors import BadInput
from core.pipeline import Pipeline
from core.request import ControlRequest, GenerationRequest

SKY, TREE, GRASS, WATER = (palette()[0].index(name) for name in ("sky", "tree", "grass", "water"))
SIZE = [96, 64]
HILLS = np.full((64, 96), SKY, np.uint8)
HILLS[32:] = GRASS
HILLS[20:40, 10:20] = HILLS[20:40, 70:80] = TREE


def edit(*ops: dict[str, Any], size: list[int] = SIZE) -> dict[str, Any]:
    return check_segments({"size": size, "ops": list(ops)}, 150)


def test_painting_sets_exactly_what_the_brush_covers() -> None:
    line = {"op": "paint", "class": WATER, "points": [[10, 48], [80, 48]], "width": 8}
    drawn = edited(edit(line), HILLS)
    rows = np.flatnonzero(drawn[:, 40] == WATER)
    assert (rows.min(), rows.max()) == (44, 51)
    assert set(np.unique(drawn)) == {SKY, GRASS, TREE, WATER}
    elsewhere = drawn != WATER
    assert (drawn[elsewhere] == HILLS[elsewhere]).all()


def test_filling_stops_where_another_class_begins() -> None:
    drawn = edited(edit({"op": "fill", "class": WATER, "at": [75.5, 30.5]}), HILLS)
    assert (drawn[20:40, 70:80] == WATER).all() and (drawn == WATER).sum() == 200


def test_regions_that_touch_only_at_a_corner_are_two() -> None:
    corners = np.full((64, 96), SKY, np.uint8)
    corners[:32, :48] = corners[32:, 48:] = TREE
    drawn = edited(edit({"op": "fill", "class": WATER, "at": [0.5, 0.5]}), corners)
    assert (drawn[:32, :48] == WATER).all() and (drawn[32:, 48:] == TREE).all()


def test_filling_beside_the_picture_changes_nothing() -> None:
    assert (edited(edit({"op": "fill", "class": 1, "at": [96, 10]}), HILLS) == HILLS).all()


def test_replacing_takes_every_region_of_a_class() -> None:
    drawn = edited(edit({"op": "replace", "from": TREE, "to": WATER}), HILLS)
    assert ((drawn == WATER) == (HILLS == TREE)).all()


def test_operations_apply_in_their_order() -> None:
    empty = {"op": "empty", "class": SKY}
    dot = {"op": "paint", "class": TREE, "points": [[48, 32]], "width": 20}
    swap = {"op": "replace", "from": TREE, "to": WATER}
    assert edited(edit(empty, dot, swap), HILLS)[32, 48] == WATER
    assert edited(edit(empty, swap, dot), HILLS)[32, 48] == TREE
    assert (edited(edit(dot, swap, empty), HILLS) == SKY).all()


def test_a_map_of_another_size_gets_the_edit_at_its_scale() -> None:
    large = np.kron(HILLS, np.ones((4, 4), np.uint8))
    ops = edit(
        {"op": "paint", "class": WATER, "points": [[10, 48], [80, 48]], "width": 8},
        {"op": "fill", "class": 1, "at": [79.5, 39.5]},
    )
    small = edited(ops, HILLS)
    assert (edited(ops, large)[2::4, 2::4] == small).mean() > 0.99
    assert (edited(ops, large)[81:159, 281:319] == 1).all()


def test_the_edited_map_has_only_colours_of_classes_whatever_the_map_before() -> None:
    assert ANNOTATOR.editor
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    before = noise.copy()
    stroke = {"op": "paint", "class": 48, "points": [[1, 1], [90, 60]], "width": 9}
    drawn = ANNOTATOR.editor.draw(edit(stroke), noise)
    assert (noise == before).all()
    assert set(map(tuple, drawn.reshape(-1, 3))) <= set(map(tuple, map_colours()))
    assert (as_classes(drawn)[32, 48]) == 48  # the skyscraper, one level off the road


def test_the_classes_of_our_own_maps_are_read_as_those_of_others() -> None:
    classes = np.arange(150, dtype=np.uint8).reshape(10, 15)
    alone = as_map(classes)
    assert (as_classes(alone) == classes).all()
    among = np.concatenate([alone, np.full((1, 15, 3), 7, np.uint8)])  # a colour of no class
    assert (as_classes(among)[:10] == classes).all()


def test_an_emptied_map_needs_no_annotator() -> None:
    def unable(*_: Any) -> ControlMap:
        raise AssertionError("looked at the picture")

    condition = apps.find("seg2image")
    blind = replace(
        condition, annotator=replace(ANNOTATOR, preprocessors=(Preprocessor("x", unable),))
    )
    raw = {"size": [64, 64], "ops": [{"op": "empty", "class": WATER}]}
    control = ControlRequest(blind, np.zeros((64, 64, 3), np.uint8), edit=raw)
    drawn = Pipeline(lambda *_, **__: None).draw_map(GenerationRequest((control,)))
    assert (as_classes(drawn) == WATER).all()


@pytest.mark.parametrize(
    "op",
    [
        7,
        {},
        {"op": "erase"},
        {"op": ["fill"]},
        {"op": "fill", "class": 2},
        {"op": "fill", "class": 150, "at": [1, 1]},
        {"op": "fill", "class": 2, "at": [1, 1, 1]},
        {"op": "empty", "class": 2.5},
        {"op": "empty", "class": True},
        {"op": "empty"},
        {"op": "replace", "from": 1},
        {"op": "replace", "from": -1, "to": 2},
        {"op": "paint", "class": 2, "points": [[1]]},
        {"op": "paint", "class": 2, "points": [[1, 1]], "width": 0},
        {"op": "paint", "class": 2, "points": [[1, 1]] * 100_001},
    ],
)
def test_what_is_no_operation_is_refused_in_a_sentence(op: object) -> None:
    with pytest.raises(BadInput, match=r"^(The|Each) .*edit.*\.$"):
        check_segments({"size": SIZE, "ops": [op]}, 150)


def test_endless_edits_are_refused() -> None:
    for ops in (
        [{"op": "empty", "class": 2}] * 5001,
        [{"op": "paint", "class": 2, "points": [[1, 1]] * 1001}] * 100,
    ):
        with pytest.raises(BadInput, match=r"edit.*\.$"):
            check_segments({"size": SIZE, "ops": ops}, 150)


CLASS = st.integers(0, 149)
PLACE = st.tuples(st.floats(-200, 300), st.floats(-200, 300)).map(list)
OP = st.one_of(
    st.fixed_dictionaries({"op": st.just("empty"), "class": CLASS}),
    st.fixed_dictionaries({"op": st.just("fill"), "class": CLASS, "at": PLACE}),
    st.fixed_dictionaries({"op": st.just("replace"), "from": CLASS, "to": CLASS}),
    st.fixed_dictionaries(
        {
            "op": st.just("paint"),
            "class": CLASS,
            "points": st.lists(PLACE, max_size=4),
            "width": st.floats(0.1, 96),
        }
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OP, max_size=5))
def test_every_edit_draws_only_the_classes_that_it_names(ops: list[dict[str, Any]]) -> None:
    checked = edit(*ops)
    assert check_segments(checked, 150) == checked
    drawn = edited(checked, HILLS)
    named = {op[end] for op in ops for end in ("class", "to") if end in op}
    assert drawn.shape == HILLS.shape and drawn.dtype == np.uint8
    assert set(np.unique(drawn).tolist()) <= named | {SKY, GRASS, TREE}
    assert not is_emptied(checked) or (edited(checked, 0 * HILLS) == drawn).all()
