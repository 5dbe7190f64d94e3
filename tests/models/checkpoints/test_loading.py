"""Networks are built without their weights and filled from files, in any number of threads."""

import copy
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

from annotators._diorama import FOLDER
from annotators._scene_annotator import SceneAnnotator
from benchmarks._ldm_layout import difference_state
from models.catalog.paths import MODELS
from models.checkpoints import loading
from models.networks import DiffusersNetworks
from tests.tiny_networks import tiny_autoencoder

DIORAMA = [
    (CLIPTextModel, MODELS / "diorama" / "text_encoder"),
    (UNet2DConditionModel, MODELS / "diorama" / "unet"),
    (AutoencoderTiny, MODELS / "diorama" / "vae"),
    (ControlNetModel, MODELS / "diorama" / "controlnet" / "canny"),
    (SceneAnnotator, FOLDER),
]
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def tensors(module: Any) -> dict[str, torch.Tensor]:
    """Everything it computes with, buffers that no file holds included."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def assert_same(loaded: Any, wanted: Any) -> None:
    ours, theirs = tensors(loaded), tensors(wanted)
    assert ours.keys() == theirs.keys() and ours
    for name, tensor in theirs.items():
        assert ours[name].device.type == "cpu"
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(("kind", "folder"), DIORAMA)
def test_a_network_is_what_from_pretrained_makes_of_it(kind: Any, folder: Path) -> None:
    wanted = kind.from_pretrained(folder, dtype=torch.float32)
    assert_same(loading.load_network(kind, folder).float(), wanted)


def test_text_means_what_it_means_to_from_pretrained(models_folder: Path) -> None:
    """Positions are computed, and a text encoder without them would read words in no order."""
    folder, tokens = models_folder / "tiny" / "text_encoder", torch.arange(77)[None]
    wanted = CLIPTextModel.from_pretrained(folder).eval()(tokens)[0]
    assert torch.equal(loading.load_network(CLIPTextModel, folder).eval()(tokens)[0], wanted)


def test_a_text_encoder_in_the_names_before_transformers_5_6(
    models_folder: Path, tmp_path: Path
) -> None:
    folder = models_folder / "tiny" / "text_encoder"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / "model.safetensors")
    old = {f"text_model.{name}": weight for name, weight in state.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, tmp_path / "model.safetensors")
    assert_same(
        loading.load_network(CLIPTextModel, tmp_path),
        CLIPTextModel.from_pretrained(folder),
    )


def test_an_autoencoder_in_the_names_before_diffusers_0_17(tmp_path: Path) -> None:
    """Stable Diffusion 1.5's own folder still has them."""
    wanted = tiny_autoencoder()
    wanted.save_config(tmp_path)
    state = {
        re.sub(r"(?<=attentions\.0\.)to_(q|k|v|out\.0)", lambda match: OLD[match[0]], name): weight
        for name, weight in wanted.state_dict().items()
    }
    assert len(state.keys() - wanted.state_dict().keys()) == 16
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    assert_same(loading.load_network(AutoencoderKL, tmp_path), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_difference_controlnet_gets_the_encoder_of_its_base(
    dtype: torch.dtype, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    whole: Any = networks.controlnets["canny"]
    save_file(difference_state(whole, networks.unet), tmp_path / "x.safetensors")
    placement = loading.Placement(torch.device("cpu"), dtype)
    base = copy.deepcopy(networks.unet).to(dtype)
    loaded = loading.load_control(tmp_path / "x.safetensors", base, placement)
    exactness = {} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 1e-6}
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.to(dtype), **exactness)


def test_threads_that_load_disturb_neither_each_other_nor_who_builds_a_module(
    models_folder: Path, networks: DiffusersNetworks
) -> None:
    """A module built meanwhile is initialised as ever: nothing of the process is replaced."""
    started, done = threading.Barrier(3), threading.Event()
    folder = models_folder / "tiny"

    def load() -> list[nn.Module]:
        started.wait()
        loaded = []
        for _ in range(4):
            loaded.append(loading.load_network(UNet2DConditionModel, folder / "unet"))
            loaded.append(loading.load_network(CLIPTextModel, folder / "text_encoder"))
        return loaded

    def build() -> list[nn.Linear]:
        started.wait()
        made = []
        while not done.is_set():
            made.append(nn.Linear(16, 16))
            nn.init.constant_(made[-1].weight, 3.0)
        return made

    with ThreadPoolExecutor(3) as threads:
        loads, built = [threads.submit(load) for _ in range(2)], threads.submit(build)
        try:
            results = [one.result() for one in loads]
        finally:
            done.set()
    for loaded in results:
        for unet in loaded[::2]:
            assert_same(unet, networks.unet)
        for text_encoder in loaded[1::2]:
            assert_same(text_encoder, networks.text_encoder)
    assert built.result()
    for one in built.result():
        assert one.weight.device.type == one.bias.device.type == "cpu"
        assert (one.weight == 3).all() and (one.bias.abs() <= 0.25).all() and one.bias.any()
