"""What the annotator learns: the renderer's truth at half size, and where joints should be seen."""

import numpy as np
import pytest
import torch

from annotators._diorama import JOINTS, NECK, OFFSET_SCALE, Prediction
from training.diorama.dataset import HELD_OUT, render_scenes
from training.diorama.renderer import render
from training.diorama.truth import load_truth, near_is_one, soft_edges, truth_arrays
from training.diorama.world import ADE20K, KEYPOINTS, make_scene
from training.train_annotator import Targets, joint_targets


@pytest.fixture(scope="module")
def truth():
    return render([make_scene(HELD_OUT + k) for k in (1, 2)], 128)  # each has a person


def test_edges_are_where_things_end(truth):
    edges = soft_edges(truth)
    assert edges.shape == (2, 128, 128) and edges.min() == 0 and edges.max() == 1
    things = truth.things.numpy()
    border = things[:, :, 1:] != things[:, :, :-1]
    assert edges[:, :, 1:][border].mean() > 0.7
    assert edges[truth.classes.numpy() == ADE20K["sky"]].mean() < 0.2  # no edges in the sky


def test_arrays_fit_the_picture(truth):
    arrays = truth_arrays(truth)
    assert {name: part.shape for name, part in arrays.items()} == {
        "edges": (2, 64, 64), "depth": (2, 64, 64), "normal": (2, 64, 64, 3),
        "classes": (2, 64, 64), "keypoints": (2, 4, 18, 3),
    }  # fmt: skip
    sky = arrays["classes"] == ADE20K["sky"]
    assert arrays["depth"][sky].max() == 0 and arrays["depth"].max() > 65000
    length = np.linalg.norm(arrays["normal"][~sky].astype(float) / 127, axis=1)
    assert np.abs(length - 1).max() < 0.02
    people = arrays["keypoints"][:, 0]
    x, y, seen = np.moveaxis(people, 2, 0)
    assert seen.sum() > 20
    for k in range(2):
        inside = arrays["classes"][k][y[k][seen[k] > 0].astype(int), x[k][seen[k] > 0].astype(int)]
        assert (inside == ADE20K["person"]).mean() > 0.8


def test_the_annotators_joints_are_the_worlds():
    assert len(KEYPOINTS) == JOINTS and KEYPOINTS[NECK] == "neck"


def test_near_is_one():
    assert near_is_one(np.array([[1.0, 2.0, np.inf]])).tolist() == [[1.0, 0.5, 0.0]]


def test_kept_and_read_back(tmp_path):
    render_scenes(3, 64, tmp_path)
    kept = load_truth(tmp_path)
    again = truth_arrays(render([make_scene(2)], 64))
    for name, part in again.items():
        assert np.array_equal(kept[name][2:], part), name
    with pytest.raises(FileNotFoundError, match=r"training\.dataset"):
        load_truth(tmp_path / "nowhere")


def test_offsets_lead_to_the_neck():
    keypoints = np.zeros((4, 18, 3), np.float32)
    keypoints[0, NECK], keypoints[0, 4] = (10, 12, 0), (20, 28, 1)  # the neck is hidden
    places, offset, known = joint_targets(keypoints, 32)
    assert places[4].argmax() == 28 * 32 + 20 and places[NECK].max() == 0
    assert (offset[:, 28, 20] * OFFSET_SCALE).tolist() == [-10, -16]
    assert known.sum() == 25 and known[28, 20] == 1


def test_a_perfect_answer_costs_less_than_a_guess(truth):
    arrays = truth_arrays(truth)
    classes = sorted(ADE20K.values())
    targets = Targets.from_truth(arrays, np.array([0, 1]), classes, "cpu")
    sky = (arrays["normal"] == 0).all(-1)
    assert sky.any() and torch.all(targets.normal.permute(0, 2, 3, 1)[sky] == torch.eye(3)[2])
    right = torch.nn.functional.one_hot(targets.classes, len(classes)).permute(0, 3, 1, 2) * 20.0
    perfect = Prediction(
        torch.logit(targets.edges, 1e-4), targets.depth, targets.normal, right,
        torch.logit(targets.joints, 1e-4), targets.offset,
    )  # fmt: skip
    guess = Prediction(*(torch.zeros_like(part) for part in vars(perfect).values()))
    better, worse = targets.losses(perfect), targets.losses(guess)
    for name, loss in better.items():
        assert loss < worse[name], name
        assert worse[name] < 20, name
