"""A ControlNet moved to another base is its weights plus what the bases differ by."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks._ldm_layout import base_state, control_state, difference_state
from core.errors import WeightsMismatch
from models.__main__ import FAILED, main
from models.checkpoints.transfer import transferred
from models.networks import DiffusersNetworks
from models.store import Store
from tests.tiny_networks import save_networks, tiny_networks


def test_the_rule() -> None:
    """2 + (10 - 1) = 11; what only the ControlNet has stays, in its own number format."""
    control = {"conv_in.weight": torch.tensor([2.0]).half(), "zero.weight": torch.tensor([7.0])}
    base, sd15 = ({"conv_in.weight": torch.tensor([v]), "up": torch.tensor([v])} for v in (10.0, 1))
    moved = transferred(control, base, sd15)
    assert {name: weight.item() for name, weight in moved.items()} == {
        "conv_in.weight": 11,
        "zero.weight": 7,
    }
    assert moved["conv_in.weight"].dtype == torch.float16
    with pytest.raises(WeightsMismatch, match=r"conv_in\.weight has different shapes"):
        transferred(control, base, {"conv_in.weight": torch.zeros(2)})


@pytest.fixture
def other(tmp_path: Path) -> DiffusersNetworks:
    """A community base, in the folder `community`."""
    networks = tiny_networks(seed=1)
    save_networks(networks, tmp_path / "community")
    return networks


def _single_file(networks: DiffusersNetworks) -> dict[str, Tensor]:
    return base_state(
        networks.unet.state_dict(), networks.vae.state_dict(), networks.text_encoder.state_dict()
    )


def test_moved_to_where_it_came_from_it_is_itself(
    store: Store, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    control = store.registry.card("tiny").folder / "controlnet" / "canny"
    out = str(tmp_path / "x.safetensors")
    assert main(["transfer", str(control), "tiny", "sd15", out], store.registry) == 0
    moved = load_file(tmp_path / "x.safetensors")
    original = networks.controlnets["canny"].state_dict()
    assert moved.keys() == original.keys()
    assert all(torch.equal(moved[name], original[name]) for name in moved)


@pytest.mark.parametrize("files", [True, False])
def test_a_copy_of_the_bases_encoder_becomes_a_copy_of_the_other_bases(
    files: bool,
    store: Store,
    networks: DiffusersNetworks,
    other: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From diffusers' folders, and from single files in the original's names."""
    copied, sd15, base = tmp_path / "copied", tmp_path / "tiny-base", tmp_path / "community"
    control = copy.deepcopy(networks.controlnets["canny"])
    control.load_state_dict(networks.unet.state_dict(), strict=False)
    if files:
        copied, sd15, base = (p.with_suffix(".safetensors") for p in (copied, sd15, base))
        save_file(control_state(control.state_dict(), "control_model."), copied)
        save_file(_single_file(networks), sd15)
        save_file(_single_file(other), base)
    else:
        control.save_pretrained(copied)
        save_networks(networks, sd15)
    out = tmp_path / "moved.safetensors"
    assert main(["transfer", str(copied), str(base), str(sd15), str(out)], store.registry) == 0
    assert f"{tmp_path}/community/controlnet/" in capsys.readouterr().out
    moved, wanted = load_file(out), other.unet.state_dict()
    shared = moved.keys() & wanted.keys()
    assert len(shared) > 100 and all("control" in name for name in moved.keys() - shared)
    for name in shared:
        torch.testing.assert_close(moved[name], wanted[name])
    for name in moved.keys() - shared:
        assert torch.equal(moved[name], control.state_dict()[name])


