"""Several controls of the same pictures: each has its map, its share and its score."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from core.condition import ALREADY_A_MAP, Preprocessor
from core.errors import BadInput
from core.images import center_crop_to_aspect
from core.metadata import read_controls, read_settings, save_png
from core.pipeline import Pipeline
from core.request import ControlRequest, GenerationRequest


@pytest.fixture
def pipeline(networks):
    def load(model, *controls, few_step, light):
        assert set(controls) == {"weights-name"}
        return networks

    return Pipeline(load)


@pytest.fixture
def upright(condition):
    """A second condition, with the weights of the first."""
    return replace(condition, name="upright2image", title="Upright")


@pytest.fixture
def lower(image):
    """A picture whose lower half is white."""
    return np.ascontiguousarray(image.transpose(1, 0, 2))


def ask(*controls, **settings):
    defaults = {"prompt": "a ball", "image_resolution": 256, "steps": 4, "seed": 5}
    return GenerationRequest(controls, **(defaults | settings))


def test_each_control_has_its_map_and_its_score(pipeline, condition, upright, image, lower):
    controls = ControlRequest(condition, image), ControlRequest(upright, lower)
    result = pipeline.generate(ask(*controls, num_samples=2))
    first, second = result.controls
    assert (first.condition.name, second.condition.name) == ("bright2image", "upright2image")
    assert np.array_equal(first.control_map, image) and np.array_equal(second.control_map, lower)
    assert result.control_map is first.control_map and result.scores == first.scores
    corner = {place: result.images[0][place].mean() for place in ((10, 10), (200, 200))}
    assert corner[10, 10] < 32 and corner[200, 200] > 223, "where both agree, both are kept"
    assert len(second.scores) == len(second.reextracted) == 2
    assert result.headlines[0] == (first.scores[0].headline + second.scores[0].headline) / 2


def test_a_map_that_is_drawn_alone_is_the_one_that_is_used(pipeline, condition, upright, image):
    wide = np.concatenate([image // 3, image, image // 2], 1)
    request = ask(ControlRequest(condition, image), ControlRequest(upright, wide))
    for index, control in enumerate(pipeline.generate(request).controls):
        assert np.array_equal(pipeline.draw_map(request, index=index), control.control_map)
    assert np.array_equal(control.control_map, image), "its middle, as its picture is cropped"


def test_the_report_tells_each_controls_score(pipeline, condition, upright, image, lower):
    first, second = ControlRequest(condition, image), ControlRequest(upright, lower)
    result = pipeline.generate(ask(first, second))
    (told,) = result.report()["scores"]
    assert told["headline"] == result.headlines[0]
    assert [one["condition"] for one in told["controls"]] == ["bright2image", "upright2image"]
    assert told["controls"][1]["metrics"] == result.controls[1].scores[0].metrics
    alone = pipeline.generate(ask(first))
    assert set(alone.report()["scores"][0]) == {"headline", "metrics"}, "the contract of one"


def test_each_control_has_its_own_strength_and_window(pipeline, condition, image, networks):
    early = ControlRequest(condition, image, control_end=0.5)
    late = ControlRequest(condition, image, strength=0.5, control_start=0.5)
    pipeline.generate(ask(early, late))
    scales = [[one[-1] for one in given] for _, _, given in networks.calls]
    assert scales == [[1.0], [1.0], [0.5], [0.5]]


def test_a_control_without_strength_changes_nothing(pipeline, condition, image, lower):
    first = ControlRequest(condition, image)
    silent = ControlRequest(condition, lower, strength=0.0)
    both, alone = (pipeline.generate(r) for r in (ask(first, silent), ask(first)))
    assert np.array_equal(both.images[0], alone.images[0])


def test_what_a_control_leaves_open_is_filled_in(pipeline, condition, image):
    control = ControlRequest(condition, image)
    for resolved in pipeline.generate(ask(control, control)).request.controls:
        assert resolved.preprocessor == "Bright" and resolved.params == condition.annotator.params()
    with pytest.raises(BadInput, match="Bright: the preprocessor must be one of"):
        ControlRequest(condition, image, preprocessor="Blind")


def test_another_shape_is_cut_to_the_first_and_said(pipeline, condition, upright, image):
    wide = np.zeros((256, 512, 3), np.uint8)
    wide[:, 255:] = 255
    controls = ControlRequest(condition, image), ControlRequest(upright, wide)
    result = pipeline.generate(ask(*controls))
    assert result.controls[1].control_map.shape == (256, 256, 3)
    assert result.controls[1].control_map[:, 127:].min() == 255, "the middle, not squeezed"
    assert result.controls[1].control_map[:, :127].max() == 0
    assert any(
        note.startswith("Upright: its picture was centre-cropped") for note in result.warnings
    )


@pytest.fixture
def wide():
    """Twice as wide as high; white right of the middle."""
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[:, 256:] = 255
    return picture


def map_of(pipeline, condition, image, second, **settings):
    """Return the map and the warnings of a second control, whose picture has another shape."""
    other = ControlRequest(condition, second, **settings)
    result = pipeline.generate(ask(ControlRequest(condition, image), other))
    assert result.images[0].shape == image.shape
    return result.controls[1].control_map, result.warnings


@pytest.mark.parametrize("ready", [False, True])
def test_just_resize_stretches_the_whole_picture(pipeline, condition, image, wide, ready):
    settings = {"resize_mode": "just resize", "preprocessor": ALREADY_A_MAP if ready else ""}
    found, warnings = map_of(pipeline, condition, image, wide, **settings)
    assert np.array_equal(found, image) and not warnings


@pytest.mark.parametrize("ready", [False, True])
def test_resize_and_fill_keeps_the_whole_picture_between_margins(
    pipeline, condition, image, wide, ready
):
    wide[:, 200:] = 255  # more than half of the border is white
    settings = {"resize_mode": "resize and fill", "preprocessor": ALREADY_A_MAP if ready else ""}
    found, warnings = map_of(pipeline, condition, image, wide, **settings)
    assert (found[:64] == 255).all() and (found[192:] == 255).all()
    assert (found[64:192, :100] == 0).all() and (found[64:192, 100:] == 255).all()
    assert not warnings


def test_the_first_picture_is_filled_where_rounding_changed_its_shape(pipeline, condition):
    picture = np.zeros((256, 300, 3), np.uint8)  # made at 320 x 256
    picture[:, ::2] = 255
    crop, fill = (
        pipeline.generate(ask(ControlRequest(condition, picture, resize_mode=mode)))
        for mode in ("crop and resize", "resize and fill")
    )
    assert (crop.width, crop.height) == (fill.width, fill.height) == (320, 256)
    assert np.array_equal(fill.control_map[:, 10:310], picture)
    assert (fill.control_map[:, :10] == fill.control_map[0, 0]).all()


@pytest.fixture
def noting(condition):
    """A condition that notes at which sizes, (height, width), it drew."""
    sizes = []

    def draw(picture, params):
        sizes.append(picture.shape[:2])
        return picture

    annotator = replace(
        condition.annotator,
        preprocessors=(Preprocessor("Noting", draw),),
        detect_resolution=128,
    )
    return replace(condition, annotator=annotator), sizes


@pytest.mark.parametrize(
    ("mode", "drawn", "resolution"),
    [
        ("crop and resize", (256, 256), 256),
        ("resize and fill", (128, 256), 128),
        ("just resize", (256, 512), 256),
    ],
)
def test_a_pixel_perfect_map_is_drawn_with_a_pixel_for_each_of_the_result(
    pipeline, noting, image, mode, drawn, resolution
):
    condition, sizes = noting
    big = np.zeros((1024, 2048, 3), np.uint8)
    first = ControlRequest(condition, image, pixel_perfect=True)
    second = ControlRequest(condition, big, pixel_perfect=True, resize_mode=mode)
    result = pipeline.generate(ask(first, second))
    of_maps, of_results = sizes[:2], sizes[2:]
    assert of_maps == [(256, 256), drawn]
    assert of_results == [(256, 256)] * 2
    resolved = result.request.controls[1]
    assert resolved.detect_resolution == resolution and resolved.pixel_perfect


def test_a_pixel_perfect_map_keeps_the_bounds_of_the_detect_resolution(pipeline, noting, image):
    condition, _ = noting
    strip = np.zeros((100, 800, 3), np.uint8)
    asked = {"pixel_perfect": True, "resize_mode": "resize and fill"}
    second = ControlRequest(condition, strip, **asked)
    result = pipeline.generate(ask(ControlRequest(condition, image), second))
    assert result.request.controls[1].detect_resolution == 128
    assert result.controls[1].control_map.shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("shape", "other", "expected"),
    [
        ((100, 200), (50, 50), (100, 100)),
        ((200, 100), (50, 50), (100, 100)),
        ((100, 100), (60, 90), (67, 100)),
        ((480, 640), (240, 320), (480, 640)),
        ((333, 500), (512, 768), (333, 500)),
        ((3, 3), (10, 80), (1, 3)),
    ],
)
def test_the_middle_with_anothers_proportions(shape, other, expected):
    picture, like = np.zeros((*shape, 3), np.uint8), np.zeros((*other, 3), np.uint8)
    assert center_crop_to_aspect(picture, like).shape[:2] == expected


def test_an_empty_map_of_any_control_is_said(pipeline, condition, image):
    controls = (ControlRequest(condition, one) for one in (image, np.zeros_like(image)))
    assert pipeline.generate(ask(*controls)).warnings == (
        f"{condition.title}: Nothing bright was found.",
    )


@pytest.fixture
def saved(pipeline, condition, upright, image, lower, tmp_path):
    """A result of two controls with settings of their own, and its file."""
    second = ControlRequest(
        upright,
        lower,
        preprocessor=ALREADY_A_MAP,
        params=condition.annotator.params(level=99),
        strength=0.75,
        control_start=0.25,
        control_end=0.9,
    )
    result = pipeline.generate(ask(ControlRequest(condition, image), second, num_samples=2))
    save_png(tmp_path / "out.png", result.images[1], result, 1)
    return result, tmp_path / "out.png"


def test_a_file_holds_all_that_makes_the_picture_again(
    pipeline, condition, upright, image, lower, saved
):
    result, path = saved
    fields, notes = read_settings(path, condition)
    assert len(notes) == 1 and "several controls" in notes[0]
    known = {one.name: one for one in (condition, upright)}
    (first, second), notes = read_controls(path, known)
    assert notes == []
    assert first[0] == "bright2image" and not first[1]["own_picture"]
    name, asked = second
    assert name == "upright2image" and asked.pop("own_picture")
    assert asked["params"] == {"level": 99} and asked["strength"] == 0.75
    fields["params"] = condition.annotator.params(**fields["params"])
    asked["params"] = condition.annotator.params(**asked["params"])
    alone = GenerationRequest.single(condition, image, **fields)
    second = ControlRequest(known[name], lower, **asked)
    again = pipeline.generate(replace(alone, controls=(*alone.controls, second)))
    assert np.array_equal(again.images[0], result.images[1])


def test_the_text_of_other_tools_names_every_control(saved):
    text = Image.open(saved[1]).text["parameters"]
    assert 'ControlNet 0: "Module: none, Model: fake_weights-name, Weight: 1,' in text
    assert 'ControlNet 1: "Module: none, Model: fake_weights-name, Weight: 0.75,' in text


def test_a_control_that_is_not_known_is_told_by_name(saved, condition):
    found, notes = read_controls(saved[1], {condition.name: condition})
    assert [name for name, _ in found] == ["bright2image"]
    assert notes == ["One of its controls is unknown here: upright2image."]


@pytest.mark.parametrize(
    "further",
    [
        7,
        [None, "x", []],
        [{"condition": ["bright2image"], "request": {}}],
        [{"condition": "bright2image", "request": 3}],
        [{"condition": "bright2image", "request": {"strength": "NaN", "params": 5}}],
        [{"condition": "bright2image", "request": {"strength": 1e308, "control_start": 1}}],
        [{"condition": "bright2image", "request": {}}] * 10_000,
    ],
)
def test_a_hostile_list_of_controls_does_no_harm(further, condition, image):
    from tests.core.test_metadata import with_texts

    stored = {"schema": 1, "condition": "bright2image", "request": {}, "further": further}
    found, notes = read_controls(
        with_texts(controlloop=json.dumps(stored)), {condition.name: condition}
    )
    assert len(found) <= 9 and len(notes) < 20
    for name, settings in found:
        assert name == "bright2image"
        settings.pop("own_picture")
        params = condition.annotator.params(**settings.pop("params"))
        ControlRequest(condition, image, params=params, **settings)
