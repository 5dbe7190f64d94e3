"""The kernels compile for every target, and Python reads from them what both must agree on."""

import shutil
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from models.engine.kernels import attention, build, groupnorm
from models.engine.kernels.build import KERNELS, kernel
from models.engine.layers import VNNI, WINOGRAD, convolve, multiply


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_compiles(name: str) -> None:
    assert kernel(name) is not None


def test_the_app_never_uses_the_portable_build() -> None:
    assert build.target in (*build.TARGETS, None)


@pytest.mark.parametrize(
    ("missing", "limit", "isa"),
    [
        ((), "", "AVX512_CORE_BF16"),
        (("avx512_bf16",), "", "AVX512_CORE_VNNI"),
        (("avx512_bf16", "avx512_vnni"), "", "AVX512_CORE"),
        (("avx512_bf16", "avx512_f"), "", "AVX2"),
        (("avx512_f", "fma3"), "", None),
        ((), "AVX512_CORE_AMX", "AVX512_CORE_BF16"),
        ((), "ALL", "AVX512_CORE_BF16"),
        ((), "avx512_core_vnni", "AVX512_CORE_VNNI"),
        ((), "AVX2_VNNI", "AVX2"),
        (("avx512_bf16",), "AVX512_CORE_BF16", "AVX512_CORE_VNNI"),
        ((), "SSE41", None),
    ],
)
def test_the_best_target_is_what_the_processor_has_and_onednns_limit_allows(
    missing: tuple[str, ...], limit: str, isa: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {feature: feature not in missing for one in build.TARGETS for feature in one.features}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setenv(build.LIMIT_VARIABLE, limit)
    found = build.best_target()
    assert (found.isa if found else None) == isa


@pytest.fixture
def cache(compiled: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and one small kernel that compiles at once."""
    (tmp_path / "tiny.cpp").write_text('extern "C" int answer() { return 42; }', encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "controlloop"


def answer() -> int | None:
    build.kernel.cache_clear()
    found = kernel("tiny")
    return found.answer() if found else None


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["portable"], indirect=True)
def test_a_library_that_was_cut_is_compiled_again(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer() == 42
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    library.unlink()  # a new file: this process has the old one's pages in memory
    library.write_bytes(whole[: len(whole) // 2])
    assert answer() == 42
    (again,) = cache.iterdir()
    assert again.read_bytes() == whole and "compiled again" in caplog.text
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["portable"], indirect=True)
@pytest.mark.parametrize("what", ["folder", "library"])
def test_what_others_can_write_is_not_loaded(
    cache: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    assert answer() == 42
    (cache if what == "folder" else next(cache.iterdir())).chmod(0o777)
    assert answer() is None
    assert "others can write to it" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["portable"], indirect=True)
def test_another_users_cache_is_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42
    monkeypatch.setattr(build, "ROOT", -1)
    monkeypatch.setattr(build.os, "getuid", lambda: 12345)
    assert answer() is None and "another user's" in caplog.text


@pytest.mark.parametrize("compiled", ["portable"], indirect=True)
def test_the_compilers_message_is_told(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (build.SOURCES / "tiny.cpp").write_text("int answer() { return forty_two; }", encoding="utf-8")
    assert answer() is None
    assert "forty_two" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["portable"], indirect=True)
@pytest.mark.usefixtures("compiled")
def test_a_changed_constant_reaches_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Panels of another width, blocks of another depth, and narrower limits."""
    sources = tmp_path / "sources"
    shutil.copytree(build.SOURCES, sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, *changes in (
        ("integers.h", ("PANEL = 64", "PANEL = 32"), ("DEPTH = 128", "DEPTH = 64")),
        ("attention.cpp", ("WIDEST = 512", "WIDEST = 16")),
        ("groupnorm.cpp", ("return LANES;", "return 64;")),
    ):
        text = (sources / name).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        (sources / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    linear = nn.Linear(64, 96).bfloat16().requires_grad_(False)
    x = torch.randn(5, 64).bfloat16()
    wanted = linear(x)
    torch.testing.assert_close(multiply(linear, x), wanted, rtol=2e-2, atol=2e-2)
    assert linear.weight.packing is VNNI
    convolution = nn.Conv2d(160, 96, 3, padding=1).bfloat16().requires_grad_(False)
    x = torch.randn(1, 160, 12, 12).bfloat16().contiguous(memory_format=torch.channels_last)
    wanted = convolution(x)
    torch.testing.assert_close(convolve(convolution, x), wanted, rtol=2e-2, atol=2e-2)
    assert convolution.weight.packing is WINOGRAD
    monkeypatch.setattr(attention, "_attended", lambda *_: pytest.fail("the head is too wide"))
    attention.attention(*[torch.randn(1, 4, 1, 40).bfloat16()] * 3)
    monkeypatch.setattr(groupnorm, "_normalized", lambda *_: pytest.fail("160 is no multiple"))
    groupnorm.group_norm(nn.GroupNorm(2, 160).bfloat16().requires_grad_(False), x)
