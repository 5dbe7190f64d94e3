"""Folders as people's tools leave them: manifests, caption files, kohya's folders, rubbish."""

import csv
import json
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import BadInput
from core.picture_folder import caption_beside, check_rows, picture_files, read_folder


def picture(path: Path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 8), "teal").save(path, **options)
    return path


def names(found):
    return [row.name for row in found.rows]


def test_controlnets_manifest_as_lines_and_as_an_array(tmp_path):
    rows = [
        {"source": "s/1.png", "target": "t/1.png", "prompt": "one"},
        {"source": "s\\2.png", "target": "t/2.png", "prompt": "two\u2028lines"},
    ]
    for name in ("s/1.png", "s/2.png", "t/1.png", "t/2.png"):
        picture(tmp_path / name)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for text in (lines, "\ufeff" + lines + "\n", json.dumps(rows)):
        (tmp_path / "prompt.json").write_text(text, encoding="utf-8")
        found = read_folder(tmp_path)
        assert names(found) == ["t/1.png", "t/2.png"] and not found.bad
        assert [row.caption for row in found.rows] == ["one", "two lines"]
        assert [row.control_map for row in found.rows] == [tmp_path / f"s/{k}.png" for k in (1, 2)]


def test_each_bad_line_is_named_and_the_others_stay(tmp_path):
    for name in ("s.png", "t.png"):
        picture(tmp_path / name)
    good = {"source": "s.png", "target": "t.png", "prompt": "x"}
    lines = [
        json.dumps(good),
        json.dumps(good | {"source": "gone.png"}),
        "{broken",
        json.dumps({"source": "s.png", "target": "t.png"}),
        json.dumps([1]),
    ]
    (tmp_path / "prompt.json").write_text("\n".join(lines))
    found = read_folder(tmp_path)
    assert names(found) == ["t.png"]
    assert {name: reason[:18] for name, reason in found.bad.items()} == {
        "line 2 of prompt.json": "There is no file g",
        "line 3 of prompt.json": "It is not a JSON o",
        "line 4 of prompt.json": 'It has no text "pr',
        "line 5 of prompt.json": "It is not a JSON o",
    }


def test_datasets_image_folder(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    picture(tmp_path / "maps" / "a.png")
    (tmp_path / "b.txt").write_text("from its file")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "an a", "conditioning_image": "maps/a.png"}\n'
        '{"file_name": "b.png"}\n'
    )
    first, second = read_folder(tmp_path).rows
    assert (first.caption, first.control_map) == ("an a", tmp_path / "maps" / "a.png")
    assert (second.caption, second.control_map) == ("from its file", None)


def test_kohyas_folders_other_suffixes_and_what_a_mac_leaves(tmp_path):
    picture(tmp_path / "10_cat" / "a.jpg")
    picture(tmp_path / "10_cat" / "b.jfif", format="JPEG")
    picture(tmp_path / "1_dog" / "c.JPE", format="JPEG")
    (tmp_path / "10_cat" / "a.caption").write_text("a cat")
    (tmp_path / "10_cat" / "b.jfif.txt").write_text("another")
    for rubbish in ("10_cat/._a.jpg", ".DS_Store", "__MACOSX/10_cat/a.jpg", ".thumbs/a.jpg"):
        (tmp_path / rubbish).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / rubbish).write_bytes(b"\0\5\x16\7" + bytes(60))
    found = read_folder(tmp_path)
    assert names(found) == ["10_cat/a.jpg", "10_cat/b.jfif", "1_dog/c.JPE"]
    assert [row.caption for row in found.rows] == ["a cat", "another", ""]
    assert found.captioned == 2 and not found.bad


