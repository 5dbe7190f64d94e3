"""`python -m annotators`: a folder of pictures becomes training data."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import annotators.__main__
from annotators import canny
from annotators.__main__ import main
from core.condition import Preprocessor
from core.picture_folder import name_of_its_files, read_folder
from training.examples import FolderExamples


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one.jpg", "two.png"):
        Image.fromarray(rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)).save(folder / name)
    (folder / "one.txt").write_text("a red ball\n")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_a_folder_becomes_training_data(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["canny", str(pictures), str(out), "--resolution", "128"]) == 1
    assert "broken.png: The picture is incomplete" in capsys.readouterr().err
    data = FolderExamples(out, canny.ANNOTATOR, 64)
    assert data.captions == ["a red ball", ""]
    assert set(np.unique(data.maps([0, 1]))) == {0, 255}
    with Image.open(out / "source" / "one.jpg.png") as drawn:
        assert drawn.size == (192, 128)  # 140 x 90 with a short side of 128, on the grid of 64


def test_it_resumes(pictures, tmp_path):
    out = tmp_path / "out"
    (pictures / "broken.png").unlink()
    assert main(["canny", str(pictures), str(out), "--resolution", "128"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "source").glob("*.png")}
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(pictures / "zero.png")
    assert main(["canny", str(pictures), str(out), "--resolution", "128"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    lines = [json.loads(line) for line in (out / "prompt.json").read_text().splitlines()]
    assert [line["source"] for line in lines] == [
        "source/one.jpg.png", "source/two.png.png", "source/zero.png.png"
    ]  # fmt: skip


def test_settings_reach_the_annotator(pictures, tmp_path):
    counts = []
    for high in (20, 255):
        out = tmp_path / str(high)
        main(["canny", str(pictures), str(out), "--set", f"high_threshold={high}",
              "--set", "low_threshold=20", "--resolution", "128"])  # fmt: skip
        counts.append(sum(np.asarray(Image.open(f)).sum() for f in (out / "source").glob("*.png")))
    assert counts[0] > counts[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resolution", "1000000"], "must be from 128 to 1024"),
        (["--set", "loudness=3"], "low_threshold, high_threshold"),
        (["--set", "low_threshold=soft"], "Canny low threshold must be a whole number"),
        (["--preprocessor", "HED"], "must be one of: Canny"),
    ],
)
def test_wrong_options_end_in_one_sentence(pictures, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        main(["canny", str(pictures), str(tmp_path / "out"), *options])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_an_empty_folder_is_reported(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["canny", str(tmp_path), str(tmp_path / "out")])
    assert "There are no pictures in" in capsys.readouterr().err


def run(pictures, out, *options, condition="canny"):
    return main([condition, str(pictures), str(out), "--resolution", "128", *options])


def refusal(capsys, *arguments, **named):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, **named)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    return lines[-1]


def test_a_truncated_line_is_drawn_again(pictures, tmp_path):
    out = tmp_path / "out"
    run(pictures, out)
    manifest = out / "prompt.json"
    whole = manifest.read_text()
    assert whole.endswith("\n")
    manifest.write_text(whole[:-20])
    run(pictures, out)
    assert manifest.read_text() == whole
    assert len(FolderExamples(out, canny.ANNOTATOR, 64)) == 2
    manifest.write_text(whole[:-1])  # without the last newline
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(pictures / "zero.png")
    run(pictures, out)
    assert len(FolderExamples(out, canny.ANNOTATOR, 64)) == 3


def test_an_invalid_line_is_reported_and_not_deleted(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    run(pictures, out)
    manifest = out / "prompt.json"
    manifest.write_text("no json\n" + manifest.read_text())
    capsys.readouterr()
    message = refusal(capsys, pictures, out)
    assert "Line 1 of" in message and "is not valid JSON" in message
    assert manifest.read_text().startswith("no json\n")


def test_a_caption_that_is_not_utf8_skips_its_picture_only(pictures, tmp_path, capsys):
    (pictures / "one.txt").write_bytes("ein gr\u00fcner Ball".encode("latin-1"))
    assert run(pictures, tmp_path / "out") == 1
    assert "one.jpg: one.txt is not UTF-8 text" in capsys.readouterr().err
    lines = (tmp_path / "out" / "prompt.json").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["source/two.png.png"]


def test_pictures_with_an_empty_map_are_skipped_and_named(pictures, tmp_path, capsys):
    (pictures / "broken.png").unlink()
    for k in range(7):
        Image.new("RGB", (64, 64), "white").save(pictures / f"white{k}.png")
    assert run(pictures, tmp_path / "out") == 0
    assert "7 (white0.png, white1.png, white2.png, white3.png, white4.png, ...)" in (
        capsys.readouterr().err
    )
    assert len((tmp_path / "out" / "prompt.json").read_text().splitlines()) == 2
    assert not list((tmp_path / "out").glob("*/white*"))


def test_other_settings_are_refused(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    run(pictures, out)
    for options, words in (
        (("--preprocessor", "Kornia"), "with preprocessor Canny, not Kornia"),
        (("--set", "high_threshold=210"), "with high_threshold 200, not 210"),
    ):
        assert words in refusal(capsys, pictures, out, *options)
    assert "with condition canny, not mlsd" in refusal(capsys, pictures, out, condition="mlsd")
    (out / "annotator.json").unlink()
    assert "no annotator.json" in refusal(capsys, pictures, out)


def test_a_folder_that_cannot_be_written_is_one_sentence(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(capsys, pictures, tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_running_out_of_memory_is_one_sentence(pictures, tmp_path, capsys, monkeypatch, error):
    def draw(*_):
        raise error("CUDA out of memory")

    greedy = replace(canny.ANNOTATOR, preprocessors=(Preprocessor("Greedy", draw),))
    monkeypatch.setattr(annotators.__main__, "find_annotator", lambda _: greedy)
    assert "too little memory" in refusal(capsys, pictures, tmp_path / "out")


def test_files_without_a_pictures_suffix_are_ignored(pictures, tmp_path, capsys):
    (pictures / "broken.png").unlink()
    (pictures / "notes.md").write_text("not a picture")
    (pictures / "two.png").rename(pictures / "two.PNG")
    assert run(pictures, tmp_path / "out") == 0 and "notes" not in capsys.readouterr().err
    assert (tmp_path / "out" / "source" / "two.PNG.png").exists()


def test_maps_are_drawn_at_the_preprocessors_resolution(pictures, tmp_path):
    for options, side in (((), 256), (("--detect-resolution", "384"), 384)):
        out = tmp_path / str(side)
        run(pictures, out, *options, condition="depth")
        assert json.loads((out / "annotator.json").read_text())["detect_resolution"] == side
        with Image.open(out / "source" / "one.jpg.png") as drawn:
            assert min(drawn.size) == 128


def test_captions_of_other_tools_and_folders_inside(pictures, tmp_path, capsys):
    (pictures / "broken.png").unlink()
    (pictures / "10_cat").mkdir()
    (pictures / "two.png").rename(pictures / "10_cat" / "two.jfif")
    (pictures / "10_cat" / "two.caption").write_text("a cat\u2028on a mat", encoding="utf-8")
    (pictures / "._one.jpg").write_bytes(b"\0\5\x16\7" + bytes(60))
    out = pictures / "out"  # its own maps are not pictures to annotate
    for _ in range(2):
        assert run(pictures, out) == 0
    assert sorted(FolderExamples(out, canny.ANNOTATOR, 64).captions) == [
        "a cat on a mat", "a red ball"
    ]  # fmt: skip
    assert (out / "source" / "10_cat" / "two.jfif.png").is_file()
    assert "Without a caption" not in capsys.readouterr().err


def test_pictures_without_a_caption_are_counted(pictures, tmp_path, capsys):
    run(pictures, tmp_path / "out")
    assert "Without a caption: 1 (write" in capsys.readouterr().err


ODD_NAMES = {
    "long": "x" * 251 + ".jpg",
    "long in bytes": "ä" * 125 + ".jpg",
    "long folder": "y" * 255 + "/" + "x" * 251 + ".jpg",
    "not UTF-8": os.fsdecode(b"k\xe4se.jpg"),  # as unpacked from an old archive
    "Windows' path": "folder\\cat.jpg",
    "signs": ' #1 50%\nat"night"\t.jpg',
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_a_picture_of_any_name_becomes_training_data(pictures, tmp_path, name):
    """One bad name must not cost the others, and what is written here is read here."""
    (pictures / "broken.png").unlink()
    odd, other = pictures / name, pictures / f"{name[:-5]}+.jpg"
    odd.parent.mkdir(exist_ok=True)
    for path in (odd, other):
        shutil.copy(pictures / "one.jpg", path)
    out = tmp_path / "out"
    for _ in range(2):  # the second time it resumes
        assert run(pictures, out) == 0
        found = read_folder(out)
        assert not found.bad and len(found.rows) == 4
        assert len({row.control_map for row in found.rows}) == 4
        assert FolderExamples(out, canny.ANNOTATOR, 64).maps(range(4)).shape[0] == 4


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(min_size=1, max_size=255), min_size=2, max_size=2, unique=True))
def test_names_in_the_output_are_possible_and_differ(names):
    parts = [os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"_")) for name in names]
    assume(parts[0] != parts[1])
    ours = [name_of_its_files(f"folder/{part}") for part in parts]
    assert ours[0] != ours[1]
    for one, part in zip(ours, parts, strict=True):
        folder, _, last = one.partition("/")
        assert folder == "folder" and last.endswith(".png") and len(last.encode()) <= 255
        if part.isascii() and len(part) <= 251:
            assert last == f"{part}.png"


@pytest.mark.parametrize("name", ["source", "prompt.json", "annotator.json", "target/one.jpg.png"])
def test_nothing_is_written_through_a_link(pictures, tmp_path, name, capsys):
    (pictures / "broken.png").unlink()
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    if name == "source":
        elsewhere.mkdir()
    else:
        elsewhere.write_text("")
    link.symlink_to(elsewhere)
    command = ["canny", str(pictures), str(tmp_path / "out"), "--resolution", "128"]
    if name.endswith(".json"):
        assert main(command) == 0 and not link.is_symlink()
    else:
        with pytest.raises(SystemExit):
            main(command)
        assert f"{name} is a symbolic link" in capsys.readouterr().err
    assert not (list(elsewhere.iterdir()) if elsewhere.is_dir() else elsewhere.read_text())


def test_a_caption_with_half_a_character_is_kept(pictures, tmp_path):
    (pictures / "broken.png").unlink()
    line = {"file_name": "one.jpg", "text": "half \ud83d"}
    (pictures / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    for _ in range(2):
        assert main(["canny", str(pictures), str(tmp_path / "out"), "--resolution", "128"]) == 0
    (row,) = (tmp_path / "out" / "prompt.json").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["prompt"] == "half \ud83d"
