"""Weights that users bring are never committed, and what is shipped is not ignored."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = (
    "models/annotators/ControlNetHED.pth",
    "models/sd15/controlnet/canny.safetensors",
    "models/sd15_plus/controlnet/seg/config.json",
    "models/sd15_v10/controlnet/normal/control_sd15_normal.pth",
    "models/sd15/unet/diffusion_pytorch_model.fp16.safetensors",
    "models/lora/style.safetensors",
    "models/embeddings/word.pt",
    "models/sd15/lcm/pytorch_lora_weights.safetensors",
    "models/sd15/taesd/config.json",
    "models/sd15/safety_checker/model.safetensors",
)


def _git(*arguments: str) -> list[str]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git repository")
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.splitlines()


def test_what_users_bring_is_ignored() -> None:
    assert _git("check-ignore", "--no-index", *PLACES) == list(PLACES)


def test_what_is_shipped_is_not_ignored() -> None:
    assert _git("ls-files", "--cached", "--ignored", "--exclude-standard", "models") == []
