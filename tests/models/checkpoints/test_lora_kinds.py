"""Each kind of LoRA changes a weight as the library that made the file does."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoints import lora
from models.networks import DiffusersNetworks
from tests.models.checkpoints import lycoris_reference
from tests.models.checkpoints.lycoris_reference import CASES

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_Q = "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TARGETS = ["to_q", "to_k", "to_out.0", "proj_in", "conv1", "time_emb_proj", "linear_1"]


class Bare(nn.Module):
    """Layers by name, where a UNet is expected."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = SimpleNamespace(cross_attention_dim=32, layers_per_block=2)
        for name, layer in layers.items():
            self.add_module(name, layer)


def merged(network: Any, path: Path, weight: str = "1", other: str = "") -> Any:
    """Return a UNet with the LoRA file `path` in it, by its tag with a weight, and another tag."""
    tags = [f"<lora:{path.stem}:{weight}>", *([other] if other else [])]
    unet: nn.Module = lora.merge(nn.Module(), network, lora.find(tags, path.parent))[1]
    return unet


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without that beginning."""
    return {k.removeprefix(prefix): one for k, one in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    """Made by lycoris-lora; see lycoris_reference.py."""
    return load_file(lycoris_reference.FILE)


@pytest.fixture(scope="module")
def bases(reference: dict[str, Tensor]) -> Bare:
    """The layers that the reference's LoRAs were made for."""
    network = Bare({name: lycoris_reference.layer(kind) for name, (kind, _, _) in CASES.items()})
    network.load_state_dict(part_of(reference, "base."))
    return network


@pytest.mark.parametrize("case", CASES)
def test_lycoris(case: str, reference: dict[str, Tensor], bases: Bare, tmp_path: Path) -> None:
    save_file(part_of(reference, "lora."), tmp_path / "style.safetensors")
    ours = merged(bases, tmp_path / "style.safetensors").get_submodule(case)
    theirs = part_of(reference, f"merged.{case}.")
    torch.testing.assert_close(ours.weight.data, theirs["weight"], **TOLERANCE)
    torch.testing.assert_close(ours.bias.data, theirs["bias"], **TOLERANCE)
    assert not torch.allclose(ours.weight, bases.get_submodule(case).weight, atol=0.1)


@pytest.mark.parametrize("weight", ["0", "-0.5", "2"])
def test_a_strength_multiplies_the_difference(
    weight: str, reference: dict[str, Tensor], bases: Bare, tmp_path: Path
) -> None:
    """W + strength * (W' - W), as AUTOMATIC1111 and ComfyUI have it, a DoRA's too."""
    save_file(part_of(reference, "lora."), tmp_path / "style.safetensors")
    network = merged(bases, tmp_path / "style.safetensors", weight)
    for name, ours in network.named_parameters():
        base = bases.get_parameter(name)
        wanted = base + float(weight) * (reference[f"merged.{name}"] - base)
        torch.testing.assert_close(ours, wanted, **TOLERANCE)
        assert ours is base or weight != "0"


def test_two_at_once_add_up(reference: dict[str, Tensor], bases: Bare, tmp_path: Path) -> None:
    """Each as if it were alone, in any order, so that a DoRA does not turn on the other."""
    save_file(part_of(reference, "lora."), tmp_path / "style.safetensors")
    other = {"lora_unet_dora.diff": torch.ones(24, 36), "lora_unet_dora.diff_b": torch.ones(24)}
    save_file(other, tmp_path / "other.safetensors")
    ours = merged(bases, tmp_path / "style.safetensors", "1", "<lora:other:0.25>").dora
    torch.testing.assert_close(ours.weight, reference["merged.dora.weight"] + 0.25, **TOLERANCE)
    torch.testing.assert_close(ours.bias, reference["merged.dora.bias"] + 0.25, **TOLERANCE)


