"""LoRA files change a copy of the base as their formula says, and as diffusers with PEFT does."""

import copy
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import BadInput, SuiteError, WeightsMismatch, WeightsMissing
from models.checkpoints import lora
from models.networks import DiffusersNetworks

State = dict[str, Tensor]
RANK = 3
UNET = [
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
]
CONVOLUTIONS = ["down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc2"]


def factors(network: nn.Module, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return random up and down factors of a layer's weight, and the product in its shape."""
    weight = network.get_submodule(layer).weight
    generator = torch.Generator().manual_seed(len(layer))
    down = 0.3 * torch.randn(RANK, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator)
    return up, down, (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)


def in_kohyas_names(up: State, down: State) -> State:
    state = {}
    for layer, tensor in up.items():
        network, _, name = layer.partition(":")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[network]
        stem = prefix + name.replace(".", "_")
        state[f"{stem}.lora_up.weight"] = tensor
        state[f"{stem}.lora_down.weight"] = down[layer]
        state[f"{stem}.alpha"] = torch.tensor(2 * RANK)
    return state


def in_pefts_names(up: State, down: State) -> State:
    state = {}
    for layer, tensor in up.items():
        network, _, name = layer.partition(":")
        stem = f"{network}.{'text_model.' if network != 'unet' else ''}{name}"
        state[f"{stem}.lora_B.weight"] = 2 * tensor
        state[f"{stem}.lora_A.weight"] = down[layer]
    return state


def in_diffusers_first_names(up: State, down: State) -> State:
    state = {}
    for layer, tensor in up.items():
        network, _, name = layer.partition(":")
        if network != "unet":
            stem = f"text_encoder.text_model.{name}.lora_linear_layer"
        elif "attn" in name:
            block, _, leaf = name.removesuffix(".0").rpartition(".")
            stem = f"unet.{block}.processor.{leaf}_lora"
        else:
            stem = f"unet.{name}.lora"
        state[f"{stem}.up.weight"] = 2 * tensor
        state[f"{stem}.down.weight"] = down[layer]
    return state


LAYOUTS = [in_kohyas_names, in_pefts_names, in_diffusers_first_names]


@pytest.fixture
def many(networks: DiffusersNetworks) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Factors and product of every layer above, by "network:layer"."""
    return {
        f"{part}:{layer}": factors(getattr(networks, part), layer)
        for part, layers in (("unet", UNET + CONVOLUTIONS), ("text_encoder", TEXT))
        for layer in layers
    }


def write(path: Path, state: State, **metadata: str) -> lora.Lora:
    """Write a LoRA file; return it asked for with weight 0.5."""
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata or None)
    return lora.find([f"<lora:{path.stem}:0.5>"], path.parent)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_merged_weight_is_the_bases_and_the_scaled_product(
    layout: Callable[[State, State], State],
    many: dict[str, tuple[Tensor, Tensor, Tensor]],
    networks: DiffusersNetworks,
    tmp_path: Path,
) -> None:
    before = {key: tensor.clone() for key, tensor in networks.unet.state_dict().items()}
    state = layout({k: f[0] for k, f in many.items()}, {k: f[1] for k, f in many.items()})
    asked = write(tmp_path / "style.safetensors", state)
    text_encoder, unet = lora.merge(networks.text_encoder, networks.unet, [asked])
    changed = {"unet": unet, "text_encoder": text_encoder}
    for place, (_, _, product) in many.items():
        part, _, layer = place.partition(":")
        old = getattr(networks, part).get_submodule(layer).weight
        # weight 0.5 * alpha / rank, which is 2: kohya's alpha, or twice the factor
        torch.testing.assert_close(changed[part].get_submodule(layer).weight, old + product)
    names = {place.partition(":")[2] + ".weight" for place in many}
    for part, network in changed.items():
        base = dict(getattr(networks, part).named_parameters())
        for name, parameter in network.named_parameters():  # the rest takes no memory
            assert (parameter is base[name]) == (name not in names)
    assert all(
        torch.equal(tensor, before[key]) for key, tensor in networks.unet.state_dict().items()
    )


@pytest.mark.parametrize("layout", [in_kohyas_names, in_pefts_names])
def test_it_predicts_what_diffusers_does_with_the_same_file(
    layout: Callable[[State, State], State],
    many: dict[str, tuple[Tensor, Tensor, Tensor]],
    networks: DiffusersNetworks,
    tmp_path: Path,
) -> None:
    if layout is in_kohyas_names:  # diffusers 0.42 loses kohya's attention in the text encoder
        many = {place: found for place, found in many.items() if "q_proj" not in place}
    state = layout({k: f[0] for k, f in many.items()}, {k: f[1] for k, f in many.items()})
    asked = write(tmp_path / "style.safetensors", state)
    text_encoder, unet = lora.merge(networks.text_encoder, networks.unet, [asked])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(77)[None]
    with torch.no_grad():
        plain = networks.unet(latents, 401, networks.text_encoder(tokens)[0]).sample
        ours = unet(latents, 401, text_encoder(tokens)[0]).sample
    pipeline = StableDiffusionPipeline(
        unet=copy.deepcopy(networks.unet),
        text_encoder=copy.deepcopy(networks.text_encoder),
        vae=networks.vae,
        tokenizer=networks.tokenizer,
        scheduler=networks.make_scheduler("ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    pipeline.set_adapters("style", 0.5)
    with torch.no_grad():
        theirs = pipeline.unet(latents, 401, pipeline.text_encoder(tokens)[0]).sample
    assert not torch.allclose(ours, plain, atol=1e-2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_several_add_up_and_a_negative_one_takes_away(
    networks: DiffusersNetworks, tmp_path: Path
) -> None:
    up, down, product = factors(networks.unet, UNET[0])
    write(
        tmp_path / "a.safetensors",
        in_pefts_names({f"unet:{UNET[0]}": up}, {f"unet:{UNET[0]}": down}),
    )
    asked = lora.find(["<lora:a>", "<lora:a:-0.25>"], tmp_path)
    text_encoder, unet = lora.merge(networks.text_encoder, networks.unet, asked)
    assert text_encoder is networks.text_encoder
    found = unet.get_submodule(UNET[0]).weight - networks.unet.get_submodule(UNET[0]).weight
    torch.testing.assert_close(found, 0.75 * 2 * product, rtol=1e-4, atol=1e-5)


def test_a_locon_with_a_middle_factor(networks: DiffusersNetworks, tmp_path: Path) -> None:
    """One input channel, seen by one rank, spread over a kernel, sent to one output channel."""
    stem = "lora_unet_" + CONVOLUTIONS[0].replace(".", "_")
    old = networks.unet.get_submodule(CONVOLUTIONS[0]).weight
    up, down = torch.zeros(old.shape[0], 2, 1, 1), torch.zeros(2, old.shape[1], 1, 1)
    mid = torch.zeros(2, 2, 3, 3)
    up[5, 0], down[1, 7] = 2, 3
    mid[0, 1] = torch.arange(9.0).reshape(3, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid}
    state = {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    asked = write(tmp_path / "locon.safetensors", state | {f"{stem}.alpha": torch.tensor(4.0)})
    _, unet = lora.merge(networks.text_encoder, networks.unet, [asked])
    wanted = torch.zeros_like(old)
    wanted[5, 7] = 0.5 * 4 / 2 * 2 * 3 * mid[0, 1]
    torch.testing.assert_close(unet.get_submodule(CONVOLUTIONS[0]).weight - old, wanted)


def test_pefts_alpha_is_read_where_diffusers_wrote_it(
    networks: DiffusersNetworks, tmp_path: Path
) -> None:
    state, first, second = {}, UNET[1], UNET[2]
    for layer in (first, second):
        up, down, _ = factors(networks.unet, layer)
        state |= in_pefts_names({f"unet:{layer}": up / 2}, {f"unet:{layer}": down})
    settings = {"unet.lora_alpha": 2 * RANK, "unet.alpha_pattern": {second: 6 * RANK}}
    asked = write(tmp_path / "a.safetensors", state, lora_adapter_metadata=json.dumps(settings))
    _, unet = lora.merge(networks.text_encoder, networks.unet, [asked])
    for layer, times in ((first, 1), (second, 3)):  # 0.5 of alpha / rank
        found = unet.get_submodule(layer).weight - networks.unet.get_submodule(layer).weight
        torch.testing.assert_close(found, times * factors(networks.unet, layer)[2])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"unet.x.attn2.to_k.lora_A.weight": (4, 2048)}, "a LoRA (Stable Diffusion XL): a LoRA"),
        ({"unet.x.attn2.to_k.lora_A.weight": (4, 1024)}, "a LoRA (Stable Diffusion 2.x): a LoRA"),
        ({"lora_unet_x.lora_down.weight": (4, 32)}, "1 weights that have no place in this model"),
        ({"lora_unet_conv_in.lora_down.weight": (3, 4, 3, 3)}, "such as conv_in: choose a LoRA"),
        (
            {
                "lora_unet_conv_in.lora_down.weight": (3, 4, 3, 3),
                "lora_unet_conv_in.lora_up.weight": (99, 3, 1, 1),
            },
            "bad.safetensors changes weights of other sizes",
        ),
        ({"lora_unet_conv_in.hada_w1_a": (4, 9)}, "such as conv_in: choose a LoRA"),
        ({"lora_unet_conv_in.on_input": ()}, "is a LyCORIS of a kind that is not merged here"),
        ({"lllite_unet_x.down.0.weight": (4, 9)}, "is a ControlNet-LLLite: a LoRA"),
        ({"body.0.block1.weight": (4, 9)}, "is a T2I-Adapter: a LoRA"),
        ({"ip_adapter.1.to_k_lora.up.weight": (4, 9)}, "is an IP-Adapter: a LoRA"),
        ({f"unet.{UNET[1]}.diff_b": (16,)}, "such as down_blocks"),
        (
            {  # of as many numbers, but turned
                f"unet.{UNET[3]}.lora.down.weight": (3, 128),
                f"unet.{UNET[3]}.lora.up.weight": (16, 3),
            },
            "bad.safetensors changes weights of other sizes",
        ),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "is a base checkpoint"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(
    state: dict[str, tuple[int, ...]], words: str, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    tensors = {key: torch.zeros(shape) for key, shape in state.items()}
    asked = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(WeightsMismatch, match=re.escape(words)) as refusal:
        lora.merge(networks.text_encoder, networks.unet, [asked])
    assert str(refusal.value).startswith("bad.safetensors ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("alpha", "settings"),
    [
        (torch.zeros(2), None),
        (torch.tensor(float("nan")), None),
        (torch.zeros(1, 0), None),
        (None, {"unet.lora_alpha": "much"}),
        (None, {"unet.lora_alpha": None}),
        (None, {"unet.lora_alpha": 10**400}),
        (None, {"unet.alpha_pattern": 5}),
        (None, {"unet.alpha_pattern": {UNET[1]: []}}),
    ],
    ids=str,
)
def test_an_alpha_that_is_no_number_is_one_sentence(
    alpha: Tensor | None, settings: object, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    up, down, _ = factors(networks.unet, UNET[1])
    state = in_pefts_names({f"unet:{UNET[1]}": up}, {f"unet:{UNET[1]}": down})
    if alpha is not None:
        state[f"unet.{UNET[1]}.alpha"] = alpha
    asked = write(tmp_path / "bad.safetensors", state, lora_adapter_metadata=json.dumps(settings))
    with pytest.raises(WeightsMismatch, match=r"bad\.safetensors has no usable strength") as told:
        lora.merge(networks.text_encoder, networks.unet, [asked])
    assert UNET[1] in str(told.value) and "\n" not in str(told.value)


def test_factors_of_too_few_sides_are_one_sentence(
    networks: DiffusersNetworks, tmp_path: Path
) -> None:
    stem = "lora_unet_conv_in"
    state = {f"{stem}.lora_up.weight": torch.zeros(3), f"{stem}.lora_down.weight": torch.zeros(3)}
    asked = write(tmp_path / "bad.safetensors", state)
    with pytest.raises(WeightsMismatch, match=r"bad\.safetensors changes weights of other sizes"):
        lora.merge(networks.text_encoder, networks.unet, [asked])


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "[]", "null"], ids=["cut", "deep", "list", "null"]
)
def test_settings_that_cannot_be_read_count_for_nothing(
    text: str, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    up, down, product = factors(networks.unet, UNET[1])
    state = in_pefts_names({f"unet:{UNET[1]}": up / 2}, {f"unet:{UNET[1]}": down})
    asked = write(tmp_path / "a.safetensors", state, lora_adapter_metadata=text)
    _, unet = lora.merge(networks.text_encoder, networks.unet, [asked])
    old = networks.unet.get_submodule(UNET[1]).weight
    added = unet.get_submodule(UNET[1]).weight - old
    torch.testing.assert_close(added, asked.weight * product)


@pytest.mark.parametrize(
    ("tag", "error", "words"),
    [
        ("<lora:other:1>", WeightsMissing, r"no LoRA 'other' in .* \(it has: style\): put other\."),
        ("<lora:../style:1>", WeightsMissing, "There is no LoRA"),
        ("<lora:style:much>", BadInput, "the weight must be a number from -10 to 10, as in <lora"),
        ("<lora:style:nan>", BadInput, "the weight must be a number"),
        ("<lora:style:1e9>", BadInput, "the weight must be a number"),
    ],
)
def test_a_tag_that_cannot_be_followed(
    tag: str, error: type[SuiteError], words: str, tmp_path: Path
) -> None:
    (tmp_path / "lora" / "below").mkdir(parents=True)
    (tmp_path / "lora" / "below" / "style.safetensors").touch()
    (tmp_path / "style.safetensors").touch()
    found = lora.find(["<lora:style:0.8>", "<lora:style>"], tmp_path / "lora")
    assert [(one.name, one.weight) for one in found] == [("style", 0.8), ("style", 1.0)]
    with pytest.raises(error, match=words):
        lora.find([tag], tmp_path / "lora")


def test_names_are_hidden_where_the_operator_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.safetensors").touch()
    monkeypatch.setenv("CONTROLLOOP_FILE_NAMES", "hidden")
    with pytest.raises(WeightsMissing) as missing:
        lora.find(["<lora:other:1>"], tmp_path)
    assert "secret" not in str(missing.value) and str(tmp_path) not in str(missing.value)
    assert "There is no LoRA 'other' on this server" in str(missing.value)


def styles(folder: Path, *names: str, **metadata: str) -> None:
    """Write LoRA files of these names, whose weight is their number."""
    for number, name in enumerate(names, 1):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {"lora_unet_conv_in.diff": torch.full((16, 4, 3, 3), float(number))}
        save_file(state, path, metadata or None)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Nice", "Nice"),
        ("nice", "Nice"),  # A name is a name in any case, if there is only one.
        ("Nice.safetensors", "Nice"),
        ("b/x", "b/x"),
        ("b\\x", "b/x"),
        ("B/X", "b/x"),
        ("top", "top"),  # before c/top
        ("c/top", "c/top"),
        ("mine", "mine/pytorch_lora_weights"),
        ("nice_style", "downloaded_v3"),  # as it was called when it was trained
        ("NICE_style", "downloaded_v3"),
        ("Two", "Two"),
        ("two", "two"),
    ],
)
def test_names_that_find_a_file(name: str, path: str, tmp_path: Path) -> None:
    styles(
        tmp_path, "Nice", "a/x", "b/x", "top", "c/top", "mine/pytorch_lora_weights", "Two", "two"
    )
    styles(tmp_path, "downloaded_v3", ss_output_name="nice_style")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    found = lora.find([f"<lora:{name}:1>"], tmp_path)[0]
    assert found.path == tmp_path / f"{path}.safetensors"
    assert set(lora.available(tmp_path)) >= {"Nice", "a/x", "b/x", "top", "c/top", "mine"}


@pytest.mark.parametrize("name", ["x", "X", "epoch"])
def test_two_of_one_name_are_told_apart(name: str, tmp_path: Path) -> None:
    styles(tmp_path, "a/x", "b/x")
    styles(tmp_path, "epoch-1", "epoch-2", ss_output_name="epoch")
    with pytest.raises(BadInput, match=f"There are 2 LoRAs '{name}', .* and .*: write which you"):
        lora.find([f"<lora:{name}:1>"], tmp_path)


def test_the_text_encoder_and_the_unet_have_a_strength_each(
    networks: DiffusersNetworks, tmp_path: Path
) -> None:
    state = {
        f"lora_te_text_model_{TEXT[1].replace('.', '_')}.diff": torch.ones(32, 64),
        "lora_unet_conv_in.diff": torch.ones(16, 4, 3, 3),
    }
    save_file(state, tmp_path / "a.safetensors")
    found = lora.find(["<lora:a:0.8:0.6>"], tmp_path)
    text_encoder, unet = lora.merge(networks.text_encoder, networks.unet, found)
    torch.testing.assert_close(unet.conv_in.weight, networks.unet.conv_in.weight + 0.6)
    old = networks.text_encoder.get_submodule(TEXT[1]).weight
    torch.testing.assert_close(text_encoder.get_submodule(TEXT[1]).weight, old + 0.8)


def test_blocks_have_a_strength_each(networks: DiffusersNetworks, tmp_path: Path) -> None:
    """conv_in is IN00, UNET[0] IN01, the last up block's third attention OUT05 of six."""
    layers = {"conv_in": 3, UNET[0]: 0.5, UNET[3]: -1, "time_embedding.linear_1": 1, "conv_out": 1}
    state = {
        f"unet.{layer}.diff": torch.ones_like(networks.unet.get_submodule(layer).weight)
        for layer in layers
    }
    save_file(state, tmp_path / "a.safetensors")
    blocks = ",".join(["0", "3", "0.5", *"0" * 16, "-1", *"0" * 6])
    _, unet = lora.merge(
        networks.text_encoder, networks.unet, lora.find([f"<lora:a:2:{blocks}>"], tmp_path)
    )
    for layer, factor in layers.items():
        old = networks.unet.get_submodule(layer).weight
        torch.testing.assert_close(unet.get_submodule(layer).weight, old + 2 * factor)


@pytest.mark.parametrize("spelt", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", [".safetensors", ".SafeTensors"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_from_another_system_is_found(
    spelt: str, suffix: str, linked: bool, tmp_path: Path
) -> None:
    """Windows writes suffixes in any case, a Mac accents apart; folders are shared by links."""
    shared = tmp_path / "shared"
    shared.mkdir()
    path = shared / f"{unicodedata.normalize(spelt, 'Gemälde')}{suffix}"
    save_file({"lora_unet_conv_in.diff": torch.zeros(1)}, path)
    folder = shared
    if linked:
        folder = tmp_path / "lora"
        folder.mkdir()
        (folder / "link").symlink_to(shared)
    for form in ("NFC", "NFD"):
        (found,) = lora.find([f"<lora:{unicodedata.normalize(form, 'Gemälde')}:1>"], folder)
        assert found.path.samefile(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_told(
    number: float, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    """A training that diverged writes NaN, which spreads to every picture."""
    up, down, _ = factors(networks.unet, UNET[0])
    down[0, 0] = number
    state = in_kohyas_names({f"unet:{UNET[0]}": up}, {f"unet:{UNET[0]}": down})
    asked = write(tmp_path / "style.safetensors", state)
    with pytest.raises(WeightsMismatch, match=r"^style\.safetensors holds NaN or infinite numbers"):
        lora.merge(networks.text_encoder, networks.unet, [asked])
