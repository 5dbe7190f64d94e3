"""The device and the number format are chosen by what is there, and said."""

from pathlib import Path

import pytest
import torch

from core.errors import BadInput, DeviceUnavailable
from models import devices
from models.devices import choose_device
from models.engine.kernels import build
from models.engine.kernels.build import LIMIT_VARIABLE


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a GPU that the machine may have."""
    monkeypatch.delenv(devices.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("count", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_threads_are_counted(
    count: int, words: str, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert choose_device("cpu")[2].startswith(f"CPU, {words}, ")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx2", "avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        ({"avx2", "avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_a_processor_gets_bfloat16_only_with_instructions_for_it(
    flags: set[str], dtype: torch.dtype, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    monkeypatch.setattr(build, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(devices, "has_kernels", lambda: False)
    device, chosen, note = choose_device()
    assert (device.type, chosen) == ("cpu", dtype)
    assert note.startswith("CPU")
    assert str(dtype).removeprefix("torch.") in note


@pytest.mark.parametrize("reason", ["flags", "limit"])
def test_kernels_of_our_own_make_bfloat16_fast_elsewhere(
    reason: str, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_kernels", lambda: True)
    monkeypatch.setattr(
        build, "_cpu_flags", lambda: {"avx2", *["avx512_bf16"] * (reason == "limit")}
    )
    monkeypatch.setenv(LIMIT_VARIABLE, "AVX2" if reason == "limit" else "")
    assert not build.cpu_has_bfloat16()
    _, chosen, note = choose_device()
    assert chosen == torch.bfloat16 and "kernels for this processor" in note


@pytest.mark.parametrize(
    ("capability", "dtype"), [((8, 0), torch.float16), ((6, 1), torch.float32)]
)
def test_a_gpu_gets_float16_where_it_is_fast(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(devices.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test card")
    device, chosen, note = choose_device()
    assert (device.type, chosen) == ("cuda", dtype)
    assert note.startswith("Test card")
    with pytest.raises(DeviceUnavailable, match="last GPU here is cuda:0"):
        choose_device("cuda:3")
    assert choose_device("cpu")[0].type == "cpu"


def test_the_flags_of_this_machine_are_read() -> None:
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        pytest.skip("this system does not list its processor's features")
    assert "flags" in listing.read_text() or "Features" in listing.read_text()
    assert build._cpu_flags()


def test_a_missing_gpu_is_reported(no_gpu: None) -> None:
    with pytest.raises(DeviceUnavailable, match="no working NVIDIA GPU"):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "CPU ", "cpu:0\n"])
def test_a_malformed_variable_is_named(
    name: str, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.DEVICE_VARIABLE, name)
    with pytest.raises(BadInput, match=r"^CONTROLLOOP_DEVICE is '"):
        choose_device()


def test_the_argument_goes_before_the_variable(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.DEVICE_VARIABLE, "cuda")
    assert choose_device("cpu", "float16")[:2] == (torch.device("cpu"), torch.float16)


def test_an_unknown_format_is_refused(no_gpu: None) -> None:
    with pytest.raises(BadInput, match="float32, bfloat16, float16"):
        choose_device("cpu", "int8")
