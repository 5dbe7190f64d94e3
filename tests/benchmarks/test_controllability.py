"""The controllability benchmark, on pictures with known results."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from annotators import (
    annotator_names,
    canny,
    depth,
    fake_scribble,
    find_annotator,
    hed,
    normal,
    pose,
    scribble,
    seg,
)
from annotators._diorama import STRIDE
from benchmarks import controllability
from benchmarks.controllability import (
    TRUE_MAPS,
    conditions_by_annotator,
    main,
    measure,
    psnr,
    select_conditions,
)
from benchmarks.tables import RESULTS
from core.condition import Annotator, Condition, Preprocessor
from core.errors import BadInput, SuiteError
from core.images import grey_map
from models.registry import Registry
from tests.tiny_networks import save_networks
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.truth import truth_arrays
from training.diorama.world import ADE20K, make_scene
from training.train_annotator import joint_targets
from training.weights import add_metadata, read_metadata


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + np.uint8(1)) == pytest.approx(48.13, abs=0.01)


# Maps of the ground truth


PREDICTED = sorted(TRUE_MAPS, key=lambda draw: draw.__module__)
CLASSES = sorted(ADE20K.values())


@pytest.fixture(scope="module")
def people():
    """A scene with a fully visible person: its truth without the batch axis, and its picture."""
    for k in range(100):
        scene = make_scene(HELD_OUT + k)
        truth = render([scene], 256)
        if any((person[:, 2] > 0).all() for person in truth.keypoints[0]):
            arrays = {name: values[0] for name, values in truth_arrays(truth).items()}
            return arrays, truth.image[0].numpy()
    raise AssertionError("no person is fully visible in the first hundred scenes")


def perfect_prediction(truth):
    """The prediction of a network without error."""

    def logits(probability):
        probability = np.clip(probability, 1e-5, 1 - 1e-5)
        return np.log(probability / (1 - probability)).astype(np.float32)

    joints, offset, _ = joint_targets(truth["keypoints"], len(truth["edges"]))
    index = np.searchsorted(CLASSES, truth["classes"])
    return {
        "edges": logits(truth["edges"][:, :, None] / 255),
        "depth": truth["depth"][:, :, None].astype(np.float32) / 65535,
        "normal": truth["normal"].astype(np.float32) / 127,
        "classes": np.eye(len(CLASSES), dtype=np.float32)[index],
        "joints": logits(joints.transpose(1, 2, 0)),
        "offset": offset.transpose(1, 2, 0),
    }


@pytest.mark.parametrize("draw", PREDICTED, ids=lambda draw: draw.__module__)
def test_a_perfect_annotator_draws_the_true_map(draw, people, monkeypatch):
    truth, image = people
    for module in (hed, depth, normal, seg, pose):
        monkeypatch.setattr(module, "predict", lambda _: perfect_prediction(truth))
    known = SimpleNamespace(config=SimpleNamespace(classes=CLASSES))
    monkeypatch.setattr(seg, "load_network", lambda: known)
    score = find_annotator(draw.__module__.split(".")[1]).score
    true_map = TRUE_MAPS[draw](truth, image)
    assert true_map.min() < true_map.max()
    assert score(true_map, draw(image, None)).headline > 98  # joints are exact to a cell
    assert score(true_map, true_map * 0).headline < 20


def test_the_true_maps_show_the_scene():
    scene = make_scene(HELD_OUT)
    truth = render([scene], 128)
    image, arrays = truth.image[0].numpy(), {k: v[0] for k, v in truth_arrays(truth).items()}
    drawn = {draw.__module__.split(".")[1]: TRUE_MAPS[draw](arrays, image) for draw in PREDICTED}
    assert {m.shape for m in drawn.values()} == {image.shape}
    right = truth.normal[0, :, :, 0].numpy()[::STRIDE, ::STRIDE]
    red = drawn["normal"][::STRIDE, ::STRIDE, 0]
    assert red[right < -0.5].mean() > 180 and red[right > 0.5].mean() < 75  # left is red
    metres = truth.depth[0].numpy()
    near, far = metres < np.quantile(metres, 0.1), metres > np.quantile(metres, 0.9)
    assert drawn["depth"][near].mean() > drawn["depth"][far].mean() + 100


def test_every_preprocessor_with_dioramas_annotator_has_a_true_map():
    preprocessors = []
    for name in annotator_names():
        annotator = find_annotator(name)
        preprocessors += [p for p in annotator.preprocessors if p.name == "Diorama" and not p.needs]
        preprocessors += [annotator.reextract] if annotator.reextract else []
    assert len(preprocessors) >= 7  # edges, two scribbles, depth, normals, classes and poses
    assert all(p.draw in TRUE_MAPS for p in preprocessors)


@pytest.mark.parametrize("name", annotator_names())
def test_every_score_states_whether_higher_is_better(name):
    """A person in OpenPose's colours has lines, colours and joints, so it suits every score."""
    x, y = np.meshgrid(np.linspace(40, 200, 6), np.linspace(40, 200, 3))
    person = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    drawn = pose.draw_people([person], 256, 256)
    score = find_annotator(name).score
    same, nothing = score(drawn, drawn), score(drawn, drawn * 0)
    better = same.metrics[same.metric] > nothing.metrics[nothing.metric]
    assert better == same.higher_is_better


