"""A score measures control, not sampling: the map of a picture that was mirrored, or moved by one
pixel, and brought back is the map of the picture itself.

Diorama's learned annotator is left out. Its network is not that steady (a mirrored scene's depth
scores about 80); its scores are held on maps alone.
"""

from pathlib import Path

import numpy as np
import pytest

from annotators import annotator_names, find_annotator
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage
from core.images import read_image, resize
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

PHOTOS = Path(__file__).resolve().parents[2] / "test_imgs"
SIZE = 384
STEADY = 95
DRAWN = [
    (annotator, preprocessor)
    for annotator in map(find_annotator, annotator_names())
    for preprocessor in annotator.preprocessors
    if not preprocessor.needs and preprocessor.doubt is None
]


def pictures() -> list[RGBImage]:
    """Return three photographs and a scene, one pixel larger than SIZE."""
    photographs = [
        resize(read_image(PHOTOS / f"{name}.jpg")[0], (SIZE + 1, SIZE + 1))
        for name in ("astronaut", "chelsea", "coffee")
    ]
    scene = render([make_scene(HELD_OUT)], SIZE + 32).image[0].numpy()
    return [*photographs, np.ascontiguousarray(scene[: SIZE + 1, : SIZE + 1])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("annotator", "preprocessor"), DRAWN, ids=lambda one: one.name if one else ""
)
def test_a_mirrored_or_moved_picture_has_the_same_map(
    annotator: Annotator, preprocessor: Preprocessor
) -> None:
    params = annotator.params()
    for larger in pictures():
        picture = np.ascontiguousarray(larger[:SIZE, :SIZE])
        target = preprocessor.draw(picture, params)
        assert target.any()
        mirrored = preprocessor.draw(np.ascontiguousarray(picture[:, ::-1]), params)
        back = np.ascontiguousarray(mirrored[:, ::-1])
        assert annotator.score(target, back).headline >= STEADY
        moved = preprocessor.draw(np.ascontiguousarray(larger[1:, 1:]), params)
        assert annotator.score(target[1:, 1:], moved[:-1, :-1]).headline >= STEADY


def some_maps(annotator: Annotator) -> tuple[ControlMap, ControlMap]:
    """Return the maps of two scenes."""
    draw = annotator.preprocessors[0].draw
    scenes = render([make_scene(HELD_OUT + seed) for seed in (2, 3)], 192).image.numpy()
    first, second = (draw(scene, annotator.params()) for scene in scenes)
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in annotator_names() if name not in ("normal", "pose")]
)
def test_a_score_is_the_same_for_two_mirrored_maps(name: str) -> None:
    """Normals and left and right joints change their colours in a mirror."""
    annotator = find_annotator(name)
    first, second = some_maps(annotator)
    mirrored = [np.ascontiguousarray(one[:, ::-1]) for one in (first, second)]
    wanted = annotator.score(first, second)
    assert annotator.score(*mirrored).headline == pytest.approx(wanted.headline, abs=1e-3)
    assert wanted.headline < STEADY
