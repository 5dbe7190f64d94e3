"""Detectors trained by others: errors when one is unavailable, and where weights come from."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from annotators import _diorama, _pretrained, annotator_names, find_annotator
from annotators._pretrained import load_detector
from core.errors import SuiteError, WeightsMissing
from core.params import settings_of
from models.catalog.download import amount
from tests.tiny_networks import tiny_depth_anything


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(_pretrained, "FOLDER", tmp_path)
    _pretrained._detector.cache_clear()
    _pretrained._transformer.cache_clear()


@pytest.mark.parametrize("name", annotator_names())
def test_every_annotator_is_complete(name):
    annotator = find_annotator(name)
    assert annotator.name == name
    settings_of(annotator.params)
    assert annotator.params() == annotator.params()
    names = [p.name for p in annotator.preprocessors]
    assert len(set(names)) == len(names) and not annotator.preprocessors[0].needs


DOWNLOADED = [
    (name, p.name)
    for name in annotator_names()
    for p in find_annotator(name).preprocessors
    if "from the hub" in p.needs
]


@pytest.mark.parametrize(("name", "preprocessor"), DOWNLOADED)
def test_missing_weights_are_one_sentence(name, preprocessor, monkeypatch):
    monkeypatch.setattr("models.catalog.download._reach_hub", _no_hub)
    annotator = find_annotator(name)
    draw = next(p.draw for p in annotator.preprocessors if p.name == preprocessor)
    with pytest.raises(WeightsMissing, match=r"needs .* \(\d+ MB\).* put them into") as caught:
        draw(np.zeros((64, 64, 3), np.uint8), annotator.params())
    assert str(caught.value).count(". ") == 0
    assert "etector" not in str(caught.value), "the name of the page, not of the class"


@pytest.mark.parametrize(("name", "preprocessor"), DOWNLOADED)
def test_weights_can_be_fetched_before_a_map_is_drawn(name, preprocessor, monkeypatch):
    calls = []
    monkeypatch.setattr(_pretrained, "fetch", lambda *arguments: calls.append(arguments))
    (preprocessor,) = (p for p in find_annotator(name).preprocessors if p.name == preprocessor)
    watch = object()
    preprocessor.fetch(watch=watch)
    ((source, title, _, passed),) = calls
    assert passed is watch and title and len(source.revision) == 40
    weights = [size for file, size in source.files.items() if not file.endswith(".json")]
    assert preprocessor.needs.startswith(amount(sum(weights)))


def test_concurrent_requests_load_a_detector_once(tmp_path, monkeypatch):
    (tmp_path / "one.pth").touch()
    loaded, barrier = [], threading.Barrier(2)

    class Slow:
        @classmethod
        def from_pretrained(cls, _):
            time.sleep(0.1)
            loaded.append(cls())
            return loaded[-1]

        def to(self, _):
            return self

    monkeypatch.setattr(_pretrained, "_detector_class", lambda _: Slow)

    def request():
        barrier.wait(10)
        return load_detector("Slow", (("one.pth", 1),))

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(request) for _ in range(2))
    assert first.result() is second.result() is loaded[0] and len(loaded) == 1


def test_a_detector_runs_on_one_picture_at_a_time():
    running, counts = [], []

    def detector(image, **_):
        running.append(image)
        counts.append(len(running))
        time.sleep(0.02)
        running.pop()
        return image

    picture = np.zeros((64, 64, 3), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _pretrained.run_detector(detector, picture), range(8)))
    assert counts == [1] * 8


def _no_hub(*_):
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("no network in tests")


def test_weights_put_there_by_hand_are_used(tmp_path):
    from controlnet_aux.hed import ControlNetHED_Apache2

    network = ControlNetHED_Apache2()
    torch.save(network.state_dict(), tmp_path / "ControlNetHED.pth")
    detector = load_detector("HEDdetector", (("ControlNetHED.pth", 29_444_406),))
    assert torch.equal(detector.netNetwork.norm.cpu(), network.norm)


def test_a_broken_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(SuiteError, match=r"^HED needs controlnet-aux"):
        load_detector("HEDdetector", (("ControlNetHED.pth", 1),))


def test_a_mediapipe_that_breaks_the_package_is_one_sentence(monkeypatch):
    def broken(_):
        raise AttributeError("module 'mediapipe' has no attribute 'solutions'")

    monkeypatch.setattr(_pretrained, "importlib", SimpleNamespace(import_module=broken))
    with pytest.raises(SuiteError, match=r"needs controlnet-aux.*'mediapipe' has no"):
        load_detector("HEDdetector", (("ControlNetHED.pth", 1),))


def test_a_transformers_folder_put_there_by_hand_is_used(tmp_path):
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    from annotators import seg

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=150, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8,
    )  # fmt: skip
    folder = tmp_path / "segformer-b0-finetuned-ade-512-512"
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    drawn = seg.draw_segformer(picture, seg.SegParams())
    assert drawn.shape == picture.shape
    assert np.array_equal(seg.as_map(seg.as_classes(drawn)), drawn)


def test_depth_anything_is_drawn_near_white(tmp_path, monkeypatch):
    from transformers import DPTImageProcessor

    from annotators import depth

    torch.manual_seed(0)
    folder = tmp_path / "Depth-Anything-V2-Small-hf"
    network = tiny_depth_anything()
    network.save_pretrained(folder)
    DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14).save_pretrained(
        folder
    )
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    drawn = depth.draw_depth_anything(picture, depth.DepthParams())
    assert drawn.shape == picture.shape and drawn.max() == 255 and drawn.min() == 0
    near = np.tile(np.linspace(3, 9, 64, dtype=np.float32), (64, 1))

    def to_the_right(*_, **__):  # inverse depth, as this network's: larger is nearer
        return SimpleNamespace(predicted_depth=torch.from_numpy(near)[None])

    monkeypatch.setattr(type(network), "forward", to_the_right)
    drawn = depth.draw_depth_anything(picture, depth.DepthParams())[:, :, 0]
    assert (drawn[:, 0] == 0).all() and (drawn[:, -1] == 255).all(), "near is white"


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("hed", "PiDiNet", "for research; ask its authors before commercial use"),
        ("fake_scribble", "PiDiNet", "for research; ask its authors before commercial use"),
        ("seg", "SegFormer", "for non-commercial use"),
        ("pose", "OpenPose", "for non-commercial use"),
    ],
)
def test_licence_terms_are_stated(name, part, words):
    needs = [p.needs for p in find_annotator(name).preprocessors if part in p.name]
    assert needs and all(text.endswith(words) for text in needs)


def test_a_missing_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(_diorama, "FOLDER", tmp_path)
    with pytest.raises(WeightsMissing, match="choose another preprocessor"):
        _diorama.load_network()
