"""Questions of several requests, answered as one batch, are answered as each alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.networks import ControlInput, Question
from models import together
from models.networks import GPU_TOGETHER, DiffusersNetworks
from models.residence import Residence
from tests.tiny_networks import tiny_networks


@pytest.fixture(scope="module")
def pair() -> tuple[DiffusersNetworks, DiffusersNetworks]:
    """The same base twice, as the store hands it to two requests, each with its ControlNets."""
    whole = tiny_networks(controls=("canny", "depth"))
    one = replace(whole, controlnets={"canny": whole.controlnets["canny"]})
    return whole, one


def question(
    networks: DiffusersNetworks,
    seed: int,
    images: int = 1,
    controls: tuple[tuple[str, float], ...] = (("canny", 1.0),),
    timestep: int = 500,
    texts: int = 2,
) -> Question:
    """Everything in it follows from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return Question(
        networks,
        torch.randn(images, 4, 8, 8, generator=generator),
        torch.tensor(timestep),
        networks.encode_text(["the red ball", f"a {seed}"][:texts]),
        [
            ControlInput(name, torch.rand(1, 3, 64, 64, generator=generator), (scale,) * 7)
            for name, scale in controls
        ],
    )


def assert_as_alone(questions: list[Question]) -> list[Tensor]:
    found = questions[0].networks.predict_together(questions)
    for one, answer in zip(questions, found, strict=True):
        torch.testing.assert_close(answer, one.alone(), rtol=1e-4, atol=1e-5)
    return found


def test_other_prompts_maps_strengths_and_controlnets(pair) -> None:
    whole, one = pair
    questions = [
        question(whole, 1, controls=(("canny", 1.0),)),
        question(one, 2, images=2, controls=(("canny", 0.4),)),
        question(whole, 3, controls=(("depth", 0.7), ("canny", 0.2))),
        question(whole, 4, controls=()),
        question(whole, 5, controls=(("depth", 0.0),)),
    ]
    found = assert_as_alone(questions)
    assert not torch.allclose(found[0], found[3], atol=1e-3)


def test_residuals_that_were_kept(pair) -> None:
    whole, _ = pair
    first, second = question(whole, 1), question(whole, 2, images=2)
    kept = whole.residuals(second.latents, second.timestep, second.texts, second.controls)
    found = assert_as_alone([first, replace(second, controls=(), residuals=kept)])
    torch.testing.assert_close(found[1], second.alone(), rtol=1e-4, atol=1e-5)


def test_one_text_as_well_as_two(pair) -> None:
    assert_as_alone([question(pair[0], seed, texts=1) for seed in (1, 2)])


def test_what_does_not_agree_is_answered_apart(pair, monkeypatch) -> None:
    sizes = []
    predict = together.predict

    def watched(parts, timestep):
        sizes.append((timestep, len(parts)))
        return predict(parts, timestep)

    monkeypatch.setattr(together, "predict", watched)
    whole, one = pair
    other = tiny_networks(seed=1)
    assert_as_alone(
        [
            question(whole, 1),
            question(whole, 2, timestep=7),
            question(whole, 3, texts=1),
            question(other, 4),
            question(one, 5),
        ]
    )
    assert sizes == [(500.0, 2)]


def test_half_precision_is_kept_apart_from_float32(pair) -> None:
    whole, _ = pair
    half = replace(
        whole,
        unet=tiny_networks().unet.bfloat16(),
        controlnets={"canny": tiny_networks().controlnets["canny"].bfloat16()},
        text_encoder=tiny_networks().text_encoder.bfloat16(),
        dtype=torch.bfloat16,
    )
    questions = [question(half, 1), question(half, 2), question(whole, 1)]
    found = whole.predict_together(questions)
    for one, answer in zip(questions, found, strict=True):
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer, one.alone(), rtol=0.05, atol=0.05)


def test_images_take_turns_on_a_cpu_and_go_together_on_a_gpu(pair) -> None:
    assert pair[0].worth_together(8, 8) == 1
    gpu = torch.device("cuda")
    roomy = replace(pair[0], device=gpu, residence=Residence(gpu, lambda: math.inf))
    assert roomy.worth_together(8, 8) == GPU_TOGETHER
