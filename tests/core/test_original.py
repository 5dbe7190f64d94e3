"""Changing a picture: what a mask leaves alone stays to the pixel, and the rest is made anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.diffusion import ENCODED_IN_FLOAT32, MASK_TOO_FINE
from core.errors import SuiteError
from core.original import Original, blended, inner_fade, original_of, resize_mask
from core.pipeline import UNCHANGED, Pipeline
from core.request import GenerationRequest


def box(side=256, low=96, high=160):
    mask = np.zeros((side, side), bool)
    mask[low:high, low:high] = True
    return mask


def noisy(side=256):
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def ask(condition, image, **asked):
    usual = {"prompt": "a ball", "image_resolution": 256, "steps": 4, "seed": 5}
    return GenerationRequest.single(condition, image, **(usual | asked))


# The mask


def test_the_fade_lies_inside_the_mask():
    mask = np.zeros((1, 9), bool)
    mask[:, 2:] = True
    fade = inner_fade(mask, 3)
    np.testing.assert_allclose(fade[0], [0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert np.array_equal(inner_fade(mask, 0), mask)


@settings(deadline=None, max_examples=50)
@given(
    pixels=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    blur=st.integers(0, 64),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_outside_any_mask_every_pixel_is_the_originals(pixels, share, blur, sides):
    random = np.random.default_rng(pixels)
    original, made = random.integers(0, 256, (2, *sides, 3), dtype=np.uint8)
    mask = random.random(sides) < share
    kept = Original(original, mask, blur).kept_in(made)
    assert np.array_equal(kept[~mask], original[~mask])
    low, high = np.minimum(original, made), np.maximum(original, made)
    assert (kept >= low).all() and (kept <= high).all()
    assert np.array_equal(Original(original, mask, 0).kept_in(made)[mask], made[mask])
    assert Original(original, None, blur).kept_in(made) is made


def test_a_half_share_is_the_mean():
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 200, np.uint8)
    assert blended(black, white, np.full((1, 1), 0.5, np.float32)).tolist() == [[[100] * 3]]


def test_a_mask_is_resized_as_a_mask():
    assert np.array_equal(resize_mask(box(512, 192, 320), (256, 256)), box())
    assert np.array_equal(resize_mask(box(), (256, 256)), box())
    larger = resize_mask(box(), (512, 512))
    assert larger.dtype == bool and larger.sum() == box(512, 192, 320).sum()


def test_a_cell_is_masked_as_its_first_pixel():
    mask = np.zeros((16, 16), bool)
    mask[0, 0] = mask[15, 15] = True
    cells = Original(noisy(16), mask, 0).latent_mask(8)
    assert torch.equal(cells, torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))


# Whole requests


def test_only_the_masked_part_changes(pipeline, condition):
    image = noisy()
    result = pipeline.generate(ask(condition, image, mask=box(), mask_blur=0, num_samples=2))
    for made in result.images:
        assert np.array_equal(made[~box()], image[~box()])
        assert (made[box()] != image[box()]).any(axis=1).mean() > 0.9
    assert not np.array_equal(*result.images)
    assert result.seconds["encode"] > 0 and "encode" not in {
        **pipeline.generate(ask(condition, image)).seconds
    }


def test_the_picture_outside_the_mask_is_resized_as_for_its_map(pipeline, condition):
    image = np.repeat(np.repeat(noisy(128), 4, axis=0), 4, axis=1)  # 512, made at 256
    result = pipeline.generate(ask(condition, image, mask=box(512, 192, 320)))
    wanted = image[::4, ::4].repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(result.images[0][~box()], wanted[~box()])


def test_resize_and_fill_gives_the_picture_the_maps_margins(pipeline, condition):
    """260 x 520 pixels are made at 256 x 512; of 250 x 520, six columns are margins."""
    image = np.full((520, 250, 3), 9, np.uint8)
    mask = np.ones((520, 250), bool)
    asked = {"mask": mask, "mask_blur": 0, "resize_mode": "resize and fill"}
    request = ask(condition, image, **asked)
    (made,) = pipeline.generate(request).images
    found = original_of(request, (256, 512))
    assert made.shape == found.picture.shape == (512, 256, 3) and (found.picture == 9).all()
    columns = found.mask.any(axis=0)
    assert np.flatnonzero(columns)[[0, -1]].tolist() == [5, 250]
    assert (made[:, ~columns] == 9).all()


def test_the_weaker_the_nearer_to_the_picture(pipeline, condition, image):
    """The fake model paints the map, here of the dark half; its VAE loses nothing of this one."""
    asked = {"preprocessor": "Dark", "steps": 10}
    far = [
        np.abs(pipeline.generate(ask(condition, image, **asked, denoising_strength=one)).images[0]
               - image.astype(float)).mean()
        for one in (0.0, 0.2, 0.6, 1.0)
    ]  # fmt: skip
    assert far[0] == 0 and far == sorted(far) and far[-1] > 200


def test_what_cannot_change_is_said(pipeline, condition, image):
    still = pipeline.generate(ask(condition, image, denoising_strength=0.0))
    assert UNCHANGED in still.warnings and np.array_equal(still.images[0], image)
    assert not any("has no effect" in warning for warning in still.warnings)
    fine = np.zeros((256, 256), bool)
    fine[3, 3] = True
    spot = pipeline.generate(ask(condition, image, mask=fine))
    assert MASK_TOO_FINE.format(8) in spot.warnings


def test_a_window_is_of_the_steps_that_are_taken(pipeline, condition, image, networks):
    """Two of four steps run, of which the first is the first half."""
    pipeline.generate(ask(condition, image, denoising_strength=0.5, control_end=0.5))
    assert [bool(scales) for _, _, scales in networks.calls] == [True, False]


@pytest.mark.parametrize("mode", ["fast", "preview"])
def test_every_mode_changes_pictures(condition, image, networks, mode):
    """Preview's four steps are LCM's, for which the fake model's schedule stands here."""
    networks.make_scheduler = lambda _: type(networks).make_scheduler(networks, "ddim")
    pipeline = Pipeline(lambda *_, **__: networks)
    heard = []
    result = pipeline.generate(
        ask(condition, image, mode=mode, steps=12, denoising_strength=0.5, mask=box()),
        on_progress=lambda p: heard.append((p.step, p.steps)),
    )
    assert max(heard) == ((2, 2) if mode == "preview" else (6, 6))
    assert np.array_equal(result.images[0][~box()], image[~box()])


def test_a_picture_that_overflows_is_encoded_in_float32(condition, image, networks):
    half = replace(networks, dtype=torch.float16, broken_encode=True)
    result = Pipeline(lambda *_, **__: half).generate(ask(condition, image, mask=box()))
    assert ENCODED_IN_FLOAT32.format("float16") in result.warnings
    assert half.copied_to_float32 == ["vae"]
    sound = Pipeline(lambda *_, **__: networks).generate(ask(condition, image, mask=box()))
    assert np.array_equal(result.images[0], sound.images[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_picture_that_cannot_be_encoded_is_an_error(condition, image, networks, dtype):
    broken = replace(networks, dtype=dtype, broken_encode=True, broken_for_good=True)
    with pytest.raises(SuiteError, match="autoencoder gave NaN or infinite"):
        Pipeline(lambda *_, **__: broken).generate(ask(condition, image, mask=box()))
