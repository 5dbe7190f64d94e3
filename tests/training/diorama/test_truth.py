"""The annotator's training targets: the renderer's ground truth at half size, and joints."""

import numpy as np
import pytest
import torch

from annotators._diorama import JOINTS, NECK, OFFSET_SCALE, Prediction
from training.diorama.dataset import HELD_OUT, render_scenes
from training.diorama.renderer import render
from training.diorama.truth import load_truth, normalised_inverse_depth, soft_edges, truth_arrays
from training.diorama.world import ADE20K, KEYPOINTS, make_scene
from training.train_annotator import Targets, joint_targets


@pytest.fixture(scope="module")
def truth():
    return render([make_scene(HELD_OUT + k) for k in (1, 2)], 128)  # each has a person


def test_edges_lie_on_the_borders_of_things(truth):
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
    x, y, visible = np.moveaxis(people, 2, 0)
    assert visible.sum() > 20
    for k in range(2):
        shown = visible[k] > 0
        classes = arrays["classes"][k][y[k][shown].astype(int), x[k][shown].astype(int)]
        assert (classes == ADE20K["person"]).mean() > 0.8


def test_the_annotator_and_the_world_have_the_same_joints():
    assert len(KEYPOINTS) == JOINTS and KEYPOINTS[NECK] == "neck"


def test_inverse_depth_is_one_at_the_nearest_point():
    assert normalised_inverse_depth(np.array([[1.0, 2.0, np.inf]])).tolist() == [[1.0, 0.5, 0.0]]


def test_saved_and_loaded(tmp_path):
    render_scenes(3, 64, tmp_path)
    loaded = load_truth(tmp_path)
    expected = truth_arrays(render([make_scene(2)], 64))
    for name, part in expected.items():
        assert np.array_equal(loaded[name][2:], part), name
    with pytest.raises(FileNotFoundError, match=r"training\.dataset"):
        load_truth(tmp_path / "nowhere")


def test_offsets_point_to_the_neck():
    keypoints = np.zeros((4, 18, 3), np.float32)
    keypoints[0, NECK], keypoints[0, 4] = (10, 12, 0), (20, 28, 1)  # the neck is hidden
    heatmaps, offset, mask = joint_targets(keypoints, 32)
    assert heatmaps[4].argmax() == 28 * 32 + 20 and heatmaps[NECK].max() == 0
    assert (offset[:, 28, 20] * OFFSET_SCALE).tolist() == [-10, -16]
    assert mask.sum() == 25 and mask[28, 20] == 1


def test_a_perfect_prediction_has_less_loss_than_zeros(truth):
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
    zeros = Prediction(*(torch.zeros_like(part) for part in vars(perfect).values()))
    better, worse = targets.losses(perfect), targets.losses(zeros)
    for name, loss in better.items():
        assert loss < worse[name], name
        assert worse[name] < 20, name