# The benchmark


@pytest.mark.slow
def test_the_json_follows_the_contract(store, monkeypatch, capsys):
    monkeypatch.setattr(controllability, "Store", lambda *_: store)
    main("--model tiny --scenes 1 --strengths 0,1 --json".split())
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert {"model", "scenes", "steps", "guidance_scale", "autoencoder_psnr"} < result.keys()
    assert list(result["conditions"]) == ["canny"]  # all that the model has a ControlNet for
    canny = result["conditions"]["canny"]
    assert (canny["metric"], canny["higher_is_better"], canny["annotator"]) == ("F1", True, None)
    assert canny["strength"].keys() == {"0", "1"}
    assert canny["headline"].keys() == {"oracle", "0", "1"}
    assert any("headline" in line for line in printed)


def test_drawings_are_measured_with_their_reextraction(monkeypatch):
    kinds = {"drawing": scribble, "canvas": scribble, "photo": fake_scribble}
    conditions = [
        Condition(f"{kind}2image", kind, "", module.ANNOTATOR, "scribble", kind)
        for kind, module in kinds.items()
    ]
    monkeypatch.setattr(controllability.apps, "conditions", lambda: conditions)
    measured = conditions_by_annotator()
    assert list(measured) == ["scribble", "fake_scribble"]
    for condition in measured.values():
        assert condition.weights == "scribble"
        assert condition.annotator.preprocessors[0].draw is scribble.draw_fake
        assert condition.annotator.reextract is None


def test_an_unknown_condition_is_named(store):
    with pytest.raises(BadInput, match=r"no condition 'tiny'; there are: .*canny"):
        select_conditions(store, "tiny", ["canny", "tiny"])


def partly_blank(is_drawn):
    """Canny, but blank unless is_drawn(number of the picture, from 1); and the list of pictures."""
    drawn = []

    def draw(image, params):
        drawn.append(image)
        return canny.draw(image, params) if is_drawn(len(drawn)) else grey_map(image[:, :, 0] * 0)

    annotator = Annotator(
        "canny", (Preprocessor("Some", draw),), canny.CannyParams, canny.score, "lines",
        empty_message="Nothing.",
    )  # fmt: skip
    return {"canny": Condition("some2image", "Some", "", annotator, "canny")}, drawn


@pytest.mark.slow
def test_scenes_with_an_empty_map_are_skipped(store):
    conditions, drawn = partly_blank(lambda count: count > 3)
    result = measure(store, "tiny", conditions, 1, (0.0,), None)
    assert result["conditions"]["canny"]["oracle"] > 0
    assert len(drawn) == 7  # three skipped; the map, again to generate, and of two results
    assert result["conditions"]["canny"]["closed"] is None


@pytest.mark.slow
def test_a_condition_whose_maps_are_all_empty_fails(store, monkeypatch, capsys):
    monkeypatch.setattr(controllability, "MAX_TRIES", 3)
    with pytest.raises(SuiteError, match="Nothing could be measured"):
        measure(store, "tiny", partly_blank(lambda _: False)[0], 1, (0.0,), None)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "canny: Only 0 of 3 scenes have a canny map that is not empty: too few to measure."
    )


@pytest.mark.slow
def test_failures_do_not_stop_the_others(store, monkeypatch, capsys):
    """One without weights and one with a bug, each followed by one that works."""
    known = conditions_by_annotator()["canny"]

    def broken(*_):
        raise RuntimeError("two\nlines")

    bug = replace(known.annotator, score=broken)
    conditions = {
        "lost": replace(known, weights="lost"),
        "canny": known,
        "bug": replace(known, annotator=bug),
        "again": known,
    }
    monkeypatch.setattr(controllability, "Store", lambda *_: store)
    monkeypatch.setattr(controllability, "select_conditions", lambda *_: conditions)
    assert main("--model tiny --scenes 1 --strengths 0 --json".split()) == 1
    out, err = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["conditions"].keys() == {"canny", "again"}
    assert result["failed"]["lost"].startswith("Tiny has no ControlNet 'lost'")
    assert result["failed"]["bug"] == "RuntimeError: two"
    assert "in broken" in err  # a bug prints its traceback
    assert len([line for line in err.splitlines() if line.startswith("lost: ")]) == 1


