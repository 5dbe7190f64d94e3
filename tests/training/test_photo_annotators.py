"""The photographs' annotators with gradients: they predict what the apps draw, and are a loss."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from annotators import _pretrained, canny, depth, find_annotator, hed, lineart, seg
from core.errors import WeightsMissing
from tests.tiny_networks import tiny_depth_anything
from training import photo_annotators
from training.photo_annotators import PHOTO_ANNOTATORS, PhotoAnnotator, resized

NAMES = tuple(PHOTO_ANNOTATORS)
SIDE = 64


class Outer(nn.Module):
    """Stops gradients, as controlnet-aux's MiDaS does around its network."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, pictures):
        return self.model(pictures)


def _hed():
    from controlnet_aux import HEDdetector
    from controlnet_aux.hed import ControlNetHED_Apache2

    return HEDdetector(ControlNetHED_Apache2().eval())


def _pidinet():
    from controlnet_aux import PidiNetDetector
    from controlnet_aux.pidi.model import pidinet

    network = pidinet().eval()
    for layer in network.conv_reduces:
        layer.conv.weight.data.normal_(std=10)
    return PidiNetDetector(network)


def _lineart():
    from controlnet_aux import LineartDetector
    from controlnet_aux.lineart import Generator

    return LineartDetector(Generator(3, 1, 3).eval(), Generator(3, 1, 1).eval())


def _midas():
    """controlnet-aux's detector with a small network in place of half a gigabyte."""
    from controlnet_aux import MidasDetector

    layers = nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 1, 5, padding=2), nn.Softplus()
    return MidasDetector(Outer(nn.Sequential(*layers, Squeezed())))


class Squeezed(nn.Module):
    """Leaves out the one channel."""

    def forward(self, x):
        return x[:, 0]


def _depth_anything():
    from transformers import DPTImageProcessor

    network = tiny_depth_anything().eval()
    network.head.conv3.bias.data += 1  # so that its last ReLU lets something pass
    for layer, factor in (
        (network.head.conv1, 1000),
        (network.head.conv2, 30),
        (network.head.conv3, 30),
    ):
        layer.weight.data *= factor
    sides = {"height": 56, "width": 56}
    return DPTImageProcessor(size=sides, ensure_multiple_of=14, keep_aspect_ratio=True), network


def _segformer():
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    config = SegformerConfig(
        num_labels=150, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8,
    )  # fmt: skip
    network = SegformerForSemanticSegmentation(config).eval()
    for layer in (network.decode_head.linear_fuse, network.decode_head.classifier):
        layer.weight.data *= 100
    return SegformerImageProcessor(size={"height": 64, "width": 64}), network


MADE = {
    "HED": _hed,
    "PiDiNet": _pidinet,
    "Lineart": _lineart,
    "MiDaS": _midas,
    "Depth Anything V2": _depth_anything,
    "SegFormer": _segformer,
}


@pytest.fixture
def made(request, monkeypatch) -> tuple[str, PhotoAnnotator]:
    """A name and its annotator, whose network is random, but of weights large enough to matter."""
    name = request.param
    if name in MADE:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = MADE[name]()
        for module in (photo_annotators, hed, lineart, depth, seg):
            for loader in ("load_detector", "load_transformer"):
                monkeypatch.setattr(module, loader, lambda *_: network, raising=False)
    return name, PHOTO_ANNOTATORS[name]


every_one = pytest.mark.parametrize("made", NAMES, indirect=True)


def photograph(height=SIDE, width=SIDE, seed=0):
    """Blurred noise with a bright disc."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)
    at = (int(rng.integers(10, 50)), int(rng.integers(10, 50)))
    return cv2.circle(noise, at, 9, (250, 240, 60), -1)


def tensor(*pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def predict_at_size(annotator, pictures):
    """Predict without the app's detect resolution, which would cost much on random noise."""
    network, predict = annotator.load()
    network.requires_grad_(False)
    return predict(pictures)


def drawn_from(name, prediction, size):
    """What the app would draw of a prediction (1, C, h, w): grey levels, or classes."""
    if name == "SegFormer":
        logits = nn.functional.interpolate(prediction, size, mode="bilinear")
        return logits[0].argmax(0).numpy()
    if PHOTO_ANNOTATORS[name].condition == "depth":
        found = nn.functional.interpolate(prediction, size, mode="bilinear")[0, 0]
        return ((found - found.min()) / (found.max() - found.min()) * 255).numpy()
    return (prediction[0, 0] * 255).numpy()


