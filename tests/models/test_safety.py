"""The safety checker: diffusers' own network and verdicts, only where an operator asks for it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from annotators import find_annotator
from apps.web.suite import Suite
from core.condition import Condition, RGBImage
from core.errors import BadInput, WeightsMismatch, WeightsMissing, Withheld
from core.request import GenerationRequest
from models.catalog.cards import SAFETY
from models.networks import DiffusersNetworks
from models.store import SAFETY_VARIABLE, Store
from tests.conftest import CARD

SIDE = 32
"""Pixels of the tiny network's pictures; the real one's are 224."""
FAR = f"""
[extras.safety_checker]
hub = "someone/tiny"
revision = "{"0123456789" * 4}"
subfolder = "safety_checker"
[extras.safety_checker.files]
"model.fp16.safetensors" = 608000000
"config.json" = 0
"""


@pytest.fixture(scope="module")
def network() -> Any:
    """A random checker whose thresholds lie among the pictures' own similarities."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
        for parameter in network.vision_model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)  # as made, all pictures are nearly the same
        for name in ("concept_embeds", "special_care_embeds"):
            torch.nn.init.normal_(getattr(network, name))
    pixels = processor()(pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        found = network.visual_projection(network.vision_model(pixels)[1])
        for name, share in (("concept_embeds", 0.96), ("special_care_embeds", 0.7)):
            alike = torch.nn.functional.cosine_similarity(
                found[:, None], getattr(network, name)[None], dim=-1
            )
            getattr(network, f"{name}_weights").copy_(alike.quantile(share, dim=0))
    return network.eval()


def processor() -> CLIPImageProcessor:
    """Return what prepares pictures by the config of the hub, but for their side."""
    sides = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return CLIPImageProcessor(**sides, resample=3)


@pytest.fixture
def folder(models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of models, to be changed; the hub client's cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(models_folder, tmp_path / "models")


def pictures(count: int = 24) -> list[RGBImage]:
    """Smooth random pictures, not square, so that each is resized and cropped."""
    random = np.random.default_rng(1)
    small = random.integers(0, 256, (count, 4, 6, 3), np.uint8)
    return [np.array(Image.fromarray(one).resize((96, 64))) for one in small]


def verdicts_of_diffusers(network: Any, images: list[RGBImage]) -> list[bool]:
    """Return what the pipeline of diffusers says of the pictures."""
    pipeline: Any = object.__new__(StableDiffusionPipeline)
    pipeline.__dict__["safety_checker"] = network
    pipeline.__dict__["feature_extractor"] = processor()
    pipeline.__dict__["image_processor"] = VaeImageProcessor()
    stacked = np.stack(images).astype(np.float32) / 255
    _, flags = pipeline.run_safety_checker(stacked, "cpu", torch.float32)
    return flags


def checked(folder: Path, dtype: str = "float32") -> DiffusersNetworks:
    return Store("cpu", dtype, folder, safety_checker=True).load("tiny", "canny")


def test_it_says_what_diffusers_says_and_changes_no_picture(folder: Path, network: Any) -> None:
    images = pictures()
    wanted = verdicts_of_diffusers(network, images)
    assert 4 < sum(wanted) < 20, "both kinds"
    network.save_pretrained(folder / "tiny/safety_checker")
    before = [one.copy() for one in images]
    found = checked(folder)
    assert found.checks_safety and found.unsafe(images) == wanted
    np.testing.assert_array_equal(images, before)
    assert [found.unsafe([one])[0] for one in images] == wanted, "one by one"
    assert found.in_float32().unsafe(images) == found.in_low_memory().unsafe(images) == wanted


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("float16", torch.float16), ("bfloat16", torch.float32), ("float32", torch.float32)],
)
def test_its_format_is_the_bases_but_never_coarser_than_its_scores(
    folder: Path, network: Any, dtype: str, wanted: torch.dtype
) -> None:
    network.save_pretrained(folder / "tiny/safety_checker")
    found = checked(folder, dtype)
    assert {one.dtype for one in found.safety_checker.parameters()} == {wanted}
    if wanted == torch.float32:
        assert found.unsafe(pictures()) == verdicts_of_diffusers(network, pictures())
    assert len(found.unsafe(pictures(2))) == 2


