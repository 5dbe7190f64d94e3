"""What only a GPU can show: CUDA graphs, its kernels, the decoder, and whole requests on it.

Elsewhere all of it is skipped; tests/models has what a CPU can show of the same.
"""

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from annotators import find_annotator
from core.condition import ALREADY_A_MAP, Condition
from core.networks import ControlInput, PredictCall
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.checkpoints.loading import Placement
from models.engine import cuda_graph
from models.engine.cuda_graph import CudaGraphForward, add_scaled
from models.engine.kernels import build
from models.engine.kernels.attention import _cudnn_is_better, attention
from models.engine.kernels.groupnorm import group_norm
from models.engine.layers import add_and_norm, convolve_and_norm, convolve_onto, multiply_gated
from models.engine.unet import Forward
from models.engine.vae_decoder import decode_latents
from models.networks import DiffusersNetworks
from models.store import Store
from tests.tiny_networks import TEXT_WIDTH, tiny_controlnet, tiny_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
SD15 = {
    "block_out_channels": (64, 128, 128, 128),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,
}
"""Stable Diffusion 1.5's blocks, narrow."""
NEAR = {torch.float32: 3e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
"""How far a result rounded once to a format may be from the exact one, relative."""
STEP_NEAR = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""How far a whole step may be from one in float32 on the CPU; a GPU's convolutions in float32 have
10 bits of each factor."""


def far(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture(autouse=True)
def its_own_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test passes by falling back to torch; nor does any wait for the very best convolution."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 2)
    yield
    assert not build._no_triton


class Example:
    """A UNet and two ControlNets on the GPU, captured and not, and float32 twins on the CPU."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        torch.manual_seed(0)
        self.dtype = dtype
        unet = tiny_unet(**SD15)
        self.controlnets = {name: tiny_controlnet(unet) for name in ("canny", "depth")}
        self.reference = Forward(unet, self.controlnets)
        self.unet, *theirs = (
            Placement(GPU, dtype).place(copied(one)) for one in (unet, *self.controlnets.values())
        )
        self.forward = Forward(self.unet, dict(zip(self.controlnets, theirs, strict=True)))
        self.captured = CudaGraphForward(self.forward, lambda: 0)
        self.latents = torch.randn(1, 4, 32, 24)
        self.texts = torch.randn(2, 77, TEXT_WIDTH)
        self.hint = torch.rand(1, 3, 256, 192)
        self._there: dict[int, tuple[Tensor, Tensor]] = {}

    def control(self, scale: float = 0.7, name: str = "canny") -> ControlInput:
        count = len(self.controlnets[name].controlnet_down_blocks) + 1
        return ControlInput(name, self.hint, tuple(scale - 0.01 * k for k in range(count)))

    def there(self, tensor: Tensor) -> Tensor:
        """The same copy each time, as a request has it."""
        if id(tensor) not in self._there:
            self._there[id(tensor)] = (tensor, tensor.to(GPU, self.dtype))
        return self._there[id(tensor)][1]

    @torch.inference_mode()
    def predict(self, of: Any, controls: Sequence[ControlInput], timestep: float = 401) -> Tensor:
        controls = [replace(one, hint=self.there(one.hint)) for one in controls]
        latents, texts = self.there(self.latents), self.there(self.texts)
        output: Tensor = of(PredictCall(latents, timestep, texts, controls))
        return output

    def assert_right(self, controls: Sequence[ControlInput], timestep: float = 401) -> Tensor:
        with torch.no_grad():
            exact = self.reference(PredictCall(self.latents, timestep, self.texts, controls))
        found = self.predict(self.captured, controls, timestep)
        plain = self.predict(self.forward, controls, timestep)
        assert not self.captured._failed
        assert far(found.cpu(), exact) < STEP_NEAR[self.dtype]
        # The same arithmetic, but convolutions may have found faster algorithms.
        assert far(found, plain) < STEP_NEAR[self.dtype]
        assert far(found.cpu(), exact) < 2 * far(plain.cpu(), exact) + 1e-5
        return found


def copied(network: Any) -> Any:
    twin = type(network).from_config(network.config)
    twin.load_state_dict(network.state_dict())
    return twin


@pytest.mark.parametrize("dtype", list(NEAR))
def test_whatever_changes_comes_through_a_graph(dtype: torch.dtype) -> None:
    example = Example(dtype)
    both = [example.control(), example.control(0.4, "depth")]
    seen = [example.assert_right(both), example.assert_right(both, timestep=7)]
    for change in ("latents", "texts", "hint"):
        setattr(example, change, torch.rand_like(getattr(example, change)))
        both = [replace(one, hint=example.hint) for one in both]
        seen.append(example.assert_right(both))
    both[1] = replace(both[1], scales=tuple(2 * one for one in both[1].scales))
    seen.append(example.assert_right(both))
    seen.append(example.assert_right([]))
    seen.append(example.assert_right(both[:1]))
    for index, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:index])
    assert len(example.captured._steps) == 3


