#!/usr/bin/env bash
# One would guess: down_intrablock_additional_residuals, a T2I-Adapter's features, are added to the end
# of each level of the UNet's encoder, before it halves, and stay the caller's. In levels with attention
# they are added there. In one without (Stable Diffusion XL's first) they are added after the halving,
# so features of the level's own size do not fit, and those of half the size do. And the UNet takes them
# out of the caller's list: the next step of sampling with the same list runs without the adapter, and
# nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q diffusers==0.42.1 torch==2.11.0 numpy==2.4.6 # it is built on torch
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from diffusers import UNet2DConditionModel

print("diffusers", version("diffusers"), "torch", version("torch"))
side, text = 16, torch.zeros(1, 1, 8)
for first, fits in (("CrossAttnDownBlock2D", side), ("DownBlock2D", side // 2)):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=(first, "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    latents = torch.randn(1, 4, side, side)
    with torch.no_grad():
        plain = unet(latents, 1, text).sample
        for size in (side, side // 2):
            given = [torch.ones(1, 8, size, size), torch.ones(1, 8, side // 2, side // 2)]
            try:
                output = unet(latents, 1, text, down_intrablock_additional_residuals=given).sample
            except RuntimeError:
                print(f"{first} of {side} x {side}: features of {size} x {size} do not fit")
                assert size != fits
                continue
            again = unet(latents, 1, text, down_intrablock_additional_residuals=given).sample
            changes = [float((one - plain).abs().max()) for one in (output, again)]
            print(
                f"{first} of {side} x {side}: features of {size} x {size} change the output by "
                f"{changes[0]:.1f}, with the same list again by {changes[1]:.1f}"
            )
            assert size == fits and changes[0] > 0.1 and changes[1] == 0 and not given
PYTHON
# Seen:
# diffusers 0.42.1 torch 2.11.0
# CrossAttnDownBlock2D of 16 x 16: features of 16 x 16 change the output by 0.6, with the same list again by 0.0
# CrossAttnDownBlock2D of 16 x 16: features of 8 x 8 do not fit
# DownBlock2D of 16 x 16: features of 16 x 16 do not fit
# DownBlock2D of 16 x 16: features of 8 x 8 change the output by 0.3, with the same list again by 0.0
