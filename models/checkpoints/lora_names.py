"""Finds the layer and the part that a key of a LoRA file names, for the names of many trainers.

A key is a prefix for the network, the layer's name and the part's name. Trainers mix dots and
underscores in any way, so prefix and layer are matched with underscores alone.

Sources: kohya-ss/sd-scripts (networks/lora.py), LyCORIS (kohya.py and wrapper.py), diffusers
(PEFT's names and the two before), ComfyUI (comfy/lora.py), OneTrainer (convert_sd_lora.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

_KEY = re.compile(
    r"(?P<place>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<factor>up|down|mid|A|B)(?:\.\w+)?\.(?P<of>weight|bias)"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.\w+){0,2}"
    r"|\.(?P<other>alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
    r"|diff|diff_b|w_norm|b_norm)"
    r"|\.(?P<glora>a1|a2|b1|b2)\.weight)"
)
_FACTORS = {"A": "down", "B": "up"}
"""PEFT's names of the two factors."""

_PREFIXES = {
    "module_": "",
    "base_model_model_": "",
    "lycoris_": "",
    "lora_unet_": "unet",
    "unet_": "unet",
    "diffusion_model_": "unet",
    "model_diffusion_model_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "text_encoder_": "text_encoder",
    "clip_l_": "text_encoder",
    "text_encoders_clip_l_transformer_": "text_encoder",
    "cond_stage_model_transformer_": "text_encoder",
}
"""The network of a key by its prefix; after a prefix of no network another may follow. `module` is
DistributedDataParallel's, where a trainer saved the wrapped network."""
_COMPILED = "_orig_mod_"
"""What torch.compile puts before the names of the layers of what it wraps."""
_FIRST_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""The text encoder's attention in diffusers until its 0.18."""
_LDM_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_LDM_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}

Layers = Mapping[str, tuple[str, str]]
"""By a flat name: the network (unet, text_encoder) and the layer's name in it."""


def split_key(key: str) -> tuple[str, str] | None:
    """Return a key's place and part (up, down, hada_w1_a, ...); None for other keys."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    if match["factor"]:
        part = _FACTORS.get(match["factor"], match["factor"])
        return match["place"], part if match["of"] == "weight" else f"{part}_bias"
    return match["place"], match["magnitude"] or match["other"] or match["glora"]


def find_layer(place: str, layers: Layers) -> tuple[str, str] | None:
    """Return the network and the layer that a key's place names, or None."""
    flat, network = place.replace(".", "_").replace("_processor_", "_").replace(_COMPILED, ""), ""
    while prefix := next((one for one in _PREFIXES if flat.startswith(one)), ""):
        flat, network = flat.removeprefix(prefix), _PREFIXES[prefix] or network
    found = layers.get(flat.removeprefix("text_model_"))
    return found if found and network in ("", found[0]) else None


def layers_of(text_encoder: nn.Module, unet: nn.Module) -> dict[str, tuple[str, str]]:
    """Return the layers that a LoRA may change, by each of their flat names.

    transformers' text encoders had a level text_model until 5.6: both spellings are accepted.
    """
    config: Any = unet.config
    layers: dict[str, tuple[str, str]] = {}
    for network, module in (("text_encoder", text_encoder), ("unet", unet)):
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
                continue
            place = (network, name)
            plain = name.removeprefix("text_model.")
            names = [plain, plain.removesuffix(".0")]  # to_out, in diffusers until its 0.22
            if network == "unet":
                ldm = ldm_name(name, int(config.layers_per_block))
                names += [ldm, ldm.replace(".2.conv", ".1.conv")]  # an upsampler after no attention
            else:
                block, _, leaf = plain.rpartition(".")
                first = {new: old for old, new in _FIRST_TEXT_NAMES.items()}.get(leaf, leaf)
                names.append(f"{block}.{first}")
            layers |= {one.replace(".", "_"): place for one in names}
    return layers


def ldm_name(name: str, layers_per_block: int) -> str:
    """Return the latent-diffusion name of a layer of a UNet, input_blocks.1.0.in_layers.2."""
    side, _, inner = name.partition("_block")
    if side not in ("down", "mid", "up"):
        return _LDM_OUTER.get(name, name)
    *level, kind, number, leaf = inner.lstrip("s.").split(".", 2 if side == "mid" else 3)
    leaf = _LDM_LEAVES.get(leaf, leaf) if kind == "resnets" else leaf
    if side == "mid":
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{leaf}"
    first = int(level[0]) * (layers_per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers_per_block}.2.conv"
    place = int(number) + first
    block = f"input_blocks.{place + 1}" if side == "down" else f"output_blocks.{place}"
    return f"{block}.{int(kind == 'attentions')}.{leaf}"


def block_of(place: tuple[str, str], layers_per_block: int) -> str:
    """Return which of lora_tags.BLOCKS a layer belongs to, "" if none."""
    network, name = place
    if network == "text_encoder":
        return "BASE"
    side, _, inner = ldm_name(name, layers_per_block).partition(".")
    number = inner.partition(".")[0]
    return {
        "input_blocks": f"IN{number:0>2}",
        "middle_block": "M00",
        "output_blocks": f"OUT{number:0>2}",
    }.get(side, "")
