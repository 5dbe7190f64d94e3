"""Every layout in which weights are passed around loads to networks that compute the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks._ldm_layout import base_state, control_state
from core.errors import WeightsMismatch, WeightsMissing
from core.networks import ControlInput, PredictCall
from models.checkpoints.folders import inspect_control
from models.networks import DiffusersNetworks
from models.store import Store
from tests.conftest import CARD
from tests.tiny_networks import save_networks, tiny_unet


def outputs(networks: DiffusersNetworks, control: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Return one text encoding, one prediction and one picture, for fixed inputs."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    hint = torch.rand(2, 3, 64, 64, generator=generator)
    text = networks.encode_text(["the red ball", ""])
    scales = (1.0,) * networks.residual_count(control) if control else ()
    controls = [ControlInput(control, hint, scales)] if control else []
    noise = networks.predict(PredictCall(latents, 500, text, controls))
    return text, noise, networks.decode(latents)


def assert_same(loaded: DiffusersNetworks, original: DiffusersNetworks, control: str = "") -> None:
    """Compare what two models compute; the original calls its ControlNet canny."""
    ours, theirs = outputs(loaded, control), outputs(original, "canny" if control else "")
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture
def checkpoint(networks: DiffusersNetworks) -> dict[str, Tensor]:
    """The tiny model as one Stable Diffusion 1.x state dict, with the table old files carry."""
    state = base_state(
        networks.unet.state_dict(), networks.vae.state_dict(), networks.text_encoder.state_dict()
    )
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return state | {positions: torch.arange(77)[None]}


@pytest.fixture
def control(networks: DiffusersNetworks) -> dict[str, Tensor]:
    """The tiny ControlNet in diffusers' names."""
    return networks.controlnets["canny"].state_dict()


def test_a_folder_in_diffusers_layout(store: Store, networks: DiffusersNetworks) -> None:
    assert_same(store.load("tiny", "canny"), networks, "canny")