def test_replayed_it_gives_the_same_bits() -> None:
    example = Example()
    first = example.predict(example.captured, [example.control()])
    again = [example.predict(example.captured, [example.control()]) for _ in range(5)]
    assert all(torch.equal(first, one) for one in again)


def test_sizes_alternate_and_threads_do_not_mix() -> None:
    example = Example()
    small, large = torch.randn(1, 4, 16, 16), torch.randn(2, 4, 32, 24)

    @torch.inference_mode()
    def predict(seed: int, of: Any) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(2, 77, TEXT_WIDTH, generator=generator).to(GPU, example.dtype)
        latents = ((small, large)[seed % 2] + seed).to(GPU, example.dtype)
        hint = torch.rand(1, 3, *(8 * side for side in latents.shape[2:]), generator=generator)
        control = replace(example.control(0.1 * seed), hint=hint.to(GPU, example.dtype))
        calls = [PredictCall(latents, t, text, [control]) for t in (401.0 + seed, 7.0)]
        return [of(call) for call in calls]

    wanted = [predict(seed, example.captured) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predict, range(8), [example.captured] * 8))
    for one, other in zip(wanted, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    plain = predict(3, example.forward)
    assert far(found[3][0], plain[0]) < STEP_NEAR[example.dtype]
    assert not example.captured._failed and len(example.captured._steps) == 2


def test_where_memory_runs_out_within_a_capture_all_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example = Example()
    own = cuda_graph.run_up

    def short(*given: Any) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("simulated")
        return own(*given)

    monkeypatch.setattr(cuda_graph, "run_up", short)
    with pytest.raises(torch.OutOfMemoryError):
        example.predict(example.captured, [example.control()])
    monkeypatch.undo()
    example.captured._wait = 0
    example.assert_right([example.control()])
    assert len(example.captured._steps) == 1
    torch.cuda.empty_cache()
    torch.randn(8, device=GPU)  # the allocator must not believe that a capture is under way


def test_what_cannot_be_captured_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Example()
    own = cuda_graph.run_up

    def reading(*given: Any) -> Tensor:
        found = own(*given)
        found.sum().item()  # forbidden in a capture
        return found

    monkeypatch.setattr(cuda_graph, "run_up", reading)
    found = example.predict(example.captured, [example.control()])
    plain = example.predict(example.forward, [example.control()])
    assert example.captured._failed and far(found, plain) < STEP_NEAR[example.dtype]
    monkeypatch.undo()
    other = Example()
    other.assert_right([other.control()])
    assert len(other.captured._steps) == 1


def test_memory_goes_with_the_model() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    example = Example()
    example.predict(example.captured, [example.control()])
    del example
    gc.collect()
    cuda_graph._drop_workspaces()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 64 * 2**20


# The kernels

SHAPES = [
    *((2, 320, 64, 64), (1, 320, 64, 64), (2, 960, 64, 64), (8, 640, 64, 64), (2, 640, 32, 32)),
    *((2, 1920, 32, 32), (2, 1280, 16, 16), (2, 2560, 8, 8), (1, 512, 64, 64), (1, 512, 256, 256)),
    *((1, 256, 512, 512), (1, 128, 512, 512)),
]


def assert_normalised(shape: Sequence[int], dtype: torch.dtype, *, silu: bool) -> None:
    torch.manual_seed(0)
    layer = nn.GroupNorm(32, shape[1], eps=1e-5, device=GPU).requires_grad_(False)
    layer.weight.normal_()
    layer.bias.normal_()
    layer = layer.to(dtype)
    x = (2 * torch.randn(*shape, device=GPU) + 1).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = layer.weight.double(), layer.bias.double()
    exact = functional.group_norm(x.double(), 32, weight, bias, 1e-5)
    exact = functional.silu(exact) if silu else exact
    found = group_norm(layer, x, silu=silu)
    assert found.stride() == x.stride() and far(found, exact) < NEAR[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_group_normalisation(shape: tuple[int, ...]) -> None:
    assert_normalised(shape, torch.bfloat16, silu=True)


@pytest.mark.parametrize("dtype", list(NEAR))
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[6]])
def test_group_normalisation_in_every_format(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_normalised(shape, dtype, silu=False)


@pytest.mark.parametrize("dtype", list(NEAR))
def test_gates(dtype: torch.dtype) -> None:
    for pixels, width in ((4096, 320), (64, 1280)):
        layer = nn.Linear(width, 8 * width, device=GPU, dtype=dtype).requires_grad_(False)
        x = torch.randn(2, pixels, width, device=GPU, dtype=dtype)
        value, gate = layer(x).double().chunk(2, -1)
        assert far(multiply_gated(layer, x), value * functional.gelu(gate)) < NEAR[dtype]


@pytest.mark.parametrize("dtype", list(NEAR))
def test_multiples(dtype: torch.dtype) -> None:
    target, addend = torch.randn(2, 2, 320, 33, 31, device=GPU).to(dtype).unbind()
    target, addend = (t.contiguous(memory_format=torch.channels_last) for t in (target, addend))
    exact = target.double() + 0.7 * addend.double()
    add_scaled(target, addend, torch.tensor([0.2, 0.7], device=GPU)[1])
    assert far(target, exact) < NEAR[dtype]


@pytest.mark.parametrize("dtype", list(NEAR))
def test_what_is_fused_with_a_convolution_or_a_sum(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 320, 3, padding=1, device=GPU, dtype=dtype).requires_grad_(False)
    norm = nn.GroupNorm(32, 320, device=GPU, dtype=dtype).requires_grad_(False)
    x, kept = (
        torch.randn(2, channels, 32, 32, device=GPU, dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        for channels in (64, 320)
    )
    more = torch.randn(320, device=GPU, dtype=dtype)
    rough = 2e-3 if dtype == torch.float32 else 2 * NEAR[dtype]  # float32 is cut for products
    plain = convolution(x).double() - convolution.bias.double()[:, None, None]
    exact = plain + more.double()[:, None, None]
    exact = functional.silu(functional.group_norm(exact, 32))
    assert far(convolve_and_norm(convolution, norm, x, more), exact) < rough
    exact = plain + convolution.bias.double()[:, None, None] + kept.double()
    assert far(convolve_onto(convolution, x, kept), exact) < rough
    for width in (320, 1280):
        layer = nn.LayerNorm(width, device=GPU, dtype=dtype).requires_grad_(False)
        found, kept = torch.randn(2, 2, 77, width, device=GPU, dtype=dtype).unbind()
        exact = found.double() + kept.double()
        total, normed = add_and_norm(layer, found, kept)
        assert far(total, exact) < NEAR[dtype]
        exact = functional.layer_norm(total.double(), (width,))
        assert far(normed, exact) < NEAR[dtype]


def test_the_faster_attention_is_taken_where_captures_are_prepared() -> None:
    for width in (40, 80):
        queries, keys, values = torch.randn(
            3, 2, 4096, 8, width, device=GPU, dtype=torch.bfloat16
        ).unbind()
        plain = attention(queries, keys, values)
        torch.backends.cudnn.benchmark = True
        try:
            found = attention(queries, keys, values)
        finally:
            torch.backends.cudnn.benchmark = False
        assert found.shape == plain.shape and far(found, plain) < 1e-2
    assert len(_cudnn_is_better) >= 2


# The decoder and whole requests


@torch.inference_mode()
def test_the_decoder_equals_diffusers_in_the_same_memory() -> None:
    torch.manual_seed(0)
    with GPU:
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    exact_vae = vae.eval()
    latents = torch.randn(1, 4, 64, 64, device=GPU)
    exact = exact_vae.decode(latents, return_dict=False)[0]
    vae = Placement(GPU, torch.bfloat16).place(exact_vae)
    latents = latents.bfloat16()
    peaks, pictures = [], []
    for decode in (lambda: vae.decode(latents, return_dict=False)[0],
                   lambda: decode_latents(vae, latents)):  # fmt: skip
        decode()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        pictures.append(decode())
        peaks.append(torch.cuda.max_memory_allocated() - before)
    theirs, ours = (far(one, exact) for one in pictures)
    assert ours < 1.1 * theirs + 1e-4
    assert peaks[1] <= 1.02 * peaks[0]


@pytest.fixture(scope="module")
def diorama() -> DiffusersNetworks:
    """In float16, as the store chooses for a GPU."""
    return Store("cuda").load("diorama", "canny")


CANNY = Condition("canny", "canny", "", find_annotator("canny"), "canny")


def drawn(networks: Any, **changes: Any) -> tuple[np.ndarray, list[str]]:
    edges = np.zeros((256, 256, 3), np.uint8)
    edges[60:200, [60, 199]] = edges[[60, 199], 60:200] = 255
    asked: dict[str, Any] = {
        **{"preprocessor": ALREADY_A_MAP, "image_resolution": 256, "steps": 8},
        **{"prompt": "a red box on grass", "added_prompt": "", "negative_prompt": "", "seed": 3},
    }
    request = GenerationRequest.single(CANNY, edges, **(asked | changes))
    result = Pipeline(lambda *_, **__: networks).generate(request)
    return np.int32(np.stack(result.images)), result.warnings


def test_a_request_gives_what_it_gives_on_a_cpu(diorama: DiffusersNetworks) -> None:
    wanted, _ = drawn(Store("cpu", "float32").load("diorama", "canny"))
    found, warnings = drawn(diorama)
    step: Any = diorama._step
    assert not warnings and step._steps and not step._failed
    assert np.abs(found - wanted).mean() < 2
    two, _ = drawn(diorama, num_samples=2)
    assert np.abs(two[:1] - found).mean() < 1
    other, _ = drawn(diorama, prompt="a blue box on sand", strength=0.6)
    assert np.abs(other - found).mean() > 2


def test_every_mode_runs(diorama: DiffusersNetworks) -> None:
    exact, _ = drawn(diorama, steps=12)
    fast, _ = drawn(diorama, steps=12, mode="fast")
    guess, _ = drawn(diorama, steps=12, guess_mode=True)
    few = Store("cuda").load("diorama", "canny", few_step=True)
    preview, _ = drawn(few, mode="preview")
    assert np.abs(fast - exact).mean() < 30
    assert all(one.std() > 5 for one in (guess, preview))


def test_a_request_survives_a_capture_without_memory(
    diorama: DiffusersNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = drawn(diorama)
    networks = replace(diorama)
    step: Any = networks._step

    def short(_run: Any) -> Any:
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(step, "_capture", short)
    found, warnings = drawn(networks, num_samples=2)
    assert any("Memory ran out" in one for one in warnings)
    assert np.abs(found[:1] - alone).mean() < 1