@pytest.mark.slow
def test_a_contact_sheet_has_scene_map_and_each_image_with_its_map(store, tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    conditions = select_conditions(store, "tiny", None)
    conditions |= {"again": conditions["canny"]}
    measure(store, "tiny", conditions, 2, (0.0, 0.5, 1.0), sheet)
    saved = np.asarray(Image.open(sheet.with_name("sheet-canny.png")))
    assert (np.asarray(Image.open(sheet.with_name("sheet-all.png"))) == saved).all()
    assert saved.shape == (2 * 256, 6 * 256, 3)
    scene, control_map, _, at_0, _, at_1 = np.split(saved, 6, 1)
    assert (scene[:256] == render([make_scene(HELD_OUT)], 256).image[0].numpy()).all()
    for edges in (control_map, at_0, at_1):
        assert set(np.unique(edges)) <= {0, 255}


def test_results_of_fewer_scenes_do_not_replace_those_of_more(tmp_path, networks):
    folder = save_networks(networks, tmp_path / "model")
    canny_condition = {"canny": conditions_by_annotator()["canny"]}

    def written(scenes, psnr, colours):
        summary = {"metric": "F1", "value": scenes}
        result = {
            "scenes": scenes, "steps": 20, "guidance_scale": 2.0, "conditions": {"canny": summary},
            "autoencoder_psnr": psnr, "prompt_colour_accuracy": colours,
        }  # fmt: skip
        controllability._annotate(result, canny_condition, folder)
        parts = ("controlnet/canny", "vae", "unet")
        scores = [read_metadata(folder / part).get("scores", {}) for part in parts]
        keys = ("value", "psnr", "prompt_colour_accuracy")
        return [score.get(key) for score, key in zip(scores, keys, strict=True)]

    assert written(8, 30.0, None) == [8, 30.0, None]
    assert written(9, 31.0, 0.8) == [9, 31.0, 0.8]
    assert written(8, 29.0, 0.7) == [9, 31.0, 0.8]
    add_metadata(folder / "vae", scores={"psnr": 33.0})  # as earlier versions wrote it
    assert written(10, 32.0, 0.9) == [10, 33.0, 0.9]
    assert written(128, 32.0, 0.9) == [128, 32.0, 0.9]


@pytest.mark.parametrize(
    ("oracle", "without", "full", "closed"),
    [(80, 20, 65, 0.75), (80, 20, 86, 1.1), (20, 20, 65, None), (10, 20, 65, None)],
)
def test_the_fraction_of_the_gap_closed(oracle, without, full, closed):
    headline = {"oracle": oracle, "0": without, "1": full}
    assert controllability._gap_closed(headline) == closed
    assert controllability._gap_closed({"oracle": oracle, "1": full}) is None


def test_low_fractions_and_error_metrics_are_marked():
    summary = {
        "metric": "RMSE", "higher_is_better": False, "oracle": 9.0, "strength": {"1": 30.0},
        "headline": {"oracle": 90.0, "0": 0.0, "1": 60.0}, "closed": 0.667, "beside": {},
        "annotator": {"metric": "RMSE", "value": 8.0, "headline": 85.0, "scenes": 3},
    }  # fmt: skip
    lines = dict(controllability._lines(summary))
    assert "lower is better" in lines["RMSE"]
    assert lines["gap closed"].endswith("BELOW 0.75")
    assert lines["annotator"] == (
        "RMSE 8.000  (lower is better), headline 85.00, against 3 scenes' ground truth"
    )
    assert "BELOW" not in dict(controllability._lines(summary | {"closed": 0.8}))["gap closed"]


def test_the_card_has_the_references_that_were_measured():
    card = next(one for one in Registry().cards() if one.name == "diorama")
    measured = {}
    for name in ("controllability-diorama", "controllability-diorama-all"):
        record = json.loads((RESULTS / f"{name}.json").read_text())
        for annotator, figures in record["conditions"].items():
            scores = figures["headline"]
            measured[annotator] = (scores["0"], scores["oracle"])
    assert card.references == measured
