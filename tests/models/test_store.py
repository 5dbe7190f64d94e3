"""The store loads, keeps, drops and names models."""

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks._ldm_layout import base_state, control_state, difference_state
from core.errors import WeightsMismatch, WeightsMissing
from core.networks import ControlInput, PredictCall
from models import store as store_module
from models.checkpoints import loading
from models.networks import DiffusersNetworks
from models.store import Store
from tests.conftest import CARD
from tests.models.conftest import HUB_CARD, OTHER_CARD
from tests.tiny_networks import tiny_adapter, tiny_networks


def test_models_load_from_a_folder_of_any_name(models_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models_folder, tmp_path / "mit Leerzeichen, ü und 模型")
    assert Store("cpu", "float32", folder).load("tiny", "canny").name == "tiny"


def test_a_second_load_is_the_same_networks(store: Store) -> None:
    first, second = store.load("tiny", "canny"), store.load("tiny", "canny")
    assert first.unet is second.unet
    assert first.controlnets["canny"] is second.controlnets["canny"]
    assert list(store.load("tiny").controlnets) == []


@pytest.mark.slow
def test_another_base_drops_the_first_but_not_from_who_holds_it(store: Store) -> None:
    held = store.load("tiny", "canny")
    other = store.load("sd15", "canny")
    assert other.unet is not held.unet
    assert store.load("tiny").unet is not held.unet  # it had been dropped
    assert held.decode(torch.zeros(1, 4, 2, 2)).isfinite().all()


@pytest.fixture
def three_controls(copy: Path) -> Store:
    """A store whose model has three equal ControlNets, of which it may hold two."""
    for name in ("second", "third"):
        shutil.copytree(copy / "tiny/controlnet/canny", copy / "tiny/controlnet" / name)
    store = Store("cpu", "float32", copy)
    (size,) = store.control_bytes("tiny", "canny").values()
    store.most_control_bytes = 2 * size
    return store


@pytest.mark.usefixtures("no_collector")
def test_the_least_recently_used_control_is_dropped(three_controls: Store) -> None:
    store = three_controls
    first, second = (weakref.ref(store.load("tiny", n).controlnets[n]) for n in ("canny", "second"))
    store.load("tiny", "canny")  # now used more recently
    store.load("tiny", "third")
    assert (first() is None, second() is None) == (False, True)


def test_a_control_in_use_counts_and_is_not_loaded_twice(three_controls: Store) -> None:
    """Beside one that a running request uses, only one more is kept, not two."""
    store = three_controls
    running = store.load("tiny", "canny")
    others = []
    for name in ("second", "third", "second", "third"):
        others.append(weakref.ref(store.load("tiny", name).controlnets[name]))
        gc.collect()
        assert sum(ref() is not None for ref in others) == 1
    assert store.load("tiny", "canny").controlnets["canny"] is running.controlnets["canny"]


def test_the_bytes_of_a_control_are_those_it_takes(copy: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        store = Store("cpu", dtype, copy)
        (told,) = store.control_bytes("tiny", "canny").values()
        assert told == store_module._bytes(store.load("tiny", "canny").controlnets.values())


def test_several_controls_share_one_base_and_none_of_them_is_dropped(copy: Path) -> None:
    shutil.copytree(copy / "tiny/controlnet/canny", copy / "tiny/controlnet/second")
    store = Store("cpu", "float32", copy, most_control_bytes=1)
    both = store.load("tiny", "second", "canny")
    assert list(both.controlnets) == ["second", "canny"]
    assert {"controlnet second", "controlnet canny"} <= both.hashes.keys()
    again = store.load("tiny", "canny", "second", "canny")
    assert again.unet is both.unet
    assert all(again.controlnets[name] is both.controlnets[name] for name in both.controlnets)
    alone = store.load("tiny", "canny")
    assert alone.controlnets["canny"] is both.controlnets["canny"]
    with pytest.raises(WeightsMissing, match="seg"):
        store.load("tiny", "canny", "seg")


def test_cards_with_one_base_share_it_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *given: calls.append(1) or real(*given))
    (copy / "other.toml").write_text(OTHER_CARD.format(base="tiny"), encoding="utf-8")
    shutil.copytree(copy / "tiny/controlnet/canny", copy / "other/controlnet/canny")
    store = Store("cpu", "float32", copy)
    first, other = store.load("tiny", "canny"), store.load("other", "canny")
    assert other.unet is first.unet and len(calls) == 1
    assert other.controlnets["canny"] is not first.controlnets["canny"]
    assert store.load("tiny", "canny").controlnets["canny"] is first.controlnets["canny"]


