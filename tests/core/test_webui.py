"""sd-webui-controlnet's units: its parser takes what we write, and we read its three layouts."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core import infotext
from core.condition import ALREADY_A_MAP, Annotator, Condition, Preprocessor, WebUINames
from core.metadata import read_controls, read_settings, save_png
from core.request import ControlRequest, GenerationRequest
from core.webui import controls_from, settings_from
from tests.core.conftest import ThresholdParams, draw_bright, same_pixels
from tests.core.test_metadata import with_texts

TODAY = (
    "Module: bright_map, Model: control_sd15_bright [d14c016b], Weight: 0.8, "
    "Resize Mode: Crop and Resize, Processor Res: 512, Threshold A: 99, Threshold B: -1, "
    "Guidance Start: 0.1, Guidance End: 0.7, Pixel Perfect: False, Control Mode: Balanced"
)
"""As its newest version writes it."""
EARLIER = (
    "preprocessor: bright_map, model: control_sd15_bright [d14c016b], weight: 0.8, "
    "starting/ending: (0.1, 0.7), resize mode: Crop and Resize, pixel perfect: False, "
    "control mode: Balanced, preprocessor params: (512, 99, 200)"
)
FIRST = (
    "ControlNet-0 Enabled: True, ControlNet-0 Module: bright_map, "
    "ControlNet-0 Model: control_sd15_bright [d14c016b], ControlNet-0 Weight: 0.8, "
    "ControlNet-0 Guidance Start: 0.1, ControlNet-0 Guidance End: 0.7"
)


@pytest.fixture
def known(condition):
    """The condition, with names in sd-webui-controlnet and a resolution of its own."""
    names = WebUINames({"bright_map": "Bright", "old_bright": "Bright"}, ("bright",), ("level",))
    annotator = replace(condition.annotator, webui=names, detect_resolution=384)
    return replace(condition, annotator=annotator)


def text(units):
    return f"a ball\nNegative prompt: grey\nSteps: 20, Seed: 5, {units}, Version: v1.10.1"


def fields_of(unit):
    """Parse a unit as sd-webui-controlnet does; ValueError for what costs it the whole unit."""
    found = {}
    for item in unit.split(","):
        name, value = item.strip().split(": ")
        found[name] = value
    allowed = {
        "Module", "Model", "Weight", "Resize Mode", "Processor Res", "Threshold A", "Threshold B",
        "Guidance Start", "Guidance End", "Pixel Perfect", "Control Mode",
    }  # fmt: skip
    if not found.keys() <= allowed:
        raise ValueError(f"unknown: {found.keys() - allowed}")
    return found


@pytest.mark.parametrize("unit", [f'ControlNet 0: "{TODAY}"', f'ControlNet 0: "{EARLIER}"', FIRST])
def test_a_unit_in_each_of_its_layouts(unit, known):
    found, notes = settings_from(text(unit), known)
    wanted = {"strength": 0.8, "control_start": 0.1, "control_end": 0.7, "preprocessor": "Bright"}
    assert {name: found[name] for name in wanted} == wanted
    if unit != FIRST:
        assert (found["params"], found["detect_resolution"]) == ({"level": 99}, 512)
    assert notes == ["Ignored: Version."]


def test_a_unit_of_the_first_version_with_a_guidance_strength(known):
    unit = "ControlNet Enabled: True, ControlNet Module: none, ControlNet Model: bright [1], "
    found, _ = settings_from(
        text(unit + "ControlNet Weight: 1, ControlNet Guidance Strength: 0.6"), known
    )
    assert (found["preprocessor"], found["control_end"]) == (ALREADY_A_MAP, 0.6)


def test_what_a_hidden_slider_says_is_not_taken(known):
    unit = "Module: bright_map, Processor Res: -1, Threshold A: -1, Threshold B: 0.5"
    found, notes = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert found["params"] == {} and "detect_resolution" not in found
    assert notes == ["Ignored: Version."]


@pytest.mark.parametrize("module", ["none", "bright_new"])
def test_placeholders_of_a_preprocessor_without_thresholds_are_not_taken(module, known):
    unit = f"Module: {module}, Model: bright [1], Threshold A: 0.5, Threshold B: 0.5"
    found, notes = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert found["params"] == {} and not any("Level" in note for note in notes)


def test_pixel_perfect_leaves_the_resolution_alone(known):
    unit = TODAY.replace("Pixel Perfect: False", "Pixel Perfect: True")
    found, _ = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert "detect_resolution" not in found and found["pixel_perfect"]


@pytest.mark.parametrize(
    ("mode", "ours"),
    [
        ("Balanced", "balanced"),
        ("ControlNet is more important", "more control"),
        ("My prompt is more important", "more prompt"),
    ],
)
def test_the_control_mode(mode, ours, known):
    unit = TODAY.replace("Control Mode: Balanced", f"Control Mode: {mode}")
    found, notes = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert (found["control_mode"], found["guess_mode"]) == (ours, False)
    assert notes == ["Ignored: Version."]


@pytest.mark.parametrize(
    ("mode", "ours"),
    [
        ("Crop and Resize", "crop and resize"),
        ("Resize and Fill", "resize and fill"),
        ("Just Resize", "just resize"),
        ("Scale to Fit (Inner Fit)", "crop and resize"),
        ("Envelope (Outer Fit)", "resize and fill"),
    ],
)
def test_the_resize_mode(mode, ours, known):
    unit = TODAY.replace("Crop and Resize", mode)
    assert settings_from(text(f'ControlNet 0: "{unit}"'), known)[0]["resize_mode"] == ours


def test_a_mode_that_is_not_known_is_told_and_left_alone(known):
    unit = TODAY.replace("Balanced", "Wild").replace("Crop and Resize", "Melt")
    found, notes = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert not {"control_mode", "guess_mode", "resize_mode"} & found.keys()
    assert notes[1:] == [
        "The control mode Wild is not known here.",
        "The resize mode Melt is not known here.",
    ]


def test_another_controls_unit_gives_no_map_settings(known):
    unit = "Module: openpose, Model: control_v11p_sd15_openpose [cab727d4], Weight: 0.5"
    found, notes = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert found["strength"] == 0.5
    assert not {"params", "preprocessor", "detect_resolution"} & found.keys()
    assert any("openpose" in note for note in notes)


def test_the_page_takes_its_own_unit_of_several(known):
    units = f'ControlNet 0: "Module: openpose, Weight: 2", ControlNet 1: "{TODAY}"'
    found, notes = settings_from(text(units), known)
    assert (found["strength"], found["preprocessor"]) == (0.8, "Bright")
    assert any("several controls" in note for note in notes)


def test_an_unknown_preprocessor_of_a_known_control_is_told(known):
    unit = TODAY.replace("bright_map", "bright_new")
    found, notes = settings_from(text(f'ControlNet 0: "{unit}"'), known)
    assert found["strength"] == 0.8 and "preprocessor" not in found
    assert "Its map was drawn by bright_new, which is not here." in notes


def test_units_become_several_controls(known):
    dark = replace(
        known,
        name="dark2image",
        weights="dark",
        annotator=replace(known.annotator, webui=WebUINames({"dark": "Dark"}, ("dark",))),
    )
    units = f'ControlNet 1: "Module: dark, Weight: 0.5", ControlNet 0: "{TODAY}"'
    units += ', ControlNet 2: "Module: shuffle, Weight: 1"'
    conditions = {one.name: one for one in (dark, known)}
    found, notes = read_controls(with_texts(parameters=text(units)), conditions)
    assert [name for name, _ in found] == ["bright2image", "dark2image"]
    assert [one["preprocessor"] for _, one in found] == ["Bright", "Dark"]
    assert [one["strength"] for _, one in found] == [0.8, 0.5]
    assert notes == ["One of its controls is unknown here: shuffle."]


@pytest.mark.parametrize("preprocessor", ["Bright", "Dark", ALREADY_A_MAP])
@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("control_mode", ["balanced", "more prompt"])
@pytest.mark.parametrize("resize_mode", ["crop and resize", "resize and fill", "just resize"])
def test_what_we_write_is_what_its_parser_takes(
    preprocessor, guess, control_mode, resize_mode, pipeline, known, image
):
    request = GenerationRequest.single(
        known, image, prompt="p", preprocessor=preprocessor,
        params=known.annotator.params(level=99), image_resolution=256, steps=2,
        strength=0.75, control_start=0.1, control_end=0.9,
        guess_mode=guess, control_mode=control_mode, resize_mode=resize_mode, seed=5,
    )  # fmt: skip
    result = replace(pipeline.generate(request), model='odd: "name", v2')
    file = io.BytesIO()
    save_png(file, result.images[0], result, 0)
    parameters = Image.open(io.BytesIO(file.getvalue())).text["parameters"]
    unit = infotext.parse(parameters).pairs["ControlNet 0"]
    ready = preprocessor == ALREADY_A_MAP
    assert fields_of(unit) == {
        "Module": "none" if ready else "bright_map",
        "Model": "odd name v2_weights-name",
        "Weight": "0.75",
        "Resize Mode": {
            "crop and resize": "Crop and Resize",
            "resize and fill": "Resize and Fill",
            "just resize": "Just Resize",
        }[resize_mode],
        "Processor Res": "384",
        **({} if ready else {"Threshold A": "99"}),
        "Guidance Start": "0.1",
        "Guidance End": "0.9",
        "Pixel Perfect": "False",
        "Control Mode": (
            "ControlNet is more important"
            if guess
            else {"balanced": "Balanced", "more prompt": "My prompt is more important"}[
                control_mode
            ]
        ),
    }
    found, _ = read_settings(with_texts(parameters=parameters), known)
    assert (found["strength"], found["control_end"]) == (0.75, 0.9)
    assert found["resize_mode"] == resize_mode
    assert found["control_mode"] == ("more control" if guess else control_mode)
    again = replace(
        request,
        controls=(replace(request.controls[0], control_mode=found["control_mode"]),),
        guess_mode=found["guess_mode"],
    )
    assert np.array_equal(pipeline.generate(again).images[0], result.images[0])
    assert found["preprocessor"] == (ALREADY_A_MAP if ready else "Bright")
    assert found["params"] == ({} if ready else {"level": 99})


def test_a_changed_pictures_strength_and_mask_blur_are_written_and_read(pipeline, known, image):
    def parameters(**asked):
        request = GenerationRequest.single(
            known, image, prompt="p", image_resolution=256, steps=4, seed=5, **asked
        )
        file = io.BytesIO()
        result = pipeline.generate(request)
        save_png(file, result.images[0], result, 0)
        return Image.open(io.BytesIO(file.getvalue())).text["parameters"]

    assert "Denoising" not in parameters() and "Mask" not in parameters()
    changed = parameters(denoising_strength=0.6)
    assert "Denoising strength: 0.6, " in changed and "Mask" not in changed
    mask = np.ones(image.shape[:2], bool)
    masked = parameters(denoising_strength=0.75, mask=mask, mask_blur=9)
    assert "Denoising strength: 0.75, Mask blur: 9, " in masked
    found, notes = read_settings(with_texts(parameters=masked), known)
    assert (found["denoising_strength"], found["mask_blur"]) == (0.75, 9)
    assert "Ignored: Model." in notes


def test_the_strength_of_a1111s_second_pass_is_not_that_of_a_changed_picture():
    made = "a ball\nSteps: 20, Seed: 5, Denoising strength: 0.7, Hires upscale: 2, Hires steps: 9"
    found, notes = read_settings(with_texts(parameters=made))
    assert "denoising_strength" not in found
    assert "Ignored: Denoising strength, Hires upscale, Hires steps." in notes


def test_a_reader_that_knows_no_quotes_gets_prompts_model_and_numbers(pipeline, known, image):
    """As sd-parsers 0.6 reads: the last of two pairs wins, and the prompts are split anywhere."""
    request = GenerationRequest.single(
        known, image, prompt="a sign:\nNegative prompt: Steps: 3, Seed: 7", added_prompt="",
        negative_prompt="low, Negative prompt: twice", image_resolution=256, steps=2, seed=5,
    )  # fmt: skip
    result = pipeline.generate(request)
    file = io.BytesIO()
    save_png(file, result.images[0], result, 0)
    *lines, last = Image.open(io.BytesIO(file.getvalue())).text["parameters"].split("\n")
    prompt, negative = "\n".join(lines).split("Negative prompt:")
    assert prompt.strip() == "a sign:\nNegative prompt : Steps: 3, Seed: 7"
    assert negative.strip() == "low, Negative prompt : twice"
    pairs = dict(item.strip().split(": ") for item in last.split(",") if item.count(":") == 1)
    assert (pairs["Steps"], pairs["Seed"], pairs["Model"]) == ("2", "5", "fake")
    assert (pairs["Sampler"], pairs["CFG scale"], pairs["Size"]) == ("DDIM", "9", "256x256")


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_order_of_a_units_pairs_and_units_does_not_matter(data):
    """And whatever stands in them, a request can be made of what is read."""
    conditions = _conditions()
    value = st.one_of(
        st.sampled_from(["none", "bright_map", "True", "-1", "99", "0.5", "1e9", "nan", "(1, 2)"]),
        st.text(st.characters(exclude_characters='",\n', exclude_categories=["Cs"]), max_size=9),
    )
    names = [item.split(":")[0] for item in TODAY.split(", ")]
    unit = data.draw(st.dictionaries(st.sampled_from(names), value, min_size=1))
    pairs = data.draw(st.permutations(list(unit.items())))
    one, other = (
        ", ".join(f"{name}: {said}" for name, said in order) for order in (unit.items(), pairs)
    )
    (condition,) = conditions.values()
    found, _ = settings_from(text(f'ControlNet 0: "{one}"'), condition)
    assert found == settings_from(text(f'ControlNet 0: "{other}"'), condition)[0]
    params = condition.annotator.params(**found.pop("params", {}))
    GenerationRequest.single(condition, _picture(), params=params, **found)
    for _, asked in controls_from(text(f'ControlNet 3: "{one}"'), conditions)[0]:
        asked |= {"params": condition.annotator.params(**asked["params"])}
        asked.pop("own_picture")
        ControlRequest(condition, _picture(), **asked)


def _picture():
    return np.zeros((64, 64, 3), np.uint8)


def _conditions():
    names = WebUINames({"bright_map": "Bright"}, ("bright",), ("level",))
    annotator = Annotator(
        "bright", (Preprocessor("Bright", draw_bright),), ThresholdParams, same_pixels, "nearest",
        detect_resolution=384, webui=names,
    )  # fmt: skip
    return {"bright2image": Condition("bright2image", "Bright", "", annotator, "weights-name")}
