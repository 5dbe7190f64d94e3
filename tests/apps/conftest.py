"""One real server for the tests of this folder: the whole site, on a tiny model."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import apps
from apps._serve import Environment, launch
from apps._suite import Suite
from core.condition import Condition
from models.store import Store

# Gradio reads it when it is imported, so before any fixture runs.
UPLOADS = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="controlloop-tests-")


@pytest.fixture(scope="session")
def suite(models_folder: Path) -> Suite:
    """What the pages share, with the tiny model first."""
    return Suite(Store("cpu", "float32", models_folder), "tiny")


@pytest.fixture(scope="session")
def address(suite: Suite) -> Iterator[str]:
    """The address of a running site, ending in a slash."""
    from apps._page import build_site

    site = build_site(apps.conditions(), suite)
    options = argparse.Namespace(host=None, port=None, mcp=True)
    yield launch(site, Environment(max_queue=4, output=None), options, block=False)
    site.close(verbose=False)
    shutil.rmtree(UPLOADS, ignore_errors=True)


@pytest.fixture(scope="session")
def canny() -> Condition:
    """The one condition whose figures these tests know."""
    return next(one for one in apps.conditions() if one.name == "canny2image")
