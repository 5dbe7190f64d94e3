"""Uploaded files become a folder of pictures: ZIPs unpacked, bounded, and nothing outside of it."""

import io
import struct
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import apps
from apps.batch import uploads
from apps.batch.uploads import UploadRun, pictures_of
from apps.web.files import new_folder, upload_folder
from apps.web.suite import Suite
from core.errors import BadInput
from models.store import Store


def png(shade: int = 0) -> bytes:
    memory = io.BytesIO()
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 20 + shade :] = 255
    Image.fromarray(picture).save(memory, "PNG")
    return memory.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "here" / "folder"
    made.mkdir(parents=True)
    return made


def test_pictures_captions_and_zips_make_one_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png())
    (tmp_path / "cat.txt").write_text("a cat", encoding="utf-8")
    archive = zipped(
        tmp_path / "more.zip",
        {"cat.png": png(), "in/dog.png": png(), "in/dog.txt": b"a dog", "__MACOSX/._x.png": b""},
    )
    found = pictures_of([tmp_path / "cat.png", tmp_path / "cat.txt", archive], folder)
    captions = {row.name: row.caption for row in found.rows}
    assert captions == {"cat.png": "a cat", "cat (2).png": "", "in/dog.png": "a dog"}
    assert found.bad == {}


def test_a_damaged_archive_and_an_encrypted_file_are_named_and_the_rest_is_read(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and nothing else")
    locked = zipped(tmp_path / "locked.zip", {"secret.png": png(), "plain.png": png()})
    data = bytearray(locked.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of the first file
        at = data.index(signature) + flags
        data[at : at + 2] = struct.pack("<H", 1)
    locked.write_bytes(data)
    found = pictures_of([tmp_path / "broken.zip", locked], folder)
    assert [row.name for row in found.rows] == ["plain.png"]
    assert "damaged" in found.bad["broken.zip"] and "encrypted" in found.bad["secret.png"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "a", "C:", "\\", "b.png"]), max_size=6))
def test_no_name_in_an_archive_leads_out_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    place = tmp_path_factory.mktemp("zip")
    folder = place / "folder"
    folder.mkdir()
    archive = zipped(place / "x.zip", {"/".join(parts) or "x": png(), "good.png": png()})
    found = pictures_of([archive], folder)
    assert "good.png" in {row.name for row in found.rows} | {f"{n}" for n in found.bad}
    assert {path.name for path in place.iterdir()} == {"x.zip", "folder"}


def test_a_batch_has_bounds(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LARGEST_UPLOAD", 5000)
    monkeypatch.setattr(uploads, "LARGEST_BATCH", 20_000)
    bomb = zipped(tmp_path / "bomb.zip", {"big.png": bytes(10**6), "good.png": png()})
    found = pictures_of([bomb], folder)
    assert [row.name for row in found.rows] == ["good.png"] and "MB" in found.bad["big.png"]
    many = {f"{k}.png": bytes(4000) for k in range(9)}
    with pytest.raises(BadInput, match="too many files"):
        pictures_of([zipped(tmp_path / "many.zip", many)], tmp_path / "other")
    monkeypatch.setattr(uploads, "MOST_PICTURES", 2)
    three = {f"{k}.png": png() for k in range(3)}
    with pytest.raises(BadInput, match="These are 3 pictures; please send at most 2"):
        pictures_of([zipped(tmp_path / "three.zip", three)], tmp_path / "another")


def test_without_a_picture_it_says_so(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(BadInput, match="There are no pictures in these files") as error:
        pictures_of([tmp_path / "letter.txt"], folder)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.slow
def test_stop_keeps_what_is_done(models_folder: Path, tmp_path: Path) -> None:
    suite = Suite(Store("cpu", "float32", models_folder), "tiny")
    condition = apps.find("canny2image")
    sent = new_folder(upload_folder())
    for shade in range(3):
        (sent / f"{shade}.png").write_bytes(png(shade))
    records = [{"path": str(path)} for path in sorted(sent.iterdir())]
    given = {"prompt": "a ball", "steps": 1, "seed": -1, "guidance_scale": None, "image": None}
    run = UploadRun(suite, condition, given, records, tmp_path / "out")
    for batch in run.run():
        if getattr(batch, "done", {}):
            run.stop()
    assert list(batch.done) == ["0.png"] and batch.bad == {} and run.stopped and run.finished
    assert (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").count("\n") == 2
    with pytest.raises(BadInput, match="no pictures yet"):
        UploadRun(suite, condition, given, [], tmp_path / "none")
    with pytest.raises(BadInput, match="not an upload"):
        UploadRun(suite, condition, given, [{"path": "/etc/passwd"}], tmp_path / "none")
