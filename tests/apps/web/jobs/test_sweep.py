"""Sweeps: their cells, and what one that fails or a stop leaves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.web.files import upload_folder
from apps.web.html import grid
from apps.web.jobs.sweep import Cell, Sweep, means, new_sweep
from apps.web.suite import Suite
from core.errors import BadInput, WeightsMissing
from core.request import SETTINGS

pytestmark = pytest.mark.slow

SMALL = {"image_resolution": 256, "steps": 1, "guidance_scale": 1.0}


@pytest.fixture
def given() -> dict[str, Any]:
    """A page's raw values: a picture with an edge, and strength across."""
    folder = upload_folder()
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    path = Path(folder, "edge.png")
    Image.fromarray(picture).save(path)
    usual = {name: setting.default for name, setting in SETTINGS.items()}
    return usual | SMALL | {
        "image": {"path": str(path)}, "condition": "canny2image", "params": {}, "model": "tiny",
        "x_axis": "strength", "x_values": "0, 1", "y_axis": "seed", "y_values": "3, 4",
    }  # fmt: skip


def cells_of(sweep: Sweep) -> list[Cell]:
    return [report for report in sweep.run() if isinstance(report, Cell)]


def test_each_cell_has_its_settings_and_is_the_picture_made_alone(
    suite: Suite, given: dict[str, Any]
) -> None:
    sweep = new_sweep(suite, given)
    cells = cells_of(sweep)
    assert [(cell.column, cell.row) for cell in cells] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for cell in cells:
        request = cell.result.request
        assert request.controls[0].strength == (0.0, 1.0)[cell.column]
        assert request.seed == (3, 4)[cell.row] and request.num_samples == 1
    alone = suite.pipeline.generate(cells[3].result.request)
    assert np.array_equal(alone.images[0], cells[3].result.images[0])
    assert cells[3].headline == alone.headlines[0]
    assert sweep.finished and not sweep.stopped


def test_one_row_and_one_seed_for_all(suite: Suite, given: dict[str, Any]) -> None:
    sweep = new_sweep(suite, given | {"y_axis": "", "seed": -1, "x_values": "0.5, 1, 1.5"})
    assert sweep.shape == (3, 1)
    seeds = {cell.result.seeds[0] for cell in cells_of(sweep)}
    assert len(seeds) == 1 and seeds != {-1}


def test_a_setting_that_is_not_given_is_the_models(suite: Suite, given: dict[str, Any]) -> None:
    del given["steps"], given["denoising_strength"]
    request = new_sweep(suite, given | {"model": "other"}).request
    assert (request.steps, request.denoising_strength) == (4, 1.0)


def test_the_annotators_settings_prompts_and_models_can_be_varied(
    suite: Suite, given: dict[str, Any]
) -> None:
    axes = {"x_axis": "low_threshold", "x_values": "10, 20", "params": {"high_threshold": 77}}
    for cell in cells_of(new_sweep(suite, given | axes | {"y_axis": ""})):
        params = cell.result.request.controls[0].params
        assert (params.low_threshold, params.high_threshold) == ((10, 20)[cell.column], 77)
    axes = {"x_axis": "model", "x_values": "", "y_axis": "prompt", "y_values": '""\na ball'}
    sweep = new_sweep(suite, given | axes)
    cells = cells_of(sweep)
    assert [(cell.column, cell.row) for cell in cells] == [(0, 0), (0, 1), (1, 0), (1, 1)], (
        "one model's together"
    )
    assert [cell.result.request.model for cell in cells] == ["tiny"] * 2 + ["other"] * 2
    assert [cell.result.request.prompt for cell in cells] == ["", "a ball"] * 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"image": None}, "There is no picture yet"),
        ({"condition": "cany"}, "There is no condition 'cany' for a sweep; there are: canny2image"),
        ({"x_axis": "seed", "y_axis": "seed"}, "Both axes are Seed"),
        ({"x_values": "0..2 step 0.25", "y_values": "1..5"}, "9 x 5 values make 45 pictures; a"),
        ({"x_axis": "steps", "x_values": "1, 2", "mode": "preview"}, "mode preview decides Steps"),
        ({"guidance_scale": 99}, "Guidance scale is 99"),
        ({"params": [1]}, "map settings must be given by name"),
        ({"params": {"colour": 1}}, "has no map setting 'colour'"),
        ({"model": "sdxl"}, "not on offer"),
    ],
)
def test_what_no_cell_could_use_is_said_at_once(
    suite: Suite, given: dict[str, Any], values: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        new_sweep(suite, given | values)


def test_a_cell_that_cannot_be_made_says_why_and_the_others_are(
    suite: Suite, given: dict[str, Any]
) -> None:
    axes = {
        "x_axis": "sampler",
        "x_values": "ddim, lcm",
        "y_axis": "mode",
        "y_values": "exact, fast",
    }
    found = {(cell.column, cell.row): cell for cell in cells_of(new_sweep(suite, given | axes))}
    assert found.pop((1, 1)).error.startswith("The sampler lcm already takes few steps")
    assert len(found) == 3 and all(cell.result and not cell.error for cell in found.values())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (WeightsMissing("They are <not> here."), "They are <not> here."),
        (RuntimeError("/secret/path"), "Something went wrong on our side"),
    ],
)
def test_a_cell_that_fails_while_it_is_made_says_why(
    suite: Suite, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Any, told: str
) -> None:
    generate = suite.pipeline.generate

    def failing(request: Any, **options: Any) -> Any:
        if request.seed == 3:
            raise error
        return generate(request, **options)

    monkeypatch.setattr(suite.pipeline, "generate", failing)
    sweep = new_sweep(suite, given)
    cells = cells_of(sweep)
    failed, made = cells[:2], cells[2:]
    assert all(told in cell.error and cell.result is None for cell in failed)
    assert all(cell.result and not cell.error for cell in made)
    assert "secret" not in failed[0].error
    shown = grid.grid(sweep, cells, {(c.column, c.row): Path("x.png") for c in made})
    assert "<not>" not in shown and shown.count("cl-cell-empty") == 2
    assert "2 of 4 pictures" in shown and shown.count("<img") == 2


def test_stopping_keeps_what_is_done(suite: Suite, given: dict[str, Any]) -> None:
    sweep = new_sweep(suite, given)
    cells = []
    for report in sweep.run():
        if isinstance(report, Cell):
            cells.append(report)
            sweep.stop()
    assert len(cells) == 1 and cells[0].result
    assert sweep.stopped and sweep.finished
    begun = new_sweep(suite, given)
    begun.stop()
    assert cells_of(begun) == []


def test_means_are_those_of_the_scores_there_are(suite: Suite, given: dict[str, Any]) -> None:
    cells = cells_of(new_sweep(suite, given | {"x_values": "0, 1"}))
    first = [cell.headline for cell in cells if cell.column == 0]
    assert means(cells, 2)[0] == pytest.approx(sum(first) / 2)
    assert means([Cell(0, 0, None, "It failed.")], 2) == [None, None]


def test_an_empty_map_has_no_score(suite: Suite, given: dict[str, Any]) -> None:
    (first, *_) = cells_of(new_sweep(suite, given))
    (control,) = first.result.controls
    blank = replace(control, control_map=np.zeros_like(control.control_map))
    assert first.headline is not None
    assert Cell(0, 0, replace(first.result, controls=(blank,))).headline is None
