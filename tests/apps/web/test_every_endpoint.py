"""Every endpoint of the whole site, called with its app's first example: on Diorama, for real.

The apps are found, so a new one is tested by existing. Diorama has a twin here, the same weights
under another card, for what compares two models: of one seed both must draw the same.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import apps
from apps.web.serve import Environment, launch
from apps.web.suite import Suite
from core.condition import Condition
from core.consistency import of_one_colour
from core.images import read_image
from models.catalog.paths import MODELS
from models.store import Store

TEST_IMAGES = Path(__file__).resolve().parents[3] / "test_imgs"
SMALL = {"steps": 2, "image_resolution": 256, "seed": 5}
"""One step makes blobs, whose maps the pages rightly doubt."""
TWIN = """
title = "Diorama's twin"
blurb = "The same weights."
licence = "as Diorama's"
base_of = "diorama"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    from apps.web.site import build_site

    folder = tmp_path_factory.mktemp("diorama-and-twin")
    for name in ("diorama", "diorama.toml"):
        (folder / name).symlink_to(MODELS / name)
    (folder / "twin.toml").write_text(TWIN, encoding="utf-8")
    (folder / "twin").mkdir()
    (folder / "twin" / "controlnet").symlink_to(MODELS / "diorama" / "controlnet")
    suite = Suite(Store("cpu", "float32", folder))
    site = build_site([apps.find(name) for name in apps.names()], suite)
    options = argparse.Namespace(host=None, port=None, mcp=False)
    address = launch(site, Environment(max_queue=4, output=None), options, block=False)
    downloads = tmp_path_factory.mktemp("downloads")
    patient = {"timeout": 60}  # a busy machine takes its time
    client = Client(address, verbose=False, download_files=downloads, httpx_kwargs=patient)
    yield client
    client.close()
    site.close(verbose=False)


@pytest.fixture(scope="module")
def api(client: Client) -> dict[str, set[str]]:
    """The names of the arguments of each endpoint."""
    told = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    return {
        name: {p["parameter_name"] for p in facts["parameters"]} for name, facts in told.items()
    }


def _call(client: Client, api: dict[str, set[str]], endpoint: str, **given: Any) -> Any:
    """Call with what the endpoint takes of the settings given, and of those that make it quick."""
    settings = {name: value for name, value in (SMALL | given).items() if name in api[endpoint]}
    return client.predict(api_name=endpoint, **settings)


def _first_example(name: str) -> dict[str, Any]:
    first = apps.find(name).examples[0]
    file, prompt = (
        (first, "a red ball on grass") if isinstance(first, str) else (first.image, first.prompt)
    )
    return {"image": handle_file(TEST_IMAGES / file), "prompt": prompt}


def _picture(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_every_app_has_its_endpoint_and_every_condition_compares(api: dict[str, set[str]]) -> None:
    assert {f"/{name}" for name in apps.names()} <= api.keys()
    assert {f"/{one.name}_compare" for one in apps.conditions()} <= api.keys()


@pytest.mark.parametrize("name", apps.names())
def test_the_first_example_is_made_and_measured(
    client: Client, api: dict[str, set[str]], name: str
) -> None:
    given = _first_example(name)
    if not isinstance(apps.find(name), Condition) and "prompt" not in api[f"/{name}"]:
        maps, report = _call(client, api, f"/{name}", **given)
        assert len(maps) == len(report["maps"]) > 5 and report["errors"] == {}
        assert all(min(_picture(file).shape[:2]) == SMALL["image_resolution"] for file in maps)
        return
    if "x_axis" in api[f"/{name}"]:
        sheet, images, report = _call(client, api, f"/{name}", **given, x_values="0, 1")
        assert report["x"] == {"setting": "strength", "values": [0.0, 1.0]} and report["y"] is None
        (without, with_control), errors = report["means"], [one["error"] for one in report["cells"]]
        assert without < with_control and errors == ["", ""]
        pictures = [_picture(file) for file in images]
        assert len(pictures) == 2 and _picture(sheet).shape[1] > 2 * pictures[0].shape[1]
        return
    maps, images, found, report = _call(client, api, f"/{name}", **given, num_samples=2)
    maps = [maps] if isinstance(maps, str) else maps
    assert report["model"] == "diorama" and report["seeds"] == [5, 6]
    assert len(images) == 2 and len(found) == 2 * len(maps) and len(report["scores"]) == 2
    shapes = {_picture(file).shape for file in [*maps, *images, *found]}
    assert shapes == {(report["height"], report["width"], 3)}
    assert not any(of_one_colour(_picture(file)) for file in [*maps, *images])
    assert report["warnings"] == []


@pytest.mark.parametrize("name", apps.names())
def test_two_models_are_compared_on_one_seed(
    client: Client, api: dict[str, set[str]], name: str
) -> None:
    endpoint = f"/{name}_compare"
    if endpoint not in api:
        # It makes no pictures that could be compared, or compares them itself.
        assert not isinstance(apps.find(name), Condition)
        assert "prompt" not in api[f"/{name}"] or "x_axis" in api[f"/{name}"]
        return
    _, images, found, report = _call(client, api, endpoint, **_first_example(name), other="twin")
    assert [one["model"] for one in report["models"]] == ["diorama", "twin"]
    assert [one["seeds"] for one in report["models"]] == [[5], [5]] and report["warnings"] == []
    first, second = (read_image(file)[0] for file in images)
    assert np.array_equal(first, second) and len(found) % 2 == 0
    assert report["models"][0]["scores"] == report["models"][1]["scores"]
