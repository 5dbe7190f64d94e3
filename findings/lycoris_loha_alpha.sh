#!/usr/bin/env bash
# One would guess: in lycoris-lora a module merged into its layer computes what it computed beside it.
# For LoRA and LoKr it does. LoHa's get_weight has alpha / rank in it already, and get_diff_weight, on
# which merging rests, multiplies by it again: with alpha 2 and rank 4 the merged layer has half of the
# change, with alpha 1 and rank 8 an eighth. With alpha equal to the rank the two agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q lycoris-lora==4.1.3 torch==2.11.0 numpy==2.4.6 # it is built on torch
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule

print("lycoris-lora", version("lycoris-lora"), "torch", version("torch"))
torch.manual_seed(0)
for kind, alpha, rank, expected in (
    (LoConModule, 2.0, 4, 1.0),
    (LohaModule, 4.0, 4, 1.0),
    (LohaModule, 2.0, 4, 0.5),
    (LohaModule, 1.0, 8, 0.125),
):
    layer = torch.nn.Linear(16, 16, bias=False)
    weight = layer.weight.detach().clone()
    module = kind("layer", layer, 1.0, lora_dim=rank, alpha=alpha).eval()
    for parameter in module.parameters():
        if parameter is not layer.weight:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        module.apply_to()
        beside = module(torch.eye(16)).T - weight
        merged = module.get_merged_weight(1.0)[0] - weight
    ratio = float((merged * beside).sum() / (beside * beside).sum())
    print(f"{kind.__name__}, alpha {alpha:g}, rank {rank}: merged is {ratio:.3f} of the change beside")
    assert torch.allclose(merged, expected * beside, atol=1e-4 * float(beside.abs().max()))
PYTHON
# Seen:
# lycoris-lora 4.1.3 torch 2.11.0
# LoConModule, alpha 2, rank 4: merged is 1.000 of the change beside
# LohaModule, alpha 4, rank 4: merged is 1.000 of the change beside
# LohaModule, alpha 2, rank 4: merged is 0.500 of the change beside
# LohaModule, alpha 1, rank 8: merged is 0.125 of the change beside
