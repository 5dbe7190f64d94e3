"""A weights file is named for what it is before anything is built from it."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from core.errors import WeightsMismatch, WeightsMissing
from models.checkpoints.detect import (
    BASE,
    CONTROLNET,
    MERGED,
    describe,
    identify,
    read_shapes,
    read_state,
    require,
)

ATTENTION = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
UNET = "model.diffusion_model."


def base(width: int, channels: int = 4) -> dict[str, tuple[int, ...]]:
    """Return the tell-tale shapes of a base checkpoint."""
    return {
        f"{UNET}input_blocks.0.0.weight": (320, channels, 3, 3),
        f"{UNET}{ATTENTION}": (320, width),
        "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    }


def control(width: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return the tell-tale shapes of a ControlNet in the original layout."""
    return {
        f"{prefix}input_hint_block.0.weight": (16, 3, 3, 3),
        f"{prefix}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{prefix}{ATTENTION}": (320, width),
    }


DIFFUSERS_CONTROL = {
    "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
    "conv_in.weight": (320, 4, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768),
}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (base(768), "a base checkpoint (Stable Diffusion 1.x)"),
        (base(1024), "a base checkpoint (Stable Diffusion 2.x)"),
        (base(2048), "a base checkpoint (Stable Diffusion XL)"),
        (control(768), "a ControlNet (Stable Diffusion 1.x)"),
        (control(768, "control_model."), "a ControlNet (Stable Diffusion 1.x)"),
        (control(2048), "a ControlNet (Stable Diffusion XL)"),
        (DIFFUSERS_CONTROL, "a ControlNet (Stable Diffusion 1.x)"),
        (
            base(768) | control(768, "control_model."),
            "a base checkpoint with a ControlNet inside (Stable Diffusion 1.x)",
        ),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 9)}, "a LoRA"),
        ({"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": (4, 9)}, "a LoRA"),
        ({"mid_block.attentions.0.attn1.processor.to_k_lora.down.weight": (4, 9)}, "a LoRA"),
        ({"text_encoder.text_model.q_proj.lora_linear_layer.up.weight": (9, 4)}, "a LoRA"),
        (
            {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)},
            "a LoRA (Stable Diffusion 1.x)",
        ),
        ({"unet.x.attn2.to_k.lora_A.weight": (4, 1024)}, "a LoRA (Stable Diffusion 2.x)"),
        ({"x.attn2.processor.to_k_lora.down.weight": (4, 2048)}, "a LoRA (Stable Diffusion XL)"),
        ({"lycoris_x.hada_w1_a": (4, 9), "lycoris_x.alpha": ()}, "a LoRA"),
        ({"x.lokr_w1": (4, 9)}, "a LoRA"),
        ({"x.a1.weight": (4, 9)}, "a LoRA"),
        ({"x.w_norm": (4,)}, "a LoRA"),
        ({"unet.x.attn2.to_k.lora.down.weight": (4, 768)}, "a LoRA (Stable Diffusion 1.x)"),
        ({"x.attn2.to_k.lora.down.weight": (4, 768)}, "a LoRA (Stable Diffusion 1.x)"),
        ({"lora_unet_x_attn2_to_k.hada_w1_b": (4, 2048)}, "a LoRA (Stable Diffusion XL)"),
        ({"lora_unet_x.on_input": (), "lora_unet_x.weight": (9,)}, "a LyCORIS of a kind that is"),
        ({"lora_unet_x.oft_blocks": (2, 9, 9)}, "a LyCORIS of a kind that is"),
        ({"lllite_unet_x.conditioning1.0.weight": (16, 3, 4, 4)}, "a ControlNet-LLLite"),
        ({"ip_adapter.0.to_q_lora.down.weight": (4, 768)}, "an IP-Adapter"),
        ({"string_to_param.*": (4, 768)}, "a textual inversion embedding"),
        (
            {"lora_controlnet": (), "input_hint_block.0.weight": (16, 3, 3, 3)},
            "a Control-LoRA",
        ),
        ({"adapter.body.0.resnets.0.block1.weight": (9, 9, 3, 3)}, "a T2I-Adapter"),
        ({"body.0.block1.weight": (9, 9, 3, 3), "conv_in.weight": (9, 9)}, "a T2I-Adapter"),
        ({"style_embedding": (1, 8, 9), "ln_pre.weight": (9,)}, "a T2I-Adapter"),
        ({"image_proj.proj.weight": (9, 9)}, "an IP-Adapter"),
        (
            {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (9,)},
            "an AnimateDiff motion module",
        ),
        ({"emb_params": (3, 768)}, "a textual inversion embedding"),
        ({"double_blocks.0.img_attn.proj.weight": (9, 9)}, "a Flux checkpoint"),
        ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (9, 9)}, "a Stable Diffusion 3 checkp"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "an autoencoder alone"),
        ({"layer1.weight": (3, 3)}, "a file of an unknown kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_is_named_by_its_keys(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    assert describe(identify(shapes)).startswith(words)


@pytest.mark.parametrize(
    ("shapes", "kinds", "words"),
    [
        (base(2048), (BASE, MERGED), "is a base checkpoint (Stable Diffusion XL)"),
        (base(1024), (BASE, MERGED), "is a base checkpoint (Stable Diffusion 2.x)"),
        (base(32), (BASE, MERGED), "is a base checkpoint (text width 32)"),
        (control(768), (BASE, MERGED), "is a ControlNet (Stable Diffusion 1.x)"),
        (base(768), (CONTROLNET, MERGED), "is a base checkpoint (Stable Diffusion 1.x)"),
        (control(2048), (CONTROLNET, MERGED), "is a ControlNet (Stable Diffusion XL)"),
        (base(768, 9), (BASE, MERGED), "is a base checkpoint made for inpainting"),
        ({"emb_params": (3, 768)}, (BASE, MERGED), "is a textual inversion embedding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(
    shapes: dict[str, tuple[int, ...]], kinds: tuple[str, ...], words: str
) -> None:
    with pytest.raises(WeightsMismatch, match=re.escape(words)) as refusal:
        require("x.safetensors", identify(shapes), kinds, 768, 4)
    assert str(refusal.value).startswith("x.safetensors ")
    assert str(refusal.value).count(".") <= 4  # one sentence, apart from names such as 1.x


def test_what_fits_passes() -> None:
    require("x", identify(base(768)), (BASE, MERGED), 768, 4)
    require("x", identify(control(768)), (CONTROLNET, MERGED), 768, 4)
    merged = identify(base(768) | control(768, "control_model."))
    require("x", merged, (CONTROLNET, MERGED), 768, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>Log in</html>", "web page"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>Log in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"", "empty"),
        (b"PK\x03\x04" + b"\0" * 60, "pickle"),
        (b"\xff" * 64, "truncated"),
        ((40).to_bytes(8, "little") + b"{" * 40, "damaged"),
        ((2).to_bytes(8, "little") + b"{}", "damaged"),
        ((22).to_bytes(8, "little") + b'{"a":{"data_offsets":3', "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_safetensors_file_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match=words):
        read_shapes(path)
    with pytest.raises(WeightsMismatch, match=words):
        read_state(path)


def test_a_truncated_file_tells_how_long_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(WeightsMismatch, match=f"should be {len(whole)} bytes long"):
        read_shapes(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it_ran",)

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": Bomb()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsMismatch, match="would run code"):
        read_shapes(path)
    assert not (tmp_path / "it_ran").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "it_ran").exists()  # so the bomb was a real one


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02}", b"\x80"])
def test_a_broken_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match=r"^model\.pth"):
        read_shapes(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_pickle_loads_in_old_and_new_format(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    content = {"state_dict": {"a": torch.arange(6.0).reshape(2, 3)}, "step": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert read_shapes(path) == {"a": (2, 3)}
    assert torch.equal(read_state(path)["a"], torch.arange(6.0).reshape(2, 3))


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no weights file"):
        read_shapes(tmp_path / "none.safetensors")


def test_parts_in_dicts_of_their_own_are_named_by_their_part(tmp_path: Path) -> None:
    weight = torch.ones(2, 3)
    content = {"image_proj": {"proj.weight": weight}, "ip_adapter": {"1.to_k_ip.weight": weight}}
    path = tmp_path / "ip-adapter_sd15.bin"
    torch.save(content, path)
    shapes = read_shapes(path)
    assert shapes.keys() == {"image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"}
    assert identify(shapes).kind == "an IP-Adapter"


@pytest.mark.parametrize("length", [640, 828, 15392, 19280, 66176])
def test_a_safetensors_file_is_known_whatever_its_headers_length_spells(
    length: int, tmp_path: Path
) -> None:
    raw = save({"conv_in.weight": torch.zeros(2, 4, 3, 3)})
    end = 8 + int.from_bytes(raw[:8], "little")
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + raw[8:end].ljust(length) + raw[end:])
    assert read_shapes(path) == {"conv_in.weight": (2, 4, 3, 3)}


KINDS = {
    "base": base(768),
    "inpainting": base(768, 9),
    "control": control(768),
    "prefixed control": control(768, "control_model."),
    "merged": base(768) | control(768, "control_model."),
    "diffusers control": DIFFUSERS_CONTROL,
    "lora": {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 768)},
    "embedding": {"emb_params": (3, 768)},
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)


class Callback:
    """As a trainer saves it beside the weights."""


def write(state: dict[str, torch.Tensor], container: str, path: Path) -> None:
    """Write weights as safetensors or as one of torch's pickles, whatever the path's suffix."""
    if container == "safetensors":
        path.write_bytes(save(state))
        return
    content: dict[object, object] = dict(state)
    if "nested" in container:
        content = {"state_dict": state, "epoch": 3}
    if "callbacks" in container:
        content = {"state_dict": state, "callbacks": {Callback: Callback()}}
    torch.save(content, path, _use_new_zipfile_serialization="old" not in container)


CONTAINERS = ["safetensors", *("zip", "nested zip", "zip with callbacks")]
CONTAINERS += ["old", "nested old", "old with callbacks"]
SUFFIXES = [".safetensors", ".SAFETENSORS", ".ckpt", ".pth", ".pt", ".bin", ".fp16", ""]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from(DTYPES),
    container=st.sampled_from(CONTAINERS),
    suffix=st.sampled_from(SUFFIXES),
    padding=st.integers(0, 40),
)
def test_what_a_file_is_depends_on_its_contents_alone(
    kind: str, dtype: torch.dtype, container: str, suffix: str, padding: int, tmp_path: Path
) -> None:
    """Not on its suffix, its container, its number format or the length of its header."""
    if "old" in container and dtype == torch.float8_e4m3fn:
        dtype = torch.float16  # torch cannot read the other
    shapes = KINDS[kind]
    state = {name: torch.ones(shape).to(dtype) for name, shape in shapes.items()}
    state |= {"x" * (padding + 1): torch.zeros(1).to(dtype)}
    path = tmp_path / f"file{suffix}"
    write(state, container, path)
    if container != "safetensors" and suffix == ".safetensors":
        with pytest.raises(WeightsMismatch, match=r"a pickle named \.safetensors"):
            read_shapes(path)
        return
    assert read_shapes(path) == {name: tuple(one.shape) for name, one in state.items()}
    assert identify(read_shapes(path)) == identify(shapes)
    found = read_state(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == dtype and torch.equal(found[name].float(), tensor.float())


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
@pytest.mark.parametrize("per_output", [False, True])
def test_a_float8_weight_has_its_scale(
    end: str, kind: torch.dtype, shape: tuple[int, ...], per_output: bool, tmp_path: Path
) -> None:
    """As ComfyUI and diffusers quantise a layer: the largest weight becomes the largest float8."""
    weight = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    largest = weight.abs().flatten(1).amax(1) if per_output else weight.abs().max()
    scale = largest / torch.finfo(kind).max
    small = (weight / scale.reshape(-1, *[1] * (len(shape) - 1))).to(kind)
    state = {"a.weight": small, f"a.{end}": scale, "b.weight": small.clone(), "c.weight": weight}
    for path in (tmp_path / "x.safetensors", tmp_path / "x.ckpt"):
        (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
        found = read_state(path)
        torch.testing.assert_close(found["a.weight"], weight, rtol=0.13, atol=1e-3)
        assert torch.equal(found["b.weight"].float(), small.float())  # has none
        assert torch.equal(found["c.weight"], weight)
