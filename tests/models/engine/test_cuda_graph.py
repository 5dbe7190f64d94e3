"""A captured step gives what the step itself gives, whatever changes between two replays.

A stand-in for the GPU replays: it runs the step again on the static buffers, as a CUDA graph does,
so whatever would be stale on a GPU is stale here. tests/gpu has the real one.
"""

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.networks import ControlInput, PredictCall
from models.engine import cuda_graph
from models.engine.cuda_graph import (
    KEPT_GRAPHS,
    CudaGraphForward,
    StepFunction,
    add_scaled,
    drop_all_graphs,
)
from tests.models.engine.test_unet import DIORAMA, SD15, Example


class FakeCapture:
    """Captures by keeping what to run; counts."""

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0
        self.error: Exception | None = None

    def __call__(self, run: StepFunction) -> StepFunction:
        if self.error is not None:
            raise self.error
        self.captures += 1

        def replay() -> list[Tensor]:
            self.replays += 1
            return [one.clone() for one in run()]

        return replay


class Captured(Example):
    """An example whose steps are captured."""

    def __init__(self, changes: dict[str, Any], images: int = 1, texts: int = 2) -> None:
        super().__init__(changes, images, texts)
        self.capture, self.offloads = FakeCapture(), 0
        self.captured = CudaGraphForward(self.forward, lambda: self.offloads, self.capture)

    @torch.inference_mode()
    def found(self, controls: Sequence[ControlInput], timestep: float = 401) -> Tensor:
        return self.captured(self.call(controls, timestep))

    def assert_right(self, controls: list[ControlInput], timestep: int = 401) -> None:
        wanted = self.ours(controls, timestep)
        torch.testing.assert_close(self.found(controls, timestep), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [pytest.param(SD15, marks=pytest.mark.slow), DIORAMA], ids=["sd15", "diorama"]
)
@pytest.mark.parametrize(("images", "texts"), [(1, 2), (3, 2), (2, 1)])
def test_whatever_changes_comes_through(changes: dict[str, Any], images: int, texts: int) -> None:
    example = Captured(changes, images, texts)
    both = [example.control(), example.control(0.4, "depth")]
    example.assert_right(both)
    example.assert_right(both, timestep=7)
    for change in ("latents", "texts", "hint"):
        setattr(example, change, torch.rand_like(getattr(example, change)))
        both = [replace(one, hint=example.hint) for one in both]
        example.assert_right(both)
        example.assert_right(both, timestep=7)
    both[1] = replace(both[1], scales=tuple(0.1 * k for k in range(len(both[1].scales))))
    example.assert_right(both)
    # The order of the ControlNets, none of them, and one without weight.
    example.assert_right(both[::-1])
    example.assert_right([])
    example.assert_right([both[0], replace(both[1], scales=(0.0,) * len(both[1].scales))])
    example.assert_right(both)
    assert example.capture.captures == 4 and example.capture.replays == 13


def test_an_output_is_not_overwritten_by_the_next() -> None:
    example = Captured({})
    first = example.found([])
    kept = first.clone()
    example.latents = example.latents + 1
    assert not torch.equal(example.found([]), first) and torch.equal(first, kept)


