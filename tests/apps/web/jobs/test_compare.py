"""Two models on one base: which two, in which order, on which seed, and how a stop ends them."""

import argparse
import copy
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import apps
from apps.web.files import SavedMaps, SavedResult
from apps.web.html.comparison import Side, versus
from apps.web.jobs.compare import Pair, new_pair, rivals
from apps.web.jobs.job import Job
from apps.web.pages.runs import BUSY, CurrentJob
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.condition import Condition, Score
from core.errors import BadInput, WeightsMismatch, WeightsMissing
from core.request import (
    ControlRequest,
    ControlResult,
    GenerationRequest,
    GenerationResult,
    Progress,
)
from models.store import Store
from tests.apps.web import test_browser
from tests.apps.web.test_browser import CHROMIUM, PATIENCE_MS, expect
from tests.conftest import CARD
from tests.tiny_networks import tiny_networks

PHOTO = Path(__file__).resolve().parents[4] / "test_imgs" / "coffee.jpg"
PICTURE = np.zeros((8, 8, 3), np.uint8)
CANNY = apps.find("canny2image")
REQUEST = GenerationRequest.single(CANNY, PICTURE, model="one", seed=-1)


class FakePipeline:
    """Draws seed 5 where none is given; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    def fetch(self, *_: Any) -> bool:
        return True

    def generate(
        self, request: Any, on_progress: Any, cancelled: Any, **_: Any
    ) -> GenerationResult:
        self.asked.append(request)
        on_progress(Progress("sample", 1, 1, 0, None, None))
        seed = 5 if request.seed == -1 else request.seed
        return GenerationResult(
            images=() if cancelled() else (PICTURE,), controls=(), seeds=(seed,), seconds={},
            warnings=(), request=replace(request, seed=seed), model=request.model, device="cpu",
            dtype="float32", width=8, height=8, hashes={}, cancelled=cancelled(),
        )  # fmt: skip


def _pair(pipeline: FakePipeline) -> Pair:
    def job(request: GenerationRequest) -> Job:
        return Job(pipeline, request)  # type: ignore[arg-type]

    return Pair(job(REQUEST), job, "two")


def _results(pair: Pair) -> Iterator[GenerationResult]:
    return (report for report in pair.run() if isinstance(report, GenerationResult))


def test_both_models_get_the_same_seed() -> None:
    pipeline = FakePipeline()
    pair = _pair(pipeline)
    assert [result.model for result in _results(pair)] == ["one", "two"]
    assert [request.seed for request in pipeline.asked] == [-1, 5]
    assert pair.finished and pair.request is REQUEST


def test_a_stop_in_the_first_leaves_the_second_out() -> None:
    pipeline = FakePipeline()
    pair = _pair(pipeline)
    pair.stop()
    assert list(_results(pair)) == [] and pipeline.asked == []
    assert pair.stopped and pair.finished


def test_a_stop_between_them_keeps_the_first() -> None:
    pair = _pair(FakePipeline())
    made = []
    for result in _results(pair):
        made.append(result.model)
        pair.stop()
    assert made == ["one"]


def test_a_stop_while_the_second_is_made_ready_leaves_it_out() -> None:
    pipeline = FakePipeline()

    def again(request: GenerationRequest) -> Job:
        pair.stop()
        return Job(pipeline, request)  # type: ignore[arg-type]

    pair = _pair(pipeline)
    pair._again = again
    assert [result.model for result in _results(pair)] == ["one"]
    assert len(pipeline.asked) == 1


def test_what_fails_in_the_second_leaves_the_first_alone_on_the_page(
    family: Suite, canny: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.web.pages.runs import Runs

    def again(_: GenerationRequest) -> Job:
        raise BadInput("No more.")

    job = Job(FakePipeline(), REQUEST)  # type: ignore[arg-type]
    runs = Runs(canny, family, ())
    monkeypatch.setattr(runs, "_shown", lambda *_: "shown")
    monkeypatch.setattr(family, "measured", lambda _: None)
    told = []
    with pytest.raises(gr.Error, match="No more"):
        current = CurrentJob()
        current.begin(lambda: Pair(job, again, "two"))
        for stage, results, _ in runs.generate(current):
            told.append((stage, results))
    assert ("", "shown") in told and told[-1][0] == "", "no empty page above the results"


@pytest.fixture(scope="module")
def family(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A base with two more families of ControlNets, one of them here, and a model of its own."""
    folder = tmp_path_factory.mktemp("family")
    other = f'base_of = "tiny"\n{CARD.replace("Tiny", "Tiny, <plus>")}'
    elsewhere = '[controls.pose]\nhub = "a/b"\nrevision = "c"\nfiles = { "x.safetensors" = 1 }\n'
    texts = {"tiny": CARD, "alone": CARD, "tiny_plus": other, "tiny_v10": other + elsewhere}
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    for name in ("tiny", "alone"):
        (folder / name).symlink_to(models_folder / "tiny")
    control = tiny_networks(seed=1).controlnets["canny"]
    control.save_pretrained(folder / "tiny_plus" / "controlnet" / "canny")
    return Suite(Store("cpu", "float32", folder), "alone")


