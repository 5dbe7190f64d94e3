"""Makes lycoris_reference.safetensors: what lycoris-lora itself makes of layers of every kind.

    python -m tests.models.checkpoints.lycoris_reference

needs lycoris-lora, made with 4.1.3. A merged weight is what LyCORIS's forward pass multiplies by,
found by impulses: its get_merged_weight multiplies LoHa's and LoKr's by alpha / rank twice.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_suffix(".safetensors")
RANK, ALPHA = 2, 3.0
LINEAR, CONVOLUTION, NORM = "linear", "convolution", "norm"
CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "locon": (LINEAR, "locon", {}),
    "locon_conv": (CONVOLUTION, "locon", {}),
    "locon_conv_tucker": (CONVOLUTION, "locon", {"use_tucker": True}),
    "locon_rs": (LINEAR, "locon", {"rs_lora": True}),
    "dora": (LINEAR, "locon", {"weight_decompose": True}),
    "dora_in": (LINEAR, "locon", {"weight_decompose": True, "wd_on_out": False}),
    "dora_conv": (CONVOLUTION, "locon", {"weight_decompose": True}),
    "dora_conv_in": (CONVOLUTION, "locon", {"weight_decompose": True, "wd_on_out": False}),
    "loha": (LINEAR, "loha", {}),
    "loha_conv": (CONVOLUTION, "loha", {}),
    "loha_conv_tucker": (CONVOLUTION, "loha", {"use_tucker": True}),
    "loha_dora": (LINEAR, "loha", {"weight_decompose": True}),
    "lokr": (LINEAR, "lokr", {"factor": 2}),
    "lokr_both": (LINEAR, "lokr", {"decompose_both": True}),
    "lokr_whole": (LINEAR, "lokr", {"full_matrix": True}),
    "lokr_conv": (CONVOLUTION, "lokr", {"factor": 2}),
    "lokr_conv_tucker": (CONVOLUTION, "lokr", {"factor": 2, "use_tucker": True}),
    "lokr_dora": (CONVOLUTION, "lokr", {"factor": 2, "weight_decompose": True}),
    "glora": (LINEAR, "glora", {}),
    "glora_conv": (CONVOLUTION, "glora", {}),
    "full": (LINEAR, "full", {}),
    "full_conv": (CONVOLUTION, "full", {}),
    "norm": (NORM, "norm", {}),
}
"""Layer, LyCORIS's name of the kind, and its settings; keys are named so in the file."""


def layer(kind: str) -> nn.Module:
    """Return a layer of a kind, whose weights are still to be set."""
    if kind == NORM:
        return nn.GroupNorm(4, 12)
    return nn.Linear(36, 24) if kind == LINEAR else nn.Conv2d(8, 12, 3, padding=1)


def _merged(network: nn.Module, kind: str) -> Tensor:
    """Return the weight of a layer that behaves like this one, without its bias."""
    if kind == LINEAR:
        none = torch.zeros(1, 36)
        return (network(torch.eye(36)) - network(none)).T
    impulses = torch.zeros(8, 8, 3, 3)
    impulses[range(8), range(8), 1, 1] = 1
    out = network(impulses) - network(torch.zeros(1, 8, 3, 3))
    return out.permute(1, 0, 2, 3).flip(2, 3)


@torch.no_grad()
def main() -> None:
    """Write the file."""
    from lycoris.modules.norms import NormModule
    from lycoris.wrapper import network_module_dict

    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, (kind, algorithm, settings) in CASES.items():
        base = layer(kind)
        for parameter in base.parameters():
            nn.init.normal_(parameter)
        tensors |= {f"base.{name}.{key}": one.clone() for key, one in base.state_dict().items()}
        kinds = network_module_dict | {NORM: NormModule}
        rank = {} if algorithm == NORM else {"lora_dim": RANK, "alpha": ALPHA}
        module = kinds[algorithm](name, base, **rank, **settings)
        if algorithm == "full":
            module.apply_to()  # it trains the weight itself, and saves the difference
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
        tensors |= {
            f"lora.lycoris_{name}.{k}": one.clone() for k, one in module.state_dict().items()
        }
        if kind == NORM:
            merged, bias = module.make_weight()
        else:
            merged = _merged(module, kind)
            bias = module(torch.zeros(1, 36) if kind == LINEAR else torch.zeros(1, 8, 3, 3))
            bias = bias[0] if kind == LINEAR else bias[0, :, 1, 1]
        tensors |= {f"merged.{name}.weight": merged, f"merged.{name}.bias": bias}
    save_file({key: one.float().contiguous() for key, one in tensors.items()}, FILE)


if __name__ == "__main__":
    main()
