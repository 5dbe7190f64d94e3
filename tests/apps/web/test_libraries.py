"""Libraries that do not fit are told at the start, in one line."""

import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from apps.web import libraries
from apps.web.libraries import PINS, check_libraries, load_torchvision


def _with(**changed: str) -> Callable[[str], str]:
    """Return what is installed here, with some libraries of other versions, "" for none."""

    def installed(name: str) -> str:
        key = name.replace("-", "_")
        found = changed[key] if key in changed else version(name)
        if not found:
            raise PackageNotFoundError(name)
        return found

    return installed


def test_what_is_pinned_passes_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    check_libraries()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "found", "told"),
    [
        ("gradio", "5.49.1", "gradio 5.49.1 is installed, where 6 is needed"),
        ("transformers", "4.57.0", "transformers 4.57.0 is installed, where 5 is needed"),
        ("torch", "2.12.0+cpu", "needs torch ==2.11.0, and 2.12.0+cpu is installed"),
    ],
)
def test_what_cannot_work_stops_the_start_with_one_line(name: str, found: str, told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        check_libraries(installed=_with(**{name: found}))
    message = str(stopped.value)
    assert told in message and "pip install -r requirements.txt" in message
    assert "\n" not in message


def test_what_may_work_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    changed = _with(diffusers="0.45.0", pillow_heif="", torch="2.11.0+cu130")
    with caplog.at_level(logging.WARNING):
        check_libraries(installed=changed)
    (line,) = caplog.messages
    assert "diffusers 0.45.0 (tested with 0.42.1)" in line
    assert "pillow-heif is missing" in line and "torch" not in line


def test_every_pin_is_looked_at(tmp_path: Path) -> None:
    asked: list[str] = []

    def installed(name: str) -> str:
        asked.append(name)
        return version(name)

    check_libraries(installed=installed)
    lines = [line for line in PINS.read_text().splitlines() if line and line[0] != "#"]
    pinned = asked[: len(lines)]
    assert len(set(pinned)) == len(lines) and {"gradio", "torchvision"} <= set(pinned)
    assert libraries.MEND.endswith(PINS.name)


def test_two_packages_of_opencv_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_libraries(installed=_with(opencv_python="4.11.0.86"))
    (line,) = caplog.messages
    assert "opencv-python and opencv-python-headless are installed" in line
    assert "uninstall" in line and "pip install -r requirements.txt" in line


@pytest.mark.parametrize("error", [OSError("libcudart.so.13:\n no such file"), RuntimeError("nms")])
def test_a_torchvision_that_cannot_be_loaded_is_one_line_in_the_log(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", broken)
    load_torchvision()
    (line,) = caplog.messages
    assert "torchvision cannot be loaded" in line and "requirements.txt" in line
    assert str(error).split()[0] in line and "\n" not in line