def test_a_glora_of_lycoris_before_2(tmp_path: Path) -> None:
    """W @ a2 @ a1 + b2 @ b1 (LyCORIS 1.8, modules/glora.py; AUTOMATIC1111, network_glora.py)."""
    network = Bare({"conv_in": nn.Linear(6, 4)})
    a1, a2, b1, b2 = torch.randn(2, 6), torch.randn(6, 2), torch.randn(2, 6), torch.randn(4, 2)
    state = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    state = {f"lora_unet_conv_in.{key}": one for key, one in state.items()}
    save_file(state | {"lora_unet_conv_in.alpha": torch.tensor(1.0)}, tmp_path / "g.safetensors")
    base: Any = network.conv_in
    wanted = base.weight + 0.5 * (base.weight @ a2 @ a1 + b2 @ b1)
    ours = merged(network, tmp_path / "g.safetensors").conv_in.weight
    torch.testing.assert_close(ours, wanted, **TOLERANCE)


def test_dyn_takes_the_first_ranks(networks: DiffusersNetworks, tmp_path: Path) -> None:
    base = networks.unet.get_submodule(TO_K).weight
    up, down = torch.randn(len(base), 4), torch.randn(4, base.shape[1])
    state = {f"unet.{TO_K}.lora.up.weight": up, f"unet.{TO_K}.lora.down.weight": down}
    save_file(state, tmp_path / "style.safetensors")
    for setting in ("1:1:2", "1:dyn=2"):
        ours = merged(networks.unet, tmp_path / "style.safetensors", setting)
        wanted = base + up[:, :2] @ down[:2]
        torch.testing.assert_close(ours.get_submodule(TO_K).weight, wanted, **TOLERANCE)


LORA: dict[str, Any] = {"target_modules": TARGETS, "r": 4, "lora_alpha": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(**LORA),
        peft.LoraConfig(**LORA, use_rslora=True),
        peft.LoraConfig(**LORA, use_dora=True),
        peft.LoraConfig(**LORA, lora_bias=True, exclude_modules=r".*to_[qk]"),
        peft.LoraConfig(**LORA, alpha_pattern={"to_k": 9}),
        peft.LoraConfig(**LORA, alpha_pattern={r"attn[12].to_.": 9, "conv1": 1}),
        peft.LoraConfig(**LORA, alpha_pattern={r"^down_blocks\..*\.to_q": 9}),
        peft.LoraConfig(**LORA, rank_pattern={"to_k": 2}, alpha_pattern={TO_K: 9}),
        peft.LoHaConfig(target_modules=TARGETS, r=4, alpha=6),
        peft.LoHaConfig(target_modules=TARGETS, r=4, alpha=6, use_effective_conv2d=True),
        peft.LoKrConfig(target_modules=TARGETS, r=2, alpha=6),
        peft.LoKrConfig(target_modules=TARGETS, r=2, alpha=6, decompose_both=True),
        peft.LoKrConfig(target_modules=TARGETS, r=2, alpha=6, use_effective_conv2d=True),
        peft.LoKrConfig(target_modules=TARGETS, r=16, alpha=6, rank_pattern={"to_k": 12}),
    ],
    ids=lambda config: f"{config.peft_type.value}-{len(str(config)) % 1000}",
)
def test_peft(config: Any, networks: DiffusersNetworks, tmp_path: Path) -> None:
    """Its folder, with its settings beside the weights, is found by the folder's name."""
    torch.manual_seed(0)
    theirs: Any = peft.get_peft_model(copy.deepcopy(networks.unet), config)
    for parameter in filter(lambda one: one.requires_grad, theirs.parameters()):
        parameter.data += 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "style")
    ours = merged(networks.unet, tmp_path / "style.name").state_dict()
    base = networks.unet.state_dict()
    wanted = theirs.merge_and_unload().state_dict()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, wanted[name], **TOLERANCE)
    changed = {name for name, weight in ours.items() if not torch.allclose(weight, base[name])}
    assert f"{CONVOLUTION}.weight" in changed
    assert (f"{TO_Q}.weight" in changed) == (not getattr(config, "lora_bias", False))
