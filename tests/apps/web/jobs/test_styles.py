"""A style puts its words around the prompt, and takes away those of the one before."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.web.jobs.styles import NO_STYLE, restyled, what_it_adds
from core.params import Text
from core.request import DEFAULTS, SETTINGS
from models.catalog.cards import Style, read_card
from models.catalog.paths import MODELS

CARDS = {path.stem: read_card(path) for path in MODELS.glob("*.toml")}
STYLED = [name for name, card in CARDS.items() if card.styles]
SKETCH = Style("a sketch of {prompt}, ink, paper", "photo, colour")
NIGHT = Style("{prompt}, at night", "daylight")


def test_a_style_is_filled_in_replaced_and_taken_away() -> None:
    first = ("a ball", "best quality", "blurry")
    sketched = restyled(*first, NO_STYLE, SKETCH)
    assert sketched == (
        "a sketch of a ball",
        "best quality, ink, paper",
        "blurry, photo, colour",
    )
    night = restyled(*sketched, SKETCH, NIGHT)
    assert night == ("a ball", "best quality, at night", "blurry, daylight")
    assert restyled(*night, NIGHT, NO_STYLE) == first


def test_what_was_written_since_then_stays() -> None:
    prompt, added, negative = restyled("a ball", "", "", NO_STYLE, SKETCH)
    edited = (f"{prompt} on grass", f"{added}, sharp", "low")
    assert negative == "photo, colour"
    assert restyled(*edited, SKETCH, NO_STYLE) == ("a ball on grass", "sharp", "low")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    texts=st.tuples(*[st.text("ab, .", max_size=12)] * 3),
    styles=st.lists(st.sampled_from([NO_STYLE, SKETCH, NIGHT]), max_size=4),
)
def test_after_any_styles_none_leaves_the_words_that_were_there(
    texts: tuple[str, str, str], styles: list[Style]
) -> None:
    words = [[one for one in text.replace(",", " ").split() if one] for text in texts]
    found, old = texts, NO_STYLE
    for new in [*styles, NO_STYLE]:
        found = restyled(*found, old, new)
        old = new
    assert [text.replace(",", " ").split() for text in found] == words


def test_a_sentence_says_what_a_style_adds() -> None:
    assert what_it_adds(NO_STYLE) == ""
    assert what_it_adds(NIGHT) == (
        "Adds “at night” to the prompt and “daylight” to the negative prompt."
    )
    assert what_it_adds(Style("a sketch of {prompt}, ink")) == (
        "Adds “a sketch of … ink” to the prompt."
    )


@pytest.mark.parametrize("name", STYLED)
def test_the_styles_of_the_cards_fit_into_the_prompts_of_their_model(name: str) -> None:
    card = CARDS[name]
    usual = DEFAULTS | card.defaults
    known = {word for group in card.words.values() for text in group for word in text.split()}
    for old, new in product(card.styles.values(), repeat=2):
        for setting, text in zip(
            ("prompt", "added_prompt", "negative_prompt"),
            restyled("", usual["added_prompt"], usual["negative_prompt"], old, new),
            strict=True,
        ):
            limits = SETTINGS[setting]
            assert isinstance(limits, Text) and len(text) < limits.max_length
    for style in card.styles.values():
        said = f"{style.before} {style.after} {style.negative}".replace(",", " ").split()
        assert not known or set(said) <= known


def test_diorama_and_stable_diffusion_have_styles() -> None:
    assert {"diorama", "sd15", "sd15_v10", "sd15_plus"} <= set(STYLED)
