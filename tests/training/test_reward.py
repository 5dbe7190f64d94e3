"""The reward: an annotator's predictions for an extrapolated picture, as a loss."""

import numpy as np
import pytest
import torch

from annotators._scene_annotator import SceneAnnotator
from training.diffusion import NoisyTarget, make_scheduler
from training.reward import KINDS, Reward, large_classes, overlap_loss
from training.train_autoencoder import make_autoencoder


def test_the_true_velocity_gives_the_clean_latents():
    scheduler, latents = make_scheduler(), torch.randn(8, 4, 4, 4)
    target = NoisyTarget(scheduler, latents, torch.Generator().manual_seed(0))
    assert torch.allclose(target.clean(target.target), latents, atol=1e-4)
    # An error of the velocity is scaled by the noise's coefficient, sqrt(1 - alpha).
    error = (target.clean(target.target + 1) - latents).mean((1, 2, 3))
    noise = (1 - scheduler.alphas_cumprod[target.timesteps]).sqrt()
    assert torch.allclose(-error, noise, atol=1e-4)


@pytest.fixture(scope="module")
def reward_inputs():
    torch.manual_seed(0)
    annotator = SceneAnnotator(tuple(range(5)), (8, 16, 16))
    for layer in annotator.modules():  # an untrained head hardly separates pictures
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data *= 2
    vae = make_autoencoder()
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        drawn = vae.decoder(latents).clamp(-1, 1).permute(0, 2, 3, 1) * 127.5 + 127.5
    return vae, annotator, latents, drawn.round().byte().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_smallest_for_the_same_picture(reward_inputs, kind):
    vae, annotator, latents, pictures = reward_inputs
    reward = Reward(vae, annotator, [kind])
    if kind == "offset":  # offsets are compared at joints, so predict some
        annotator.head[-1].bias.data[-20:-2] += 5
    same = reward.loss(latents, pictures)
    assert float(same) < float(reward.loss(latents, np.ascontiguousarray(pictures[:, ::-1])))
    assert float(same) < float(reward.loss(latents, np.full_like(pictures, 255)))


def test_only_the_latents_get_gradients(reward_inputs):
    vae, annotator, latents, pictures = reward_inputs
    leaf = latents.clone().requires_grad_(True)
    reward = Reward(vae, annotator, KINDS)
    reward.loss(leaf, 255 - pictures).backward()
    assert float(leaf.grad.abs().min()) > 0
    assert not any(p.requires_grad for p in [*vae.decoder.parameters(), *annotator.parameters()])
    assert all(p.grad is None for p in [*vae.decoder.parameters(), *annotator.parameters()])


def test_the_overlap_is_the_mean_over_the_classes_in_either():
    classes = torch.zeros(1, 4, 4, dtype=torch.long)
    classes[0, :2] = 1

    def loss(predicted):
        logits = 30 * torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
        return float(overlap_loss(logits, classes))

    assert loss(classes) == pytest.approx(0, abs=1e-5)
    assert loss(1 - classes) == pytest.approx(1, abs=1e-5)
    shifted = classes.clone()
    shifted[0, 1] = 0  # 4 of 8 and 8 of 12 pixels
    assert loss(shifted) == pytest.approx(1 - (4 / 8 + 8 / 12) / 2, abs=1e-5)
    stray = classes.clone()
    stray[0, 0, 0] = 3  # one pixel of an extra class costs nearly as much as a missing class
    assert loss(stray) == pytest.approx(
        1 - (7 / 8 + 1) / (2 + (1 / 16) / (1 / 16 + 1 / 256)), abs=1e-5
    )


def test_small_classes_get_the_next_likely_class():
    logits = torch.zeros(1, 3, 32, 32)
    logits[0, 0] = 1
    logits[0, 1, :, 20:] = 2
    logits[0, 2, 0, :4] = 3  # four of 1024 pixels are just enough
    assert large_classes(logits).unique().tolist() == [0, 1, 2]
    logits[0, 2, 0, 3] = 0
    assert torch.equal(large_classes(logits), logits[:, :2].argmax(1))
