"""The reward: an annotator's predictions for an extrapolated picture, as a loss."""

import numpy as np
import pytest
import torch

from annotators._scene_annotator import SceneAnnotator
from training.diffusion import NoisyTarget, make_scheduler
from training.preference import PUBLISHED, Errors, preference_loss
from training.reward import (
    DOUBT_WEIGHT,
    KINDS,
    OVERLAP,
    Reward,
    disagreements,
    large_classes,
    overlap_loss,
)
from training.train_autoencoder import make_autoencoder


def test_the_true_velocity_gives_the_clean_latents():
    scheduler, latents = make_scheduler(), torch.randn(8, 4, 4, 4)
    target = NoisyTarget.drawn(scheduler, latents, torch.Generator().manual_seed(0))
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != OVERLAP])
def test_what_two_estimates_disagree_on_counts_less(reward_inputs, kind):
    vae, annotator, latents, pictures = reward_inputs
    reward, other = Reward(vae, annotator, [kind]), 255 - pictures
    if kind == "offset":
        annotator.head[-1].bias.data[-20:-2] += 5
    certain = reward.uncertain_loss(latents, latents, other)
    assert torch.allclose(certain, reward.loss(latents, other), rtol=1e-3)
    doubt = disagreements(reward._predict(latents), reward._predict(-latents))[kind]
    assert float(doubt.min()) >= 0 and float(doubt.max()) > 0
    rectified = reward.uncertain_loss(latents, -latents, other) - DOUBT_WEIGHT * doubt.mean()
    assert float(rectified) < float(certain)


def test_a_preference_counts_until_the_margin_and_while_it_is_not_learned():
    def loss(winning, losing, before=(1.0, 1.0)):
        tensors = (torch.tensor([value]) for value in (winning, losing, *before))
        first, second, third, fourth = tensors
        return float(preference_loss(Errors(first, second), Errors(third, fourth), PUBLISHED))

    assert loss(1, 1) == pytest.approx(PUBLISHED.margin / 2), "as the reference, both weigh alike"
    assert loss(1 - 2 * PUBLISHED.margin, 1) == 0 == loss(0, 1)
    assert loss(1, 1 - 0.002) == pytest.approx(
        (PUBLISHED.margin + 0.002) / (1 + np.exp(-PUBLISHED.beta / 2 * 0.002)), rel=1e-4
    )
    assert loss(1, 1.002) == pytest.approx(
        (PUBLISHED.margin - 0.002) / (1 + np.exp(PUBLISHED.beta / 2 * 0.002)), rel=1e-3
    )
    assert loss(1, 1.002, before=(1, 1.002)) == pytest.approx(
        (PUBLISHED.margin - 0.002) / 2, rel=1e-3
    )


def test_only_the_latents_get_gradients(reward_inputs):
    vae, annotator, latents, pictures = reward_inputs
    leaf = latents.clone().requires_grad_(True)
    reward = Reward(vae, annotator, KINDS)
    reward.loss(leaf, 255 - pictures).backward()
    assert float(leaf.grad.abs().min()) > 0
    assert not any(p.requires_grad for p in [*vae.decoder.parameters(), *annotator.parameters()])
    assert all(p.grad is None for p in [*vae.decoder.parameters(), *annotator.parameters()])


def test_later_is_the_same_noise_at_another_timestep():
    scheduler, latents = make_scheduler(), torch.randn(4, 4, 4, 4)
    target = NoisyTarget.drawn(scheduler, latents, torch.Generator().manual_seed(0))
    later = target.later(torch.tensor([1, 3]), 400)
    assert later.timesteps.tolist() == [int(target.timesteps[1]) + 400, 999]
    assert torch.allclose(later.clean(later.target), latents[[1, 3]], atol=1e-3)
    noise = scheduler.config.num_train_timesteps and target._noise[[1, 3]]
    assert torch.equal(later.noisy, scheduler.add_noise(latents[[1, 3]], noise, later.timesteps))


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