def test_files_with_the_names_of_the_hub_load(folder: Path, network: Any) -> None:
    """They are of 2022: one level more, a buffer that is computed now, and half precision."""
    place = folder / "tiny/safety_checker"
    network.save_pretrained(place)
    state = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): weight.half()
        for name, weight in network.state_dict().items()
    }
    positions = torch.arange((SIDE // 8) ** 2 + 1)[None]
    state["vision_model.vision_model.embeddings.position_ids"] = positions
    save_file(state, place / "model.fp16.safetensors")
    (place / "model.safetensors").unlink()
    found = checked(folder)
    for name, weight in found.safety_checker.network.state_dict().items():
        torch.testing.assert_close(weight, network.state_dict()[name], rtol=1e-3, atol=1e-3)
    assert len(found.unsafe(pictures())) == len(pictures())


def test_it_is_off_unless_the_operator_asks(
    folder: Path, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.save_pretrained(folder / "tiny/safety_checker")
    for value, wanted in ((None, False), ("", False), ("off", False), ("on", True)):
        with monkeypatch.context() as patch:
            patch.delenv(SAFETY_VARIABLE, raising=False)
            if value is not None:
                patch.setenv(SAFETY_VARIABLE, value)
            store = Store("cpu", "float32", folder)
            assert store.load("tiny").checks_safety is wanted
            assert store.extras("tiny") == [SAFETY] * wanted
    monkeypatch.setenv(SAFETY_VARIABLE, "yes")
    with pytest.raises(BadInput, match=r"^CONTROLLOOP_SAFETY_CHECKER is 'yes'; it must be on or"):
        Store("cpu", "float32", folder)
    assert Store("cpu", "float32", folder, safety_checker=False).load("tiny").unsafe(
        pictures(2)
    ) == [False, False]


def test_a_model_without_one_is_not_checked_and_is_named(folder: Path, network: Any) -> None:
    network.save_pretrained(folder / "tiny/safety_checker")
    store = Store("cpu", "float32", folder, safety_checker=True)
    assert not store.load("sd15").checks_safety
    assert store.safety_note() == (
        "CONTROLLOOP_SAFETY_CHECKER is on, but these models have no safety checker, so their "
        "pictures are not checked: sd15."
    )
    assert Store("cpu", "float32", folder, safety_checker=False).safety_note() == ""
    network.save_pretrained(folder / "sd15/safety_checker")
    assert store.safety_note() == ""


def test_of_the_shipped_models_only_diorama_has_none() -> None:
    store = Store("cpu", "float32", safety_checker=True)
    assert store.safety_note().endswith("are not checked: diorama.")


def test_a_checkpoint_of_ones_own_takes_its_own_or_that_of_its_family(
    folder: Path, network: Any, tmp_path: Path
) -> None:
    (folder / "sd15.toml").write_text(CARD + FAR, encoding="utf-8")
    network.save_pretrained(folder / "sd15/safety_checker")
    shutil.copytree(folder / "tiny", tmp_path / "mine")
    shutil.copytree(folder / "tiny", tmp_path / "complete")
    network.save_pretrained(tmp_path / "complete/safety_checker")
    own = tmp_path / "complete/safety_checker/model.safetensors"
    state = load_file(own)
    save_file(state | {"concept_embeds_weights": torch.full((17,), 2.0)}, own)
    store = Store("cpu", "float32", folder, safety_checker=True)
    wanted = verdicts_of_diffusers(network, pictures())
    assert store.load(str(tmp_path / "mine")).unsafe(pictures()) == wanted
    assert not any(store.load(str(tmp_path / "complete")).unsafe(pictures()))


def test_missing_weights_are_named_before_anything_is_made(folder: Path) -> None:
    (folder / "tiny.toml").write_text(CARD + FAR, encoding="utf-8")
    store = Store("cpu", "float32", folder, safety_checker=True)
    words = (
        r"^Tiny's safety check needs safety_checker/model\.fp16\.safetensors \(608 MB\) and "
        r"safety_checker/config\.json .* of huggingface\.co/someone/tiny, but the hub .*, or put "
        r"them into .*/tiny/safety_checker\.$"
    )
    suite = Suite(store, "tiny")
    for ask in (
        lambda: store.load("tiny", "canny"),
        lambda: suite.pipeline.fetch(request()),
        lambda: suite.pipeline.generate(request()),
    ):
        with pytest.raises(WeightsMissing, match=words):
            ask()
    assert Store("cpu", "float32", folder, safety_checker=False).load("tiny", "canny")


def _drop_config(place: Path) -> None:
    (place / "config.json").unlink()


def _drop_weight(place: Path) -> None:
    state = load_file(place / "model.safetensors")
    del state["concept_embeds_weights"]
    save_file(state, place / "model.safetensors")


def _no_number(place: Path) -> None:
    state = load_file(place / "model.safetensors")
    state["visual_projection.weight"][0, 0] = torch.nan
    save_file(state, place / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (_drop_config, WeightsMissing, "lacks its config.json: put both into a folder safety_ch"),
        (_drop_weight, WeightsMismatch, "incomplete, concept_embeds_weights is missing"),
        (_no_number, WeightsMismatch, "is damaged, it has no finite numbers: download it again"),
    ],
)
def test_one_that_would_find_nothing_is_refused(
    folder: Path, network: Any, damage: Any, error: type[Exception], words: str
) -> None:
    network.save_pretrained(folder / "tiny/safety_checker")
    damage(folder / "tiny/safety_checker")
    with pytest.raises(error, match=words):
        checked(folder)


def request(**settings: Any) -> GenerationRequest:
    condition = Condition("canny2image", "Canny", "", find_annotator("canny"), weights="canny")
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    given = {"image_resolution": 256, "steps": 2, "seed": 5, "model": "tiny"} | settings
    return GenerationRequest.single(condition, picture, **given)


def suite_with(folder: Path, network: Any, threshold: float) -> Suite:
    """Return a suite whose checker holds a picture to be unsafe from this similarity on."""
    place = folder / "tiny/safety_checker"
    network.save_pretrained(place)
    thresholds = {"concept_embeds_weights": torch.full((17,), threshold)}
    save_file(load_file(place / "model.safetensors") | thresholds, place / "model.safetensors")
    return Suite(Store("cpu", "float32", folder, safety_checker=True), "tiny")


def test_a_picture_that_passes_is_the_same_to_the_bit(folder: Path, network: Any) -> None:
    suite = suite_with(folder, network, threshold=2)
    usual = Suite(Store("cpu", "float32", folder, safety_checker=False), "tiny")
    made, wanted = (one.pipeline.generate(request()) for one in (suite, usual))
    np.testing.assert_array_equal(made.images, wanted.images)
    assert made.hashes == wanted.hashes, "no picture depends on it"
    assert made.warnings == wanted.warnings


def test_none_that_does_not_pass_leaves_the_pipeline_and_the_server_is_ready(
    folder: Path, network: Any
) -> None:
    suite = suite_with(folder, network, threshold=-2)
    with pytest.raises(Withheld, match="withheld all that was made"):
        suite.pipeline.generate(request(num_samples=2))
    suite.load_in_background(request().controls[0].condition).join()
    assert suite.hindrance() == "" and suite.facts("tiny")[2].startswith("speed: ")