def test_a_rival_has_the_same_base_and_the_condition(family: Suite, canny: Condition) -> None:
    found = {card.name: rivals(family, card.name, [canny.weights]) for card in family.cards()}
    assert found == {
        "alone": [],
        "tiny": ["tiny_plus"],
        "tiny_plus": ["tiny"],
        "tiny_v10": ["tiny", "tiny_plus"],
    }
    assert rivals(family, "tiny", ["hed"]) == []
    assert rivals(family, "tiny", ["hed", "pose"]) == ["tiny_v10"], "one of them is enough"


def test_a_model_that_stands_alone_is_compared_with_none(family: Suite, canny: Condition) -> None:
    job = Job(family.pipeline, replace(REQUEST, model="alone"))
    with pytest.raises(BadInput, match="No other model on the same base"):
        new_pair(family, job, "")


def test_the_other_model_is_the_one_that_was_chosen(family: Suite, canny: Condition) -> None:
    job = Job(family.pipeline, replace(REQUEST, model="tiny_v10"))
    chosen = {other: new_pair(family, job, other).models[1] for other in ("", None, "tiny_plus")}
    assert chosen == {"": "tiny", None: "tiny", "tiny_plus": "tiny_plus"}
    for wrong in ("alone", "/etc/passwd", ["tiny"], 5):
        with pytest.raises(BadInput, match="can be compared with: tiny, tiny_plus"):
            new_pair(family, job, wrong)


def test_the_other_model_must_know_every_control(family: Suite, canny: Condition) -> None:
    pose = ControlRequest(replace(canny, weights="pose"), PICTURE)
    job = Job(
        family.pipeline, replace(REQUEST, model="tiny_v10", controls=(*REQUEST.controls, pose))
    )
    with pytest.raises(WeightsMissing, match="has no ControlNet 'pose'"):
        new_pair(family, job, "")


# One at a time


def _begun() -> tuple[CurrentJob, Job]:
    current, job = CurrentJob(), Job(FakePipeline(), REQUEST)  # type: ignore[arg-type]
    current.begin(lambda: job)
    return current, job


def test_two_clicks_in_a_moment_begin_one_run() -> None:
    current, first = _begun()
    with pytest.raises(BadInput, match=BUSY):
        current.begin(lambda: _pair(FakePipeline()))
    assert current.job is first
    list(first.run())
    current.begin(lambda: _pair(FakePipeline()))
    assert current.job is not first, "the next begins where the last has ended"


def test_a_click_while_another_is_being_checked_waits_for_it() -> None:
    current, told = CurrentJob(), []
    checking, checked = threading.Event(), threading.Event()

    def slow() -> Job:
        checking.set()
        checked.wait(5)
        return _pair(FakePipeline())  # type: ignore[return-value]

    def second() -> None:
        try:
            current.begin(lambda: _pair(FakePipeline()))
        except BadInput as error:
            told.append(str(error))

    threads = [
        threading.Thread(target=lambda: current.begin(slow)),
        threading.Thread(target=second),
    ]
    threads[0].start()
    assert checking.wait(5)
    threads[1].start()
    checked.set()
    for thread in threads:
        thread.join(5)
    assert told == [BUSY]


def test_a_run_that_is_stopped_or_refused_leaves_room() -> None:
    current, job = _begun()
    job.stop()
    current.begin(lambda: job)

    def refused() -> Job:
        raise BadInput("No.")

    current = CurrentJob()
    with pytest.raises(BadInput, match="No"):
        current.begin(refused)
    current.begin(lambda: job)


def test_every_visitor_has_a_turn_of_their_own() -> None:
    current, job = _begun()
    assert copy.deepcopy(current).job is None and current.job is job


# What is shown


def _side(title: str, canny: Condition, *headlines: float) -> Side:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[32] = 255
    count = len(headlines)
    scores = tuple(Score(h, "F1", {"F1": h / 100}) for h in headlines)
    result = GenerationResult(
        images=(picture,) * count, seeds=tuple(range(7, 7 + count)), seconds={"sample": 1.5},
        controls=(ControlResult(canny, picture, (picture,) * count, scores),),
        warnings=("<both>",), request=GenerationRequest.single(canny, picture), model="x",
        device="cpu", dtype="float32", width=128, height=64, hashes={}, cancelled=False,
    )  # fmt: skip
    files = tuple(Path(f"/cache/{title[0]}{i}.png") for i in range(count))
    map_file = Path("/cache/map.png")
    return Side(title, result, SavedResult(files, (SavedMaps(map_file, files, map_file, files),)))


