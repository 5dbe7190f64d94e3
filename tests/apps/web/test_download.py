"""Weights that are not here come before the device is taken: seen, stopped, gone on with."""

import argparse
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file

from annotators import _pretrained
from apps.web.html import results
from apps.web.jobs.job import Job, drawn_map
from apps.web.jobs.map_choices import DrawnMap, MapChoice, draw_maps
from apps.web.pages.runs import STOPPED_EARLY, CurrentJob, Runs
from apps.web.serve import Environment, launch
from apps.web.site import build_app
from apps.web.suite import Suite
from core.condition import Condition
from core.request import GenerationRequest, Progress
from models.catalog import download
from models.store import Store
from tests.conftest import CARD
from tests.fake_hub import REVISION, FakeHub, serving

pytestmark = pytest.mark.slow

PHOTO = Path(__file__).resolve().parents[3] / "test_imgs" / "coffee.jpg"
CONTROL = "diffusion_pytorch_model.safetensors"
FAR_CARD = f"""
base_of = "tiny"
{CARD.replace("Tiny", "Far")}
[controls.canny]
hub = "someone/far"
revision = "{REVISION}"
[controls.canny.files]
"{CONTROL}" = 300_000
"config.json" = 0
"""


@pytest.fixture
def fake(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny ControlNet, which it sends in 90 seconds, or at once when told."""
    monkeypatch.setattr(download, "PIECE", 2**10)
    folder = models_folder / "tiny/controlnet/canny"
    files = {
        f"someone/far/{name}": (folder / name).read_bytes() for name in (CONTROL, "config.json")
    }
    pause = 90 / (len(files[f"someone/far/{CONTROL}"]) / download.PIECE)
    with serving(files, tmp_path / "cache") as fake:
        fake.go_on = threading.Event()
        fake.before_piece = lambda sent: fake.go_on.wait(pause) or True
        yield fake
        fake.go_on.set()


@pytest.fixture
def suite(fake: FakeHub, models_folder: Path, tmp_path: Path) -> Suite:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "tiny").symlink_to(models_folder / "tiny")
    (folder / "tiny.toml").write_text(CARD, encoding="utf-8")
    (folder / "far.toml").write_text(FAR_CARD, encoding="utf-8")
    return Suite(Store("cpu", "float32", folder), "tiny")


def test_the_page_shows_what_comes_stops_and_goes_on(
    fake: FakeHub, suite: Suite, canny: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(canny, suite, ())
    monkeypatch.setattr(runs, "_shown", lambda *_: "shown")
    grey = np.full((256, 256, 3), 127, np.uint8)
    settings = suite.defaults("far") | {"steps": 1, "num_samples": 2}
    request = GenerationRequest.single(canny, grey, **settings)
    current = CurrentJob()

    def shown(stop: bool) -> list[Any]:
        seen: list[Any] = []
        *_, room = runs.begin(current, lambda: Job(suite.pipeline, request))
        seen.append(room)
        for stage, made, _ in runs.generate(current):
            seen += [(stage, made)] if made != "shown" else ["shown"]
            if stop and len(fake.ranges) == 2:  # the config has come
                runs.stop(current)
        runs.settle(current)
        return seen

    stopped = shown(stop=True)
    assert "0 of 2 images" in stopped[0], "room for those that come"
    assert any("<b>Downloading Far: 0 of " in str(stage) for stage in stopped)
    assert STOPPED_EARLY in stopped[-1][0] and stopped[-1][1] == "" and "shown" not in stopped
    fake.go_on.set()
    room, *_, last = shown(stop=False)
    assert last == "shown"
    assert "0 of 2 images" in room, "the one that was stopped has left nothing to stay"
    assert fake.ranges[-1].startswith("bytes="), "the second goes on where the first was stopped"
    asked = len(fake.ranges)
    again = shown(stop=False)
    assert not any("Downloading" in str(stage) for stage in again)
    assert len(fake.ranges) == asked
    assert "images" not in str(again[0]), "the results before stay until others come"


def test_another_call_is_answered_while_one_downloads(
    fake: FakeHub, suite: Suite, canny: Condition
) -> None:
    blocks = build_app(canny, suite)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    address = launch(blocks, Environment(max_queue=4, output=None), options, block=False)
    client = Client(address, verbose=False, download_files=False)
    try:
        call = {"image": handle_file(PHOTO), "steps": 1, "api_name": f"/{canny.name}"}
        far = client.submit(model="far", **call)
        while not fake.ranges:
            assert not far.done()
            time.sleep(0.05)
        *_, report = client.predict(model="tiny", **call)
        assert report["model"] == "tiny" and not far.done() and not fake.go_on.is_set()
        fake.go_on.set()
        *_, report = far.result(60)
        assert report["model"] == "far"
    finally:
        client.close()
        blocks.close(verbose=False)


def test_the_start_tells_the_header_what_comes(
    fake: FakeHub, suite: Suite, canny: Condition
) -> None:
    suite.model = "far"
    told = []
    note = suite._note
    suite._note = lambda model, state, *more: (told.append(state), note(model, state, *more))  # type: ignore[method-assign,assignment]
    fake.go_on.set()
    suite.load_in_background(canny).join(60)
    assert any(state.startswith("downloading 0 of ") for state in told)
    assert suite.has_finished_loading("far") and "an image" in suite.facts("far", "canny")[-1]


@pytest.fixture
def far_eyes(
    fake: FakeHub, canny: Condition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Condition:
    """The condition, whose maps are drawn with a detector that the hub has."""
    monkeypatch.setattr(_pretrained, "REVISION", REVISION)
    monkeypatch.setattr(_pretrained, "FOLDER", tmp_path / "by hand")
    monkeypatch.setattr(_pretrained, "_detector_class", lambda _: None)
    fake.files[f"{_pretrained.HUB}/eyes.pth"] = bytes(200 * download.PIECE)
    eyes = ("Eyes", (("eyes.pth", 200_000),))
    far = _pretrained.detector_preprocessor("Far", canny.annotator.preprocessors[0].draw, eyes)
    return replace(canny, annotator=replace(canny.annotator, preprocessors=(far,)))


def test_what_draws_the_map_comes_before_the_device_is_taken(
    fake: FakeHub, suite: Suite, far_eyes: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"steps": 1, "model": "tiny"}
    request = GenerationRequest.single(far_eyes, np.zeros((256, 256, 3), np.uint8), **asked)
    monkeypatch.setattr(suite, "_load", lambda *_: pytest.fail("stopped before that"))
    job = Job(suite.pipeline, request)
    told = []
    for report in job.run():
        told.append(report)
        if isinstance(report, Progress) and report.download:
            job.stop()
    assert told[-1] is None, "stopped while it came"
    progress = [one for one in told if isinstance(one, Progress) and one.download]
    assert "<b>Downloading Far: 0 of 0 MB" in results.running(progress[0], 1)
    fake.go_on.set()
    (before, *reports) = drawn_map(suite.pipeline, request)
    assert isinstance(before, Progress) and fake.ranges[-1].startswith("bytes=")
    assert isinstance(reports[-1], np.ndarray) and reports[-1].shape == (512, 512, 3)


def test_the_maps_page_shows_what_comes_for_each(
    fake: FakeHub, suite: Suite, far_eyes: Condition
) -> None:
    fake.go_on.set()
    choice = MapChoice(far_eyes.annotator, far_eyes.annotator.preprocessors[0])
    request = choice.request(np.zeros((256, 256, 3), np.uint8))
    *before, drawn = draw_maps(suite.pipeline, {choice: request})
    assert any(isinstance(one, Progress) and one.download for one in before)
    assert isinstance(drawn, DrawnMap) and drawn.control_map is not None
