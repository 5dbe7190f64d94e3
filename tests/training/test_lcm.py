"""The LCM distillation: its arithmetic, and a saved LoRA that works as trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler
from safetensors import safe_open

from models.checkpoints import lora
from tests.tiny_networks import save_networks, tiny_networks, tiny_unet
from training import train_lcm
from training.diffusion import make_scheduler
from training.diorama.dataset import render_scenes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, distilled for two steps, one of them with its ControlNet."""
    root = tmp_path_factory.mktemp("lcm")
    save_networks(replace(tiny_networks("tiny"), dtype=torch.float32), root / "base")
    render_scenes(8, 64, root / "scenes")
    train_lcm.main(arguments(root, 2))
    return root


def arguments(root: Path, steps: int) -> list[str]:
    few = f"--steps {steps} --batch 2 --device cpu --controls canny --learning-rate 0.1".split()
    places = {"data": "scenes", "base": "base", "out": "run", "save": "lcm.safetensors"}
    return few + [word for name, at in places.items() for word in (f"--{name}", str(root / at))]


@pytest.mark.slow
def test_it_resumes_and_saves_its_recipe(trained, capsys):
    train_lcm.main(arguments(trained, 3))
    assert "resumed at step 2" in capsys.readouterr().out
    with safe_open(trained / "lcm.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["controlloop"])
        assert file.get_tensor(next(iter(file.keys()))).dtype == torch.bfloat16
    assert facts["recipe"]["guidance"] == 2.0 and facts["recipe"]["steps"] == 3
    assert (trained / "run" / "final.png").exists()


@pytest.mark.slow
def test_the_saved_lora_merges_into_the_student(trained, tmp_path):
    """The base with the merged LoRA predicts as the student, not as the base."""
    unet = tiny_networks().unet
    layers = train_lcm.add_lora(unet, 4)
    for layer in layers.values():
        torch.nn.init.normal_(layer.up.weight, std=0.1)
        layer.up.weight.data = layer.up.weight.data.bfloat16().float()
        layer.down.weight.data = layer.down.weight.data.bfloat16().float()
    train_lcm.save_lora(layers, tmp_path / "lcm.safetensors", {})
    found = lora.find(["<lora:lcm:1>"], tmp_path)
    plain = tiny_networks()
    _, merged = lora.merge(plain.text_encoder, plain.unet, found)
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        student = unet(noisy, 500, text).sample
        torch.testing.assert_close(merged(noisy, 500, text).sample, student, rtol=1e-3, atol=1e-3)
        assert (plain.unet(noisy, 500, text).sample - student).norm() > 0.05 * student.norm()


def test_a_new_lora_changes_nothing_and_can_be_disabled():
    unet = tiny_unet()
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        base = unet(noisy, 500, text).sample
        layers = train_lcm.add_lora(unet, 8)
        assert torch.equal(unet(noisy, 500, text).sample, base)
        for layer in layers.values():
            torch.nn.init.ones_(layer.up.weight)
        assert not torch.allclose(unet(noisy, 500, text).sample, base)
        with train_lcm.lora_disabled(layers):
            assert torch.equal(unet(noisy, 500, text).sample, base)
    assert all(".down." in n or ".up." in n for n, p in unet.named_parameters() if p.requires_grad)


def test_timesteps_are_those_of_few_step_sampling():
    scheduler = LCMScheduler.from_config(make_scheduler().config)
    scheduler.set_timesteps(50)
    consistency = train_lcm.Consistency("cpu")
    now, later = consistency.timesteps(50, torch.Generator().manual_seed(0))
    assert now.tolist() == scheduler.timesteps.tolist()[::-1]
    assert later.tolist() == [0, *now.tolist()[:-1]]


def test_the_consistency_function_equals_lcm_schedulers():
    scheduler = LCMScheduler.from_config(make_scheduler().config)
    scheduler.set_timesteps(4)
    noisy, velocity = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    for timestep in scheduler.timesteps:
        expected = scheduler.step(velocity, timestep, noisy).denoised
        clean = train_lcm.Consistency("cpu").clean(noisy, velocity, timestep[None])
        torch.testing.assert_close(clean, expected)


def test_the_consistency_function_is_the_identity_at_timestep_0():
    noisy = torch.randn(1, 4, 2, 2)
    clean = train_lcm.Consistency("cpu").clean(noisy, torch.randn(1, 4, 2, 2), torch.tensor([0]))
    torch.testing.assert_close(clean, noisy)


def test_the_ddim_step_of_a_perfect_teacher_keeps_its_noise():
    consistency = train_lcm.Consistency("cpu")
    clean, noise = torch.randn(2, 1, 4, 2, 2)
    now, later = torch.tensor([599]), torch.tensor([579])
    signal, sigma = consistency._coefficients(now)
    velocity = signal * noise - sigma * clean
    step = consistency.ddim_step(consistency.noisy(clean, noise, now), velocity, now, later)
    torch.testing.assert_close(step, consistency.noisy(clean, noise, later), rtol=1e-4, atol=1e-5)
