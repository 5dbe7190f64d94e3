"""The mode light: weights in 8 bits, nearly the same picture, and refused where nothing runs it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from annotators import find_annotator
from benchmarks._shared import psnr
from core.condition import Condition
from core.errors import BadInput
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models import store as store_module
from models.engine.layers import can_be_light, held_bytes, is_light
from models.store import Store
from tests.models.test_extras import PLACE, write_lora

runs_it = pytest.mark.skipif(
    not can_be_light(torch.device("cpu"), torch.bfloat16), reason="no GCC, or no AVX2"
)


@runs_it
@pytest.mark.slow
def test_its_picture_is_nearly_the_exact_one_in_little_more_than_half_the_memory() -> None:
    store = Store("cpu", "bfloat16")
    pipeline = Pipeline(store.load)
    canny = Condition("canny2image", "Canny", "", find_annotator("canny"), weights="canny")
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[80:200, 60:180] = 255
    request = GenerationRequest.single(
        canny, picture, prompt="a red box", image_resolution=256, steps=4, seed=3, model="diorama"
    )
    exact = pipeline.generate(request)
    light = pipeline.generate(replace(request, mode="light"))
    assert 30 < psnr(light.images[0], exact.images[0]) < np.inf
    again = pipeline.generate(request)
    assert np.array_equal(again.images[0], exact.images[0])

    networks = store.load("diorama", "canny", light=True)
    weights = [
        weight
        for network in (networks.unet, networks.controlnets["canny"])
        for weight in network.parameters()
    ]
    whole = sum(one.numel() * 2 for one in weights)
    assert sum(held_bytes(one) for one in weights) < 0.6 * whole
    (said,) = store.control_bytes("diorama", "canny", light=True).values()
    held = sum(held_bytes(one) for one in networks.controlnets["canny"].parameters())
    assert said == pytest.approx(held, rel=0.15)


@runs_it
def test_each_version_has_weights_of_its_own(models_folder: Path) -> None:
    store = Store("cpu", "bfloat16", models_folder)
    light = store.load("tiny", "canny", light=True)
    assert store.load("tiny", "canny", light=True) is light
    exact = store.load("tiny", "canny")
    pairs = ((exact.unet, light.unet), (exact.controlnets["canny"], light.controlnets["canny"]))
    for one, other in pairs:
        assert not any(is_light(weight) for weight in one.parameters())
        assert any(is_light(weight) for weight in other.parameters())
    assert light.hashes == exact.hashes


@runs_it
def test_a_lora_is_merged_and_what_it_changes_is_light_again(copy: Path) -> None:
    plain = Store("cpu", "bfloat16", copy).load("tiny", "canny")
    added = write_lora(copy / "lora/style.safetensors", plain)
    store = Store("cpu", "bfloat16", copy)
    base = store.load("tiny", "canny", light=True)
    merged = store.load("tiny <lora:style:0.5>", "canny", light=True)
    weight = merged.unet.get_submodule(PLACE).weight
    assert is_light(weight) == is_light(base.unet.get_submodule(PLACE).weight)
    wanted = plain.unet.get_submodule(PLACE).weight.float() + 0.5 * added
    error = (weight.float() - wanted).norm() / wanted.norm()
    assert error < 0.015


@pytest.mark.parametrize("lacking", ["bfloat16", "kernels"])
def test_where_nothing_runs_it_it_is_refused_before_anything_is_read(
    lacking: str, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "kernels":
        monkeypatch.setattr(store_module, "can_be_light", lambda *_: False)
    store = Store("cpu", "float32" if lacking == "bfloat16" else "bfloat16", models_folder)
    with pytest.raises(BadInput, match="please choose another mode"):
        store.load("tiny", "no such control", light=True)
