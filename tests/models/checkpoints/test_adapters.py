"""T2I-Adapters are read from folders and single files, and refused where they do not fit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import T2IAdapter
from safetensors.torch import save_file
from torch import Tensor

from core.errors import WeightsMismatch
from models.__main__ import main
from models.checkpoints.adapters import inspect_adapter, is_adapter
from models.checkpoints.folders import inspect_control
from models.checkpoints.loading import Placement, load_control
from tests.models.engine.test_unet import SD15
from tests.tiny_networks import tiny_adapter, tiny_unet

FULL, LIGHT = "full_adapter", "light_adapter"


def _original(adapter: T2IAdapter) -> dict[str, Tensor]:
    """The weights by the original's names, written from its source."""
    blocks = adapter.config.num_res_blocks
    named = {}
    for name, weight in adapter.state_dict().items():
        short = name.removeprefix("adapter.")
        if adapter.config.adapter_type == LIGHT:
            short = short.replace(".resnets.", ".body.")
        elif match := re.match(r"body\.(\d+)\.resnets\.(\d+)\.(.+)", short):
            short = f"body.{int(match[1]) * blocks + int(match[2])}.{match[3]}"
        elif match := re.match(r"body\.(\d+)\.in_conv\.(.+)", short):
            short = f"body.{int(match[1]) * blocks}.in_conv.{match[2]}"
        named[short] = weight.contiguous()
    return named


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_unet(**SD15)


def _loaded(path: Path, unet: Any) -> Any:
    assert is_adapter(path)
    inspect_adapter(path, dict(unet.config))
    return load_control(path, unet, Placement(torch.device("cpu"), torch.float32), "bgr")


@pytest.mark.parametrize("kind", [FULL, LIGHT])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["folder", "diffusers", "original", "pickle"])
@torch.no_grad()
def test_every_layout_gives_the_same_features(
    tmp_path: Path, unet: Any, kind: str, channels: int, layout: str
) -> None:
    torch.manual_seed(0)
    adapter, path = tiny_adapter(unet, channels, kind), tmp_path / "depth.safetensors"
    if layout == "folder":
        path = tmp_path / "depth"
        adapter.save_pretrained(path)
    elif layout == "pickle":
        path = tmp_path / "t2iadapter_depth_sd15v2.pth"
        torch.save(_original(adapter), path)
    else:
        named = adapter.state_dict() if layout == "diffusers" else _original(adapter)
        save_file(named, path)
    loaded, hint = _loaded(path, unet), torch.rand(1, channels, 64, 64)
    assert loaded.config.in_channels == channels
    pairs = zip(loaded(hint), adapter(hint), strict=True)
    assert all(torch.allclose(found, wanted, atol=1e-6) for found, wanted in pairs)


def test_one_for_another_model_is_refused(tmp_path: Path, unet: Any) -> None:
    other = tiny_unet(**{**SD15, "block_out_channels": (16, 16, 32, 32)})
    tiny_adapter(other).save_pretrained(tmp_path / "other")
    save_file(_original(tiny_adapter(other)), tmp_path / "other.safetensors")
    T2IAdapter(3, [16, 32, 32, 32], 2, 16, "full_adapter_xl").save_pretrained(tmp_path / "xl")
    tiny_adapter(unet).save_pretrained(tmp_path / "damaged")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text()) | {"channels": "16"}
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config))
    for name in ("other", "other.safetensors", "xl", "damaged"):
        with pytest.raises(WeightsMismatch, match="made for a model of another build"):
            inspect_adapter(tmp_path / name, dict(unet.config))


def test_one_of_an_older_build_is_refused(tmp_path: Path, unet: Any) -> None:
    named = _original(tiny_adapter(unet)) | {"body.0.skep.weight": torch.ones(1)}
    save_file(named, tmp_path / "old.safetensors")
    with pytest.raises(WeightsMismatch, match=r"not known here \(body.0.skep.weight\)"):
        inspect_adapter(tmp_path / "old.safetensors", dict(unet.config))


def test_one_with_layers_missing_is_refused(tmp_path: Path, unet: Any) -> None:
    named = _original(tiny_adapter(unet))
    del named["body.6.block1.weight"]
    save_file(named, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsMismatch, match=r"body.3.resnets.0.block1.weight is missing"):
        inspect_adapter(tmp_path / "cut.safetensors", dict(unet.config))


def test_training_and_transfer_want_a_controlnet(tmp_path: Path, unet: Any) -> None:
    tiny_adapter(unet).save_pretrained(tmp_path)
    with pytest.raises(WeightsMismatch, match="is a T2IAdapter: a ControlNet"):
        inspect_control(tmp_path, dict(unet.config))


def test_check_says_what_it_is_and_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        real = T2IAdapter(1)  # canny's, for Stable Diffusion 1.5
    shapes = {name: torch.zeros(weight.shape) for name, weight in _original(real).items()}
    save_file(shapes, tmp_path / "t2iadapter_canny_sd15v2.safetensors")
    main(["check", str(tmp_path / "t2iadapter_canny_sd15v2.safetensors")])
    told = capsys.readouterr().out
    assert "is a T2I-Adapter, for sd15" in told
    assert "models/sd15/controlnet/CONDITION/" in told
