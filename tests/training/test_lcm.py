"""The few-step distillation: its arithmetic, and a LoRA that does what was trained."""

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
    """A tiny base whose distillation ran for two steps, one of them with its ControlNet."""
    root = tmp_path_factory.mktemp("lcm")
    save_networks(replace(tiny_networks("tiny"), dtype=torch.float32), root / "base")
    render_scenes(8, 64, root / "scenes")
    train_lcm.main(arguments(root, 2))
    return root


def arguments(root: Path, steps: int) -> list[str]:
    few = f"--steps {steps} --batch 2 --device cpu --controls canny --learning-rate 0.1".split()
    places = {"data": "scenes", "base": "base", "out": "run", "save": "lcm.safetensors"}
    return few + [word for name, at in places.items() for word in (f"--{name}", str(root / at))]


def test_it_resumes_and_leaves_a_small_file_with_its_recipe(trained, capsys):
    train_lcm.main(arguments(trained, 3))
    assert "resumed at step 2" in capsys.readouterr().out
    with safe_open(trained / "lcm.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["controlloop"])
        assert file.get_tensor(next(iter(file.keys()))).dtype == torch.bfloat16
    assert facts["recipe"]["guidance"] == 2.0 and facts["recipe"]["steps"] == 3
    assert (trained / "run" / "final.png").exists()


def test_the_store_merges_what_was_trained(trained, tmp_path):
    """The base with the saved LoRA answers as the student does, and not as the base."""
    unet = tiny_networks().unet
    changes = train_lcm.adapt(unet, 4)
    for one in changes.values():
        torch.nn.init.normal_(one.up.weight, std=0.1)
        one.up.weight.data = one.up.weight.data.bfloat16().float()
        one.down.weight.data = one.down.weight.data.bfloat16().float()
    train_lcm.save_lora(changes, tmp_path / "lcm.safetensors", {})
    found = lora.find(["<lora:lcm:1>"], tmp_path)
    plain = tiny_networks()
    _, merged = lora.merge(plain.text_encoder, plain.unet, found)
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        wanted = unet(noisy, 500, text).sample
        torch.testing.assert_close(merged(noisy, 500, text).sample, wanted, rtol=1e-3, atol=1e-3)
        assert (plain.unet(noisy, 500, text).sample - wanted).norm() > 0.05 * wanted.norm()


def test_a_fresh_change_is_none_and_can_be_silenced():
    unet = tiny_unet()
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        base = unet(noisy, 500, text).sample
        changes = train_lcm.adapt(unet, 8)
        assert torch.equal(unet(noisy, 500, text).sample, base)
        for one in changes.values():
            torch.nn.init.ones_(one.up.weight)
        assert not torch.allclose(unet(noisy, 500, text).sample, base)
        with train_lcm.silenced(changes):
            assert torch.equal(unet(noisy, 500, text).sample, base)
    assert all(".down." in n or ".up." in n for n, p in unet.named_parameters() if p.requires_grad)


def test_timesteps_are_those_of_few_step_sampling():
    scheduler = LCMScheduler.from_config(make_scheduler().config)
    scheduler.set_timesteps(50)
    leaps = train_lcm.Leaps("cpu")
    now, later = leaps.draw(50, torch.Generator().manual_seed(0))
    assert now.tolist() == scheduler.timesteps.tolist()[::-1]
    assert later.tolist() == [0, *now.tolist()[:-1]]


def test_the_end_is_what_lcm_samples_with():
    scheduler = LCMScheduler.from_config(make_scheduler().config)
    scheduler.set_timesteps(4)
    noisy, velocity = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    for timestep in scheduler.timesteps:
        wanted = scheduler.step(velocity, timestep, noisy).denoised
        found = train_lcm.Leaps("cpu").end(noisy, velocity, timestep[None])
        torch.testing.assert_close(found, wanted)


def test_at_the_beginning_of_time_the_end_is_the_input():
    noisy = torch.randn(1, 4, 2, 2)
    found = train_lcm.Leaps("cpu").end(noisy, torch.randn(1, 4, 2, 2), torch.tensor([0]))
    torch.testing.assert_close(found, noisy)


def test_a_perfect_teacher_steps_along_its_noise():
    leaps = train_lcm.Leaps("cpu")
    clean, noise = torch.randn(2, 1, 4, 2, 2)
    now, later = torch.tensor([599]), torch.tensor([579])
    signal, rest = leaps._shares(now)
    velocity = signal * noise - rest * clean
    found = leaps.step(leaps.noisy(clean, noise, now), velocity, now, later)
    torch.testing.assert_close(found, leaps.noisy(clean, noise, later), rtol=1e-4, atol=1e-5)
