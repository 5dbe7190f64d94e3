"""What may stand beside a base: the LoRA of the mode preview, and a tiny autoencoder."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor

from annotators import find_annotator
from core.condition import Condition, RGBImage
from core.errors import BadInput, WeightsMismatch, WeightsMissing
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.__main__ import main
from models.catalog.cards import EXTRAS, LCM, TAESD, read_card
from models.checkpoints import loading, lora
from models.networks import DiffusersNetworks, decode
from models.registry import Registry
from models.store import Store
from tests.conftest import CARD
from tests.fake_hub import serving
from tests.tiny_networks import tiny_autoencoder

PLACE = "down_blocks.0.attentions.0.proj_in"
REVISION = "0123456789" * 4
FAR = f"""
[extras.lcm]
hub = "someone/lcm"
revision = "{REVISION}"
licence = "OpenRAIL++"
[extras.lcm.files]
"pytorch_lora_weights.safetensors" = 134000000
[extras.taesd]
hub = "someone/taesd"
revision = "{REVISION}"
[extras.taesd.files]
"diffusion_pytorch_model.safetensors" = 9800000
"config.json" = 0
"""


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of models, to be changed; the hub client's cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(models_folder, tmp_path / "models")


def store_of(folder: Path) -> Store:
    return Store("cpu", "float32", folder)


def cached(tmp_path: Path, name: str) -> Path:
    """Return a repository's folder in the hub client's cache, made."""
    snapshot = tmp_path / "cache" / f"models--someone--{name}" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot


def write_lora(path: Path, networks: DiffusersNetworks) -> Tensor:
    """Write a random LCM-LoRA in kohya's names; return what it adds to the weight at PLACE."""
    weight = networks.unet.get_submodule(PLACE).weight
    generator = torch.Generator().manual_seed(1)
    up, down = (
        torch.randn(*shape, generator=generator)
        for shape in ((weight.shape[0], 2, 1, 1), (2, weight.shape[1], 1, 1))
    )
    stem = f"lora_unet_{PLACE.replace('.', '_')}"
    path.parent.mkdir(exist_ok=True)
    save_file({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, path)
    return (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


@pytest.fixture
def make(networks: DiffusersNetworks) -> Callable[..., RGBImage]:
    """Make a picture of the tiny model."""
    annotator = find_annotator("canny")
    condition = Condition("canny2image", "Canny", "", annotator, weights="canny")
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)

    def made(pipeline: Pipeline, **settings: object) -> RGBImage:
        given = {"image_resolution": 256, "steps": 2, "seed": 5, "model": "tiny"} | settings
        result = pipeline.generate(GenerationRequest.single(condition, picture, **given))
        return result.images[0]

    return made


# The mode preview


@pytest.mark.parametrize("name", ["lcm.safetensors", "lcm/any name.safetensors"])
def test_the_few_step_version_is_the_base_with_its_lora(
    name: str, folder: Path, networks: DiffusersNetworks
) -> None:
    added = write_lora(folder / "tiny" / name, networks)
    store = store_of(folder)
    plain, few = store.load("tiny", "canny"), store.load("tiny", "canny", few_step=True)
    weights = [one.unet.get_submodule(PLACE).weight for one in (plain, few)]
    torch.testing.assert_close(weights[1], weights[0] + added)
    assert few.controlnets["canny"] is plain.controlnets["canny"] and few.vae is plain.vae
    assert few.unet.conv_in.weight is plain.unet.conv_in.weight
    assert few.name == "tiny"
    assert few.hashes.keys() - plain.hashes.keys() == {LCM}


def test_a_style_is_merged_in_too(folder: Path, networks: DiffusersNetworks) -> None:
    added = write_lora(folder / "tiny/lcm.safetensors", networks)
    write_lora(folder / "lora/style.safetensors", networks)
    few = store_of(folder).load("tiny <lora:style:0.5>", "canny", few_step=True)
    old = networks.unet.get_submodule(PLACE).weight
    torch.testing.assert_close(few.unet.get_submodule(PLACE).weight, old + 1.5 * added)
    assert few.name == "tiny <lora:style:0.5>"
    assert {LCM, "lora style"} <= few.hashes.keys()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_going_to_preview_and_back_reads_nothing_anew_and_changes_nothing(
    dtype: str,
    folder: Path,
    networks: DiffusersNetworks,
    make: Callable[..., RGBImage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_lora(folder / "tiny/lcm.safetensors", networks)
    read = []
    for module, name in ((loading, "load_base"), (loading, "load_control"), (lora, "merge")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, n=name, r=real: read.append(n) or r(*given)
        )
    pipeline = Pipeline(Store("cpu", dtype, folder).load)
    exact = make(pipeline)
    preview = make(pipeline, mode="preview")
    assert not np.array_equal(exact, preview)
    assert np.array_equal(make(pipeline), exact), "to the bit"
    assert np.array_equal(make(pipeline, mode="preview"), preview)
    assert read == ["load_base", "load_control", "merge"]


def test_a_model_without_such_a_lora_says_so_in_one_sentence(
    store: Store, make: Callable[..., RGBImage]
) -> None:
    words = (
        r"^Tiny has no LCM-LoRA, .*: choose another mode, or put one at .*/tiny/lcm\.safetensors\.$"
    )
    with pytest.raises(WeightsMissing, match=words):
        make(Pipeline(store.load), mode="preview")
    with pytest.raises(WeightsMissing, match=words):
        store.registry.fetch("tiny", "canny", watch=lambda _: None, few_step=True)


def test_one_of_another_model_is_refused(folder: Path) -> None:
    state = {"lora_unet_x.lora_down.weight": torch.zeros(4, 32)}
    save_file(state, folder / "tiny/lcm.safetensors")
    with pytest.raises(WeightsMismatch, match="weights that have no place in this model"):
        store_of(folder).load("tiny", "canny", few_step=True)


def test_one_of_the_hub_is_named_with_its_size_and_place_and_found_in_the_cache(
    folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    (folder / "tiny.toml").write_text(CARD + FAR, encoding="utf-8")
    store = store_of(folder)
    words = (
        r"^Tiny's mode preview needs pytorch_lora_weights\.safetensors \(134 MB\) of "
        r"huggingface\.co/someone/lcm, but the hub .*, or put them into .*/tiny/lcm\.$"
    )
    for ask in (
        lambda: store.load("tiny", "canny", few_step=True),
        lambda: store.registry.fetch("tiny", "canny", watch=lambda _: None, few_step=True),
    ):
        with pytest.raises(WeightsMissing, match=words):
            ask()
    assert LCM not in store.load("tiny", "canny").hashes
    write_lora(cached(tmp_path, "lcm") / "pytorch_lora_weights.safetensors", networks)
    assert LCM in store.load("tiny", "canny", few_step=True).hashes


def test_a_checkpoint_of_ones_own_takes_that_of_its_family(
    folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    (folder / "sd15.toml").write_text(CARD + FAR, encoding="utf-8")
    write_lora(folder / "sd15/lcm.safetensors", networks)
    shutil.copytree(folder / "tiny", tmp_path / "mine")
    store = store_of(folder)
    few = store.load(str(tmp_path / "mine"), "canny", few_step=True)
    assert few.name == "mine" and LCM in few.hashes
    with pytest.raises(WeightsMissing, match="Tiny has no LCM-LoRA"):
        store.load("tiny", few_step=True)


def test_a_card_knows_no_other_extra(tmp_path: Path) -> None:
    text = CARD + FAR.replace("extras.lcm", "extras.turbo")
    (tmp_path / "odd.toml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="there is no extra 'turbo', it must be lcm or taesd"):
        read_card(tmp_path / "odd.toml")


def test_the_shipped_cards_name_commits_and_licences() -> None:
    cards = {card.name: card for card in Registry().cards()}
    for name in ("sd15", "sd15_v10", "sd15_plus"):
        extras = cards[name].extras
        assert extras.keys() == EXTRAS.keys()
        assert all(len(one.revision) == 40 and one.licence for one in extras.values())
        assert cards[name].base_folder == cards["sd15"].folder


def test_dioramas_own_fits_it_and_without_it_there_is_a_sentence(tmp_path: Path) -> None:
    shipped = Store("cpu", "float32")
    registry = shipped.registry
    here = registry.card("diorama").folder
    if registry.local_extra(registry.card("diorama"), LCM):
        assert LCM in shipped.load("diorama", few_step=True).hashes
    (tmp_path / "diorama.toml").symlink_to(here.with_suffix(".toml"))
    (tmp_path / "diorama").mkdir()
    for part in here.iterdir():
        if part.stem != LCM:
            (tmp_path / "diorama" / part.name).symlink_to(part)
    with pytest.raises(WeightsMissing, match=r"^Diorama has no LCM-LoRA, which"):
        store_of(tmp_path).load("diorama", few_step=True)


# Live previews


@pytest.fixture
def taesd() -> AutoencoderTiny:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return tiny_autoencoder("tiny")


LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_decodes(found: DiffusersNetworks, taesd: AutoencoderTiny) -> None:
    wanted = decode(taesd, LATENTS, torch.float32)
    halved = wanted.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)).clamp(-1, 1)
    torch.testing.assert_close(found.preview(LATENTS), halved, rtol=1e-4, atol=1e-5)


def test_a_tiny_autoencoder_beside_the_base_shows_the_picture_so_far(
    folder: Path, taesd: AutoencoderTiny
) -> None:
    without = store_of(folder).load("tiny", "canny")
    assert without.preview(LATENTS).shape == (2, 3, 8, 8)
    taesd.save_pretrained(folder / "tiny/taesd")
    found = store_of(folder).load("tiny", "canny")
    assert_decodes(found, taesd)
    assert found.hashes == without.hashes, "no picture depends on it"
    latents = LATENTS[:, :, :4, :4]
    assert torch.equal(found.decode(latents), without.decode(latents))


def test_it_is_used_from_the_cache_and_never_fetched_by_itself(
    folder: Path, taesd: AutoencoderTiny, tmp_path: Path
) -> None:
    (folder / "tiny.toml").write_text(CARD + FAR, encoding="utf-8")
    assert store_of(folder).load("tiny").taesd is None
    taesd.save_pretrained(cached(tmp_path, "taesd"))
    assert_decodes(store_of(folder).load("tiny"), taesd)


def test_its_weights_alone_are_read_with_its_own_form(folder: Path) -> None:
    taesd = AutoencoderTiny()
    save_file(taesd.state_dict(), folder / "tiny/taesd.safetensors")
    assert_decodes(store_of(folder).load("tiny"), taesd.eval())


def test_in_float32_it_is_a_copy_too(folder: Path, taesd: AutoencoderTiny) -> None:
    taesd.save_pretrained(folder / "tiny/taesd")
    half = Store("cpu", "bfloat16", folder).load("tiny")
    whole = half.in_float32()
    assert whole.taesd is not half.taesd and whole.preview(LATENTS).dtype == torch.float32
    assert replace(half, taesd=None).in_float32().taesd is None


# The command


def test_the_command_lists_and_finds_extras(
    folder: Path, networks: DiffusersNetworks, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.toml").write_text(CARD + FAR, encoding="utf-8")
    write_lora(folder / "tiny/lcm.safetensors", networks)
    assert main(["list"], Registry(folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  lcm, for the mode preview: here" in lines
    far = (
        "  taesd, for the live preview: to download, 10 MB, from someone/taesd (licence not known)"
    )
    assert far in lines
    assert main(["fetch", "tiny", "lcm"], Registry(folder)) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("tiny/lcm.safetensors")
    assert main(["fetch", "tiny", TAESD], Registry(folder)) == 2
    assert "Tiny's live preview needs diffusion_py" in capsys.readouterr().err
    assert main(["fetch", "sd15", "lcm"], Registry(folder)) == 2
    assert "has no ControlNet 'lcm' (it has: canny)" in capsys.readouterr().err


def test_the_command_shows_extras_coming(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.toml").write_text(CARD + FAR, encoding="utf-8")
    weights = "taesd/diffusion_pytorch_model.safetensors"
    files = {"lcm/pytorch_lora_weights.safetensors": b"1" * 4000, weights: b"1" * 2000}
    files = {f"someone/{name}": content for name, content in files.items()}
    with serving(files | {"someone/taesd/config.json": b"{}"}, tmp_path / "cache"):
        assert main(["fetch", "tiny", LCM, TAESD], Registry(folder)) == 0
        told = capsys.readouterr()
        assert "Tiny: 100%" in told.err and "6.00k/6.00k" in told.err and "B/s" in told.err
        assert told.out.splitlines()[-1].startswith("taesd: ")
        main(["fetch", "tiny", LCM, TAESD], Registry(folder))
        assert capsys.readouterr().err == "", "what is here does not come again"
