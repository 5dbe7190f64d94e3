"""Scenes are a function of their seed, and the renderer's ground truth follows from geometry."""

import dataclasses
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import apps
import models
from models.catalog.cards import read_card
from models.catalog.paths import MODELS
from training.diorama.renderer import render
from training.diorama.world import (
    ADE20K,
    COLOURS,
    KEYPOINTS,
    PLAIN,
    SKIES,
    SPHERE,
    Camera,
    Primitive,
    Scene,
    Thing,
    make_scene,
)

SIZE = 64


def ball_scene(distance: float = 5.0, radius: float = 1.0) -> Scene:
    """A red ball straight ahead of a level camera two metres above the grass."""
    part = Primitive(
        SPHERE,
        np.array([0.0, 2.0, distance]),
        np.eye(3) / radius,
        COLOURS["red"],
        ADE20K["ball"],
        reach=radius,
    )
    camera = Camera(np.array([0.0, 2.0, 0.0]), np.eye(3), 2.0)
    return Scene(
        seed=0,
        caption="a red ball",
        things=[Thing("red ball", [part], "red")],
        camera=camera,
        sky=SKIES["a clear blue sky"],
        light=np.array([0.0, 0.6, -0.8]),
        ground=(0.25, 0.48, 0.14),
        ground_pattern=PLAIN,
        ground_class=ADE20K["grass"],
        cartoon=False,
        night=False,
    )


@pytest.mark.slow
def test_the_card_lists_every_word_of_the_captions_and_no_other():
    """The rarest, "cones", is first in scene 839."""
    spoken = {
        word for seed in range(840) for word in re.findall("[a-z]+", make_scene(seed).caption)
    }
    listed = read_card(MODELS / "diorama.toml").words
    assert {word for group in listed.values() for text in group for word in text.split()} == spoken


def test_same_seed_same_picture():
    one, two = (render([make_scene(7)], SIZE) for _ in range(2))
    other = render([make_scene(8)], SIZE)
    assert make_scene(7).caption == make_scene(7).caption
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.image, other.image)


def test_a_batch_equals_single_pictures():
    scenes = [make_scene(seed) for seed in (3, 4)]
    batch = render(scenes, SIZE).image.int()
    single = torch.cat([render([scene], SIZE).image for scene in scenes]).int()
    assert (batch - single).abs().float().mean() < 0.05


def test_truth_of_a_ball():
    truth = render([ball_scene()], SIZE)
    middle = SIZE // 2
    assert truth.depth[0, middle, middle].item() == pytest.approx(4.0, abs=0.02)
    assert truth.normal[0, middle, middle].tolist() == pytest.approx([0, 0, 1], abs=0.05)
    assert truth.classes[0, middle, middle] == ADE20K["ball"]
    assert truth.painted[0, middle, middle]
    red, green, blue = truth.image[0, middle, middle].tolist()
    assert red > 2 * green and red > 2 * blue
    # focal 2: the ball's outline stands at asin(1 / 5) from the axis, in half heights 2 tan of it.
    area = (truth.things[0] == 0).sum().item() / SIZE**2
    half_height = 2.0 * np.tan(np.arcsin(1 / 5))
    assert area == pytest.approx(np.pi * half_height**2 / 4, rel=0.03)


def test_sky_above_grass_below():
    truth = render([ball_scene(distance=50.0)], SIZE)
    assert truth.classes[0, 0, 0] == ADE20K["sky"] and torch.isinf(truth.depth[0, 0, 0])
    assert truth.classes[0, -1, 0] == ADE20K["grass"]
    # The lowest row looks down by (1 - 1/64) / 2 of its length: the ground, 2 m below, is 2 / that
    # away.
    assert truth.depth[0, -1, SIZE // 2].item() == pytest.approx(2 * 2 / (1 - 1 / SIZE), rel=0.01)
    assert truth.normal[0, -1, 0].tolist() == pytest.approx([0, 1, 0], abs=1e-5)


def test_the_shadow_lies_opposite_the_light():
    above = dataclasses.replace(ball_scene(), light=np.array([0.0, 1.0, 0.0]))
    lit = render([above], SIZE).image[0].float()
    bare = render([dataclasses.replace(ball_scene(), things=[])], SIZE)
    # Light from above: the ground under the ball, 5 m ahead and 2 m down, is darker than beside it.
    row = int((1 + 2 * 2 / 5) * SIZE / 2)
    assert lit[row, SIZE // 2].sum() < 0.75 * lit[row, 2].sum()
    assert (bare.things == -1).all()


@pytest.mark.slow
def test_visible_joints_lie_inside_their_person():
    tested = 0
    for seed in range(60):
        scene = make_scene(seed)
        people = [k for k, thing in enumerate(scene.things) if thing.keypoints is not None]
        if not people:
            continue
        truth = render([scene], 128)
        for person, points in zip(people, truth.keypoints[0], strict=True):
            assert points.shape == (len(KEYPOINTS), 3)
            for x, y, visible in points[:14]:  # eyes and ears lie on the outline
                if visible:
                    tested += 1
                    near = truth.things[0][
                        max(int(y) - 2, 0) : int(y) + 4, max(int(x) - 2, 0) : int(x) + 4
                    ]
                    assert (near == person).any()
    assert tested > 50


def words_of(*texts: str) -> set[str]:
    return {word for text in texts for word in text.replace(",", "").split()}


def test_captions_use_few_words_and_prompts_no_others():
    known = words_of(*(make_scene(seed).caption for seed in range(400)))
    assert set(COLOURS) <= known
    assert len(known) < 120
    card = tomllib.loads((Path(models.__file__).parent / "diorama.toml").read_text("utf-8"))
    examples = [example.prompt for c in apps.conditions() for example in c.examples]
    assert words_of(*card["prompts"], *examples) <= known


def test_edges_are_antialiased():
    image = render([ball_scene()], SIZE).image[0].int()
    along = image[SIZE // 2, :, 0]
    steps = (along[1:] - along[:-1]).abs()
    assert steps.max() < 200 and len(along.unique()) > 10