def test_a_checkpoint_of_ones_own_is_offered_with_every_family_of_controls(
    copy: Path, tmp_path: Path
) -> None:
    (copy / "sd15.toml").write_text(CARD + "[base]\n" + HUB_CARD.split("[base]\n")[1])
    (copy / "other.toml").write_text(OTHER_CARD.format(base="sd15"), encoding="utf-8")
    shutil.copytree(copy / "tiny/controlnet/canny", copy / "other/controlnet/canny")
    shutil.copytree(copy / "tiny", tmp_path / "mine")
    store = Store("cpu", "float32", copy)
    own = store.registry.card(str(tmp_path / "mine"))
    names = [card.name for card in store.registry.cards()]
    assert names == ["other", "sd15", "tiny", "mine", "mine+other"]
    loaded = store.load("mine+other", "canny")
    assert loaded.unet is store.load(own.name, "canny").unet
    shutil.copytree(copy / "tiny", tmp_path / "second")
    store.registry.card(str(tmp_path / "second"))
    assert [card.name for card in store.registry.cards()] == [*names, "second", "second+other"]


@pytest.mark.slow
def test_a_network_is_told_the_order_its_card_gives(copy: Path) -> None:
    """In a folder whose config does not say it, in one whose config does, and in a single file."""
    (copy / "other.toml").write_text(OTHER_CARD.format(base="tiny"), encoding="utf-8")
    folder, original = copy / "other/controlnet/canny", copy / "tiny/controlnet/canny"
    plain = Store("cpu", "float32", copy).load("tiny", "canny")
    hint = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 64, 64)
    wanted = _prediction(plain, hint.flip(1))
    assert not torch.allclose(_prediction(plain, hint), wanted, atol=1e-3)
    for said in ("rgb", "bgr", "file"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        config = folder / "config.json"
        if said == "file":
            config.unlink()
            (folder / "diffusion_pytorch_model.safetensors").rename(folder / "any name.safetensors")
        else:
            switch = json.loads(config.read_text()) | {
                "controlnet_conditioning_channel_order": said
            }
            config.write_text(json.dumps(switch))
        loaded = Store("cpu", "float32", copy).load("other", "canny")
        torch.testing.assert_close(_prediction(loaded, hint), wanted, rtol=1e-5, atol=1e-5)


def _prediction(networks: DiffusersNetworks, hint: torch.Tensor) -> torch.Tensor:
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    scales = (1.0,) * networks.residual_count("canny")
    text = networks.encode_text(["the red ball"])
    control = ControlInput("canny", hint, scales)
    return networks.predict(PredictCall(latents, 500, text, [control]))


def test_threads_share_one_load(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *given: calls.append(1) or real(*given))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(store.load("tiny", "canny"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({id(networks.controlnets["canny"]) for networks in found}) == 1


def test_hashes_follow_the_bytes(copy: Path) -> None:
    store = Store("cpu", "float32", copy)
    before = store.load("tiny", "canny").hashes
    assert before.keys() == {"unet", "vae", "text_encoder", "controlnet canny"}
    file = copy / "tiny/controlnet/canny/diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    after = Store("cpu", "float32", copy).load("tiny", "canny").hashes
    assert after.pop("controlnet canny") != before.pop("controlnet canny")
    assert after == before


def test_hashes_are_told_without_loading(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "lora").mkdir()
    save_file({"lora_unet_conv_in.alpha": torch.ones(1)}, copy / "lora" / "style.safetensors")
    loaded = Store("cpu", "float32", copy).load("tiny", "canny").hashes
    store = Store("cpu", "float32", copy)
    monkeypatch.setattr(store, "_build", None)
    found = store.hashes("tiny <lora:style:1> <lora:nothere:1>", "canny", "nothere", "../canny")
    assert found.pop("lora style") != loaded["unet"]
    assert found == loaded
    (copy / "tiny/controlnet/canny/diffusion_pytorch_model.safetensors").unlink()
    assert store.hashes("tiny", "canny").keys() == {"unet", "vae", "text_encoder"}


def test_a_card_lends_its_preview_matrix(copy: Path) -> None:
    matrix = "preview_matrix = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]\n"
    (copy / "tiny.toml").write_text(matrix + CARD, encoding="utf-8")
    store = Store("cpu", "float32", copy)
    assert store.load("tiny").preview_matrix.tolist() == torch.eye(4, 3).tolist()
    assert store.load("sd15").preview_matrix.shape == (5, 3)  # fitted, with a bias


def test_a_missing_part_is_named(copy: Path) -> None:
    for path, words in (
        ("tokenizer", "no tokenizer folder"),
        ("scheduler/scheduler_config.json", "no scheduler_config.json"),
    ):
        target = copy / "tiny" / path
        kept = target.rename(copy / "aside")
        with pytest.raises(WeightsMissing, match=words):
            Store("cpu", "float32", copy).load("tiny")
        kept.rename(target)
    assert Store("cpu", "float32", copy).load("tiny").name == "tiny"


def test_a_damaged_config_is_named(copy: Path) -> None:
    (copy / "tiny/unet/config.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsMismatch, match=r"config\.json is damaged"):
        Store("cpu", "float32", copy).load("tiny")


def test_weights_of_other_shapes_than_their_config_are_refused(copy: Path) -> None:
    config = copy / "tiny/unet/config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 2', '"layers_per_block": 1'))
    with pytest.raises(
        WeightsMismatch, match=r"unet does not fit: .* has the shape .* where .* is needed\.$"
    ):
        Store("cpu", "float32", copy).load("tiny")


def test_a_controlnet_with_parts_of_another_method_is_refused_not_run_without_them(
    copy: Path,
) -> None:
    folder = copy / "tiny/controlnet/canny"
    (weights,) = folder.glob("*.safetensors")
    more = {"features_adapter.weight": torch.zeros(2, 2)}
    save_file(load_file(weights) | more, weights)
    with pytest.raises(WeightsMismatch, match=r"it has weights named features_adapter\.weight"):
        Store("cpu", "float32", copy).load("tiny", "canny")


def test_what_the_hub_client_has_cached_loads_offline(
    copy: Path, models_folder: Path, hub_cache: Path
) -> None:
    """ControlNet++'s layout: the ControlNet in a subfolder of its repository."""
    shutil.rmtree(copy / "tiny")
    (copy / "tiny.toml").write_text(HUB_CARD, encoding="utf-8")
    card = Store("cpu", "float32", copy).registry.card("tiny")
    assert card.base
    for source, folder in (
        (card.base, models_folder / "tiny"),
        (card.controls["canny"], models_folder / "tiny/controlnet/canny"),
    ):
        repository = hub_cache / f"models--{source.hub.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / source.revision / source.subfolder)
    loaded = Store("cpu", "float32", copy).load("tiny", "canny")
    assert list(loaded.controlnets) == ["canny"]


def test_a_cached_single_file_loads_offline(copy: Path, hub_cache: Path) -> None:
    (copy / "other.toml").write_text(OTHER_CARD.format(base="tiny"), encoding="utf-8")
    store = Store("cpu", "float32", copy)
    with pytest.raises(WeightsMissing, match=r"canny_fp16\.safetensors \(700 MB\) of .*someone"):
        store.load("other", "canny")
    source = store.registry.card("other").controls["canny"]
    snapshot = hub_cache / "models--someone--others" / "snapshots" / source.revision
    snapshot.mkdir(parents=True)
    weights = copy / "tiny/controlnet/canny/diffusion_pytorch_model.safetensors"
    shutil.copy(weights, snapshot / "canny_fp16.safetensors")
    assert list(store.load("other", "canny").controlnets) == ["canny"]


def test_diorama_loads_where_it_is_shipped() -> None:
    store = Store("cpu", "float32")
    networks = store.load("diorama", store.registry.card("diorama").control_names()[0])
    latents = torch.randn(1, networks.latent_channels, 8, 8)
    assert networks.decode(latents).shape == (1, 3, 8 * networks.downscale, 8 * networks.downscale)
    assert replace(networks).name == "diorama"


def test_loras_are_merged_into_a_copy_and_named(copy: Path, networks: DiffusersNetworks) -> None:
    place = "down_blocks.0.attentions.0.proj_in"
    weight = networks.unet.get_submodule(place).weight
    (copy / "lora").mkdir()
    for name, value in (("one", 1.0), ("two", 2.0)):
        factors = {
            f"unet.{place}.lora_A.weight": torch.full((1, weight.shape[1], 1, 1), value),
            f"unet.{place}.lora_B.weight": torch.ones(weight.shape[0], 1, 1, 1),
        }
        save_file(factors, copy / "lora" / f"{name}.safetensors")
    store = Store("cpu", "float32", copy)
    plain = store.load("tiny", "canny")

    def added(networks: DiffusersNetworks) -> float:
        difference = networks.unet.get_submodule(place).weight - weight
        assert difference.std() < 1e-6
        return round(difference.mean().item(), 5)

    half = store.load("tiny <lora:one:0.5>", "canny")
    both = store.load("tiny <lora:one:0.5> <lora:two>", "canny")
    assert [added(found) for found in (plain, half, both)] == [0, 0.5, 2.5]
    assert half.controlnets["canny"] is both.controlnets["canny"] is plain.controlnets["canny"]
    assert both.text_encoder is plain.text_encoder and both.vae is plain.vae
    assert both.name == "tiny <lora:one:0.5> <lora:two>"
    assert both.hashes.keys() - plain.hashes.keys() == {"lora one", "lora two"}
    assert store.load("tiny <lora:one:0.5> <lora:two>", "canny") is both
    again = store.load("tiny", "canny")
    assert again.unet is plain.unet and again.name == "tiny" and added(again) == 0
    shutil.copy(copy / "lora/two.safetensors", copy / "lora/one.safetensors")
    assert added(store.load("tiny <lora:one:0.5>", "canny")) == 1  # the file is another by now
    with pytest.raises(WeightsMissing, match=r"no LoRA 'three' in .*lora \(it has: one, two\)"):
        store.load("tiny <lora:three:1>", "canny")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed here is freed at once: the garbage collector may come too late for a GPU."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_what_is_dropped_is_freed_before_the_next_is_loaded(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base and its version with LoRAs, and a ControlNet beyond the budget."""
    (copy / "lora").mkdir()
    factors = {
        "unet.conv_in.lora_A.weight": (1, 4, 3, 3),
        "unet.conv_in.lora_B.weight": (16, 1, 1, 1),
    }
    save_file({k: torch.ones(s) for k, s in factors.items()}, copy / "lora" / "one.safetensors")
    shutil.copytree(copy / "tiny/controlnet/canny", copy / "tiny/controlnet/second")
    store = Store("cpu", "float32", copy, most_control_bytes=1)
    held: list[weakref.ref[nn.Module]] = []
    for model in ("tiny", "tiny <lora:one:1>"):
        networks = store.load(model, "canny")
        held += [weakref.ref(networks.unet), weakref.ref(networks.controlnets["canny"])]
    del networks
    store.load("tiny", "second")
    assert [ref() is None for ref in held] == [False, True, False, True]
    real = loading.load_base

    def load_base(*given: object) -> object:
        assert [ref() is None for ref in held] == [True] * 4
        return real(*given)

    monkeypatch.setattr(loading, "load_base", load_base)
    store.load("sd15", "canny")


@pytest.mark.usefixtures("no_collector")
def test_only_the_latest_combinations_are_kept(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(copy / "tiny/controlnet/canny", copy / "tiny/controlnet/second")
    monkeypatch.setattr(store_module, "KEPT_READY", 2)
    store = Store("cpu", "float32", copy)
    first = weakref.ref(store.load("tiny", "canny"))
    second = weakref.ref(store.load("tiny", "second"))
    assert store.load("tiny", "canny") is first()
    store.load("tiny", "canny", "second")
    assert first() is not None and second() is None
    assert store.load("tiny", "second").unet is store.load("tiny", "canny").unet


def test_a_single_files_own_control_serves_though_no_card_lists_its_name(
    store: Store, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    parts = (networks.unet, networks.vae, networks.text_encoder)
    save_file(base_state(*(part.state_dict() for part in parts)), tmp_path / "mine.safetensors")
    (tmp_path / "mine" / "controlnet").mkdir(parents=True)
    own = tmp_path / "mine" / "controlnet" / "seg.safetensors"
    save_file(control_state(networks.controlnets["canny"].state_dict()), own)
    model = str(tmp_path / "mine.safetensors")
    assert store.registry.find(model, "seg")[1] == own
    assert list(store.load(model, "seg").controlnets) == ["seg"]
    with pytest.raises(WeightsMissing, match="no ControlNet 'depth'"):
        store.load(model, "depth")


def test_a_merged_file_is_of_the_first_family_wherever_it_lies(
    copy: Path, networks: DiffusersNetworks
) -> None:
    v10 = OTHER_CARD.format(base="sd15").replace("controls.canny", "controls.normal")
    (copy / "sd15_v10.toml").write_text(v10, encoding="utf-8")
    parts = (networks.unet, networks.vae, networks.text_encoder)
    base = base_state(*(part.state_dict() for part in parts))
    control = control_state(networks.controlnets["canny"].state_dict(), "control_model.")
    place = copy / "tiny/controlnet/normal"
    place.mkdir()
    for state, order in ((base | control, "bgr"), (control, "rgb")):
        save_file(state, place / "control_sd15_normal.safetensors")
        loaded = Store("cpu", "float32", copy).load("tiny", "normal").controlnets["normal"]
        assert loaded.config.controlnet_conditioning_channel_order == order


@pytest.mark.usefixtures("no_collector")
def test_room_for_a_control_is_made_before_it_is_loaded(
    three_controls: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = three_controls
    held = [weakref.ref(store.load("tiny", n).controlnets[n]) for n in ("canny", "second")]
    real, there = loading.load_control, []

    def load_control(*given: object) -> object:
        there.append([ref() is not None for ref in held])
        return real(*given)

    monkeypatch.setattr(loading, "load_control", load_control)
    store.load("tiny", "third")
    assert there == [[False, True]]


def test_a_difference_controlnet_is_added_to_the_base_in_use(
    copy: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    """And to another base's encoder when that base is chosen."""
    whole, other = networks.controlnets["canny"], tiny_networks(seed=1)
    place = copy / "sd15" / "controlnet"
    save_file(difference_state(whole, networks.unet), place / "own.safetensors")
    parts = (other.unet, other.vae, other.text_encoder)
    save_file(base_state(*(part.state_dict() for part in parts)), tmp_path / "other.safetensors")
    hint, latents = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    text = networks.encode_text(["the red ball"])

    def predict(loaded: DiffusersNetworks, name: str) -> torch.Tensor:
        control = ControlInput(name, hint, (1.0,) * loaded.residual_count(name))
        return loaded.predict(PredictCall(latents, 500, text, [control]))

    store = Store("cpu", "float32", copy)
    loaded = store.load("sd15", "own")
    torch.testing.assert_close(
        predict(loaded, "own"), predict(networks, "canny"), rtol=1e-4, atol=1e-4
    )
    moved = store.load(str(tmp_path / "other.safetensors"), "own").controlnets["own"].state_dict()
    before, after = networks.unet.state_dict(), other.unet.state_dict()
    for name, weight in whole.state_dict().items():
        wanted = weight - before[name] + after[name] if name in after else weight
        torch.testing.assert_close(moved[name], wanted, rtol=1e-4, atol=1e-4)
    assert len(moved.keys() & after.keys()) > 100


@pytest.fixture
def without_vae(networks: DiffusersNetworks, tmp_path: Path) -> Path:
    """A single file of another base, without a VAE."""
    other = tiny_networks(seed=1)
    state = base_state(other.unet.state_dict(), {}, other.text_encoder.state_dict())
    save_file(state, tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())


def test_a_checkpoint_without_a_vae_takes_that_of_its_family(
    store: Store, networks: DiffusersNetworks, without_vae: Path
) -> None:
    loaded = store.load(str(without_vae))
    assert _same_weights(loaded.vae, networks.vae)
    assert loaded.hashes["vae"] == store.load("sd15").hashes["vae"]
    blurb = store.registry.card(str(without_vae)).blurb
    assert blurb.endswith("It has no VAE of its own and is used with that of Tiny.")


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers", "pickle"])
def test_the_vae_beside_a_checkpoint_is_used_with_it(
    layout: str, store: Store, without_vae: Path
) -> None:
    vae = tiny_networks(seed=2).vae
    prefix = "first_stage_model."
    whole = base_state({}, vae.state_dict(), {})
    state = {
        "original": {name.removeprefix(prefix): weight for name, weight in whole.items()},
        "prefixed": whole,
        "diffusers": vae.state_dict(),
        "pickle": {name.removeprefix(prefix): weight for name, weight in whole.items()},
    }[layout]
    if layout == "pickle":
        torch.save({"state_dict": state, "epoch": 1}, without_vae.with_suffix(".vae.pt"))
    else:
        save_file(state, without_vae.with_suffix(".vae.safetensors"))
    assert _same_weights(store.load(str(without_vae)).vae, vae)
    assert "with the VAE beside it, bare.vae." in store.registry.card(str(without_vae)).blurb


def test_the_vae_to_download_is_that_of_the_base(
    copy: Path, without_vae: Path, hub_cache: Path
) -> None:
    shutil.rmtree(copy / "sd15" / "unet")
    (copy / "sd15" / "unet").mkdir()
    shutil.copy(copy / "tiny/unet/config.json", copy / "sd15/unet/config.json")
    kept = (copy / "sd15/vae/diffusion_pytorch_model.safetensors").rename(copy / "vae")
    hub = HUB_CARD.split("[base]")[1].replace(
        '"unet/config.json" = 700',
        '"vae/config.json" = 9\n"vae/diffusion_pytorch_model.safetensors" = 167000000',
    )
    (copy / "sd15.toml").write_text(CARD + "[base]" + hub, encoding="utf-8")
    store = Store("cpu", "float32", copy)
    with pytest.raises(WeightsMissing, match=r"^bare's VAE needs .*model\.safetensors \(167 MB\)"):
        store.load(str(without_vae))
    snapshot = hub_cache / "models--someone--tiny" / "snapshots" / ("0123456789" * 4) / "vae"
    snapshot.mkdir(parents=True)
    kept.rename(snapshot / "diffusion_pytorch_model.safetensors")
    shutil.copy(copy / "sd15/vae/config.json", snapshot)
    assert store.load(str(without_vae)).vae is not None


def test_averaged_weights_are_not_used(
    store: Store, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    parts = (networks.unet, networks.vae, networks.text_encoder)
    state = base_state(*(part.state_dict() for part in parts))
    averaged = {
        "model_ema." + "".join(name.split(".")[1:]): torch.zeros_like(weight)
        for name, weight in state.items()
        if name.startswith("model.")
    }
    save_file(state | averaged, tmp_path / "both.safetensors")
    assert _same_weights(store.load(str(tmp_path / "both.safetensors")).unet, networks.unet)
    save_file(averaged, tmp_path / "averaged.safetensors")
    with pytest.raises(WeightsMismatch, match="of averaged weights alone"):
        store.load(str(tmp_path / "averaged.safetensors"))


def test_a_t2i_adapter_stands_in_a_controlnets_place(
    copy: Path, networks: DiffusersNetworks
) -> None:
    tiny_adapter(networks.unet).save_pretrained(copy / "sd15" / "controlnet" / "own")
    loaded = Store("cpu", "float32", copy).load("sd15", "own")
    assert loaded.is_adapter("own") and "controlnet own" in loaded.hashes
    text, latents = loaded.encode_text(["the red ball"]), torch.randn(1, 4, 8, 8)
    scales = (1.0,) * loaded.residual_count("own")
    control = ControlInput("own", torch.rand(1, 3, 64, 64), scales, is_adapter=True)
    call = PredictCall(latents, 500, text, [control])
    features = loaded.controlnets["own"](control.hint)
    wanted = networks.unet(
        latents, 500, text, down_intrablock_additional_residuals=[one.clone() for one in features]
    )
    torch.testing.assert_close(loaded.predict(call), wanted.sample, rtol=1e-4, atol=1e-4)
