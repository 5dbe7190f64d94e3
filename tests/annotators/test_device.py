"""Annotators run on the store's device."""

from pathlib import Path

import numpy as np
import pytest
import torch

from annotators import _diorama, _pretrained, find_annotator
from core.errors import DeviceUnavailable
from models import devices
from models.store import Store

META = torch.device("meta")
"""A second device, which every machine has."""


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process without a store."""
    monkeypatch.setattr(devices, "_shared", None)
    for cache in (_diorama._loaded, _pretrained._detector, _pretrained._transformer):
        cache.cache_clear()


def test_a_store_brings_annotators_to_its_device(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.DEVICE_VARIABLE, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    depth, picture = find_annotator("depth"), np.zeros((64, 64, 3), np.uint8)
    picture[20:40] = 200
    draw = depth.preprocessors[0].draw
    with pytest.raises(DeviceUnavailable, match="CONTROLLOOP_DEVICE asks for cuda"):
        draw(picture, depth.params())
    Store("cpu", "float32", models_folder)
    assert draw(picture, depth.params()).any()
    assert _diorama.load_network().device.type == "cpu"


def test_a_network_follows_to_another_device() -> None:
    devices.share_device(META)
    assert _diorama.load_network().device == META
    devices.share_device(torch.device("cpu"))
    assert _diorama.load_network().device.type == "cpu"
    assert _diorama.load_network() is _diorama.load_network()


def test_so_do_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Detector:
        @classmethod
        def from_pretrained(cls, _: str) -> "Detector":
            return cls()

        def to(self, device: torch.device) -> "Detector":
            self.device = device
            return self

    monkeypatch.setattr(_pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(_pretrained, "_detector_class", lambda _: Detector)
    (tmp_path / "one.pth").touch()
    for device in (META, torch.device("cpu")):
        devices.share_device(device)
        assert _pretrained.load_detector("Detector", (("one.pth", 1),)).device == device
