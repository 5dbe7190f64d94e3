"""Textual inversion embeddings stand in a prompt for their names, as in diffusers' pipelines."""

import base64
import copy
import json
import re
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import SuiteError, WeightsMismatch, WeightsMissing
from models.checkpoints import embeddings, lora
from models.networks import DiffusersNetworks
from models.store import Store
from models.text import Inversion
from tests.tiny_networks import TEXT_WIDTH, tiny_networks

LAYOUTS = (
    "a1111.pt",
    "parameters.pt",
    "a1111.safetensors",
    "diffusers.bin",
    "diffusers.safetensors",
)
NETS = tiny_networks()


def vectors(count: int, width: int = TEXT_WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def write(path: Path, layout: str, found: Tensor) -> Path:
    """Write an embedding as one of the tools does."""
    tool, _, suffix = layout.partition(".")
    path = path.with_suffix(f".{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == "pt":
        held = {"*": found} if tool == "a1111" else nn.ParameterDict({"*": nn.Parameter(found)})
        facts = {"string_to_token": {"*": 265}, "string_to_param": held, "name": "x"}
        torch.save(facts | {"step": 500, "sd_checkpoint": None, "sd_checkpoint_name": "s"}, path)
    elif suffix == "bin":
        torch.save({"<cat-toy>": found}, path)
    else:
        save_file({"emb_params" if tool == "a1111" else "<cat-toy>": found}, path)
    return path


def reading(
    folder: Path, networks: DiffusersNetworks = NETS, **brought: Inversion
) -> DiffusersNetworks:
    """Return networks that find the embeddings of a folder, and others."""
    split = partial(embeddings.split_prompt, folder, brought, TEXT_WIDTH)
    return replace(networks, split_prompt=split)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_is_encoded_as_by_diffusers(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "ours" / "word", layout, vectors(3))
    prompts = ["the red word ball", "word", "no such thing", "ball " * 70 + "word ball"]
    ours = reading(path.parent).encode_text(prompts)
    if layout == "parameters.pt":  # which diffusers cannot read
        path = write(tmp_path / "theirs" / "word", "a1111.pt", vectors(3))
    pipeline = StableDiffusionPipeline(
        unet=NETS.unet,
        text_encoder=copy.deepcopy(NETS.text_encoder),
        vae=NETS.vae,
        tokenizer=copy.deepcopy(NETS.tokenizer),
        scheduler=NETS.make_scheduler("ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(str(path), token="word")
    theirs, _ = pipeline.encode_prompt(prompts, torch.device("cpu"), 1, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    plain = NETS.encode_text(prompts)
    assert torch.equal(ours[2], plain[2]) and not torch.allclose(ours[0], plain[0], atol=1e-2)


@pytest.mark.parametrize(
    "prompt",
    ["a {} b", "a embedding:{} b", "a <embed:{}> b", "a <embedding:{}> b", "a <{}> b"],
)
@pytest.mark.parametrize("name", ["bad-hands_5", "BAD-hands_5"])
def test_ways_of_naming_one(prompt: str, name: str, tmp_path: Path) -> None:
    write(tmp_path / "below" / "bad-hands_5", "a1111.safetensors", vectors(2))
    write(tmp_path / "bad", "a1111.pt", vectors(1))
    found = reading(tmp_path)._parts(prompt.format(name))
    assert [one if isinstance(one, str) else one.name for one in found] == [
        "a ",
        "bad-hands_5",
        " b",
    ]


def test_a_name_is_found_among_signs_and_not_inside_a_word(tmp_path: Path) -> None:
    write(tmp_path / "word", "a1111.safetensors", vectors(2))
    kinds = [type(one) for one in reading(tmp_path)._parts("(word:1.2),word swords wordy word2")]
    assert kinds == [str, Inversion, str, Inversion, str]


def test_diffusers_files_are_named_by_their_word(tmp_path: Path) -> None:
    write(tmp_path / "toy" / "learned_embeds", "diffusers.safetensors", vectors(1))
    assert set(embeddings.available(tmp_path)) == {"<cat-toy>"}
    found = reading(tmp_path)._parts("a <cat-toy>.")
    assert [type(one) for one in found] == [str, Inversion, str]


def test_a_word_in_brackets_is_not_the_file_of_that_name(tmp_path: Path) -> None:
    write(tmp_path / "learned_embeds", "diffusers.safetensors", vectors(1))
    write(tmp_path / "cat-toy", "a1111.pt", vectors(2))
    found = reading(tmp_path)._parts("<cat-toy> cat-toy")
    assert [len(one.vectors) for one in found if isinstance(one, Inversion)] == [1, 2]


@pytest.mark.parametrize("spelt", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", [".pt", ".PT"])
@pytest.mark.parametrize("linked", [False, True])
def test_one_from_another_system_is_found(
    spelt: str, suffix: str, linked: bool, tmp_path: Path
) -> None:
    """Windows writes suffixes in any case, a Mac accents apart; folders are shared by links."""
    name = unicodedata.normalize(spelt, "Gemälde")
    path = write(tmp_path / "shared" / name, "a1111.pt", vectors(2))
    path.rename(path.with_name(f"{name}{suffix}"))
    folder = tmp_path / "shared"
    if linked:
        folder = tmp_path / "embeddings"
        folder.mkdir()
        (folder / "link").symlink_to(tmp_path / "shared")
    for form in ("NFC", "NFD"):
        found = reading(folder)._parts(unicodedata.normalize(form, "a Gemälde b"))
        assert [type(one) for one in found] == [str, Inversion, str], form


def in_picture(path: Path, text: str) -> Path:
    """Write a picture with a text where AUTOMATIC1111 keeps an embedding."""
    info = PngInfo()
    info.add_text("parameters", "a ball")
    info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def encoded(found: Tensor) -> str:
    facts = {"string_to_param": {"*": {"TORCHTENSOR": found.tolist()}}, "name": "other"}
    return base64.b64encode(json.dumps(facts).encode()).decode()


@pytest.mark.parametrize("count", [1, 40])  # 40 are more than a megabyte in a real one's width
def test_an_embedding_in_a_picture_is_one_of_its_name(count: int, tmp_path: Path) -> None:
    found = vectors(count)
    in_picture(tmp_path / "word.png", encoded(found))
    Image.new("RGB", (8, 8)).save(tmp_path / "ball.png")  # a preview beside some file
    assert set(embeddings.available(tmp_path)) == {"word"}
    networks = reading(tmp_path)
    (_, one, _) = networks._parts("a word ball")
    assert isinstance(one, Inversion) and torch.allclose(one.vectors, found)
    write(tmp_path / "word", "a1111.pt", vectors(2, seed=1))  # a file of tensors is wanted more
    assert networks.fit_prompt("word")[0] == 2


@pytest.mark.parametrize(
    "text",
    ["", "%%%", "bm8ganNvbg==", base64.b64encode(b'{"string_to_param": [1]}').decode()],
)
def test_a_damaged_picture_is_one_sentence(text: str, tmp_path: Path) -> None:
    in_picture(tmp_path / "word.png", text)
    with pytest.raises(WeightsMismatch, match=r"^The embedding in word\.png is damaged: .+\.$"):
        reading(tmp_path).fit_prompt("a word")
    assert reading(tmp_path).fit_prompt("a ball")[1] == ""


def test_vectors_count_as_tokens(tmp_path: Path) -> None:
    write(tmp_path / "word", "a1111.safetensors", vectors(5))
    networks = reading(tmp_path)
    assert networks.fit_prompt("the word") == (1 + 5, "")
    assert networks.fit_prompt("the " * 598 + "word red ball") == (598, "word red ball")
    assert networks.fit_prompt("the " * 595 + "word red ball") == (600, "red ball")


def test_another_file_of_the_name_is_read_anew(tmp_path: Path) -> None:
    networks = reading(tmp_path)
    write(tmp_path / "word", "a1111.safetensors", vectors(2))
    first, hashes = networks.encode_text(["word"]), networks.prompt_hashes(["word", "b"])
    write(tmp_path / "word", "a1111.safetensors", vectors(3))
    assert not torch.allclose(networks.encode_text(["word"]), first, atol=1e-2)
    assert set(hashes) == {"embedding word"} and len(hashes["embedding word"]) == 10
    assert networks.prompt_hashes(["word"]) != hashes


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"emb_params": (2, 768)}, WeightsMismatch, "768 (Stable Diffusion 1.x), and this"),
        ({"emb_params": (2, 1024)}, WeightsMismatch, "1024 (Stable Diffusion 2.x)"),
        (
            {"clip_l": (2, 768), "clip_g": (2, 1280)},
            WeightsMismatch,
            "2048 (Stable Diffusion XL), and this model's has 32: take it out of the prompt.",
        ),
        ({"a": (2, 32), "b": (2, 32)}, WeightsMismatch, "holds no textual inversion embedding"),
        ({"emb_params": (2, 3, 32)}, WeightsMismatch, "holds no textual inversion embedding"),
        ({"emb_params": ()}, WeightsMismatch, "holds no textual inversion embedding"),
        ({}, WeightsMissing, "There is no embedding 'word' in"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_one_sentence(
    state: dict[str, tuple[int, ...]], error: type[SuiteError], words: str, tmp_path: Path
) -> None:
    if state:
        save_file({k: torch.zeros(one) for k, one in state.items()}, tmp_path / "word.safetensors")
    with pytest.raises(error, match=re.escape(words)) as refusal:
        reading(tmp_path).fit_prompt("a embedding:word")
    assert "word" in str(refusal.value) and "\n" not in str(refusal.value)
    assert reading(tmp_path).fit_prompt("a ball")[1] == ""  # it is in nobody's way


def test_a_lora_brings_its_own(
    networks: DiffusersNetworks, models_folder: Path, tmp_path: Path
) -> None:
    """As OneTrainer writes them; the LoRA is merged as ever, and the words go with it alone."""
    (tmp_path / "tiny.toml").symlink_to(models_folder / "tiny.toml")
    (tmp_path / "tiny").symlink_to(models_folder / "tiny")
    (tmp_path / "lora").mkdir()
    state = {
        "lora_unet_conv_in.diff": torch.ones(16, 4, 3, 3),
        "bundle_emb.my.word.string_to_param.*": vectors(3),
        "bundle_emb.other.emb_params": vectors(1, seed=1),
    }
    save_file(state, tmp_path / "lora" / "a.safetensors")
    store = Store("cpu", "float32", tmp_path)
    plain, styled = store.load("tiny"), store.load("tiny <lora:a:1>")
    base = networks.unet.conv_in.weight
    torch.testing.assert_close(styled.unet.conv_in.weight, base + 1)
    words = plain.fit_prompt("my.word other")[0]
    assert styled.fit_prompt("my.word other")[0] == 3 + 1 != words
    assert set(embeddings.bundled(lora.find(["<lora:a>"], tmp_path / "lora"))) == {
        "my.word",
        "other",
    }
    write(tmp_path / "embeddings" / "other", "a1111.pt", vectors(7))
    assert plain.fit_prompt("other")[0] == 7 and styled.fit_prompt("other")[0] == 1
    assert plain.prompt_hashes(["other"]) and not styled.prompt_hashes(["other"])


NAMES = st.from_regex(r"[a-z]+(-[a-z]+|_[0-9])?", fullmatch=True).filter(lambda name: len(name) < 9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    counts=st.dictionaries(NAMES, st.integers(1, 5), min_size=1, max_size=3),
    layout=st.sampled_from(LAYOUTS),
    data=st.data(),
)
def test_any_names_counts_layouts_and_places(
    counts: dict[str, int],
    layout: str,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each name becomes as many tokens as its file has vectors, and all else stays text."""
    folder = tmp_path_factory.mktemp("embeddings")
    for name, count in counts.items():
        write(folder / name, layout, vectors(count))
    words = data.draw(st.lists(st.sampled_from([*counts, "0", ",", "!"]), max_size=12))
    networks = reading(folder)
    found = networks._parts(" ".join(words))
    named = [one.name for one in found if isinstance(one, Inversion)]
    assert named == [word for word in words if word in counts]
    assert networks.fit_prompt(" ".join(words))[0] == sum(counts.get(word, 1) for word in words)
    assert networks.encode_text([" ".join(words)]).shape == (1, 77, TEXT_WIDTH)
