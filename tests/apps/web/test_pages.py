"""Every condition gets its page and its name, from its file alone; the command line around them."""

import ast
import dataclasses
import inspect
import io
import json
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

import apps
from annotators import annotator_names, find_annotator, mlsd
from apps.web.files import new_folder
from apps.web.jobs.map_choices import every_map_choice
from apps.web.serve import Environment, make_suite
from apps.web.suite import LOADING, Suite
from apps.web.tool import Tool
from core.condition import Condition
from core.errors import BadInput, WeightsMissing
from core.metadata import read_hashes, save_png
from core.params import Bounds, settings_of
from core.request import SETTINGS, SETTINGS_OF_ORIGINAL, ControlRequest
from models.registry import Registry
from models.store import Store
from tests.apps.web.html.test_results import _result

ROOT = Path(__file__).resolve().parents[3]
HIDDEN = {"detect_resolution", "pixel_perfect"}
"""Shown only where there is something to choose."""


@pytest.mark.parametrize("condition", apps.conditions(), ids=lambda c: c.name)
def test_every_page_has_every_control_within_its_bounds(
    condition: Condition, page_of: Callable[[str], Any]
) -> None:
    page = page_of(condition.name)
    found = {getattr(block, "label", None): block for block in page.blocks.values()}
    ways = {label: name for label, name in found["Preprocessor"].choices}
    for way in condition.annotator.preprocessors:
        assert any(way.name == name and way.needs in label for label, name in ways.items())
    wanted = {**SETTINGS, **settings_of(condition.annotator.params)}
    for name, control in wanted.items():
        if name in HIDDEN and control.label not in found:
            continue
        widget = found[control.label]
        if isinstance(control, Bounds) and hasattr(widget, "maximum") and widget.maximum:
            assert (widget.minimum, widget.maximum) == (control.low, control.high)


@pytest.mark.parametrize("name", apps.names())
def test_a_flood_of_pictures_is_decoded_a_few_at_a_time(
    name: str, page_of: Callable[[str], Any]
) -> None:
    page = page_of(name)
    decoding = [fn for fn in page.fns.values() if fn.name in ("_begin", "_begin_pair")]
    assert decoding
    for fn in decoding:
        assert fn.concurrency_id == "pictures" and fn.concurrency_limit == 4


def test_maps_are_drawn_at_the_models_resolution_or_the_annotators(suite: Suite) -> None:
    from apps.web.site import build_app

    condition = Condition("mlsd2image", "Lines", "", mlsd.ANNOTATOR, "canny")

    def shown() -> object:
        page = build_app(condition, suite)
        label = SETTINGS["detect_resolution"].label
        return next(b.value for b in page.blocks.values() if getattr(b, "label", "") == label)

    assert shown() == mlsd.ANNOTATOR.detect_resolution == 512
    card = dataclasses.replace(suite.card("tiny"), defaults={"detect_resolution": 256})
    with patch.object(suite, "card", lambda _: card):
        assert shown() == 256


def test_maps_are_drawn_as_the_weights_were_trained(canny: Condition) -> None:
    from apps.web.pages.condition_page import SingleControl

    suite = Suite(Store("cpu"), "diorama")
    page = _page(canny, suite, SingleControl(canny, suite))
    values = {name: field.value for name, field in page.layout.fields.items()}
    assert values["preprocessor"] == "Canny"
    at = list(values).index("preprocessor")
    for chosen, moved in (("Canny", "Kornia"), ("None", None)):  # a choice of one's own stays
        values |= {"model": "sd15_plus", "preprocessor": chosen}
        updates = page.prefill.change_model("diorama", *values.values())[-len(values) :]
        assert updates[at] == moved if moved else isinstance(updates[at], dict)


