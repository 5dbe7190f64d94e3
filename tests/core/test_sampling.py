"""The schedule and the loop against closed forms."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from core.sampling import KnownLatents, denoise, seeded_noise, steps_taken


def scheduler_of(steps, **changes):
    """Return the schedule of design.md, set to a number of steps."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    scheduler = DDIMScheduler(**(settings | changes))
    scheduler.set_timesteps(steps)
    return scheduler


def original_schedule(steps):
    """Latent-diffusion's "uniform" DDIM: timesteps, alphas and previous alphas, last step first.

    In words of ldm/modules/diffusionmodules/util.py: every (1000 // steps)-th step, plus one; the
    previous alpha of the first is that of step 0.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    timesteps = np.arange(0, 1000, 1000 // steps) + 1
    previous = np.append(alphas[0], alphas[timesteps[:-1]])
    return timesteps[::-1], alphas[timesteps][::-1], previous[::-1]


@pytest.mark.parametrize("steps", [10, 20, 25, 40, 50, 100])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_equals_the_original_schedule_where_steps_divide_1000(steps, eta):
    """A model that always predicts 0.3 * latents: each step is then one line of the DDIM paper."""
    timesteps, alphas, previous = original_schedule(steps)
    scheduler = scheduler_of(steps)
    assert scheduler.timesteps.tolist() == timesteps.tolist()

    noise, generators = seeded_noise([1], (1, 2, 2))
    mine = denoise(lambda x, *_: 0.3 * x, scheduler, noise, generators, eta, lambda *_: None)

    x, (fresh,) = seeded_noise([1], (1, 2, 2))
    x = x.double()
    for a, before in zip(alphas, previous, strict=True):
        e = 0.3 * x
        sigma = eta * np.sqrt((1 - before) / (1 - a) * (1 - a / before))
        clean = (x - np.sqrt(1 - a) * e) / np.sqrt(a)
        x = np.sqrt(before) * clean + np.sqrt(1 - before - sigma**2) * e
        if eta:
            x = x + sigma * torch.randn((1, 1, 2, 2), generator=fresh)
    assert (mine - x).norm() <= 1e-4 * x.norm()


@pytest.mark.parametrize("steps", [1, 3, 7, 9, 20, 27, 30, 36, 37, 60, 99, 100])
def test_exactly_the_requested_steps(steps):
    """The original gave 31 for 30 and crashed at 3, 9, 27, 36 and 37."""
    calls, heard = [], []
    noise, generators = seeded_noise([1], (1, 2, 2))

    def predict(latents, timestep, step):
        calls.append((int(timestep), step))
        return latents * 0

    denoise(predict, scheduler_of(steps), noise, generators, 0.0, lambda s, _: heard.append(s))
    assert [step for _, step in calls] == list(range(steps))
    assert heard == list(range(1, steps + 1))
    times = [time for time, _ in calls]
    assert times == sorted(times, reverse=True)
    assert times[-1] == 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_model_ends_at_its_picture(prediction):
    """Knowing the clean picture, noise and velocity both lead to it in any number of steps."""
    scheduler = scheduler_of(7, prediction_type=prediction)
    noise, generators = seeded_noise([3], (1, 4, 4))
    clean = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

    def predict(latents, timestep, step):
        alpha = scheduler.alphas_cumprod[timestep]
        eps = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return eps if prediction == "epsilon" else alpha.sqrt() * eps - (1 - alpha).sqrt() * clean

    seen = []
    denoise(predict, scheduler, noise, generators, 0.0, lambda _, x: seen.append(x))
    assert len(seen) == 7
    assert all(torch.allclose(x, clean, atol=1e-3) for x in seen)


def test_noise_does_not_depend_on_the_batch():
    together, generators = seeded_noise([5, 6, 7], (4, 2, 2))
    alone, (generator,) = seeded_noise([6], (4, 2, 2))
    assert torch.equal(together[1:2], alone)
    later = torch.randn(3, generator=generators[1])
    assert torch.equal(later, torch.randn(3, generator=generator))


def test_stopping_leaves_at_once():
    calls = []

    def stop(step, _):
        calls.append(step)
        raise KeyboardInterrupt

    noise, generators = seeded_noise([1], (1, 2, 2))
    with pytest.raises(KeyboardInterrupt):
        denoise(lambda x, *_: x, scheduler_of(20), noise, generators, 0.0, stop)
    assert calls == [1]


def test_noise_is_the_same_while_a_model_loads_in_another_thread() -> None:
    """Then torch's default format is that model's."""
    wanted, _ = seeded_noise([7], (4, 8, 8))
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, _ = seeded_noise([7], (4, 8, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("steps", "strength", "taken"),
    [(20, 1.0, 20), (20, 0.5, 10), (20, 0.49, 9), (20, 0.999, 19), (4, 0.1, 1), (20, 0.0, 0)],
)
def test_the_strength_decides_how_many_steps_are_taken(steps, strength, taken):
    assert steps_taken(steps, strength) == taken
    noise, generators = seeded_noise([1], (1, 2, 2))
    heard, known = [], KnownLatents(torch.full((1, 1, 2, 2), 0.5), strength)

    def predict(latents, timestep, step):
        heard.append((int(timestep), step))
        return latents * 0

    scheduler = scheduler_of(steps)
    made = denoise(predict, scheduler, noise, generators, 0.0, lambda *_: None, known)
    times = scheduler.timesteps.tolist()
    assert heard == [(time, step) for step, time in enumerate(times[steps - taken :])]
    if not taken:
        assert torch.equal(made, known.latents)


def test_a_picture_starts_as_noisy_as_its_first_step():
    """Ho et al. 2020, equation 4, by hand."""
    noise, generators = seeded_noise([1], (1, 2, 2))
    scheduler, seen = scheduler_of(10), []

    def predict(latents, timestep, step):
        seen.append(latents)
        return latents * 0

    clean = torch.full((1, 1, 2, 2), 0.5)
    known = KnownLatents(clean, 0.3)
    denoise(predict, scheduler, noise, generators, 0.0, lambda *_: None, known)
    alpha = float(scheduler.alphas_cumprod[201])  # the third last of 901, 801, ... 1
    torch.testing.assert_close(seen[0], alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise)


def test_outside_the_mask_the_known_latents_come_back_and_the_preview_shows_them():
    noise, generators = seeded_noise([1], (1, 2, 2))
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    known, previews = KnownLatents(torch.full((1, 1, 2, 2), 0.5), 1.0, mask), []
    made = denoise(
        lambda x, *_: x * 0.3, scheduler_of(4), noise, generators, 0.0,
        lambda _, clean: previews.append(clean), known,
    )  # fmt: skip
    for one in (made, *previews):
        assert torch.equal(one[mask == 0], known.latents[mask == 0])
        assert (one[mask == 1] != 0.5).all()
