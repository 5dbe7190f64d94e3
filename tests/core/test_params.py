"""Bounds written once hold for every way a value arrives."""

from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest

from core.errors import BadInput
from core.params import Bounds, Text, bounded, checked, choice, restored, settings_of, text, toggle


@dataclass(frozen=True)
class Settings:
    count: int = bounded(3, 1, 12, 1, "Count", "How many.")
    scale: float = bounded(1.0, 0.0, 2.0, 0.1, "Scale")
    size: int | None = bounded(None, 64, 128, 1, "Size")
    kind: str = choice("a", ("a", "b"), "Kind")
    loud: bool = toggle(False, "Loud")
    words: str = text("", "Words", max_length=5)

    def __post_init__(self) -> None:
        checked(self)


def test_controls_carry_what_a_page_needs():
    found = settings_of(Settings)
    assert list(found) == ["count", "scale", "size", "kind", "loud", "words"]
    assert found["count"] == Bounds(3, 1, 12, 1, "Count", "How many.", True)
    assert not found["scale"].whole
    assert found["size"].whole
    assert found["kind"].options == ("a", "b")


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("count", 1, 1),
        ("count", 12.0, 12),
        ("count", np.int64(4), 4),
        ("scale", 2, 2),
        ("scale", np.float32(0.5), 0.5),
        ("size", None, None),
        ("size", 64, 64),
        ("kind", "b", "b"),
        ("loud", True, True),
        ("words", "12345", "12345"),
    ],
)
def test_good_values_pass(name, given, kept):
    value = getattr(Settings(**{name: given}), name)
    assert value == kept
    if name == "count":
        assert type(value) is int


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("count", 0),
        ("count", 13),
        ("count", 2.5),
        ("count", "3"),
        ("count", True),
        ("count", None),
        pytest.param("count", 10**400, id="count-huge"),
        ("scale", float("nan")),
        ("scale", float("inf")),
        ("scale", -0.1),
        ("scale", 99),
        ("size", 63),
        ("kind", "c"),
        ("kind", None),
        ("loud", 1),
        ("loud", "yes"),
        ("words", "123456"),
        ("words", None),
    ],
)
def test_bad_values_are_refused_by_their_label(name, given):
    with pytest.raises(BadInput, match=name.capitalize()):
        Settings(**{name: given})


def test_records_stay_frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().count = 4


def test_restored_clamps_skips_and_says_so():
    hostile = {
        "count": 1e9,
        "scale": float("nan"),
        "size": None,
        "kind": "z",
        "loud": True,
        "words": "too long",
        **{f"x{i}": i for i in range(10_000)},
    }
    settings, notes = restored(settings_of(Settings), hostile)
    assert settings == {"count": 12, "size": None, "loud": True, "words": "too l"}
    Settings(**settings)
    assert len(notes) == 5
    assert "9995 more" in notes[-1]


@pytest.mark.parametrize("value", [2.4, -3, 1e308, pytest.param(10**400, id="huge")])
def test_restored_numbers_always_pass_the_check(value):
    settings, _ = restored(settings_of(Settings), {"count": value, "scale": value})
    Settings(**settings)


def test_half_an_emoji_becomes_a_mark():
    words = Text("", "Words", "", 10)
    assert words.check("a\ud83d") == "a\ufffd"
    assert words.check("\U0001f600 \ud83d\ude00") == "\U0001f600 \U0001f600"
    assert words.clamp("\ud83d" * 20)[0] == "\ufffd" * 10
