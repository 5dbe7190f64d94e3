"""Imports point one way, gradio stays where it belongs, and importing a module does no work."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = {"core": 0, "models": 1, "annotators": 2, "apps": 3, "training": 3, "benchmarks": 4}
"""A folder may import those of a lower rank; launch.py may import all. Benchmarks stand above
training, since the held-out scenes they measure on come from its world; nothing imports them."""
SOURCES = sorted(path for folder in RANKS for path in (ROOT / folder).rglob("*.py"))


def imported(path):
    """Return (top-level name, whether it is imported when the module is) of each import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        node
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        yield from ((name.split(".")[0], node not in inner) for name in names)


def id_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=id_of)
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT).parts[0]
    for name, _ in imported(path):
        assert name != "launch", f"{id_of(path)} imports launch"
        if name != own and name in RANKS:
            assert RANKS[name] < RANKS[own], f"{id_of(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=id_of)
def test_gradio_stays_in_the_pages(path):
    in_pages = path.parent.name == "apps" and path.name.startswith("_")
    if not in_pages or path.name == "__init__.py":
        assert "gradio" not in {name for name, _ in imported(path)}, id_of(path)


def test_core_asks_no_condition_for_its_name():
    """No string in core or the page is a condition's name; annotators and apps have their own."""
    names = {path.stem for path in (ROOT / "annotators").glob("[a-z]*.py")}
    names |= {path.stem for path in (ROOT / "apps").glob("[a-z]*.py")}
    assert "canny" in names
    for path in [*(ROOT / "core").glob("*.py"), *(ROOT / "apps").glob("_*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                strings = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not strings & names, f"{id_of(path)}, line {node.lineno}"


IMPORT_ALL = """
import sys, threading
before = threading.active_count()
{imports}
import torch
assert not torch.cuda.is_initialized(), "the device was touched"
assert "gradio" not in sys.modules, "gradio was loaded"
assert threading.active_count() == before, "a thread was started"
"""


def test_importing_core_and_annotators_does_no_work():
    """No device, no thread, no print, no user interface."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("core", "annotators")
        for path in sorted((ROOT / folder).glob("[a-z]*.py"))
    ]
    program = IMPORT_ALL.format(imports="\n".join(f"import {name}" for name in modules))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