@pytest.mark.parametrize("name", ["canny2image", "multi2image", "scribble2image"])
def test_only_apps_with_a_picture_offer_to_change_it(
    name: str, page_of: Callable[[str], Any]
) -> None:
    labels = {SETTINGS[one].label for one in SETTINGS_OF_ORIGINAL}
    shown = {
        block.label for block in page_of(name).blocks.values() if getattr(block, "visible", False)
        and getattr(block, "label", None) in labels
    }  # fmt: skip
    assert shown == (set() if name == "scribble2image" else labels)


def test_a_changed_pictures_strength_is_not_restored_where_there_is_none(suite: Suite) -> None:
    from apps.web.pages.condition_page import SingleControl

    info = PngInfo()
    given = {"denoising_strength": 0.6, "mask_blur": 9, "steps": 7}
    info.add_text("controlloop", json.dumps({"schema": 1, "request": given}))
    file = new_folder(Path(get_upload_folder())) / "x.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    for name in ("canny2image", "scribble2image"):
        settings, notes = SingleControl(apps.find(name), suite).read_png(str(file))
        kept = {one: settings[one] for one in given if one in settings}
        assert kept == (given if name == "canny2image" else {"steps": 7})
        assert any("denoising strength 0.6" in note for note in notes) == (kept != given)


def test_the_page_speaks_of_the_model_that_a_file_restores(suite: Suite, canny: Condition) -> None:
    from apps.web.pages.condition_page import SingleControl

    info = PngInfo()
    info.add_text("controlloop", '{"schema": 1, "request": {"model": "other", "steps": 7}}')
    file = new_folder(Path(get_upload_folder())) / "x.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    page = _page(canny, suite, SingleControl(canny, suite))
    values = [field.value for field in page.layout.fields.values()]
    _, _, model, header, *updates = page.prefill.restore({"path": str(file)}, "tiny", *values)
    assert model == "other" and "<span>Other</span>" in header
    named = dict(zip(page.layout.fields, updates, strict=True))
    assert (named["model"], named["steps"]) == ("other", 7)


@pytest.mark.parametrize("part", ["unet", "controlnet canny", "text_encoder", ""])
def test_other_weights_than_a_pictures_are_told(part: str, suite: Suite, canny: Condition) -> None:
    from apps.web.pages.condition_page import SingleControl

    hashes = suite.store.hashes("tiny", "canny") | {"lora gone": "0123456789"}
    hashes |= {part: "0123456789"} if part else {}
    info = PngInfo()
    stored = {"schema": 1, "request": {"model": "tiny", "prompt": "a ball"}, "hashes": hashes}
    info.add_text("controlloop", json.dumps(stored))
    file = new_folder(Path(get_upload_folder())) / "x.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    page = _page(canny, suite, SingleControl(canny, suite))
    values = [field.value for field in page.layout.fields.values()]
    note = page.prefill.restore({"path": str(file)}, "tiny", *values)[0]
    said = f"It was made with other weights than those here: {part}."
    assert (said in note) == bool(part)
    assert ("other weights" in note) == bool(part)


