"""`python -m models` lists, fetches and checks, and says in one sentence what it cannot do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks._ldm_layout import base_state, control_state, difference_state
from core.errors import SuiteError
from models.__main__ import FAILED, main
from models.networks import DiffusersNetworks
from models.registry import Registry
from models.store import Store
from tests.conftest import CARD
from tests.fake_hub import REVISION, serving

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


@pytest.mark.slow
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
    factors = {"lora_down": torch.zeros(2, 4, 3, 3), "lora_up": torch.zeros(16, 2, 1, 1)}
    style = {f"lora_unet_conv_in.{name}.weight": factor for name, factor in factors.items()}
    save_file(style, tmp_path / "style.safetensors")
    save_file(base_state({}, networks.vae.state_dict(), {}), tmp_path / "vae.safetensors")
    difference = difference_state(networks.controlnets["canny"], networks.unet)
    save_file(difference, tmp_path / "difference.safetensors")
    torch.save({"string_to_param": {"*": torch.zeros(2, 32)}}, tmp_path / "word.pt")
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
        (tmp_path / "vae.safetensors", "alone (VAE): put it beside a checkpoint, with the"),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ("", ""),
        ("first_stage_model.", "It has no VAE of its own and is used with that of Tiny."),
        ("first_stage_model.decoder.conv_out.bias", "decoder.conv_out.bias is missing"),
        ("cond_stage_model.", "has no text encoder (cond_stage_model.…): choose a whole"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "norm.bias is missing"),
        ("model.diffusion_model.out.2.bias", "conv_out.bias is missing"),
        ("model.diffusion_model.input_blocks.1.", "is missing"),
    ],
)
def test_what_the_check_says_of_a_base_is_what_loading_does(
    left_out: str,
    words: str,
    store: Store,
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = (networks.unet, networks.vae, networks.text_encoder)
    state = base_state(*(part.state_dict() for part in parts))
    kept = {k: w for k, w in state.items() if not (left_out and k.startswith(left_out))}
    path = tmp_path / "x.safetensors"
    save_file(kept, path)
    code = main(["check", str(path)], store.registry)
    said = capsys.readouterr()
    assert words in said.out + said.err
    if code == 0:
        assert store.load(str(path)).unet is not None and said.err == ""
    else:
        with pytest.raises(SuiteError) as refusal:
            store.load(str(path))
        assert str(refusal.value) == said.err.strip() and said.out == ""


def test_what_the_check_says_of_a_control_is_what_loading_does(
    models_folder: Path,
    store: Store,
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = control_state(networks.controlnets["canny"].state_dict(), "control_model.")
    del state["control_model.middle_block_out.0.bias"]
    save_file(state, tmp_path / "x.safetensors")
    assert main(["check", str(tmp_path / "x.safetensors")], store.registry) == FAILED
    assert "x.safetensors is incomplete, controlnet_mid_block.bias" in capsys.readouterr().err


def test_averaged_weights_and_a_vae_to_download_are_said(
    offline_registry: tuple[Registry, Path],
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = offline_registry[0].lora_folder.parent
    (folder / "sd15").unlink()
    shutil.copytree(folder / "tiny", folder / "sd15")
    (folder / "sd15/vae/diffusion_pytorch_model.safetensors").unlink()
    (folder / "sd15.toml").unlink()
    source = f'[base]\nhub = "someone/far"\nrevision = "{REVISION}"\n[base.files]\n'
    files = '"unet/x.safetensors" = 2000000000\n"vae/x.safetensors" = 167000000\n'
    (folder / "sd15.toml").write_text(CARD + source + files, encoding="utf-8")
    state = base_state(networks.unet.state_dict(), {}, networks.text_encoder.state_dict())
    save_file(state | {"model_ema.decay": torch.ones(1)}, tmp_path / "x.safetensors")
    assert main(["check", str(tmp_path / "x.safetensors")], Registry(folder)) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "It has no VAE of its own and is used with that of Tiny.",
        "The VAE is to download, 167 MB.",
        "Its averaged weights (model_ema.…) are not used.",
    ]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"lora_unet_conv_in.alpha": (), "lora_unet_nothing.alpha": ()}, "have no place"),
        (
            {
                "lora_unet_conv_in.lora_down.weight": (2, 4, 3, 3),
                "lora_unet_conv_in.lora_up.weight": (17, 2, 1, 1),
            },
            "changes weights of other sizes",
        ),
        ({"emb_params": (2, 768)}, "is an embedding for text encoders of width 768"),
    ],
)
def test_what_no_model_could_use_is_refused_as_when_it_is_used(
    state: dict[str, tuple[int, ...]],
    words: str,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "style.safetensors"
    save_file({name: torch.ones(shape) for name, shape in state.items()}, path)
    assert main(["check", str(path)], store.registry) == FAILED
    said = capsys.readouterr()
    assert words in said.err and said.out == "" and said.err.count("\n") == 1
