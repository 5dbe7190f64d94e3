"""Files below a folder, linked ones too, and names as other systems spell them."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.files import files_below, find_file, plain_name


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def listed(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def test_a_linked_folder_is_entered(tmp_path):
    touch(tmp_path / "shared" / "deep" / "b")
    touch(tmp_path / "here" / "a")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "shared")
    (tmp_path / "here" / "file").symlink_to(tmp_path / "shared" / "deep" / "b")
    (tmp_path / "here" / "broken").symlink_to(tmp_path / "gone")
    assert listed(tmp_path / "here") == ["a", "file", "link/deep/b"]


def test_links_that_lead_back_end(tmp_path):
    touch(tmp_path / "a" / "1")
    touch(tmp_path / "b" / "2")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert listed(tmp_path / "a") == ["1", "to_b/2"]
    assert listed(tmp_path) == ["a/1", "b/2"]  # where they are, not where links lead to


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    links=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8),
    inside=st.lists(st.integers(0, 4), min_size=1, max_size=5),
)
def test_any_links_end_and_no_folder_comes_twice(tmp_path_factory, links, inside):
    """Every file that os.walk reaches through links is there, once."""
    root = tmp_path_factory.mktemp("links")
    folders = [root / str(k) for k in range(5)]
    for folder in folders:
        folder.mkdir()
    for k in inside:
        (folders[k] / "file").touch()
    for n, (start, end) in enumerate(links):
        (folders[start] / f"to{n}").symlink_to(folders[end])
    found = [path.resolve() for path in files_below(folders[0])]
    reached, waiting = set(), [0]
    while waiting:
        here = waiting.pop()
        if here not in reached:
            reached.add(here)
            waiting += [end for start, end in links if start == here]
    assert sorted(found) == sorted(folders[k] / "file" for k in reached & set(inside))


@pytest.mark.parametrize("asked", ["café/Bild Ä.PNG", "CAFÉ/bild ä.png", "café/./Bild Ä.PNG"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_however_it_is_spelt(tmp_path, asked, form):
    path = touch(tmp_path / unicodedata.normalize("NFD", "café") / "Bild Ä.PNG")
    found = find_file(tmp_path, unicodedata.normalize(form, asked))
    assert found is not None and found.samefile(path)
    assert find_file(tmp_path, "café/Bild.PNG") is None
    assert find_file(tmp_path, "café") is None  # a folder is no file


def test_of_two_alike_only_the_exact_one_is_taken(tmp_path):
    touch(tmp_path / "A.png"), touch(tmp_path / "a.png")
    assert find_file(tmp_path, "A.png") == tmp_path / "A.png"
    assert find_file(tmp_path, "a.PNG") is None


def test_a_file_that_came_later_is_found(tmp_path):
    assert find_file(tmp_path, "b.png") is None
    touch(tmp_path / "B.png")
    assert find_file(tmp_path, "b.png") == tmp_path / "B.png"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(max_size=8))
def test_plain_names_do_not_depend_on_form_or_case(name):
    plain = plain_name(name)
    for form in ("NFC", "NFD"):
        assert plain_name(unicodedata.normalize(form, name)) == plain
    assert plain_name(plain) == plain
