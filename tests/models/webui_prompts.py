"""Makes webui_prompts.safetensors: what AUTOMATIC1111's own code makes of prompts.

    python -m tests.models.webui_prompts FOLDER

needs a checkout of AUTOMATIC1111/stable-diffusion-webui in that folder, made with v1.10.1. Its
sd_hijack_clip.py, sd_emphasis.py and prompt_parser.py run unchanged on a tiny text encoder of
ours; the modules that they import but need nothing of here are stand-ins.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from tests.tiny_networks import tiny_text_encoder, tiny_tokenizer

FILE = Path(__file__).with_suffix(".safetensors")
MEAN = -0.1
"""About that of CLIP's outputs."""
LONG = "the red ball, " * 17
"""68 tokens with its commas."""
PROMPTS = {
    "plain": "the red ball",
    "empty": "",
    "weights": "the (red:1.3) ball and ((the [red]):0.7) ball",
    "brackets": "((the)) [red (ball:1.21)] an) the] (red",
    "spaces": "the ( red : 1.4 ), (ball:.5)(the: -0.5 )",
    "escapes": r"the \(red\) \[ball\] \\ the (ban\)d:1.5)",
    "long": "(the:1.2) " + "red " * 73 + "[ball] the end",
    "comma": LONG + "the red ball the red ball the red",
    "far_comma": LONG + "the " * 27,
    "comma_after_full": "red " * 75 + ", ball",
    "break": "the (red:1.5) ball BREAK the ball",
    "break_twice": "BREAK the ball BREAK BREAK (red:1.1) BREAK",
}
"""In the tiny vocabulary "the", "red" and "ball" are one token each."""


def text_encoder(mean: float) -> CLIPTextModel:
    """A tiny text encoder whose output has about this mean, the same on every machine."""
    network = tiny_text_encoder(tiny_tokenizer())
    generator = torch.Generator().manual_seed(0)
    for _, one in sorted(network.named_parameters()):
        one.data.copy_(0.3 * torch.randn(one.shape, generator=generator))
    network.final_layer_norm.weight.data.fill_(1)
    network.final_layer_norm.bias.data.fill_(mean)
    return network


def _webui(folder: str, emphasis: str, mean: float) -> nn.Module:
    """Return its text encoder around ours."""
    options = SimpleNamespace(
        emphasis=emphasis,
        comma_padding_backtrack=20,
        CLIP_stop_at_last_layers=1,
        use_old_emphasis_implementation=False,
        textual_inversion_add_hashes_to_infotext=False,
    )
    stand_ins = {
        "lark": MagicMock(),
        "modules.shared": SimpleNamespace(opts=options),
        "modules.devices": SimpleNamespace(device="cpu", torch_npu_set_device=lambda: None),
        "modules.sd_hijack": MagicMock(),
    }
    for name in [name for name in sys.modules if name.split(".")[0] in ("modules", "lark")]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    sys.modules |= stand_ins
    modules = import_module("modules")
    for name, one in stand_ins.items():
        setattr(modules, name.rpartition(".")[2], one)
    clip = import_module("modules.sd_hijack_clip")
    wrapped = SimpleNamespace(tokenizer=tiny_tokenizer(), transformer=text_encoder(mean))
    hijack = MagicMock(extra_generation_params={})
    hijack.embedding_db.find_embedding_at_position.return_value = (None, None)
    network: nn.Module = clip.FrozenCLIPEmbedderWithCustomWords(wrapped, hijack)
    return network


@torch.no_grad()
def _outputs(folder: str) -> dict[str, Tensor]:
    network = _webui(folder, "Original", MEAN)
    found = {name: network([prompt])[0] for name, prompt in PROMPTS.items()}
    network = _webui(folder, "No norm", mean=0.0)
    return found | {"no_norm": network([PROMPTS["weights"]])[0]}


if __name__ == "__main__":
    save_file(_outputs(sys.argv[1]), FILE)