def test_a_folder_of_a_distilled_lcm(
    models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    """Its UNet takes the guidance scale as an input; diffusers: time_cond_proj_dim."""
    distilled = replace(networks, unet=tiny_unet(time_cond_proj_dim=8))
    save_networks(distilled, tmp_path / "tiny")
    shutil.copy(models_folder / "tiny.toml", tmp_path)
    loaded = Store("cpu", "float32", tmp_path).load("tiny", "canny")
    assert loaded.takes_guidance_scale
    call = PredictCall(torch.ones(1, 4, 8, 8), 500, networks.encode_text(["the red ball"]))
    for scale in (1.0, 8.0):
        told = replace(call, guidance_scale=scale)
        torch.testing.assert_close(loaded.predict(told), distilled.predict(told))


def test_a_folder_of_a_unet_without_a_middle_block(
    models_folder: Path,
    networks: DiffusersNetworks,
    control: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    """As BK-SDM-Tiny's; diffusers' ControlNets always have one."""
    distilled = replace(networks, unet=tiny_unet(mid_block_type=None))
    save_networks(distilled, tmp_path / "tiny")
    shutil.copy(models_folder / "tiny.toml", tmp_path)
    assert_same(Store("cpu", "float32", tmp_path).load("tiny", "canny"), distilled, "canny")
    file = tmp_path / "canny.safetensors"
    save_file(control_state(control), file)
    with pytest.raises(WeightsMismatch, match="other blocks"):
        inspect_control(file, dict(distilled.unet.config))


def test_control_changes_the_prediction(networks: DiffusersNetworks) -> None:
    assert not torch.allclose(outputs(networks)[1], outputs(networks, "canny")[1], atol=1e-2)


def test_a_folder_named_by_path_without_a_card(
    store: Store, models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    (tmp_path / "mine").symlink_to(models_folder / "tiny", target_is_directory=True)
    loaded = store.load(str(tmp_path / "mine"), "canny")
    assert_same(loaded, networks, "canny")
    assert store.load(loaded.name, "canny").unet is loaded.unet


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_base_as_a_single_file(
    suffix: str,
    checkpoint: dict[str, Tensor],
    store: Store,
    networks: DiffusersNetworks,
    tmp_path: Path,
) -> None:
    path = tmp_path / f"my model é{suffix}"
    if suffix == ".safetensors":
        save_file(checkpoint, path)
    else:
        torch.save({"state_dict": checkpoint, "global_step": 7}, path)
    loaded = store.load(str(path))
    assert_same(loaded, networks)
    assert list(loaded.hashes) == ["checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("", ".safetensors"),
        ("", ".pth"),
        ("control_model.", ".safetensors"),
        ("control_model.", ".pth"),
    ],
)
def test_a_control_in_the_original_names(
    layout: tuple[str, str],
    control: dict[str, Tensor],
    models_folder: Path,
    networks: DiffusersNetworks,
    tmp_path: Path,
) -> None:
    prefix, suffix = layout
    state = control_state(control, prefix)
    assert_same(_with_control_file(tmp_path, models_folder, suffix, state), networks, "mine")


def test_a_control_in_diffusers_names_as_a_single_file(
    control: dict[str, Tensor], models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    state = {key: tensor.contiguous() for key, tensor in control.items()}
    loaded = _with_control_file(tmp_path, models_folder, ".safetensors", state)
    assert_same(loaded, networks, "mine")


@pytest.mark.slow
def test_a_merged_file_of_version_1_0_serves_as_both(
    checkpoint: dict[str, Tensor],
    control: dict[str, Tensor],
    models_folder: Path,
    networks: DiffusersNetworks,
    tmp_path: Path,
) -> None:
    merged = checkpoint | control_state(control, "control_model.")
    loaded = _with_control_file(tmp_path, models_folder, ".pth", merged)
    assert_same(loaded, networks, "mine")
    path = tmp_path / "control_sd15_canny.pth"
    torch.save(merged, path)
    assert_same(Store("cpu", "float32", models_folder).load(str(path)), networks)


@pytest.mark.slow
def test_a_merged_file_brings_its_own_control(
    checkpoint: dict[str, Tensor],
    control: dict[str, Tensor],
    models_folder: Path,
    networks: DiffusersNetworks,
    tmp_path: Path,
) -> None:
    """No ControlNet lies beside the card, and none can be fetched: only the file's own is there."""
    _copy_model(models_folder, tmp_path)
    shutil.rmtree(tmp_path / "sd15" / "controlnet")
    names = ("canny", "depth", "normal", "pose")
    source = "[controls.{}]\nhub = 'nobody/nothing'\nrevision = '{}'\nfiles = {{ 'a.bin' = 1 }}\n"
    sources = "".join(source.format(name, "0" * 40) for name in names)
    (tmp_path / "sd15.toml").write_text(CARD + sources, encoding="utf-8")
    reversed_ = "base_of = 'sd15'\n" + CARD + source.format("normal", "0" * 40)
    (tmp_path / "sd15_v10.toml").write_text(f"{reversed_}channel_order = 'bgr'\n", encoding="utf-8")
    store = Store("cpu", "float32", tmp_path)
    merged = checkpoint | control_state(control, "control_model.")
    for file, own, other in (
        ("control_sd15_canny", "canny", "depth"),
        ("control_sd15_openpose", "pose", "canny"),
        ("control_sd15_normal", "normal", "canny"),
        ("both", "depth", None),
    ):
        path = tmp_path / f"{file}.pth"
        torch.save(merged, path)
        loaded = store.load(str(path), own)
        order = loaded.controlnets[own].config.controlnet_conditioning_channel_order
        assert order == ("bgr" if own == "normal" else "rgb")
        if order == "rgb":
            assert_same(loaded, networks, own)
        if other:
            with pytest.raises(WeightsMissing, match="nobody/nothing"):
                store.load(str(path), other)
    with pytest.raises(WeightsMissing, match="nobody/nothing"):  # asked for the other family's
        store.load("control_sd15_normal+sd15_v10", "normal")


def test_a_plain_checkpoint_named_for_a_control_brings_none(
    checkpoint: dict[str, Tensor], store: Store, tmp_path: Path, models_folder: Path
) -> None:
    save_file(checkpoint, tmp_path / "uncanny.safetensors")
    _, control_path = store.registry.find(str(tmp_path / "uncanny.safetensors"), "canny")
    assert control_path == models_folder / "sd15" / "controlnet" / "canny"


def test_a_sharded_half_precision_folder(
    models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    """Diorama's own layout: shards below a limit, float16 on disk, read as float32."""
    _copy_model(models_folder, tmp_path)
    for file in (tmp_path / "tiny" / "unet").glob("*.safetensors"):
        file.unlink()
    half = type(networks.unet).from_config(networks.unet.config).half()
    half.load_state_dict(networks.unet.state_dict())
    half.save_pretrained(tmp_path / "tiny" / "unet", max_shard_size="100KB")
    assert len(list((tmp_path / "tiny" / "unet").glob("*.safetensors"))) > 1
    loaded = Store("cpu", "float32", tmp_path).load("tiny")
    assert loaded.unet.dtype == torch.float32
    for found, wanted in zip(outputs(loaded), outputs(networks), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)


def test_a_folder_of_pickles_loads_but_never_runs_code(
    models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it_ran",)

    _copy_model(models_folder, tmp_path)
    unet = tmp_path / "tiny" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(networks.unet.state_dict(), unet / "diffusion_pytorch_model.bin")
    assert_same(Store("cpu", "float32", tmp_path).load("tiny", "canny"), networks, "canny")
    torch.save({"conv_in.weight": Bomb()}, unet / "diffusion_pytorch_model.bin")
    with pytest.raises(WeightsMismatch, match="would run code"):
        Store("cpu", "float32", tmp_path).load("tiny")
    assert not (tmp_path / "it_ran").exists()


def test_an_incomplete_file_is_refused_by_the_missing_weight(
    checkpoint: dict[str, Tensor], store: Store, tmp_path: Path
) -> None:
    del checkpoint["model.diffusion_model.out.2.bias"]
    save_file(checkpoint, tmp_path / "partial.safetensors")
    with pytest.raises(
        WeightsMismatch, match=r"partial\.safetensors is incomplete.*conv_out\.bias"
    ):
        store.load(str(tmp_path / "partial.safetensors"))


def test_a_folder_with_a_weight_missing_is_refused(
    models_folder: Path, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    _copy_model(models_folder, tmp_path)
    state = networks.unet.state_dict()
    del state["conv_out.bias"]
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(state, tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"incomplete, conv_out\.bias is missing"):
        Store("cpu", "float32", tmp_path).load("tiny")


def test_the_shipped_shape_is_stable_diffusion_1_5() -> None:
    """models/sd15 builds networks of the published sizes; no weights are made for it."""
    folder = Path(__file__).parents[3] / "models" / "sd15"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            json.loads((folder / "unet/config.json").read_text())
        )
        vae = AutoencoderKL.from_config(json.loads((folder / "vae/config.json").read_text()))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (unet, vae, text)]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def _with_control_file(
    folder: Path, models_folder: Path, suffix: str, state: dict[str, Tensor]
) -> DiffusersNetworks:
    """Load the tiny model with this file as its control `mine`."""
    _copy_model(models_folder, folder)
    path = folder / "tiny" / "controlnet" / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return Store("cpu", "float32", folder).load("tiny", "mine")


def _copy_model(models_folder: Path, folder: Path) -> None:
    shutil.copytree(models_folder, folder, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lllite_unet_x.conditioning1.0.weight", "a ControlNet-LLLite"),
        ("adapter.body.0.resnets.0.block1.weight", "a T2I-Adapter"),
        ("unet.x.to_q.lora.down.weight", "a LoRA"),
        ("emb_params", "a textual inversion embedding"),
    ],
)
def test_what_lies_in_a_controlnets_place_is_named(
    key: str, kind: str, networks: DiffusersNetworks, tmp_path: Path
) -> None:
    save_file({key: torch.zeros(4, 4)}, tmp_path / "canny.safetensors")
    with pytest.raises(WeightsMismatch, match=rf"^canny\.safetensors is {kind}: a ControlNet \("):
        inspect_control(tmp_path / "canny.safetensors", dict(networks.unet.config))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "T2IAdapter"}))
    with pytest.raises(WeightsMismatch, match="is a T2IAdapter: a ControlNet"):
        inspect_control(tmp_path, dict(networks.unet.config))
