"""Every trainer's way of naming a layer finds the layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks._ldm_layout import unet_key
from models.checkpoints import lora
from models.checkpoints.lora_names import block_of, find_layer, layers_of, ldm_name, split_key
from models.networks import DiffusersNetworks
from tests.tiny_networks import tiny_networks, tiny_unet

TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_OUT = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
LDM_TO_K = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
FC1 = "encoder.layers.1.mlp.fc1"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        (f"lora_unet_{TO_K.replace('.', '_')}.lora_up.weight", TO_K, "up"),  # kohya
        (f"lora_unet_{TO_K.replace('.', '_')}.alpha", TO_K, "alpha"),
        (f"lora_te_text_model_{FC1.replace('.', '_')}.lora_down.weight", FC1, "down"),
        (f"lora_te1_text_model_{FC1.replace('.', '_')}.lora_down.weight", FC1, "down"),
        (f"lora_unet_{LDM_TO_K.replace('.', '_')}.lora_mid.weight", TO_K, "mid"),  # LDM's
        (f"diffusion_model.{LDM_TO_K}.lora_up.weight", TO_K, "up"),  # ComfyUI
        (f"model.diffusion_model.{LDM_TO_K}.lora_up.weight", TO_K, "up"),
        (f"clip_l.text_model.{FC1}.lora_A.weight", FC1, "down"),
        (f"lycoris_{TO_K.replace('.', '_')}.hada_w1_a", TO_K, "hada_w1_a"),  # LyCORIS
        (f"lycoris_{FC1.replace('.', '_')}.lokr_w2_b", FC1, "lokr_w2_b"),
        (f"base_model.model.{TO_K}.lora_A.weight", TO_K, "down"),  # PEFT
        (f"base_model.model.{TO_K}.lora_A.default.weight", TO_K, "down"),
        (f"base_model.model.text_model.{FC1}.lora_B.weight", FC1, "up"),
        (f"unet.base_model.model.{TO_K}.lora_magnitude_vector", TO_K, "lora_magnitude_vector"),
        (f"{TO_K}.lora_magnitude_vector.default.weight", TO_K, "lora_magnitude_vector"),
        (f"unet.{TO_K}.lora_A.weight", TO_K, "down"),  # diffusers
        (f"unet.{TO_K}.lora.down.weight", TO_K, "down"),  # its training example
        (f"{TO_K}.lora.down.weight", TO_K, "down"),
        (f"unet.unet.{TO_K}.lora.down.weight", TO_K, "down"),
        (f"unet.{TO_K.replace('.to_k', '.processor.to_k')}_lora.up.weight", TO_K, "up"),
        (f"unet.{TO_OUT.replace('.to_out.0', '.processor.to_out')}_lora.up.weight", TO_OUT, "up"),
        (f"text_encoder.text_model.{FC1}.lora_linear_layer.up.weight", FC1, "up"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight", Q_PROJ, "up"),
        (f"lora_unet.{TO_K}.lora_down.weight", TO_K, "down"),  # OneTrainer
        (f"unet.{LDM_TO_K}.lora_down.weight", TO_K, "down"),
        (f"lora_te.text_model.{FC1}.dora_scale", FC1, "dora_scale"),
        ("lora_unet_down_blocks_0_attentions_0_norm.w_norm", TO_K[:27] + "norm", "w_norm"),
        ("unet.conv_in.diff_b", "conv_in", "diff_b"),
        (f"unet._orig_mod.{TO_K}.lora_A.weight", TO_K, "down"),  # of a compiled network
        (f"_orig_mod.{TO_K}.lora_A.weight", TO_K, "down"),
        (f"lora_unet__orig_mod_{TO_K.replace('.', '_')}.lora_up.weight", TO_K, "up"),
        (f"module.unet.{TO_K}.lora.down.weight", TO_K, "down"),  # of one wrapped for several GPUs
        (f"text_encoder._orig_mod.text_model.{FC1}.lora_B.weight", FC1, "up"),
    ],
)
def test_a_key_names_a_layer_and_a_part(
    key: str, layer: str, part: str, networks: DiffusersNetworks
) -> None:
    split = split_key(key)
    assert split and split[1] == part
    found = find_layer(split[0], layers_of(networks.text_encoder, networks.unet))
    assert found and found[1].removeprefix("text_model.") == layer


@pytest.mark.parametrize(
    "key",
    [
        f"lora_te_{TO_K.replace('.', '_')}.lora_up.weight",  # a layer of the other network
        f"lora_te2_text_model_{FC1.replace('.', '_')}.lora_up.weight",
        f"text_encoder_2.text_model.{FC1}.lora_A.weight",
        "lora_unet_input_blocks_4_1_transformer_blocks_9_attn2_to_k.lora_up.weight",
    ],
)
def test_what_is_not_in_the_model_is_not_found(key: str, networks: DiffusersNetworks) -> None:
    split = split_key(key)
    assert split
    assert find_layer(split[0], layers_of(networks.text_encoder, networks.unet)) is None


@pytest.mark.parametrize("levels", [("CrossAttn", ""), ("", "CrossAttn")])
def test_latent_diffusions_names(levels: tuple[str, str]) -> None:
    """Of a UNet as benchmarks/_ldm_layout.py writes it."""
    unet = tiny_unet(
        down_block_types=[f"{one}DownBlock2D" for one in levels],
        up_block_types=[f"{one}UpBlock2D" for one in reversed(levels)],
    )
    layers = layers_of(nn.Module(), unet)
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            theirs = unet_key(f"{name}.weight").removesuffix(".weight")
            assert layers[theirs.replace(".", "_")] == ("unet", name), theirs
            assert ldm_name(name, 2).replace(".2.conv", ".1.conv") == theirs.replace(
                ".2.conv", ".1.conv"
            )


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("conv_in", "IN00"),
        ("down_blocks.0.attentions.1.proj_in", "IN02"),
        ("down_blocks.0.downsamplers.0.conv", "IN03"),
        ("down_blocks.2.attentions.0.proj_in", "IN07"),
        ("down_blocks.3.resnets.1.conv1", "IN11"),
        ("mid_block.attentions.0.proj_in", "M00"),
        ("up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("up_blocks.3.attentions.2.proj_out", "OUT11"),
        ("time_embedding.linear_1", ""),
        ("conv_out", ""),
    ],
)
def test_blocks_are_counted_as_in_stable_diffusion(layer: str, block: str) -> None:
    assert block_of(("unet", layer), 2) == block
    assert block_of(("text_encoder", layer), 2) == "BASE"


NETS = tiny_networks()
PLACES = {
    (network, name): layer.weight
    for network, module in (("unet", NETS.unet), ("text_encoder", NETS.text_encoder))
    for name, layer in module.named_modules()
    if isinstance(layer, nn.Linear | nn.Conv2d)
}
LAYOUTS = {
    "kohya": ({"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}, "_", "lora_{}.weight"),
    "onetrainer": ({"unet": "lora_unet.", "text_encoder": "lora_te."}, ".", "lora_{}.weight"),
    "diffusers": ({"unet": "unet.", "text_encoder": "text_encoder."}, ".", "lora.{}.weight"),
    "bare": ({"unet": "", "text_encoder": ""}, ".", "lora_{}.weight"),
    "lycoris": ({"unet": "lycoris_", "text_encoder": "lycoris_"}, "_", "lora_{}.weight"),
    "peft": ({"unet": "base_model.model.", "text_encoder": "text_encoder."}, ".", "lora_{}.weight"),
}
PEFT_NAMES = {"up": "B", "down": "A"}


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_layers_ranks_names_formats_and_orders(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """W + strength * alpha / rank * up @ down, whoever wrote the file."""
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    prefixes, between, factor = LAYOUTS[layout]
    places = data.draw(st.sets(st.sampled_from(sorted(PLACES)), min_size=1, max_size=6))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    strength = data.draw(st.sampled_from([1.0, 0.5, -0.75, 0.0]))
    state: dict[str, Tensor] = {}
    wanted: dict[tuple[str, str], Tensor] = {}
    for place in places:
        weight, rank = PLACES[place], data.draw(st.integers(1, 5))
        down = torch.randn(rank, *weight.shape[1:], generator=generator).to(dtype)
        up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=generator).to(dtype)
        alpha = data.draw(st.sampled_from([None, 0.5, 1.0, 8.0]))
        stem = prefixes[place[0]] + place[1].replace(".", between)
        for part, tensor in (("up", up), ("down", down)):
            name = PEFT_NAMES[part] if layout == "peft" else part
            state[f"{stem}.{factor.format(name)}"] = tensor
        if alpha is not None:
            state[f"{stem}.alpha"] = torch.tensor(alpha, dtype=dtype)
        product = (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape)
        wanted[place] = weight + strength * (rank if alpha is None else alpha) / rank * product
    keys = data.draw(st.permutations(sorted(state)))
    folder = tmp_path_factory.mktemp("lora")
    save_file({key: state[key] for key in keys}, folder / "a.safetensors")
    found = lora.find([f"<lora:a:{strength}>"], folder)
    text_encoder, unet = lora.merge(NETS.text_encoder, NETS.unet, found)
    changed = {"text_encoder": text_encoder, "unet": unet}
    for (network, name), weight in PLACES.items():
        ours = changed[network].get_submodule(name).weight
        torch.testing.assert_close(ours, wanted.get((network, name), weight), rtol=1e-4, atol=1e-4)
