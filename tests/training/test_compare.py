"""The comparison of the ways of tuning, with fewer scenes and steps than the table has."""

import json
from pathlib import Path

import numpy as np
import pytest

from annotators import find_annotator
from training import compare, train_control
from training.compare import PLAIN, REWARDS, method_options
from training.train_control import METHODS


@pytest.mark.parametrize("method", [PLAIN, *METHODS])
@pytest.mark.parametrize("condition", REWARDS)
def test_every_method_is_a_valid_command(method, condition):
    options = train_control._options(["--condition", condition, *method_options(method, condition)])
    train_control._check_method(options)
    assert bool(options.reward) == (method in METHODS[:2])
    assert (options.own > 0) == (method == METHODS[2])


def test_the_table_has_means_over_seeds_and_each_run_is_made_once(tmp_path, monkeypatch):
    made = []

    def alone(arguments: list[str], condition: str, count: int, out: Path) -> None:
        seed = int(arguments[arguments.index("--seed") + 1])
        out.mkdir(parents=True)
        figures = {"score": 40 + 10 * seed, "colours": 80, "seconds": 1 + seed, "gigabytes": 2}
        (out / "result.json").write_text(json.dumps(figures))
        made.append((condition, seed, count))

    monkeypatch.setattr(compare, "_alone", alone)
    monkeypatch.setattr(compare, "render_scenes", lambda *_: None)
    monkeypatch.setattr(compare, "draw_maps", lambda *_: None)
    table = compare.compare(["canny", "pose"], tmp_path, steps=7, count=5)
    assert len(made) == 2 * 4 * 3 and {count for _, _, count in made} == {5}
    lines = table.splitlines()
    assert lines[0] == "|  | diffusion loss | reward | uncertainty | cpo |"
    assert lines[2].startswith("| canny | 50.0 ± 8.2, 80 % |")
    assert lines[4:] == [
        "| processor, s | 2 | 2 | 2 | 2 |",
        "| memory, GB | 2.00 | 2.00 | 2.00 | 2.00 |",
    ]
    assert (tmp_path / "compare.md").read_text() == f"{table}\n"
    assert (
        compare.compare(["canny", "pose"], tmp_path, seeds=1)
        .splitlines()[2]
        .startswith("| canny | 40.0, 80 % |")
    )
    assert len(made) == 2 * 4 * 3


class Echo:
    """Gives back what scenes look like, or a black picture."""

    def __init__(self, follows: bool) -> None:
        self._follows = follows

    def pictures(self, maps: np.ndarray, captions: list[str]) -> list[np.ndarray]:
        """Return the scenes' own pictures, found by their captions."""
        assert len(maps) == len(captions)
        found = []
        for caption in captions:
            seed = next(
                seed
                for seed in range(compare.HELD_OUT, compare.HELD_OUT + 50)
                if compare.make_scene(seed).caption == caption
            )
            found.append(compare.render([compare.make_scene(seed)], 128).image[0].numpy())
        return found if self._follows else [np.zeros_like(one) for one in found]


def test_what_follows_its_maps_scores_more_than_what_does_not():
    canny = find_annotator("canny")
    follows, black = (compare.evaluate(Echo(one), canny, 6) for one in (True, False))
    assert follows["score"] == 100 and follows["colours"] > 90
    assert black["score"] == 0 and black["colours"] < 50


@pytest.mark.slow
def test_a_run_is_trained_and_measured(tmp_path):
    compare.render_scenes(4, 128, tmp_path / "scenes")
    arguments = ["--condition", "canny", "--data", f"{tmp_path / 'scenes'}", "--steps", "1"]
    compare.run([*arguments, "--size", "128", "--batch", "2"], "canny", 2, tmp_path / "run")
    figures = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(figures) == {"seconds", "gigabytes", "score", "colours"}
    assert figures["seconds"] > 0 and 0.3 < figures["gigabytes"] < 50
    assert 0 <= figures["score"] < 50, "a step from nothing"
