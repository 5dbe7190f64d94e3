"""The reward: an annotator's predictions for an extrapolated picture, as a loss."""

import numpy as np
import pytest
import torch

from annotators._scene_annotator import SceneAnnotator
from models.networks import decode
from tests.tiny_networks import tiny_autoencoder
from training.diffusion import NoisyTarget, make_scheduler
from training.preference import PUBLISHED, Errors, preference_loss
from training.reward import (
    DOUBT_WEIGHT,
    KINDS,
    OVERLAP,
    PhotoReward,
    Reward,
    decoded,
    disagreements,
    large_classes,
    overlap_loss,
)
from training.train_autoencoder import make_autoencoder, pixels


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


# Photographs


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_latents_are_decoded_as_in_the_apps(kind):
    torch.manual_seed(0)
    vae, latents = tiny_autoencoder(kind), torch.randn(2, 4, 8, 8)
    leaf = latents.requires_grad_(True)
    drawn = decoded(vae, leaf)
    assert torch.allclose(drawn, decode(vae, latents, torch.float32).clamp(-1, 1), atol=1e-4)
    drawn.square().sum().backward()
    assert float(leaf.grad.abs().min()) > 0


@pytest.fixture(scope="module")
def photo_inputs():
    """A reward for edges, latents of a KL autoencoder and their pictures."""
    torch.manual_seed(0)
    vae, latents = tiny_autoencoder(), 3 * torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        drawn = decoded(vae, latents).permute(0, 2, 3, 1) * 127.5 + 127.5
    reward = PhotoReward(vae, ["Kornia"], "cpu", torch.float32)
    return reward, vae, latents, drawn.round().byte().numpy()


def test_photographs_of_the_same_edges_cost_least(photo_inputs):
    reward, vae, latents, pictures = photo_inputs
    same = reward.loss(latents, pictures)
    assert float(same) < float(reward.loss(latents, np.ascontiguousarray(pictures[:, ::-1])))
    assert float(same) < float(reward.loss(latents, np.full_like(pictures, 255)))
    leaf = latents.clone().requires_grad_(True)
    reward.loss(leaf, 255 - pictures[:, ::-1]).backward()
    assert bool(leaf.grad.isfinite().all()) and float((leaf.grad != 0).float().mean()) > 0.99
    assert not any(one.requires_grad or one.grad is not None for one in vae.parameters())


def test_what_two_estimates_of_a_photograph_disagree_on_counts_less(photo_inputs):
    reward, _, latents, pictures = photo_inputs
    other = np.ascontiguousarray(pictures[:, ::-1])
    certain = reward.uncertain_loss(latents, latents, other)
    assert torch.allclose(certain, reward.loss(latents, other))
    ((annotator, predict),) = reward._annotators
    doubt = annotator.doubt(*(predict(reward._drawn(one)) for one in (latents, -latents)))
    assert 0 <= float(doubt.min()) < float(doubt.max()) < 1
    rectified = reward.uncertain_loss(latents, -latents, other) - DOUBT_WEIGHT * doubt.mean()
    assert float(rectified) < float(certain)


def test_the_target_is_the_source_picture(photo_inputs):
    reward, _, latents, pictures = photo_inputs
    ((annotator, predict),) = reward._annotators
    found, wanted = reward._drawn(latents), pixels(pictures, "cpu") / 2 + 0.5
    assert float((found - wanted).abs().max()) < 0.01 and float(found.min()) >= 0
    by_hand = annotator.errors(predict(found), predict(wanted)).mean()
    assert torch.allclose(reward.loss(latents, pictures), by_hand)
