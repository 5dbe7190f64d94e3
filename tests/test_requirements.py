"""Everything imported is pinned, and everything pinned is imported or says why it is there."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("core", "models", "annotators", "apps", "training", "benchmarks")
RUNNING, CHECKING = ROOT / "requirements.txt", ROOT / "requirements-dev.txt"
OPTIONAL = {
    "ai_edge_litert": "runs BlazePose; in requirements-blazepose.txt",
    "cryptography": "comes with c2pa-python, whose tests make certificates with it",
    "lycoris": "made the tensors that LoRAs are tested against; reading them needs it no more",
    "openvino": "a competitor that the speed benchmark runs where it is installed",
    "prometheus_client": "serves metrics; in requirements-metrics.txt",
    "spaces": "is on every Space; its tests need requirements-dev.txt",
    "triton": "comes with torch where there is a GPU for it",
}


def pins(file: Path) -> set[str]:
    """Return the names of the distributions in a file, each pinned to one version."""
    found = set()
    for line in file.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z]+\])?==[0-9.]+", line)
            assert pin, line
            found.add(pin[1])
    return found


def imported(*folders: str) -> set[str]:
    """Return the distributions that the files below some folders import, here or there."""
    names = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    names -= {*sys.stdlib_module_names, *OURS, "tests"} | OPTIONAL.keys()
    known = packages_distributions()
    return {_normal(known[name][0]) for name in names}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.slow
def test_what_is_imported_is_pinned() -> None:
    # Benchmarks are run by whoever works on the project: pictures.py drives a browser.
    users = [folder for folder in OURS if folder != "benchmarks"]
    assert imported(*users) <= pins(RUNNING)
    assert imported("benchmarks", "tests") <= pins(RUNNING) | pins(CHECKING)


@pytest.mark.slow
@pytest.mark.parametrize("file", [RUNNING, CHECKING], ids=lambda file: file.name)
def test_what_is_pinned_is_imported_or_explained(file: Path) -> None:
    comments = [
        line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    used = imported(*OURS) | (imported("tests") if file == CHECKING else set())
    for name in pins(file) - used:
        assert any(name in line for line in comments), f"{name}: nobody imports it"


def test_nothing_is_pinned_twice() -> None:
    assert not pins(RUNNING) & pins(CHECKING)
