"""The registry finds a model's files, and refuses those that do not fit, before any are loaded."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks._ldm_layout import base_state, control_state
from core.errors import BadInput, WeightsMismatch, WeightsMissing
from models.networks import DiffusersNetworks
from models.registry import Registry
from tests.models.conftest import HUB_CARD


@pytest.fixture
def registry(models_folder: Path) -> Registry:
    """The registry of the tiny models."""
    return Registry(models_folder)


@pytest.mark.parametrize("name", ["nothing", "", " ", "../nothing", "x" * 300, "a\0b"])
def test_an_unknown_model_lists_the_known_ones(name: str, registry: Registry) -> None:
    with pytest.raises(BadInput, match="choose sd15, tiny"):
        registry.find(name)


def test_the_environment_names_the_first_model(
    registry: Registry, models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONTROLLOOP_MODEL", raising=False)
    assert registry.default_model() == "diorama"
    monkeypatch.setenv("CONTROLLOOP_MODEL", "tiny")
    assert registry.default_model() == "tiny"
    monkeypatch.setenv("CONTROLLOOP_MODEL", "typo")
    with pytest.raises(BadInput, match=r"^CONTROLLOOP_MODEL: There is no model 'typo'"):
        registry.default_model()


def test_a_control_that_is_not_there_lists_those_that_are(registry: Registry) -> None:
    with pytest.raises(WeightsMissing, match=r"no ControlNet 'seg' \(it has: canny\)"):
        registry.find("tiny", "seg")


def test_a_control_for_another_family_is_refused(copy: Path) -> None:
    config = copy / "tiny/controlnet/canny/config.json"
    config.write_text(
        config.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 2048')
    )
    with pytest.raises(WeightsMismatch, match=r"ControlNet \(Stable Diffusion XL\)"):
        Registry(copy).find("tiny", "canny")


def test_a_control_with_other_blocks_is_refused(copy: Path) -> None:
    config = copy / "tiny/controlnet/canny/config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 2', '"layers_per_block": 1'))
    with pytest.raises(WeightsMismatch, match="other blocks than this model's UNet"):
        Registry(copy).find("tiny", "canny")


def test_a_path_never_hides_behind_a_card_of_its_name(registry: Registry, copy: Path) -> None:
    named = registry.card(str(copy / "tiny"))
    assert named is not registry.card("tiny")
    assert named.folder == copy / "tiny"
    assert registry.card(named.name) is named is registry.card(str(copy / "sd15" / ".." / "tiny"))
    assert named in registry.cards()


def test_a_network_of_another_class_is_no_control(copy: Path) -> None:
    shutil.rmtree(copy / "tiny/controlnet/canny")
    shutil.copytree(copy / "tiny/unet", copy / "tiny/controlnet/canny")
    with pytest.raises(WeightsMismatch, match="canny is a UNet2DConditionModel"):
        Registry(copy).find("tiny", "canny")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("text_encoder_2", "a Stable Diffusion XL model"),
        ("transformer", "Stable Diffusion 3 or Flux"),
    ],
)
def test_the_folder_of_another_family_is_named(folder: str, words: str, copy: Path) -> None:
    (copy / "tiny" / folder).mkdir()
    with pytest.raises(WeightsMismatch, match=words):
        Registry(copy).find("tiny")


def test_a_folder_of_stable_diffusion_2_is_named(copy: Path) -> None:
    config = copy / "tiny/unet/config.json"
    config.write_text(
        config.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 1024')
    )
    with pytest.raises(WeightsMismatch, match=r"Stable Diffusion 2\.x"):
        Registry(copy).find("tiny")


def test_a_single_network_is_no_model(registry: Registry, models_folder: Path) -> None:
    with pytest.raises(WeightsMismatch, match=r"one network \(UNet2DConditionModel\)"):
        registry.find(str(models_folder / "tiny" / "unet"))


def test_a_single_file_of_another_family_is_refused(registry: Registry, tmp_path: Path) -> None:
    for name, key, shape, words in (
        (
            "xl",
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
            (8, 2048),
            "Diffusion XL",
        ),
        (
            "two",
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            (8, 1024),
            r"Diffusion 2\.x",
        ),
    ):
        path = tmp_path / f"{name}.safetensors"
        first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}
        save_file(first | {f"model.diffusion_model.{key}": torch.zeros(shape)}, path)
        with pytest.raises(WeightsMismatch, match=rf"^{name}\.safetensors is .*{words}"):
            registry.find(str(path))


def test_what_is_missing_offline_is_named_with_its_size(copy: Path, hub_cache: Path) -> None:
    shutil.rmtree(copy / "tiny")
    (copy / "tiny.toml").write_text(HUB_CARD, encoding="utf-8")
    words = r"needs unet/diffusion_pytorch_model\.safetensors \(1\.5 GB\) and \S+ \(\S+ .B\) of "
    with pytest.raises(
        WeightsMissing, match=words + r"huggingface\.co/someone/tiny.*cannot be reach"
    ):
        Registry(copy).find("tiny")


def test_what_lies_in_the_folder_to_fill_is_not_asked_for(copy: Path, hub_cache: Path) -> None:
    (copy / "tiny.toml").write_text(HUB_CARD, encoding="utf-8")
    (copy / "tiny/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"needs \S+ \(1\.5 GB\) of ") as caught:
        Registry(copy).find("tiny")
    assert "config.json" not in str(caught.value)


def test_an_unknown_control_is_refused_before_the_base_is_fetched(
    copy: Path, hub_cache: Path
) -> None:
    shutil.rmtree(copy / "tiny")
    (copy / "tiny.toml").write_text(HUB_CARD, encoding="utf-8")
    with pytest.raises(WeightsMissing, match="no ControlNet 'seg'"):
        Registry(copy).find("tiny", "seg")


def test_a_single_file_has_controls_of_its_own_in_the_folder_of_its_name(
    registry: Registry, models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    parts = (networks.unet, networks.vae, networks.text_encoder)
    save_file(base_state(*(part.state_dict() for part in parts)), tmp_path / "mine.safetensors")
    model = str(tmp_path / "mine.safetensors")
    assert registry.find(model, "canny")[1] == models_folder / "sd15/controlnet/canny"
    (tmp_path / "mine" / "controlnet").mkdir(parents=True)
    own = tmp_path / "mine" / "controlnet" / "canny.safetensors"
    save_file(control_state(networks.controlnets["canny"].state_dict()), own)
    assert registry.find(model, "canny")[1] == own
