"""`python -m models` lists, fetches and checks, and says in one sentence what it cannot do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.__main__ import FAILED, main
from models.networks import DiffusersNetworks
from models.registry import Registry
from tests.conftest import CARD
from tests.fake_hub import REVISION, serving
from tests.models.checkpoints.ldm_layout import base_state, control_state, difference_state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def offline_registry(
    models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Registry, Path]:
    """The tiny models and one more that only the hub has, with an empty cache."""
    cache, folder = tmp_path / "cache", tmp_path / "models"
    cache.mkdir()
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    for path in models_folder.iterdir():
        (folder / path.name).symlink_to(path)
    far = """
[base]
hub = "someone/far"
revision = "0123456789012345678901234567890123456789"
[base.files]
"unet/diffusion_pytorch_model.safetensors" = 1500000000
[controls.depth]
hub = "someone/depth"
revision = "0123456789012345678901234567890123456789"
[controls.depth.files]
"depth.safetensors" = 700000000
[controls.seg]
hub = "someone/seg"
revision = "0123456789012345678901234567890123456789"
[controls.seg.files]
"seg.safetensors" = 0
"""
    (folder / "far.toml").write_text(CARD + far, encoding="utf-8")
    return Registry(folder), cache


def test_the_list_says_what_is_here_and_what_would_be_downloaded(
    offline_registry: tuple[Registry, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registry, cache = offline_registry
    assert main(["list"], registry) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "far: Tiny",
        "  licence: none",
        "  base: to download, 1.5 GB, from someone/far",
        "  depth: to download, 700 MB, from someone/depth",
        "  seg: to download, its size is not known, from someone/seg",
    ]
    assert lines[-7:-3] == ["tiny: Tiny", "  licence: none", "  base: here", "  canny: here"]
    assert lines[-3:-1] == ["blazepose: BlazePose, for control maps", "  licence: Apache-2.0"]
    snapshot = cache / "models--someone--depth/snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (snapshot / "depth.safetensors").touch()
    main(["list"], registry)
    assert "  depth: here, downloaded" in capsys.readouterr().out.splitlines()
    registry.lora_folder.mkdir()
    (registry.lora_folder / "style.safetensors").touch()
    registry.embeddings_folder.mkdir()
    (registry.embeddings_folder / "ugly.pt").touch()
    assert main(["list"], registry) == 0
    lora_line, embedding_line = capsys.readouterr().out.splitlines()[-2:]
    assert lora_line.endswith("<lora:NAME:0.8>: style") and embedding_line.endswith(": ugly")


def test_what_is_fetched_is_seen_to_come(
    models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = tmp_path / "models", ("diffusion_pytorch_model.safetensors", "config.json")
    folder.mkdir()
    for path in models_folder.iterdir():
        (folder / path.name).symlink_to(path)
    listed = "\n".join(f'"{name}" = 0' for name in names)
    source = f'[controls.canny]\nhub = "someone/far"\nrevision = "{REVISION}"\n'
    text = f'base_of = "tiny"\n{CARD}{source}[controls.canny.files]\n{listed}\n'
    (folder / "far.toml").write_text(text.replace("Tiny", "Far"), encoding="utf-8")
    here = models_folder / "tiny" / "controlnet" / "canny"
    files = {f"someone/far/{name}": (here / name).read_bytes() for name in names}
    with serving(files, tmp_path / "cache"):
        assert main(["fetch", "far", "canny"], Registry(folder)) == 0
    told = capsys.readouterr()
    assert "Far: 100%" in told.err and "B/s" in told.err
    assert told.out.splitlines()[-1].startswith("canny: ")
    with serving(files, tmp_path / "cache"):
        main(["fetch", "far", "canny"], Registry(folder))
    assert capsys.readouterr().err == "", "what is here does not come again"


@pytest.mark.slow
def test_the_list_of_what_is_shipped_from_the_shell() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "models", "list"], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    for words in ("diorama: Diorama", "sd15_plus: ", "  base: that of sd15", "Apache-2.0"):
        assert words in run.stdout


def test_what_is_here_is_found(
    offline_registry: tuple[Registry, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "tiny", "canny"], offline_registry[0]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("base: ") and "download" not in said
    assert said.splitlines()[1].endswith("tiny/controlnet/canny")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["far"], r"needs unet/diffusion_pytorch_model.safetensors (1.5 GB) of "),
        (["nothing"], "There is no model 'nothing': choose far, sd15, tiny"),
        (["far", "nothing"], "has no ControlNet 'nothing' (it has: depth, seg)"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_sentence(
    arguments: list[str],
    words: str,
    offline_registry: tuple[Registry, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fetch", *arguments], offline_registry[0]) == FAILED
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1
    if arguments == ["far"]:
        assert "1 file (1.5 GB) to download, about 2 min at 100 Mbit/s:" in said.out
        assert "\n  unet/diffusion_pytorch_model.safetensors (1.5 GB) of someone/" in said.out
        assert "or put them into" in said.err


def test_files_and_folders_are_told_apart(
    offline_registry: tuple[Registry, Path],
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry, _ = offline_registry
    folder = registry.card("tiny").folder
    base = base_state(
        networks.unet.state_dict(), networks.vae.state_dict(), networks.text_encoder.state_dict()
    )
    control = control_state(networks.controlnets["canny"].state_dict(), "control_model.")
    save_file(base, tmp_path / "my base.safetensors")
    save_file(control, tmp_path / "control.safetensors")
    save_file(base | control, tmp_path / "merged.safetensors")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    difference = difference_state(networks.controlnets["canny"], networks.unet)
    save_file(difference, tmp_path / "difference.safetensors")
    torch.save({"string_to_param": {"*": torch.zeros(2, 768)}}, tmp_path / "word.pt")
    for path, words in (
        (tmp_path / "word.pt", "embeddings and name it in the prompt, word."),
        (folder, "tiny is a base checkpoint: use it with --model "),
        (folder / "controlnet/canny", "canny is a ControlNet, for sd15, tiny: it is in its place."),
        (tmp_path / "my base.safetensors", "base.safetensors is a base checkpoint: use it with"),
        (tmp_path / "control.safetensors", "a ControlNet, for sd15, tiny: put it into "),
        (
            tmp_path / "difference.safetensors",
            "a ControlNet, stored as its difference from a base, for sd15, tiny: put it into ",
        ),
        (tmp_path / "style.safetensors", "lora and name it in the prompt, <lora:style:0.8>."),
        (tmp_path / "merged.safetensors", "with a ControlNet inside: use it with --model "),
    ):
        assert main(["check", str(path)], registry) == 0
        assert words in capsys.readouterr().out


def test_the_wrong_family_is_named(
    offline_registry: tuple[Registry, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, _ = offline_registry
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    hint = {"controlnet_cond_embedding.conv_in.weight": torch.zeros(4, 3, 3, 3)}
    save_file(hint | {key: torch.zeros(8, 2048)}, tmp_path / "xl.safetensors")
    down = "lora_unet_x_attn2_to_k.lora_down.weight"
    save_file({down: torch.zeros(4, 2048)}, tmp_path / "style.safetensors")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "xl.safetensors", "is a ControlNet (Stable Diffusion XL): "),
        (tmp_path / "style.safetensors", "is a LoRA (Stable Diffusion XL): "),
        (tmp_path / "empty", "empty is not the folder of a model: it has no config.json."),
        (tmp_path / "nothing", "There is nothing at "),
        (registry.card("tiny").folder / "unet", "holds one network (UNet2DConditionModel)"),
    ):
        assert main(["check", str(path)], registry) == FAILED
        said = capsys.readouterr()
        assert words in said.err and said.out == ""


def test_configs_without_weights_are_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "models" / "sd15")]) == FAILED
    assert "no weights in models/sd15/unet" in capsys.readouterr().err