def test_images_of_one_seed_stand_side_by_side_each_with_its_model(canny: Condition) -> None:
    page = versus([_side("One", canny, 40, 60), _side("<Two>", canny, 80, 90)])
    first, second = page.split("<article")[1:]
    assert "<code>7</code>" in first and "<code>8</code>" in second
    assert re.findall(r"<h3>(.*?)</h3>", first) == ["One", "&lt;Two&gt;"]
    assert re.findall(r"<b>(\d+)</b><span>/ 100", first) == ["40", "80"]
    assert first.count("<img") == 5  # one map for both
    assert "One 50 / 100 · &lt;Two&gt; 85 / 100" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert page.count("<li>&lt;both&gt;</li>") == 1


def test_what_the_second_has_not_made_is_said(canny: Condition) -> None:
    page = versus([_side("One", canny, 40, 60), Side("Two")])
    assert page.count("Not made yet.") == 2 and page.count("<h3>Two</h3>") == 2
    stopped = versus([_side("One", canny, 40, 60), _side("Two", canny, 50)])
    assert stopped.count("Not made yet.") == 1


def test_several_controls_stand_in_rows_each_with_what_both_kept_of_it(canny: Condition) -> None:
    sides = []
    for title in ("One", "Two"):
        side = _side(title, canny, 40)
        other = replace(side.result.controls[0], condition=replace(canny, title="<Depth>"))
        controls = (*side.result.controls, replace(other, scores=(Score(80, "F1", {"F1": 0.8}),)))
        saved = replace(side.saved, maps=side.saved.maps * 2)
        sides.append(Side(title, replace(side.result, controls=controls), saved))
    page = versus(sides)
    assert page.count("<img") == 8 and page.count('class="cl-made"') == 2  # 2 maps; 1 + 2 a side
    assert re.findall(r"<b>(\d+)</b>", page) == ["60", "40", "80"] * 2
    assert "--rows:4" in page and page.count("&lt;Depth&gt;, re-extracted</span>") == 2


# For programs


@pytest.mark.slow
def test_programs_compare_too(family_address: str, family: Suite) -> None:
    client = Client(family_address, verbose=False)
    api = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    names = [p["parameter_name"] for p in api["/canny2image_compare"]["parameters"]]
    assert names[:3] == ["image", "other", "prompt"]
    given = {"image": handle_file(PHOTO), "steps": 1, "seed": 5, "num_samples": 2}
    _, images, found, report = client.predict(
        **given, model="tiny", api_name="/canny2image_compare"
    )
    assert len(images) == len(found) == 4
    assert [one["model"] for one in report["models"]] == ["tiny", "tiny_plus"]
    assert [one["seeds"] for one in report["models"]] == [[5, 6], [5, 6]]
    assert report["warnings"] == []
    first, second = (Path(images[i]).read_bytes() for i in (0, 2))
    assert first != second
    with pytest.raises(AppError, match="No other model on the same base"):
        client.predict(**given, model="alone", api_name="/canny2image_compare")
    client.close()


@pytest.mark.slow
def test_programs_get_the_first_models_images_where_the_second_fails(
    family_address: str, family: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = family.store.load

    def damaged(model: str, *controls: str, **version: bool) -> Any:
        if model == "tiny_plus":
            raise WeightsMismatch("Its file is damaged.")
        return load(model, *controls, **version)

    monkeypatch.setattr(family.store, "load", damaged)
    client = Client(family_address, verbose=False)
    given = {"image": handle_file(PHOTO), "steps": 1, "api_name": "/canny2image_compare"}
    _, images, found, report = client.predict(**given, model="tiny", num_samples=2)
    assert len(images) == len(found) == 2
    assert [one["model"] for one in report["models"]] == ["tiny"]
    assert report["warnings"] == ["The other model failed: Its file is damaged."]
    with pytest.raises(AppError, match=r"^Its file is damaged\.$"):
        client.predict(**given, model="tiny_plus", other="tiny")
    client.close()


# In the page


@pytest.fixture(scope="module")
def family_address(family: Suite, canny: Condition) -> Iterator[str]:
    from apps.web.site import build_app

    site = build_app(canny, family)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)


browser = test_browser.browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("screen", test_browser.SCREENS)
def test_one_click_compares(browser: Any, family_address: str, screen: str) -> None:
    with test_browser._opened(browser, screen, family_address) as page:
        expect(page.locator("#compare")).to_have_count(0)  # the first model stands alone
        test_browser._upload(page)
        test_browser._open_advanced(page)
        page.get_by_label("Model").click()
        page.get_by_role("option", name="Tiny", exact=True).last.click()
        expect(page.locator("#compare")).to_have_text("Compare with Tiny, <plus>")
        test_browser._shot(page, "compare-1-button")
        page.locator("#compare").click()
        sections = page.locator(".cl-versus section")
        expect(sections.nth(1).locator("img")).to_have_count(2, timeout=PATIENCE_MS)
        expect(page.locator("#compare")).to_be_visible()
        assert page.locator(".cl-versus h3").all_inner_texts() == ["Tiny", "Tiny, <plus>"]
        test_browser._shot(page, "compare-2-results")
        first, second = (sections.nth(i).locator(".cl-made img").bounding_box() for i in (0, 1))
        assert first["y"] == second["y"] and first["x"] + first["width"] < second["x"]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
