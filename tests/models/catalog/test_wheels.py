"""A wheel of a package index kept here as its files; pip is real, the index a folder."""

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import WeightsMissing
from models import __main__ as command
from models.catalog import wheels
from models.catalog.wheels import BLAZEPOSE, Wheel, fetch_wheel

NETWORK, LICENCE = b"weights", b"Do as you like."
TAG = f"cp311-cp311-{BLAZEPOSE.platform}"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Wheel:
    """A wheel that pip finds in a folder, of another Python than this one perhaps."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / f"tinypose-1.0-{TAG}.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tinypose/modules/net.tflite", NETWORK)
        archive.writestr("tinypose/code.py", "raise SystemExit('installed')")
        archive.writestr("tinypose-1.0.dist-info/LICENSE", LICENCE)
        archive.writestr(
            "tinypose-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinypose\nVersion: 1.0"
        )
        archive.writestr(
            "tinypose-1.0.dist-info/WHEEL",
            f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {TAG}",
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(wheels, "ANNOTATORS", tmp_path / "annotators")
    return replace(
        BLAZEPOSE,
        name="tiny",
        title="Tiny",
        package="tinypose",
        version="1.0",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        size=file.stat().st_size,
        files=("tinypose/modules/net.tflite", "tinypose-1.0.dist-info/LICENSE"),
    )


def kept(wheel: Wheel) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in wheel.folder.glob("*")}


@pytest.mark.slow
def test_its_files_and_its_licence_are_kept_and_nothing_else(wheel, monkeypatch):
    heard = []
    assert fetch_wheel(wheel, lambda *now: heard.append(now)) == wheel.folder
    assert kept(wheel) == {"net.tflite": NETWORK, "LICENSE": LICENCE} and not wheel.missing
    assert heard[-1] == (wheel.size, wheel.size)
    monkeypatch.setattr(wheels.subprocess, "Popen", None)  # what is here is not asked for again
    assert fetch_wheel(wheel) == wheel.folder


@pytest.mark.slow
def test_another_wheel_than_the_pinned_one_is_not_unpacked(wheel):
    with pytest.raises(WeightsMissing, match="not the wheel that was published"):
        fetch_wheel(replace(wheel, sha256="0" * 64))
    assert not kept(wheel)


@pytest.mark.slow
def test_what_pip_cannot_fetch_is_one_sentence(wheel):
    with pytest.raises(WeightsMissing) as caught:
        fetch_wheel(replace(wheel, package="no-such-pose"))
    said = str(caught.value)
    assert said.startswith("Tiny needs files of no-such-pose 1.0 (") and ". " not in said[:-1]
    assert "No matching distribution found for no-such-pose==1.0): connect and try again" in said


def test_a_folder_that_takes_no_file_is_named_before_the_download(wheel, tmp_path, monkeypatch):
    (tmp_path / "annotators").touch()
    monkeypatch.setattr(wheels.subprocess, "Popen", None)  # nothing is downloaded
    with pytest.raises(WeightsMissing) as caught:
        fetch_wheel(wheel)
    assert f"but {tmp_path}/annotators" in str(caught.value)
    assert ": mend that and try again, or put them into " in str(caught.value)


def test_who_stops_watching_stops_pip(wheel):
    begun = []

    class Real(wheels.subprocess.Popen):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            begun.append(self)

    def stop(here, whole):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheels.subprocess, "Popen", Real)
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel(wheel, stop)
    assert begun[0].returncode is not None and begun[0].returncode < 0, "it was ended"
    assert not kept(wheel)


@pytest.mark.slow
def test_the_command_fetches_it_and_says_what_else_it_needs(wheel, monkeypatch, capsys):
    monkeypatch.setattr(command, "WHEELS", {"tiny": replace(wheel, runtime="no_such_module")})
    assert command.main(["fetch", "tiny"]) == 0
    said = capsys.readouterr().out
    assert str(wheel.folder) in said and "Apache-2.0" in said
    assert "no_such_module: run `pip install -r requirements-blazepose.txt`" in said
    assert command.main(["fetch", "tiny", "canny"]) == command.FAILED
    assert command.main(["list"]) == 0
    assert "Tiny" in (said := capsys.readouterr().out) and "networks: here" in said


def test_the_requirements_that_are_named_are_there():
    root = Path(__file__).parents[3]
    lines = (root / BLAZEPOSE.requirements).read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].replace("-", "_") for line in lines if "==" in line]
    assert names == [BLAZEPOSE.runtime]
    assert sys.version_info >= (3, 11)
