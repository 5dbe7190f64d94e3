"""One real server for the tests of this folder: the whole site, on a tiny model."""

import argparse
import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import apps
from annotators import find_annotator
from apps.web.jobs import map_choices
from apps.web.jobs.map_choices import MapChoice
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.condition import Condition, ControlMap, Preprocessor
from core.errors import WeightsMissing
from core.request import GenerationResult, Progress
from models.store import Store

# Gradio reads it when it is imported, so before any fixture runs.
UPLOADS = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="controlloop-tests-")


@pytest.fixture(autouse=True)
def uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a server that a test starts has named instead."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", UPLOADS)


@pytest.fixture(scope="session")
def suite(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """What the pages share: the tiny model, and the same with another card."""
    folder = tmp_path_factory.mktemp("two-models")
    card = (models_folder / "tiny.toml").read_text(encoding="utf-8")
    for name, text in (
        ("tiny", card),
        ("other", card.replace("Tiny", "Other").replace("steps = 2", "steps = 4")),
    ):
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        (folder / name).symlink_to(models_folder / "tiny")
    return Suite(Store("cpu", "float32", folder), "tiny")


@pytest.fixture(scope="session")
def page_of(suite: Suite) -> Callable[[str], Any]:
    """From an app's name to its page, built once; only to be looked at."""
    from apps.web.site import build_app

    return functools.cache(lambda name: build_app(apps.find(name), suite))


@pytest.fixture(scope="session")
def address(suite: Suite) -> Iterator[str]:
    """The address of a running site, ending in a slash."""
    from apps.web.site import build_site

    site = build_site([apps.find(name) for name in apps.names()], suite)
    options = argparse.Namespace(host=None, port=None, mcp=True)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)
    shutil.rmtree(UPLOADS, ignore_errors=True)


PATIENCE_S = 60
"""For what takes a moment on an idle machine."""


@dataclass(eq=False)
class HeldRun:
    """A run that stands in its first step until somebody stops it."""

    steps: int = 0
    result: GenerationResult | None = None
    at_work: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def must_stop(self) -> None:
        """Wait for its end; fail if it took another step, or was not stopped at all."""
        assert self.ended.wait(2 * PATIENCE_S), "it still has the machine"
        assert self.result is not None, "nobody stopped it"
        assert self.result.cancelled and not self.result.images
        assert self.steps == 1


@pytest.fixture
def held(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> HeldRun:
    """The next run of the site; those after it are as usual."""
    generate, run = suite.pipeline.generate, HeldRun()

    def first(*args: Any, on_progress: Any, cancelled: Any, **options: Any) -> GenerationResult:
        monkeypatch.setattr(suite.pipeline, "generate", generate)

        def report(progress: Progress) -> None:
            on_progress(progress)
            if progress.stage == "sample" and progress.step:
                run.steps += 1
                run.at_work.set()
                end = time.monotonic() + PATIENCE_S
                while not cancelled():
                    if time.monotonic() > end:
                        raise TimeoutError
                    time.sleep(0.01)

        try:
            run.result = generate(*args, on_progress=report, cancelled=cancelled, **options)
        finally:
            run.ended.set()
        return run.result

    monkeypatch.setattr(suite.pipeline, "generate", first)
    return run


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of three ways to see that stand in for all: one works, two fail, each its way."""

    def missing(*_: Any) -> ControlMap:
        raise WeightsMissing("The eyes are not here: fetch <them>.")

    def broken(*_: Any) -> ControlMap:
        raise RuntimeError("/secret/path")

    canny = find_annotator("canny")
    annotator = replace(
        canny,
        preprocessors=(
            Preprocessor("Blind", missing, needs="10 MB from the hub"),
            Preprocessor("Broken", broken),
            replace(canny.preprocessors[0], name="Seeing"),
        ),
    )
    found = {
        way.name: way for way in (MapChoice(annotator, one) for one in annotator.preprocessors)
    }
    monkeypatch.setattr(map_choices, "every_map_choice", lambda: found)
    return list(found)


@pytest.fixture(scope="session")
def canny() -> Condition:
    """The one condition whose figures these tests know."""
    return next(one for one in apps.conditions() if one.name == "canny2image")