@pytest.mark.parametrize("hashes", [7, ["unet"], {"unet": 5}, {"x" * 999: "y" * 999}, {"unet": {}}])
def test_hostile_hashes_do_no_harm(hashes: object, suite: Suite, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("controlloop", json.dumps({"request": {}, "hashes": hashes}))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    assert suite.weights_note("tiny", "", read_hashes(tmp_path / "x.png")) == ""


def test_every_way_that_a_card_asks_for_is_there() -> None:
    asked = 0
    for card in Registry().cards():
        for control, source in card.controls.items():
            if source.preprocessor:
                users = [one.annotator for one in apps.conditions() if one.weights == control]
                ways = {way.name for annotator in users for way in annotator.preprocessors}
                assert source.preprocessor in ways, (card.name, control)
                asked += 1
    assert asked > 15


@pytest.mark.parametrize("condition", apps.conditions(), ids=lambda c: c.name)
def test_a_condition_is_named_as_its_file_and_its_examples_exist(condition: Condition) -> None:
    assert condition.name in apps.names()
    assert (ROOT / "apps" / f"{condition.name}.py").is_file()
    assert condition.examples
    for example in condition.examples:
        assert example.prompt
        file = ROOT / "test_imgs" / example.image
        if not file.is_file():
            pytest.fail(f"{example.image} is not in test_imgs/")
        with Image.open(file) as picture:
            assert max(picture.size) <= 512


TOOLS = [app for app in map(apps.find, apps.names()) if isinstance(app, Tool)]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_is_named_as_its_file_and_its_examples_exist(tool: Tool) -> None:
    assert tool.name in apps.names() and (ROOT / "apps" / f"{tool.name}.py").is_file()
    assert tool.examples and all((ROOT / "test_imgs" / name).is_file() for name in tool.examples)


def test_the_ways_to_see_are_all_preprocessors_of_all_annotators() -> None:
    found = every_map_choice()
    wanted = [(a, p) for a in map(find_annotator, annotator_names()) for p in a.preprocessors]
    assert [(way.annotator, way.preprocessor) for way in found.values()] == wanted
    assert len({way.file_name for way in found.values()}) == len(found)


def test_examples_name_their_licence() -> None:
    text = (ROOT / "test_imgs" / "README.md").read_text(encoding="utf-8")
    for file in (ROOT / "test_imgs").iterdir():
        if file.suffix != ".md":
            assert file.name in text or f"{file.stem.split('_')[0]}_*" in text, file.name


def test_a_model_without_the_control_is_not_offered(
    canny: Condition, models_folder: Path, tmp_path: Path
) -> None:
    for name in ("tiny", "bare"):
        shutil.copy(models_folder / "tiny.toml", tmp_path / f"{name}.toml")
    (tmp_path / "tiny").symlink_to(models_folder / "tiny")
    suite = Suite(Store("cpu", "float32", tmp_path), "tiny")
    assert suite.models(canny) == ["tiny"]
    with pytest.raises(BadInput, match="not on offer"):
        suite.card("/etc/passwd")


def test_a_page_knows_how_long_an_image_takes_before_the_first(suite: Suite) -> None:
    fresh = Suite(suite.store, "other")
    assert "first run" in fresh.facts("other")[2]
    fresh.load_in_background(apps.conditions()[0]).join()
    assert fresh.has_finished_loading("other")
    told = fresh.facts("other")[2]
    assert told.startswith("about ") and "(4 steps" in told, "as many as the card says"


def test_a_model_that_waits_to_be_loaded_is_told_as_loading(suite: Suite) -> None:
    fresh, answers = Suite(suite.store, "other"), threading.Event()
    thread = fresh.load_in_background(apps.conditions()[0], answers.wait)
    assert not fresh.has_finished_loading("other")
    assert fresh.hindrance() == LOADING == fresh.facts("other")[2]
    answers.set()
    thread.join()
    assert fresh.hindrance() == ""


def test_a_control_that_is_not_here_is_told_on_its_own_pages_alone(suite: Suite) -> None:
    condition = next(one for one in apps.conditions() if one.weights == "hed")
    fresh = Suite(suite.store, "other")
    fresh.load_in_background(condition).join()
    assert fresh.has_finished_loading("other")
    assert "no ControlNet 'hed' (it has: canny)" in fresh.facts("other", "hed")[2]
    fresh._load("other", "canny")
    with pytest.raises(WeightsMissing, match="hed"):
        fresh._load("other", "hed")
    assert fresh.facts("other", "canny")[2].startswith("speed")
    assert "hed" in fresh.facts("other", "hed")[2]


def test_the_card_changes_defaults(suite: Suite) -> None:
    assert suite.defaults("tiny")["steps"] == 2
    assert suite.defaults("tiny")["guidance_scale"] == 9.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONTROLLOOP_MAX_QUEUE", "many"),
        ("CONTROLLOOP_MAX_QUEUE", "0"),
        ("CONTROLLOOP_OUTPUT", f"{ROOT / 'launch.py'}/below-a-file"),
    ],
)
def test_a_malformed_variable_stops_the_start_with_its_name(name: str, value: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        Environment.read({name: value})
    message = str(stopped.value)
    assert name in message and "\n" not in message


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["owner/name", "no-such-model", "/no/such/file.safetensors"])
def test_a_model_that_is_not_here_is_one_sentence_that_says_what_is(name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        make_suite(name, Environment.read({}))
    message = str(stopped.value)
    assert message.startswith(f"There is no model '{name}': choose ") and "\n" not in message
    assert "diorama" in message and message.endswith("or give the path of a checkpoint.")


def test_list_prints_the_names_and_loads_no_page(tmp_path: Path) -> None:
    done = _python("-X", "importtime", str(ROOT / "launch.py"), "--list", cwd=tmp_path)
    assert done.stdout.split() == apps.names()
    assert " gradio" not in done.stderr and " torch" not in done.stderr


RUN_EACH = """
import os, runpy, sys
import diffusers, torch, transformers  # seconds each: once for all
for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        file = os.open(os.path.basename(path) + ".txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv, sys.path[0] = [path, "--help"], os.path.dirname(path)
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit:
            sys.stdout.flush()
            os._exit(0)  # an orderly end with torch takes a second
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each app prints when run by its path from there, with --help."""
    folder = tmp_path_factory.mktemp("anywhere")
    paths = [str(ROOT / "apps" / f"{name}.py") for name in apps.names()]
    done = _python("-c", RUN_EACH, *paths, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", apps.names())
def test_an_app_runs_by_its_path_from_anywhere(name: str, helps: Path) -> None:
    told = (helps / f"{name}.py.txt").read_text()
    assert told.startswith(f"usage: {name}.py"), told
    for option in ("--host", "--port", "--model", "--mcp"):
        assert option in told


def test_only_refuses_an_app_that_is_not_there(tmp_path: Path) -> None:
    done = _python(str(ROOT / "launch.py"), "--only", "cany2image", cwd=tmp_path)
    assert done.returncode == 2
    assert "cany2image" in done.stderr and "canny2image" in done.stderr


def _page(app: Condition | Tool, suite: Suite, controls: Any) -> Any:
    from apps.web.pages.page import Page

    with gr.Blocks(analytics_enabled=False) as blocks:
        return Page(blocks, app, suite, controls)


def _several(suite: Suite) -> Any:
    from apps.web.pages.several_page import ControlSlots

    tool = next(tool for tool in TOOLS if tool.page == "several_page")
    return _page(tool, suite, ControlSlots(tool, suite))


def test_no_part_of_a_page_lacks_what_its_code_reads(suite: Suite, canny: Condition) -> None:
    """A constructor that is skipped leaves attributes out."""
    from apps.web.pages.condition_page import SingleControl

    for page in (_page(canny, suite, SingleControl(canny, suite)), _several(suite)):
        for part in (page, page.layout, page.prefill, page.runs, page.controls):
            sources = (inspect.getsource(one) for one in type(part).__mro__[:-1])
            nodes = [
                node for text in sources for node in ast.walk(ast.parse(textwrap.dedent(text)))
            ]
            read = {
                node.attr
                for node in nodes
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
            }
            assert read and [name for name in read if not hasattr(part, name)] == []


def test_a_slot_hands_on_the_map_settings_of_its_control_alone(
    suite: Suite, canny: Condition
) -> None:
    page = _several(suite)
    values = {name: field.value for name, field in page.layout.fields.items()}
    values |= {"control_2": canny.name, f"{canny.name}.low_threshold_2": 7}
    given = page.layout.values_of(list(values.values()))
    assert given["params_2"] == {"low_threshold": 7, "high_threshold": 200}
    assert given["params_3"] == {} and given["detect_resolution_2"] is None
    assert set(given) & set(page.controls.of_maps) == set()


def test_the_map_settings_of_several_controls_are_restored(suite: Suite, canny: Condition) -> None:
    made = _result(canny, 40.0)
    asked = ControlRequest(
        canny, made.images[0], params=canny.annotator.params(low_threshold=7), detect_resolution=300
    )
    made = dataclasses.replace(
        made,
        controls=made.controls * 2,
        request=dataclasses.replace(made.request, controls=(*made.request.controls, asked)),
    )
    saved = io.BytesIO()
    save_png(saved, made.images[0], made, 0)
    page = _several(suite)
    settings, notes = page.controls.read_png(saved.getvalue())
    found = [settings[f"{canny.name}.low_threshold_{slot}"] for slot in (1, 2)]
    assert found == [100, 7]
    assert notes == []
    assert settings["detect_resolution_2"].value == 300


def test_the_units_of_sd_webui_controlnet_fill_the_slots(suite: Suite) -> None:
    units = (
        'ControlNet 0: "Module: canny, Weight: 0.5, Threshold A: 7, Threshold B: 90", '
        'ControlNet 1: "Module: none, Model: control_v11p_sd15_canny [d14c016b], Guidance End: 0.7"'
    )
    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", f"a ball\nSteps: 3, {units}")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    settings, notes = _several(suite).controls.read_png(file.getvalue())
    assert notes == []
    assert (settings["steps"], settings["strength_1"], settings["control_end_2"]) == (3, 0.5, 0.7)
    assert [settings[f"canny2image.{one}_threshold_1"] for one in ("low", "high")] == [7, 90]
    assert [settings[f"control_{slot}"].value for slot in (1, 2, 3)] == ["canny2image"] * 2 + [""]
    assert [settings[f"preprocessor_{slot}"].value for slot in (1, 2)] == ["", "None"]  # "": Canny


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_a_page_restores_a_picture_that_is_no_png(
    kind: str, suite: Suite, canny: Condition
) -> None:
    from apps.web.pages.condition_page import SingleControl

    unit = "Module: canny, Weight: 0.5, Threshold A: 7, Guidance Start: 0.1"
    exif = Image.Exif()
    said = f'a ball\nSteps: 3, Seed: 5, ControlNet 0: "{unit}"'
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"UNICODE\0" + said.encode("utf-16-be")
    file = new_folder(Path(get_upload_folder())) / f"x.{kind}"
    Image.new("RGB", (8, 8)).save(file, exif=exif)
    page = _page(canny, suite, SingleControl(canny, suite))
    assert f".{kind}" in page.layout.restore_file.file_types
    values = [field.value for field in page.layout.fields.values()]
    updates = page.prefill.restore({"path": str(file)}, "tiny", *values)[-len(values) :]
    named = dict(zip(page.layout.fields, updates, strict=True))
    wanted = {"prompt": "a ball", "steps": 3, "seed": 5, "strength": 0.5, "low_threshold": 7}
    assert {name: named[name] for name in wanted} == wanted
    assert (named["control_start"], named["preprocessor"]) == (0.1, "Canny")


@pytest.mark.parametrize(("name", "runs"), [("annotator", 1), ("canny2image", 3)])
def test_the_buttons_come_back_after_a_failure_too(
    page_of: Callable[[str], Any], name: str, runs: int
) -> None:
    """Gradio 6 triggers `then` only where nothing failed."""
    ends: dict[tuple[int, tuple[int, ...]], set[str]] = {}
    page = page_of(name)
    (run,) = (key for key, one in page.blocks.items() if getattr(one, "elem_id", "") == "run")
    for event in page.config["dependencies"]:
        after = event["trigger_after"] is not None and not event["trigger_only_on_success"]
        if after and run in event["outputs"]:
            kind = "failure" if event["trigger_only_on_failure"] else "then"
            ends.setdefault((event["trigger_after"], tuple(event["outputs"])), set()).add(kind)
    assert list(ends.values()) == [{"then", "failure"}] * runs
