"""Imports point one way, gradio stays where it belongs, and importing a module does no work."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANKS = (
    ("core",),
    ("models.engine.kernels",),
    ("models.devices", "models.threads", "models.catalog"),
    ("models.engine",),
    ("models.text",),
    ("models.networks",),
    ("models.checkpoints",),
    ("models.registry",),
    ("models.store",),
    ("models.__main__",),
    ("annotators",),
    ("apps.web.tool",),  # what the file of a tool fills in, as core's Condition is for the others
    ("apps", "training"),
    ("benchmarks",),  # they measure on the held-out scenes that training renders
    ("apps.web.sheet",),
    ("apps.web.suite", "apps.web.files"),
    ("apps.web.jobs",),
    ("apps.batch",),
    ("apps.web.remote",),
    ("apps.web.zero_gpu", "apps.web.html"),
    ("apps.web.pages",),
    ("apps.web.site",),
    ("apps.web.serve",),
    ("launch",),
)
"""The rooms, lowest first: a module may import its own room and those of a lower rank. A module
belongs to the longest name that begins its own."""
RANK_OF = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
FOLDERS = ("core", "models", "annotators", "apps", "training", "benchmarks")
SOURCES = sorted(path for one in FOLDERS for path in (ROOT / one).rglob("*.py"))
SOURCES.remove(ROOT / "models" / "__init__.py")  # a docstring; its modules have rooms of their own
SOURCES.append(ROOT / "launch.py")


def name_of(path):
    """Return a file's name as a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """Return the room of a module of ours; None for another package's."""
    while module and module not in RANK_OF:
        module = module.rpartition(".")[0]
    return module or None


def is_main_block(node):
    """Tell whether this is `if __name__ == "__main__":`, whose imports are the program's own."""
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def imported(path):
    """Yield the name of each module that a file imports, its main block left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not is_main_block(node)]
    modules = {name_of(one) for one in SOURCES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from models.catalog import cards` imports a module, not a name in one.
            yield from (name if name in modules else node.module for name in names)


def id_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=id_of)
def test_imports_point_one_way(path):
    own = room_of(name_of(path))
    assert own, f"{id_of(path)} is in no room of RANKS"
    for name in imported(path):
        room = room_of(name)
        if room and room != own:
            assert RANK_OF[room] < RANK_OF[own], f"{id_of(path)} imports {name}"


def test_every_room_is_there():
    assert {room_of(name_of(path)) for path in SOURCES} == RANK_OF.keys()


@pytest.mark.parametrize("path", SOURCES, ids=id_of)
def test_gradio_stays_in_the_pages(path):
    if room_of(name_of(path)) not in ("apps.web.pages", "apps.web.site", "apps.web.serve"):
        assert "gradio" not in {name.partition(".")[0] for name in imported(path)}, id_of(path)


def test_core_asks_no_condition_for_its_name():
    """No string in core or the page is a condition's name; annotators and apps have their own."""
    names = {path.stem for path in (ROOT / "annotators").glob("[a-z]*.py")}
    names |= {path.stem for path in (ROOT / "apps").glob("[a-z]*.py")}
    assert "canny" in names
    for path in [*(ROOT / "core").glob("*.py"), *(ROOT / "apps" / "web").rglob("*.py")]:
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


@pytest.mark.slow
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


BUILD_ALL = """
import sys
import apps
from apps.web.serve import Environment, make_suite
from apps.web.site import build_site
build_site([apps.find(name) for name in apps.names()], make_suite("", Environment.read()))
late = {"diffusers", "transformers", "accelerate", "torchvision"} & sys.modules.keys()
assert not late, f"the page would wait for {late}"
"""


@pytest.mark.slow
def test_the_pages_are_there_before_the_networks_libraries():
    """They take seconds to import: longer than all that the first page needs."""
    subprocess.run([sys.executable, "-c", BUILD_ALL], cwd=ROOT, check=True)
