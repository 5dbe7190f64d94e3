"""The READMEs are true: their trees, commands, links, pictures, tables and lists."""

import io
import json
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import apps
from benchmarks import pictures, tables
from core.pipeline import Pipeline
from core.provenance import COMPOSITE, read_claims
from core.request import GenerationRequest
from models.registry import Registry

ROOT = Path(__file__).parent.parent
README, APPS = ROOT / "README.md", ROOT / "apps" / "README.md"
READMES = [README, *sorted(ROOT.glob("*/README.md"))]
MOST_LINES = 123
"""Beside the rows of the apps, two to a row."""
LARGEST_PICTURE, ALL_PICTURES = 300_000, 3_000_000
NOT_OURS = {"__pycache__", "runs", "outputs"}
"""Folders that git ignores."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def text_of(path):
    return path.read_text(encoding="utf-8")


def section(text, title):
    """Return a section of a README, without its heading."""
    return re.split(r"^## ", text.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def id_of(path):
    return str(path.relative_to(ROOT))


# Length, tree, links


def test_the_front_page_is_short():
    _, _, body = text_of(README).split("---\n", 2)
    rows_of_apps = (len(apps.names()) + 1) // 2
    assert len(body.splitlines()) - rows_of_apps <= MOST_LINES


def tree():
    """Yield each path of the tree, and what is said of it."""
    lines = FENCE.search(section(text_of(README), "The tree"))[2].splitlines()
    folder = ROOT
    for line in lines:
        name, about = line.split(maxsplit=1)
        folder = folder if line.startswith(" ") else ROOT
        path = folder / name
        if not line.startswith(" "):
            folder = path
        yield path, about


def test_the_tree_is_there():
    for path, about in tree():
        assert path.exists(), path
        for name in re.findall(r"[\w/]+\.(?:py|toml)|\b\w+/", about):
            inside = [path / name, *(path.glob(f"*/{name}") if path.is_dir() else [])]
            assert any(one.exists() for one in inside), f"{id_of(path)} has no {name}"


def test_the_tree_has_every_folder():
    here = {one.name for one in ROOT.iterdir() if one.is_dir() and not one.name.startswith(".")}
    assert here - NOT_OURS == {path.name for path, _ in tree() if path.parent == ROOT} - {
        "launch.py"
    }


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("path", READMES, ids=id_of)
def test_links_and_pictures_are_there(path):
    for link, picture in LINK.findall(FENCE.sub("", text_of(path))):
        target, _, anchor = (link or picture).partition("#")
        if target.startswith("http"):
            continue
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(text_of(there)), f"{target}#{anchor}"


# Commands


def commands():
    """Yield every command that starts Python, and the README it stands in."""
    for path in READMES:
        text = text_of(path)
        shell = [body for language, body in FENCE.findall(text) if language in ("bash", "")]
        lines = [line for body in shell for line in body.splitlines()]
        for line in [*lines, *INLINE.findall(FENCE.sub("", text))]:
            for one in line.split("&&"):
                if one.strip().startswith("python "):
                    yield pytest.param(one.strip(), id=f"{path.parent.name}: {one.strip()[:70]}")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", list(commands()))
def test_commands_are_understood(command, monkeypatch):
    words = shlex.split(command.replace("…", ""), comments=True)[1:]
    if words[0] == "-c":
        compile(words[1], command, "exec")
        return
    named = words[:2] if words[0] == "-m" else words[:1]
    given = words[len(named) :]
    if named[-1] == "deploy.ray":
        pytest.importorskip("ray", reason="Ray is not installed (requirements-cluster.txt)")
    monkeypatch.setattr(sys, "argv", [named[-1], *given, "--help"])
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        if named[0] == "-m":
            runpy.run_module(named[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / named[0]), run_name="__main__")
    assert ended.value.code == 0
    known = set(OPTION.findall(shown.getvalue()))
    assert {word.partition("=")[0] for word in given if word.startswith("--")} <= known


# Tables and lists


@pytest.mark.parametrize("path", tables.READMES, ids=id_of)
def test_tables_are_those_of_the_results(path):
    assert tables.filled(text_of(path)) == text_of(path), "run python -m benchmarks.tables"


def test_every_table_and_result_is_shown():
    shown = {name for path in tables.READMES for _, name, _ in tables.TABLE.findall(text_of(path))}
    assert shown == tables.TABLES.keys()
    commands = {one["command"] for path in tables.RESULTS.glob("*.json")
                for one in tables.records(path.stem)}  # fmt: skip
    page = text_of(tables.READMES[1])
    assert {one for one in commands if one not in page} == set()


def test_every_app_has_its_row_and_picture():
    rows = re.findall(r"`(\w+)`<br>.*?<img src=\"pictures/(\w+)\.jpg\"", text_of(README))
    assert sorted(rows) == [(name, name) for name in apps.names()]


def test_the_front_matter_is_one_that_spaces_take():
    """The builder installs this Gradio beside requirements.txt."""
    matter = text_of(README).split("---\n")[1]
    fields = dict(line.split(": ", 1) for line in matter.splitlines())
    assert f"gradio[mcp]=={fields['sdk_version']}\n" in text_of(ROOT / "requirements.txt")
    assert fields["python_version"].startswith('"'), "YAML would read 3.10 as 3.1"
    assert len(fields["short_description"]) <= 60
    assert (ROOT / fields["app_file"]).is_file() and fields["sdk"] == "gradio"


def test_a_space_preloads_just_what_sd15_reads():
    preloaded = re.findall(r'^  - "(\S+) (\S+) (\w{40})"$', text_of(APPS), re.MULTILINE)
    registry = Registry()
    sources = [one.source for one in registry.remotes(registry.card("sd15"), ["canny"])]
    assert preloaded == [(one.hub, ",".join(one.files), one.revision) for one in sources]


def test_pictures_with_results_in_them_say_so():
    claims = {one.stem: read_claims(one).source_types for one in pictures.PICTURES.iterdir()}
    assert claims.pop("annotator") == (), "it shows only maps"
    assert set(claims.values()) == {(COMPOSITE,)}


def test_pictures_are_small_and_used():
    sizes = {one.name: one.stat().st_size for one in pictures.PICTURES.iterdir()}
    assert max(sizes.values()) < LARGEST_PICTURE and sum(sizes.values()) < ALL_PICTURES
    assert {name for name in sizes if f"pictures/{name}" not in text_of(README)} == set()


def test_options_and_variables_are_those_of_the_program(monkeypatch):
    told = section(text_of(README), "Deploy")
    monkeypatch.setattr(sys, "argv", ["launch.py", "--help"])
    shown = io.StringIO()
    with redirect_stdout(shown), pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
    assert set(OPTION.findall(told)) == set(OPTION.findall(shown.getvalue())) - {"--help"}
    sources = [path for one in ("core", "models", "annotators", "apps")
               for path in (ROOT / one).rglob("*.py")]  # fmt: skip
    read = {name for path in sources for name in re.findall(r"CONTROLLOOP_[A-Z_]+", text_of(path))}
    told += section(text_of(APPS), "For operators")
    assert set(re.findall(r"CONTROLLOOP_[A-Z_]+[A-Z]", told)) == read


def test_arguments_are_those_of_the_endpoint():
    from apps.web.site import build_app
    from apps.web.suite import Suite
    from models.store import Store

    page = build_app(apps.find("depth2image"), Suite(Store("cpu"), "diorama"))
    found = page.get_api_info()["named_endpoints"]["/depth2image"]["parameters"]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section(text_of(APPS), "Endpoints"), re.MULTILINE)
    assert [name for name, _ in rows] == [one["parameter_name"] for one in found]
    for (name, default), one in zip(rows, found, strict=True):
        if default.startswith("`"):
            assert default.strip("`") == _literal(one["parameter_default"]), name
        else:
            assert name in ("image", "preprocessor", "mask", "edit")


def _literal(value):
    return json.dumps(value) if isinstance(value, str) else str(value)


@pytest.mark.slow
def test_the_report_has_what_is_told(networks):
    told = json.loads(FENCE.search(section(text_of(APPS), "The report"))[2])
    image = np.zeros((512, 512, 3), np.uint8)
    image[:256] = 255  # an edge: without one there is no score
    request = GenerationRequest.single(apps.find("canny2image"), image, steps=1, seed=7)
    found = Pipeline(lambda *_, **__: networks).generate(request).report()
    assert told.keys() == found.keys()
    assert told["seconds"].keys() == found["seconds"].keys()
    assert told["scores"][0].keys() == found["scores"][0].keys()
    assert told["scores"][0]["metrics"].keys() == found["scores"][0]["metrics"].keys()