@pytest.mark.parametrize("made", [name for name in NAMES if name in MADE], indirect=True)
def test_it_predicts_what_the_app_draws(made):
    name, annotator = made
    # Depth Anything's own size: resized pixels, rounded to bytes in the app, it would magnify.
    size = (56, 112) if name == "Depth Anything V2" else (64, 128)
    picture = photograph(*size)
    condition = find_annotator(annotator.condition)
    (preprocessor,) = (one for one in condition.preprocessors if one.name == name)
    drawn = preprocessor.draw(picture, condition.params())
    with torch.no_grad():
        found = drawn_from(name, predict_at_size(annotator, tensor(picture)), size)
    if name == "SegFormer":
        wanted = seg.as_classes(drawn)
        assert len(np.unique(wanted)) > 4 and (found == wanted).mean() > 0.98
        return
    levels = drawn[:, :, 0].astype(float)
    assert levels.std() > 1
    assert np.abs(found - levels).max() < 1.01


@pytest.mark.parametrize("made", ["Kornia"], indirect=True)
def test_edges_lie_between_the_thresholds(made):
    picture = photograph(64, 128)
    drawn = canny.draw_kornia(picture, canny.CannyParams())[:, :, 0] > 0
    logits = predict_at_size(made[1], tensor(picture))[0, 0].numpy()
    assert logits[drawn].min() > -2, "as strong as the low threshold at least"
    near = cv2.dilate(drawn.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    strong = logits > 2
    assert 50 < drawn.sum() < (logits > -2).sum() and strong.sum() > 50
    assert near[strong].mean() > 0.99, "what is surely an edge is drawn, or flanks one that is"
    flat = predict_at_size(made[1], torch.full((1, 3, 16, 16), 0.5))
    assert float(flat.max()) < -5


@every_one
def test_the_loss_is_smallest_for_the_same_picture(made):
    _, annotator = made
    pictures = [photograph(seed=seed) for seed in range(4)]
    found = predict_at_size(annotator, tensor(*pictures))
    assert annotator.errors(found, found).shape == (4, *found.shape[2:])
    same = annotator.errors(found, found).mean((1, 2))
    for turn in (1, 2, 3):
        other = annotator.errors(found.roll(turn, 0), found).mean((1, 2))
        assert bool((same < other).all())
    assert not annotator.doubt(found, found).abs().max() > 1e-5
    assert float(annotator.doubt(found, found.roll(1, 0)).min()) > -1e-5


@every_one
def test_gradients_go_through_the_frozen_network(made):
    _, annotator = made
    found = tensor(photograph(seed=1), photograph(seed=2)).requires_grad_(True)
    network, _ = annotator.load()
    prediction = predict_at_size(annotator, found)
    with torch.no_grad():
        wanted = predict_at_size(annotator, tensor(photograph(seed=3), photograph(seed=4)))
    annotator.errors(prediction, wanted).mean().backward()
    assert bool(found.grad.isfinite().all())
    assert float((found.grad != 0).float().mean()) > 0.9, "nearly every pixel matters"
    assert all(one.grad is None for one in network.parameters())


def test_pictures_are_looked_at_at_the_apps_size():
    looked, network = [], nn.Conv2d(3, 1, 1)

    def load():
        return network, lambda pictures: looked.append(pictures) or network(pictures)

    both = tensor(photograph(256, 192), photograph(256, 192, 1))
    for condition, size in (("canny", (256, 192)), ("hed", (704, 512)), ("depth", (512, 384))):
        one = PhotoAnnotator(condition, load, photo_annotators._squares, photo_annotators._squares)
        predicted = one.predictor("cpu")(both)
        assert looked[-1].shape == (2, 3, *size) and predicted.shape == (2, 1, *size)
    assert not any(one.requires_grad for one in network.parameters())
    smooth = cv2.GaussianBlur(photograph(512, 512), (0, 0), 3)
    shrunk = cv2.resize(smooth, (384, 384), interpolation=cv2.INTER_AREA)
    assert float((resized(tensor(smooth), 384) - tensor(shrunk)).abs().max()) < 0.02


def test_a_picture_without_depth_has_finite_gradients(monkeypatch):
    dark = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), Squeezed())
    dark[0].bias.data -= 100
    detector = SimpleNamespace(model=Outer(dark))
    monkeypatch.setattr(photo_annotators, "load_detector", lambda *_: detector)
    annotator = PHOTO_ANNOTATORS["MiDaS"]
    found = tensor(photograph()).requires_grad_(True)
    prediction = predict_at_size(annotator, found)
    annotator.errors(prediction, torch.ones_like(prediction)).mean().backward()
    assert not prediction.any() and bool(found.grad.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_preprocessor_and_its_weights_are_asked_for(name, monkeypatch, tmp_path):
    def no_hub(*_):
        raise LocalEntryNotFoundError("no network in tests")

    monkeypatch.setattr("models.catalog.download._reach_hub", no_hub)
    monkeypatch.setattr(_pretrained, "FOLDER", tmp_path)
    _pretrained._detector.cache_clear()
    _pretrained._transformer.cache_clear()
    annotator = PHOTO_ANNOTATORS[name]
    (preprocessor,) = (
        one for one in find_annotator(annotator.condition).preprocessors if one.name == name
    )
    if preprocessor.needs:
        with pytest.raises(WeightsMissing, match=r"needs .* put them into"):
            annotator.load()
    else:
        annotator.load()