def test_what_cannot_be_moved_is_said_in_one_sentence(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.registry.card("tiny").folder
    control = str(folder / "controlnet" / "canny")
    (tmp_path / "taken.safetensors").touch()
    out = str(tmp_path / "new.safetensors")
    for arguments, words in (
        ([control, "tiny", "sd15", str(tmp_path / "taken.safetensors")], "cannot be written: name"),
        ([control, "tiny", "sd15", str(tmp_path / "no" / "x.safetensors")], "cannot be written"),
        ([control, "tiny", "sd15", str(tmp_path / "x.pth")], "cannot be written"),
        ([control, "nothing", "sd15", out], "There is no model 'nothing'"),
        ([str(tmp_path / "nothing.pth"), "tiny", "sd15", out], "There is no weights file"),
        ([str(folder / "unet"), "tiny", "sd15", out], "a UNet2DConditionModel"),
    ):
        assert main(["transfer", *arguments], store.registry) == FAILED
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1
    assert not Path(out).exists()


def test_a_full_disk_is_said_in_one_sentence(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.checkpoints.transfer.save_file", full)
    control = str(store.registry.card("tiny").folder / "controlnet" / "canny")
    out = tmp_path / "new.safetensors"
    assert main(["transfer", control, "tiny", "tiny", str(out)], store.registry) == FAILED
    said = capsys.readouterr().err
    assert "cannot be written" in said and "No space left" in said and said.count("\n") == 1
    assert list(tmp_path.glob("new*")) == []


V10_CARD = """
title = "Tiny, ControlNet 1.0"
blurb = "The same noise."
licence = "none"
base_of = "sd15"
[controls.normal]
hub = "someone/normal"
revision = "0123456789012345678901234567890123456789"
channel_order = "bgr"
[controls.normal.files]
"normal.safetensors" = 700000000
"""


def test_the_order_of_a_maps_channels_moves_along(
    models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    """From the place of its card, then from the file that was written, then from a merged file."""
    folder = Path(shutil.copytree(models_folder, tmp_path / "models"))
    (folder / "sd15_v10.toml").write_text(V10_CARD, encoding="utf-8")
    store = Store("cpu", "float32", folder)
    (folder / "sd15_v10/controlnet").mkdir(parents=True)
    control = control_state(networks.controlnets["canny"].state_dict(), "control_model.")
    original = folder / "sd15_v10/controlnet/normal.safetensors"
    save_file(control, original)
    save_file(control, tmp_path / "other.safetensors")
    save_file(control | _single_file(networks), tmp_path / "control_sd15_normal.safetensors")
    once, again = folder / "tiny/controlnet/normal.safetensors", tmp_path / "again.safetensors"
    merged, other = tmp_path / "merged.safetensors", tmp_path / "moved.safetensors"
    for path, out, order in (
        (original, once, "bgr"),
        (once, again, "bgr"),
        (tmp_path / "control_sd15_normal.safetensors", merged, "bgr"),
        (tmp_path / "other.safetensors", other, ""),
    ):
        assert main(["transfer", str(path), "tiny", "sd15", str(out)], store.registry) == 0
        with safe_open(out, "pt") as file:
            assert file.metadata()["channel_order"] == order
    moved = store.load("tiny", "normal").controlnets["normal"]
    assert moved.config.controlnet_conditioning_channel_order == "bgr"


def test_a_control_of_the_first_family_is_sent_to_its_card(
    models_folder: Path,
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(models_folder, tmp_path / "models"))
    (folder / "sd15_v10.toml").write_text(V10_CARD, encoding="utf-8")
    store = Store("cpu", "float32", folder)
    for name, model in (
        ("control_sd15_normal", "sd15_v10"),
        ("normal", "sd15_v10"),
        ("control_canny-fp16", "sd15_v10"),
        ("control_v11p_sd15_normalbae", "sd15"),
        ("canny", "sd15"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(control_state(networks.controlnets["canny"].state_dict()), path)
        assert main(["check", str(path)], store.registry) == 0
        assert f"put it into {folder / model}/controlnet/" in capsys.readouterr().out


def test_a_difference_needs_no_transfer(
    store: Store,
    networks: DiffusersNetworks,
    other: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, out = tmp_path / "difference.safetensors", tmp_path / "moved.safetensors"
    save_file(difference_state(networks.controlnets["canny"], networks.unet), given)
    command = ["transfer", str(given), str(tmp_path / "community"), "tiny", str(out)]
    assert main(command, store.registry) == FAILED
    assert "difference.safetensors is stored as its difference" in capsys.readouterr().err
    assert not out.exists()