def test_what_cannot_be_decoded_is_named_once(tmp_path):
    picture(tmp_path / "a.png")
    whole = picture(tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    found = read_folder(tmp_path)
    assert len(found.rows) == 3
    assert [row.name for row in check_rows(found)] == ["a.png"] == names(found)
    assert set(found.bad) == {"b.png", "c.heic"} and "HEIC" in found.bad["c.heic"]


@pytest.mark.parametrize("fault", ["no folder", "empty", "broken array"])
def test_a_folder_that_is_none_is_one_sentence(tmp_path, fault):
    folder = tmp_path / "x"
    if fault != "no folder":
        folder.mkdir()
    if fault == "broken array":
        (folder / "prompt.json").write_text('[{"source": 1,')
    with pytest.raises(BadInput):
        read_folder(folder)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    caption=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    suffix=st.sampled_from([".txt", ".caption"]),
    whole_name=st.booleans(),
)
def test_a_caption_is_read_whatever_wrote_it(caption, encoding, suffix, whole_name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cat.v2.jpg")
        beside = path.with_name(path.name + suffix) if whole_name else path.with_suffix(suffix)
        # A text that begins with a mark of its own would lose it, as it should.
        beside.write_bytes(caption.lstrip("\ufeff").encode(encoding))
        assert caption_beside(path) == " ".join(caption.lstrip("\ufeff").split())


def test_pictures_are_in_the_order_of_their_names(tmp_path):
    for name in np.random.default_rng(0).permutation(list("abcdef")):
        picture(tmp_path / f"{name}.png")
    assert [path.stem for path in picture_files(tmp_path)] == list("abcdef")


@pytest.mark.parametrize("key", ["conditioning_image", "conditioning_image_file_name"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("below", ["", "train"])
def test_datasets_metadata_in_each_form_and_place(tmp_path, key, name, below):
    picture(tmp_path / below / "images" / "1.png")
    picture(tmp_path / below / "maps" / "1.png")
    row = {"file_name": "images/1.png", key: "maps/1.png", "text": 'a cat, "asleep"'}
    if name.endswith(".csv"):
        with (tmp_path / below / name).open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, list(row))
            table.writeheader()
            table.writerows([row, row | {"file_name": "images/2.png"}])
    else:
        rows = [json.dumps(row), json.dumps(row | {"file_name": "images/2.png"})]
        (tmp_path / below / name).write_text("\n".join(rows))
    found = read_folder(tmp_path)
    (only,) = found.rows
    assert only.name == (f"{below}/images/1.png" if below else "images/1.png")
    assert only.caption == 'a cat, "asleep"'
    assert only.control_map == tmp_path / below / "maps" / "1.png"
    line = 3 if name.endswith(".csv") else 2
    where = f"{below}, line {line} of {name}" if below else f"line {line} of {name}"
    assert found.bad == {where: "There is no file images/2.png."}


def test_a_manifest_below_lists_its_own_folder_alone(tmp_path):
    for name in ("loose.png", "train/a.png", "train/left_out.png", "train/deep/b.png"):
        picture(tmp_path / name)
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "deep/b.png", "text": "two"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train" / "deep" / "prompt.json").write_text("{broken")
    found = read_folder(tmp_path)
    assert sorted(names(found)) == ["loose.png", "train/a.png", "train/deep/b.png"]
    assert not found.bad


def test_a_table_that_is_none_is_one_sentence(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png," + "x" * 200_000)
    with pytest.raises(BadInput, match="not a valid table"):
        read_folder(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Gemälde.PNG", "gemälde.png"])
def test_a_manifest_of_another_system_finds_its_files(tmp_path, form, name):
    """Unpacked by a Mac an accent is a character of its own; Windows does not tell the case."""
    picture(tmp_path / unicodedata.normalize("NFD", "Gemälde.PNG"))
    asked = unicodedata.normalize(form, name)
    row = json.dumps({"source": asked, "target": asked, "prompt": "x"})
    (tmp_path / "prompt.json").write_text(row)
    found = read_folder(tmp_path)
    assert names(found) == [asked] and found.rows[0].picture.is_file() and not found.bad


def test_linked_folders_count_and_what_file_servers_leave_does_not(tmp_path):
    folder, shared = tmp_path / "mine", tmp_path / "shared"
    picture(folder / "cat.jpg")
    picture(shared / "dog.jpg")
    (shared / "DOG.TXT").write_text("not the dog's")
    (shared / "dog.TXT").write_text("a dog")
    (folder / "more").symlink_to(shared)
    for name in ("@eaDir/cat.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.jpg"):
        picture(folder / name)
    found = read_folder(folder)
    assert {row.name: row.caption for row in found.rows} == {"cat.jpg": "", "more/dog.jpg": "a dog"}
    assert [path.name for path in picture_files(folder)] == ["cat.jpg", "dog.jpg"]
