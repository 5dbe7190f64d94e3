"""`python -m annotators`: a folder of anybody's pictures becomes training data."""

import json

import numpy as np
import pytest
from PIL import Image

from annotators.__main__ import main
from training.train_control import FolderExamples


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
    data = FolderExamples(out, 64)
    assert data.captions == ["a red ball", ""]
    assert set(np.unique(data.maps([0, 1]))) == {0, 255}
    with Image.open(out / "source" / "one.jpg.png") as drawn:
        assert drawn.size == (192, 128)  # 140 x 90 with a short side of 128, on the grid of 64


def test_it_resumes(pictures, tmp_path):
    out = tmp_path / "out"
    (pictures / "broken.png").unlink()
    assert main(["canny", str(pictures), str(out), "--resolution", "128"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "source").glob("*.png")}
    Image.new("RGB", (64, 64), "white").save(pictures / "zero.png")
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
        (["--resolution", "1000000"], "must lie from 128 to 1024"),
        (["--set", "loudness=3"], "low_threshold, high_threshold"),
        (["--set", "low_threshold=soft"], "Canny low threshold must be a whole number"),
        (["--preprocessor", "HED"], "must be one of: Canny"),
    ],
)
def test_mistakes_are_one_sentence(pictures, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        main(["canny", str(pictures), str(tmp_path / "out"), *options])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_an_empty_folder_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["canny", str(tmp_path), str(tmp_path / "out")])
    assert "There are no pictures in" in capsys.readouterr().err
