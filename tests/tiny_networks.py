"""Small random networks in the real classes, made in memory: no hub, no weights, no GPU.

The ControlNets' zero convolutions are filled with noise; left at zero, control would change nothing
and every test about it would pass.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    T2IAdapter,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.networks import DiffusersNetworks

TEXT_WIDTH = 32
MERGES = ["t h", "th e</w>", "r e", "re d</w>", "b a", "ba l", "bal l</w>", "a n"]


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer class with its 512 byte symbols and a few merges."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in shown] + [chr(256 + n) for n in range(256 - len(shown))]
    merged = ["".join(merge.split()) for merge in MERGES]
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + merged
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[tuple(merge.split()) for merge in MERGES],
        model_max_length=77,
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 32."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """Two levels, attention at the upper one, two layers a level as Stable Diffusion has."""
    settings = {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(settings | changes)).eval()


def tiny_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet of this UNet, its zero convolutions filled with noise."""
    if unet.config.time_cond_proj_dim is not None:  # no ControlNet has it
        plain = UNet2DConditionModel.from_config({**unet.config, "time_cond_proj_dim": None})
        plain.load_state_dict(unet.state_dict(), strict=False)
        unet = plain
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16))
    last = network.controlnet_cond_embedding.conv_out
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block, last):
        torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.normal_(layer.bias, std=0.2)
    return network.eval()


def tiny_adapter(
    unet: UNet2DConditionModel, in_channels: int = 3, adapter_type: str = "full_adapter"
) -> T2IAdapter:
    """A T2I-Adapter of this UNet: full_adapter or light_adapter."""
    channels = list(unet.config.block_out_channels)
    if adapter_type == "light_adapter":  # it repeats its last width
        assert channels.pop() == channels[-1]
    return T2IAdapter(in_channels, channels, 2, 8, adapter_type).eval()


def tiny_autoencoder(kind: str = "kl") -> AutoencoderKL | AutoencoderTiny:
    """One pixel in eight along a side, four latent channels; kind is kl or tiny."""
    if kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1,) * 4,
            num_decoder_blocks=(1,) * 4,
            scaling_factor=0.7,
            shift_factor=0.1,
        ).eval()
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).eval()


def tiny_depth_anything() -> torch.nn.Module:
    """A Depth Anything V2 for pictures of 56 px."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation

    config = DepthAnythingConfig(
        backbone_config={
            "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4,
            "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
            "out_indices": [1, 2, 3, 4],
            "reshape_hidden_states": False, "apply_layernorm": True,
        },
        reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    return DepthAnythingForDepthEstimation(config)


def tiny_scheduler(**changes: object) -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**(betas | changes))


def tiny_networks(
    autoencoder: str = "kl", controls: tuple[str, ...] = ("canny",), seed: int = 0
) -> DiffusersNetworks:
    """A whole model in float32 on the CPU; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        unet = tiny_unet()
        return DiffusersNetworks(
            name="tiny",
            tokenizer=tokenizer,
            text_encoder=tiny_text_encoder(tokenizer),
            unet=unet,
            vae=tiny_autoencoder(autoencoder),
            controlnets={control: tiny_controlnet(unet) for control in controls},
            scheduler_config=dict(tiny_scheduler().config),
            preview_matrix=torch.eye(4, 3),
            hashes={"unet": "0123456789"},
            device=torch.device("cpu"),
            dtype=torch.float32,
        )


def save_networks(networks: DiffusersNetworks, folder: Path) -> Path:
    """Write them in diffusers' layout, the ControlNets below; return the folder."""
    for part in ("text_encoder", "unet", "vae", "tokenizer"):
        getattr(networks, part).save_pretrained(folder / part)
    networks.make_scheduler("ddim").save_pretrained(folder / "scheduler")
    for name, controlnet in networks.controlnets.items():
        controlnet.save_pretrained(folder / "controlnet" / name)
    return folder
