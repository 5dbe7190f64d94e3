"""Names Stable Diffusion 1.x's weights as the original repositories do, not as diffusers does.

The inverse of diffusers' conversion, written from the original key names (CompVis latent-diffusion,
lllyasviel/ControlNet). It shares nothing with models/checkpoints, which the tests hold against it.
"""

import re

import torch
from torch import Tensor, nn

LAYERS = 2
"""Of the UNet; an encoder level fills LAYERS + 1 input blocks, a decoder level as many output
blocks."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}
AUTOENCODER = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def unet_key(key: str) -> str:
    """Return the original name of a UNet's or ControlNet's weight."""
    stem, _, leaf = key.rpartition(".")
    if stem in ENDS:
        return f"{ENDS[stem]}.{leaf}"
    if match := re.match(r"controlnet_down_blocks\.(\d+)\.", key):
        return f"zero_convs.{match[1]}.0.{leaf}"
    if match := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.", key):
        return f"input_hint_block.{2 * int(match[1]) + 2}.{leaf}"
    block, rest = _block(key)
    for ours, theirs in RESNET.items():
        rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
    return f"{block}.{rest}"


def _block(key: str) -> tuple[str, str]:
    """Return the original's block and what follows, still in diffusers' names."""
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        position = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{position}", match[3]
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    assert match, key
    side, level, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = level * (LAYERS + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + LAYERS + 1}.0", rest.replace("conv", "op")
    if kind == "upsamplers":  # behind the resnet, and behind the attention where there is one
        return f"output_blocks.{first + LAYERS}.{1 if level == 0 else 2}", rest
    part = 0 if kind == "resnets" else 1
    if side == "down":
        return f"input_blocks.{1 + first + layer}.{part}", rest
    return f"output_blocks.{first + layer}.{part}", rest


def autoencoder_tensor(key: str, tensor: Tensor, levels: int = 4) -> tuple[str, Tensor]:
    """Return an autoencoder weight's original name and shape (attention was 1x1 convolutions)."""
    if match := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.(.*)", key):
        kind = "block" if match[2] == "resnets" else "upsample"
        key = f"decoder.up.{levels - 1 - int(match[1])}.{kind}.{match[3]}"
    for ours, theirs in AUTOENCODER:
        key = re.sub(ours, theirs, key)
    if ".attn_1." in key and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    return key, tensor


def control_state(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return a ControlNet's weights under the original's names."""
    return {prefix + unet_key(key): tensor.contiguous() for key, tensor in state.items()}


def base_state(
    unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return a whole checkpoint under the original's names."""
    state = control_state(unet, "model.diffusion_model.")
    for key, tensor in vae.items():
        name, shaped = autoencoder_tensor(key, tensor)
        state[f"first_stage_model.{name}"] = shaped.contiguous()
    for key, tensor in text.items():
        state[f"cond_stage_model.transformer.text_model.{key}"] = tensor.contiguous()
    return state


def difference_state(control: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Return a ControlNet minus its base's encoder, as extract_controlnet_diff.py writes it."""
    encoder = base.state_dict()
    state = {
        key: weight - encoder[key] if key in encoder else weight
        for key, weight in control.state_dict().items()
    }
    return control_state(state, "control_model.") | {"difference": torch.tensor(1.0)}
