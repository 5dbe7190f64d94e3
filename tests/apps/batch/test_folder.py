"""Batches: a folder in, images with a table and contact sheets out, resumed where it ended."""

import csv
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import apps
import apps.batch.__main__ as command
from apps.batch.folder import LEDGER, ROWS_OF_SHEET, Batch, Done, FolderRun, write_sheets
from apps.web.suite import Suite
from core.errors import BadInput
from core.images import read_image
from core.metadata import read_settings
from core.picture_folder import read_folder
from core.provenance import COMPOSITE, GENERATED, read_claims
from models.store import Store

CANNY = apps.find("canny2image")
SMALL = {"steps": 1, "image_resolution": 256, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def suite(models_folder: Path) -> Suite:
    return Suite(Store("cpu", "float32", models_folder), "tiny")


@pytest.fixture
def made(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of the images that are really generated; one of "fail" fails."""
    prompts: list[str] = []
    generate = suite.pipeline.generate

    def noted(request: Any, **options: Any) -> Any:
        prompts.append(request.prompt)
        if request.prompt == "fail":
            raise RuntimeError("/secret/path")
        if request.prompt == "interrupt":
            raise KeyboardInterrupt
        return generate(request, **options)

    monkeypatch.setattr(suite.pipeline, "generate", noted)
    return prompts


def save_edge(path: Path, column: int) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, column:] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, one of them with a caption and in a folder of its own, and one bad file."""
    folder = tmp_path / "pictures"
    save_edge(folder / "a.png", 20)
    save_edge(folder / "inside" / "b.jpg", 40)
    (folder / "inside" / "b.txt").write_text("a box", encoding="utf-8")
    (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


Run = Callable[..., Batch]


def last_of(reports: Iterable[object]) -> Batch:
    batch = list(reports)[-1]
    assert isinstance(batch, Batch)
    return batch


@pytest.fixture
def run(suite: Suite, pictures: Path, tmp_path: Path) -> Run:
    def do(prompt: str = "a ball", **settings: Any) -> Batch:
        folder_run = FolderRun(suite, CANNY, tmp_path / "out", SMALL | settings, prompt)
        return last_of(folder_run.run(read_folder(pictures)))

    return do


def table(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


pytestmark = pytest.mark.slow


def test_every_picture_has_its_image_map_and_line(
    run: Run, made: list[str], tmp_path: Path
) -> None:
    batch = run()
    assert made == ["a ball", "a box"], "a caption is the prompt of its picture"
    assert set(batch.done) == {"a.png", "inside/b.jpg"} and set(batch.bad) == {"c.png"}
    first, second, bad = table(tmp_path)
    assert (first["picture"], first["image"]) == ("a.png", "images/a.png.png")
    assert (second["image"], second["prompt"]) == ("images/inside/b.jpg.png", "a box")
    assert float(first["F1"]) >= 0 and 0 <= float(first["score"]) <= 100 and first["seed"] == "0"
    assert bad["picture"] == "c.png" and "damaged" in bad["error"] and bad["image"] == ""
    settings, _ = read_settings(tmp_path / "out" / first["image"], CANNY)
    assert (settings["prompt"], settings["seed"], settings["steps"]) == ("a ball", 0, 1)
    control_map, _ = read_image(tmp_path / "out" / "maps" / "a.png.png")
    assert set(np.unique(control_map)) == {0, 255}
    sheet, _ = read_image(tmp_path / "out" / "contact-1.png")
    assert sheet.shape[0] > 3 * 256 and sheet.shape[1] > 2 * 256
    for file, kinds in (
        (first["image"], (GENERATED,)), ("maps/a.png.png", ()), ("contact-1.png", (COMPOSITE,)),
    ):  # fmt: skip
        assert read_claims(tmp_path / "out" / file).source_types == kinds


def test_what_is_done_is_kept_and_what_has_changed_is_made_again(
    run: Run, made: list[str], pictures: Path, tmp_path: Path
) -> None:
    run()
    made.clear()
    again = run()
    assert made == [] and again.kept == 2 and len(table(tmp_path)) == 3
    save_edge(pictures / "a.png", 30)
    save_edge(pictures / "d.png", 10)
    run()
    assert len(made) == 2, "another content, and a new picture"
    made.clear()
    run(strength=0.5)
    assert len(made) == 3, "another setting"
    made.clear()
    (tmp_path / "out" / "images" / "d.png.png").unlink()
    run(strength=0.5)
    assert len(made) == 1, "a file that was deleted"
    run(low_threshold=50, strength=0.5)
    assert len(made) == 4, "a setting of the map"


def test_a_picture_that_fails_does_not_stop_the_others(
    run: Run, made: list[str], pictures: Path, tmp_path: Path
) -> None:
    (pictures / "a.txt").write_text("fail", encoding="utf-8")
    batch = run()
    assert made == ["fail", "a box"] and set(batch.done) == {"inside/b.jpg"}
    assert "Something went wrong on our side" in batch.bad["a.png"]
    assert "secret" not in batch.bad["a.png"]
    assert {row["picture"] for row in table(tmp_path)} == {"a.png", "inside/b.jpg", "c.png"}


def test_an_interrupted_batch_goes_on_where_it_was(
    run: Run, made: list[str], pictures: Path, tmp_path: Path
) -> None:
    (pictures / "inside" / "b.txt").write_text("interrupt", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [row["picture"] for row in table(tmp_path) if row["image"]] == ["a.png"]
    (pictures / "inside" / "b.txt").write_text("a box", encoding="utf-8")
    ledger = tmp_path / "out" / LEDGER
    ledger.write_text(ledger.read_text(encoding="utf-8") + '{"key": "cut o', encoding="utf-8")
    made.clear()
    batch = run()
    assert made == ["a box"] and batch.kept == 1
    assert len(run().done) == 2 and made == ["a box"], "a line that was cut off spoils no other"


def test_several_images_a_picture(run: Run, tmp_path: Path) -> None:
    batch = run(num_samples=2, seed=7)
    assert batch.done["a.png"].images == ["images/a.png-7.png", "images/a.png-8.png"]
    assert [row["seed"] for row in table(tmp_path) if row["picture"] == "a.png"] == ["7", "8"]


def test_results_inside_the_folder_are_no_input(
    suite: Suite, pictures: Path, made: list[str]
) -> None:
    for _ in range(2):
        folder_run = FolderRun(suite, CANNY, pictures / "out", SMALL, "a ball")
        batch = last_of(folder_run.run(read_folder(pictures)))
        assert set(batch.done) == {"a.png", "inside/b.jpg"}
    assert len(made) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"colour": 1}, "There is no setting 'colour'; there are: added_prompt"),
        ({"strength": 3}, "Control strength is 3"),
        ({"seed": -1}, "A batch needs a seed"),
        ({"model": "sdxl"}, "not on offer"),
        ({"low_threshold": 999}, "Canny low threshold is 999"),
    ],
)
def test_settings_are_checked_before_anything_is_made(
    suite: Suite, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        FolderRun(suite, CANNY, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_many_pictures_have_several_contact_sheets(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(ROWS_OF_SHEET + 1)]
    save_edge(tmp_path / "x.png", 5)
    done = {
        name: Done("", name, "", ["x.png"], "x.png", [0], [50.0], [{}], 1.0, []) for name in names
    }
    write_sheets(tmp_path, Batch([], {}, done))
    assert len(list(tmp_path.glob("contact-*.png"))) == 2
    write_sheets(tmp_path, Batch([], {}, dict(list(done.items())[:3])))
    assert len(list(tmp_path.glob("contact-*.png"))) == 1, "none of an earlier run is left"


# The command


@pytest.fixture
def shell(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command with the tests' models; returns its exit status."""
    monkeypatch.setattr(command, "Store", lambda: Store("cpu", "float32", models_folder))

    def call(*arguments: object) -> int:
        try:
            return command.main([str(one) for one in arguments])
        except SystemExit as error:
            return int(error.code)

    return call


def test_the_command_makes_a_folder_and_names_what_failed(
    shell: Callable[..., int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--set", "steps=1", "--set", "image_resolution=256", "--model", "tiny"]
    out = tmp_path / "out"
    assert shell("canny", pictures, "--out", out, "--prompt", "a ball", *few) == 1
    said = capsys.readouterr()
    assert said.out.startswith("2 made, 0 kept, 1 failed") and "c.png: " in said.err
    (pictures / "c.png").unlink()
    assert shell("canny2image", pictures, "--out", out, "--prompt", "a ball", *few) == 0
    assert capsys.readouterr().out.startswith("0 made, 2 kept, 0 failed")
    lines = [line for line in (out / LEDGER).read_text(encoding="utf-8").splitlines() if line]
    assert [json.loads(line)["name"] for line in lines] == ["a.png", "inside/b.jpg"]


@pytest.mark.parametrize(
    ("condition", "more", "told"),
    [
        ("cany", [], "There is no condition 'cany'; there are: canny2image"),
        ("canny", ["--set", "steps"], "--set takes NAME=VALUE, such as strength=0.8, not 'steps'"),
        ("canny", ["--model", "sdxl"], "sdxl"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(
    shell: Callable[..., int], pictures: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], condition: str, more: list[str], told: str,
) -> None:  # fmt: skip
    assert shell(condition, pictures, "--out", tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    nothing = ("canny", tmp_path / "nothing", "--out", tmp_path / "out", "--model", "tiny")
    assert shell(*nothing) == 2
    assert "There is no folder" in capsys.readouterr().err


NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def not_utf8(pictures: Path) -> str:
    try:
        save_edge(pictures / NOT_UTF8, 25)
    except OSError:
        pytest.skip("this system takes no such name")
    return NOT_UTF8


@pytest.mark.parametrize("prompt", ["a ball", "fail"])
def test_a_name_that_is_not_utf8_is_one_among_others(
    run: Run, made: list[str], not_utf8: str, tmp_path: Path, prompt: str
) -> None:
    first = run(prompt=prompt)
    assert not_utf8 in (first.done if prompt == "a ball" else first.bad)
    again = run(prompt=prompt)
    assert again.kept == len(first.done), "what is done is read back by the same name"
    assert "caf\\udce9.png" in {row["picture"] for row in table(tmp_path)}


def test_a_ledger_that_is_not_utf8_loses_only_its_line(
    run: Run, made: list[str], tmp_path: Path
) -> None:
    run()
    with (tmp_path / "out" / "done.jsonl").open("ab") as ledger:
        ledger.write(b'{"key": "caf\xe9"}\n')
    assert run().kept == 2


@pytest.mark.parametrize("name", ["done.jsonl", "images", "maps", "images/inside"])
def test_nothing_is_written_through_a_link(
    run: Run, made: list[str], tmp_path: Path, name: str
) -> None:
    link, elsewhere = tmp_path / "out" / name, tmp_path / "elsewhere"
    link.parent.mkdir(parents=True)
    if name.endswith(".jsonl"):
        elsewhere.write_text("mine")
    else:
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    if name == "images/inside":
        assert "symbolic link" in run().bad["inside/b.jpg"]
    else:
        with pytest.raises(BadInput, match=f"{name} is a symbolic link"):
            run()
    assert (
        list(elsewhere.iterdir()) == [] if elsewhere.is_dir() else elsewhere.read_text() == "mine"
    )


def test_a_link_in_a_files_place_is_replaced(run: Run, made: list[str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "out").mkdir()
    for name in ("scores.csv", "contact-1.png"):
        (tmp_path / "out" / name).symlink_to(elsewhere)
    run()
    assert elsewhere.read_text() == "mine"
    assert len(table(tmp_path)) == 3 and not (tmp_path / "out" / "scores.csv").is_symlink()
