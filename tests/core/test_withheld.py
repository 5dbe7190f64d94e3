"""Pictures that a safety checker holds to be unsafe: nobody sees them, and that is said."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import Withheld
from core.pipeline import Pipeline
from core.request import GenerationRequest


def ask(condition, image, **settings):
    defaults = {"prompt": "a ball", "image_resolution": 256, "steps": 4, "seed": 5}
    return GenerationRequest.single(condition, image, **(defaults | settings))


def made(networks, request, **given):
    return Pipeline(lambda *_, **__: networks).generate(request, **given)


@pytest.mark.parametrize("largest_batch", [1, 4])
@pytest.mark.parametrize(
    ("unsafe", "which"),
    [
        ([False, True, False], "image 2 of 3"),
        ([True, False, False], "image 1 of 3"),
        ([False, True, True], "images 2 and 3 of 3"),
        ([True, True, False, True], "images 1, 2 and 4 of 4"),
    ],
)
def test_what_is_unsafe_is_left_out_and_named(
    condition, image, networks, unsafe, which, largest_batch
):
    request = ask(condition, image, num_samples=len(unsafe))
    usual = made(networks, request)
    networks = replace(networks, unsafe_images=list(unsafe), largest_batch=largest_batch)
    heard = []
    result = made(networks, request, on_images=heard.append)
    safe = [index for index, one in enumerate(unsafe) if not one]
    assert result.seeds == tuple(5 + index for index in safe)
    for mine, index in zip(result.images, safe, strict=True):
        np.testing.assert_array_equal(mine, usual.images[index])
    assert len(result.scores) == len(result.reextracted) == len(safe)
    assert result.warnings == (
        f"The safety checker withheld {which}, as perhaps unsafe: please try another prompt or "
        "seed.",
    )
    assert all(one.images for one in heard), "nothing is told of a batch without a picture"
    assert {seed for one in heard for seed in one.seeds} == set(result.seeds)


def test_nothing_left_is_one_sentence(condition, image, networks):
    networks = replace(networks, unsafe_images=[True] * 2)
    heard = []
    with pytest.raises(
        Withheld, match=r"^The safety checker withheld all that was made, .* seed\.$"
    ):
        made(networks, ask(condition, image, num_samples=2), on_images=heard.append)
    assert heard == []


def test_what_is_withheld_is_not_scored(condition, image, networks):
    """The annotator runs on the input and on each result that is shown."""
    seen = []
    bright, dark = condition.annotator.preprocessors

    def draw(picture, params):
        seen.append(picture)
        return bright.draw(picture, params)

    preprocessors = (replace(bright, draw=draw), dark)
    annotator = replace(condition.annotator, preprocessors=preprocessors)
    watched = replace(condition, annotator=annotator)
    networks = replace(networks, unsafe_images=[False, True, False])
    made(networks, ask(watched, image, num_samples=3))
    assert len(seen) == 1 + 2


def test_the_checker_sees_what_would_be_shown_also_under_a_mask(condition, image, networks):
    mask = np.zeros((256, 256), bool)
    mask[96:160, 96:160] = True
    for settings in ({}, {"mask": mask, "denoising_strength": 0.7}):
        safe = replace(networks, unsafe_images=[False] * 2, checked=[])
        result = made(safe, ask(condition, image, num_samples=2, **settings))
        assert len(result.images) == 2 and not result.warnings
        np.testing.assert_array_equal(safe.checked, result.images)


def test_nothing_is_shown_before_it_is_checked(condition, image, networks):
    request = ask(condition, image, num_samples=2)
    for unsafe, shown in ((None, 8), ([False, False], 0)):
        heard = []
        made(
            replace(networks, unsafe_images=unsafe),
            request,
            on_progress=heard.append,
            preview_every=1,
        )
        assert sum(one.preview is not None for one in heard) == shown
