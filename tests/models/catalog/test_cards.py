"""Cards say what a model is; a malformed one is named."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import BadInput
from core.request import SETTINGS
from models.catalog.cards import Card, read_card
from models.catalog.paths import MODELS
from tests.conftest import CARD
from tests.models.conftest import OTHER_CARD
from training.diorama.world import ADE20K


@pytest.fixture
def shipped() -> dict[str, Card]:
    """The cards in models/, by name."""
    return {path.stem: read_card(path) for path in MODELS.glob("*.toml")}


def test_the_shipped_cards_are_right(shipped: dict[str, Card]) -> None:
    assert {"diorama", "sd15", "sd15_v10", "sd15_plus"} <= shipped.keys()
    for card in shipped.values():
        assert card.defaults.keys() <= SETTINGS.keys()
        assert card.min_resolution <= card.defaults.get("image_resolution", 512)
        assert card.title and card.licence and card.prompts
        assert re.fullmatch(r"(?:[^.]|\.\d)+\.", card.blurb), "a page has room for one sentence"
        for source in (card.base, *card.controls.values()):
            assert source is None or len(source.revision) == 40  # a commit, not a branch


def test_the_families_of_controls_share_one_base(shipped: dict[str, Card]) -> None:
    base = shipped["sd15"]
    v10 = {"canny", "mlsd", "hed", "scribble", "pose", "seg", "depth", "normal"}
    for name, controls_ in (
        ("sd15", v10 | {"lineart"}),
        ("sd15_v11_anime", {"lineart"}),
        ("sd15_v10", v10),
        ("sd15_plus", {"canny", "depth", "hed", "lineart", "seg"}),
    ):
        card = shipped[name]
        assert set(card.control_names()) == controls_
        assert (card.base, card.base_folder) == (base.base, base.folder)
        assert card.preview_matrix == base.preview_matrix and card.prompts == base.prompts
        assert card.title.startswith(base.title)  # a user's own base takes its place in the title
        assert all(source.licence for source in card.controls.values())
        reversed_ = {c for c in card.controls if card.channel_order(c) == "bgr"}
        assert reversed_ == ({"normal"} if name == "sd15_v10" else set())


def test_a_card_tells_the_classes_that_its_world_has(shipped: dict[str, Card]) -> None:
    assert shipped["diorama"].classes == tuple(sorted(ADE20K.values()))
    assert shipped["sd15"].classes == ()
    own = replace(shipped["diorama"], file=Path("mine.safetensors"))
    assert own.classes == (), "a checkpoint of the visitor's own was trained elsewhere"


@pytest.mark.parametrize("text", ["a sunset", "{prompt} and {prompt}", ""])
def test_a_style_without_its_place_for_the_prompt_is_refused(text: str, tmp_path: Path) -> None:
    card = f'{CARD}\n[styles.Odd]\nprompt = "{text}"'
    (tmp_path / "tiny.toml").write_text(card, encoding="utf-8")
    with pytest.raises(BadInput, match=r"tiny\.toml has a malformed value: the style '.*' must"):
        read_card(tmp_path / "tiny.toml")


def test_a_card_with_few_words_lists_them_and_others_of_its_base_have_them_too(
    shipped: dict[str, Card], tmp_path: Path
) -> None:
    assert "sunset" in " ".join(shipped["diorama"].words["Skies"]).split()
    assert not shipped["sd15"].words and not shipped["sd15_plus"].words
    (tmp_path / "tiny.toml").write_text(f'{CARD}\n[words]\nThings = ["ball"]', encoding="utf-8")
    (tmp_path / "more.toml").write_text(OTHER_CARD.format(base="tiny"), encoding="utf-8")
    assert read_card(tmp_path / "more.toml").words == {"Things": ("ball",)}
    (tmp_path / "tiny.toml").write_text(f'words = ["ball"]\n{CARD}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"tiny\.toml has a malformed value"):
        read_card(tmp_path / "tiny.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = ", "not valid TOML"),
        (CARD.replace('title = "Tiny"', ""), "lacks the field title"),
        ('colour = "red"\n' + CARD, "unknown field colour"),
        ('preview_matrix = [["x"]]\n' + CARD, "malformed value"),
        (CARD + "[base]\nhub = 'a/b'\n", "lacks the field"),
        (
            CARD
            + "[controls.canny]\nhub = 'a/b'\nrevision = ''\nfiles = {}\nchannel_order = 'gbr'",
            "malformed value: channel_order is 'gbr', it must be rgb or bgr",
        ),
        ('base_of = "nothing"\n' + CARD, "uses the base of nothing, which has no card"),
        ('base_of = "odd"\n' + CARD, "uses the base of odd, which has none of its own"),
    ],
)
def test_a_malformed_card_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=rf"odd\.toml.*{words}"):
        read_card(tmp_path / "odd.toml")


def test_a_card_takes_what_it_does_not_say_from_that_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CARD, encoding="utf-8")
    (tmp_path / "other.toml").write_text(OTHER_CARD.format(base="tiny"), encoding="utf-8")
    card = read_card(tmp_path / "other.toml")
    assert (card.folder, card.base_folder) == (tmp_path / "other", tmp_path / "tiny")
    assert card.defaults == {"image_resolution": 256, "steps": 2}
    assert (card.prompts, card.max_resolution) == (("the red ball",), 256)
    text = "preview_matrix = [[1, 0, 0]]\n" + OTHER_CARD.format(base="tiny")
    (tmp_path / "other.toml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"cannot have the field preview_matrix: .* tiny\.toml"):
        read_card(tmp_path / "other.toml")