def test_within_and_outside_of_inference_mode() -> None:
    example = Captured({})
    example.assert_right([example.control()])
    with torch.no_grad():
        example.texts, example.hint = example.texts + 1, example.hint / 2
        wanted = example.ours([example.control()])
        found = example.captured(example.call([example.control()]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_few_graphs_are_kept() -> None:
    example = Captured({})
    for side in range(KEPT_GRAPHS + 1):
        example.latents = torch.randn(1, 4, 4 + 4 * side, 8)
        example.assert_right([])
    assert len(example.captured._steps) == KEPT_GRAPHS
    example.latents = torch.randn(1, 4, 4, 8)
    example.assert_right([])
    assert example.capture.captures == KEPT_GRAPHS + 2


@pytest.mark.parametrize(("images", "texts"), [(1, 2), (2, 1)])
def test_control_residuals_are_captured_too(images: int, texts: int) -> None:
    example = Captured(DIORAMA, images, texts)
    with torch.inference_mode():
        for timestep in (401, 7):
            controls = [example.control(), example.control(0.4, "depth")]
            call = example.call(controls, timestep)
            kept = example.captured.control_residuals(call)
            wanted = example.forward.control_residuals(call)
            torch.testing.assert_close(kept, wanted, rtol=1e-5, atol=1e-6)
            call = replace(call, controls=(), residuals=kept)
            found = example.captured(call)
            torch.testing.assert_close(
                found, example.ours(controls, timestep), rtol=1e-4, atol=1e-5
            )
            # The second text's share of them serves it alone.
            half = tuple(residual[-images:] for residual in kept)
            call = replace(call, texts=example.texts[-1:], residuals=half)
            found, wanted = example.captured(call), example.forward(call)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    silent = replace(example.control(), scales=(0.0,) * 7)
    assert example.captured.control_residuals(example.call([silent])) == ()
    assert example.capture.captures == (3 if texts == 2 else 2)


@pytest.mark.slow
def test_offloaded_weights_end_a_graph_and_those_that_come_and_go_get_none() -> None:
    example = Captured({})
    example.assert_right([])
    with torch.no_grad():
        for weight in example.unet.parameters():
            weight.data = weight * 1.1  # elsewhere, as after a move; and other, to be told apart
    example.offloads += 1
    example.forward._keys_values.clear()
    example.forward._biases.clear()
    example.assert_right([])
    assert example.capture.captures == 1 and not example.captured._steps
    gc.collect()  # this capture and its step hold each other
    assert not cuda_graph._qkv_weights
    example.assert_right([])
    example.assert_right([])
    assert example.capture.captures == 2
    for _ in range(20):
        example.offloads += 1
        example.assert_right([])
    assert example.capture.captures == 2


def test_where_memory_runs_out_the_error_rises_and_all_graphs_go() -> None:
    example, other = Captured({}), Captured({})
    other.found([])
    example.capture.error = torch.OutOfMemoryError("simulated")
    with pytest.raises(torch.OutOfMemoryError):
        example.found([])
    assert not other.captured._steps
    # What comes next does without, for a while.
    example.assert_right([])
    other.assert_right([])
    assert other.capture.captures == 1


def test_what_cannot_be_captured_runs_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    example = Captured({})
    example.capture.error = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(3):
        example.assert_right([example.control()])
    assert [one.levelname for one in caplog.records] == ["WARNING"]


def test_graphs_go_with_their_model() -> None:
    example = Captured({})
    example.captured._capture = lambda _run: lambda: [torch.zeros(())]
    example.found([])
    (step,) = example.captured._steps.values()
    weak = cuda_graph.ref(step)
    del step, example.captured
    assert weak() is None
    drop_all_graphs()  # there are none


def test_the_guidance_scale_of_a_distilled_unet_comes_through() -> None:
    example = Captured({"time_cond_proj_dim": 8}, texts=1)
    found = {}
    for scale in (1.0, 8.0, 1.0, 3.0):
        call = example.call([example.control()], guidance_scale=scale)
        with torch.inference_mode():
            found[scale], wanted = example.captured(call), example.forward(call)
        torch.testing.assert_close(found[scale], wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[1.0], found[8.0], atol=1e-3)


@pytest.mark.slow
def test_threads_do_not_mix() -> None:
    example = Captured({})

    @torch.inference_mode()
    def predict(seed: int, with_it: Any) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(1, 4, 8 + 8 * (seed % 2), 8, generator=generator)
        text = torch.randn(2, 77, example.texts.shape[2], generator=generator)
        control = example.control(0.1 * seed)
        control = replace(
            control, hint=torch.rand(1, 3, 64 + 64 * (seed % 2), 64, generator=generator)
        )
        calls = [PredictCall(latents, t, text, [control]) for t in (401.0 + seed, 7.0)]
        return [with_it(call) for call in calls]

    wanted = [predict(seed, example.forward) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predict, range(8), [example.captured] * 8))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_multiple_is_rounded_once() -> None:
    target = torch.tensor([[[[1.0, 256.0]]]]).bfloat16()
    addend = torch.tensor([[[[1.0, 3.0]]]]).bfloat16()
    wanted = (target.float() + 0.7 * addend.float()).bfloat16()
    add_scaled(target, addend, torch.tensor([0.2, 0.7])[1])
    assert torch.equal(target, wanted)
