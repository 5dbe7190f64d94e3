"""What the fast mode leaves out, counted, and that it is nearly the same; what preview decides."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.condition import Preprocessor, is_rough
from core.errors import BadInput
from core.metadata import read_settings, save_png
from core.modes import (
    FIRST_STEPS,
    MODES,
    PREVIEW_STEPS,
    ResidualCache,
    Shortcuts,
    X0Extrapolation,
)
from core.networks import ControlInput, PredictCall
from core.pipeline import Pipeline
from core.request import GenerationRequest
from core.sampling import denoise, seeded_noise


def ask(condition, image, **settings):
    defaults = {"prompt": "a ball", "image_resolution": 256, "steps": 20, "seed": 5}
    return GenerationRequest.single(condition, image, **(defaults | settings))


def test_nothing_is_left_out_of_the_exact_mode():
    assert MODES["exact"] == Shortcuts()
    for step in range(20):
        assert Shortcuts().predicts(step, 20) and Shortcuts().uses_cfg(step, 20)


@pytest.mark.parametrize(
    ("every", "steps", "asked"),
    [
        (2, 12, [0, 1, 2, 3, 5, 7, 9, 11]),
        (2, 11, [0, 1, 2, 3, 5, 7, 9, 10]),
        (3, 12, [0, 1, 2, 3, 6, 9, 11]),
        (3, 4, [0, 1, 2, 3]),
        (3, 1, [0]),
    ],
)
def test_the_first_steps_and_the_last_are_always_predicted(every, steps, asked):
    shortcuts = Shortcuts(predict_every=every)
    assert [step for step in range(steps) if shortcuts.predicts(step, steps)] == asked


def test_guidance_ends_but_not_before_the_first_steps():
    ended = Shortcuts(guidance_until=0.6)
    assert [step for step in range(10) if ended.uses_cfg(step, 10)] == [0, 1, 2, 3, 4, 5]
    never = Shortcuts(guidance_until=0.0)
    assert sum(never.uses_cfg(step, 10) for step in range(10)) == FIRST_STEPS


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_moves_in_a_straight_line_is_extrapolated_exactly(prediction):
    """A model whose clean picture is a straight line over the timesteps, asked and half asked."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(20)
    asked = []

    def predict(latents, timestep, step):
        asked.append(step)
        clean = torch.full_like(latents, 0.5 - float(timestep) / 1000)
        alpha = scheduler.alphas_cumprod[timestep]
        error = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return (
            error if prediction == "epsilon" else alpha.sqrt() * error - (1 - alpha).sqrt() * clean
        )

    def made(model):
        noise, generators = seeded_noise([1], (1, 2, 2))
        return denoise(model, scheduler, noise, generators, 0.0, lambda *_: None)

    wanted = made(predict)
    asked.clear()
    shortcuts = Shortcuts(predict_every=3)
    found = made(
        X0Extrapolation(predict, scheduler, lambda step: shortcuts.predicts(step, 20)).predict
    )
    assert asked == [0, 1, 2, 3, 6, 9, 12, 15, 18, 19]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_residuals_are_used_again_by_the_half_that_is_left(networks):
    """Two texts, then one; images 1 and 2 keep their own rows, the last text's."""

    def control_residuals(call):
        calls.append(call.timestep)
        shared = torch.arange(2.0).reshape(2, 1, 1, 1)
        return shared, torch.arange(2.0 * len(call.texts)).reshape(-1, 1, 1, 1)

    calls: list[float] = []
    networks.control_residuals = control_residuals
    control = ControlInput("weights-name", torch.zeros(1, 3, 8, 8), (1.0,) * 13)
    kept = ResidualCache(networks, every=2)
    latents, both = torch.zeros(2, 4, 1, 1), torch.zeros(2, 77, 4)

    def at(step, texts, controls):
        call = PredictCall(latents, step, texts, controls)
        return [residual.flatten().tolist() for residual in kept.at(call, step)]

    assert at(4, both, [control]) == [[0, 1], [0, 1, 2, 3]]
    assert at(5, both[1:], [control]) == [[0, 1], [2, 3]]
    assert calls == [4], "kept once"
    at(6, both, [control])
    assert calls == [4, 6], "and then found again"
    at(7, both, [control, control])
    assert calls == [4, 6, 7], "other controls are not these"
    at(2, both, [control, control])
    assert calls == [4, 6, 7, 2], "the first steps are never shortened"


def test_the_fast_mode_asks_less_and_makes_nearly_the_same(pipeline, condition, image, networks):
    exact = pipeline.generate(ask(condition, image))
    assert len(networks.calls) == 20 and not networks.control_calls
    networks.calls.clear()
    fast = pipeline.generate(ask(condition, image, mode="fast"))
    shortcuts = MODES["fast"]
    asked = [step for step in range(20) if shortcuts.predicts(step, 20)]
    assert len(networks.calls) == len(asked) < 14
    halves = [len(text) for _, text, _ in networks.calls]
    assert halves == [2 if shortcuts.uses_cfg(step, 20) else 1 for step in asked]
    assert FIRST_STEPS < len(networks.control_calls) < len(asked)
    difference = np.abs(exact.images[0].astype(int) - fast.images[0]).mean()
    assert 0 < difference < 4 or np.array_equal(exact.images[0], fast.images[0])
    assert fast.scores[0].headline == 100
    assert fast.report()["mode"] == "fast"


def test_few_steps_are_made_exactly_in_any_mode(pipeline, condition, image):
    exact, fast = (
        pipeline.generate(ask(condition, image, steps=FIRST_STEPS, mode=mode))
        for mode in ("exact", "fast")
    )
    assert np.array_equal(exact.images[0], fast.images[0])


def test_guess_mode_and_windows_are_kept(pipeline, condition, image, networks):
    window = {"guess_mode": True, "control_start": 0.5, "guidance_scale": 3.0}
    pipeline.generate(ask(condition, image, mode="fast", **window))
    early = networks.calls[: FIRST_STEPS + 2]
    assert [len(text) for _, text, _ in early] == [2] * len(early), "both halves together"
    assert networks.control_calls and max(networks.control_calls) < 500, "the second half only"


def test_a_retry_in_float32_keeps_the_mode(condition, image, networks):
    networks.dtype, networks.broken_at = torch.float16, 8
    result = Pipeline(lambda *_, **__: networks).generate(ask(condition, image, mode="fast"))
    assert result.dtype == "float32" and result.request.mode == "fast"
    whole = Pipeline(lambda *_, **__: networks.in_float32()).generate(
        ask(condition, image, mode="fast")
    )
    assert np.array_equal(result.images[0], whole.images[0])


def test_a_file_remembers_its_mode(pipeline, condition, image, tmp_path):
    result = pipeline.generate(ask(condition, image, mode="fast"))
    save_png(tmp_path / "out.png", result.images[0], result, 0)
    fields, notes = read_settings(tmp_path / "out.png", condition)
    assert fields["mode"] == "fast" and notes == []


def test_an_unknown_mode_is_refused(condition, image):
    with pytest.raises(BadInput, match="Mode must be one of: exact, fast, preview"):
        ask(condition, image, mode="turbo")


def test_preview_overrides_the_settings(condition, image):
    asked = {"steps": 50, "sampler": "ddim", "guidance_scale": 9.0}
    request = ask(condition, image, mode="preview", **asked)
    ran = (request.steps, request.sampler, request.guidance_scale)
    assert ran == (PREVIEW_STEPS, "lcm", 1.0)
    assert ask(condition, image, mode="preview", steps=100, sampler="lcm").steps == PREVIEW_STEPS
    with pytest.raises(BadInput, match="Steps is 0"):
        ask(condition, image, mode="preview", steps=0)


@pytest.fixture
def lcm(networks):
    """A pipeline whose networks know the sampler lcm, and what it asks to be fetched and loaded."""
    ddim, told = networks.make_scheduler("ddim"), []
    networks.make_scheduler = lambda _: LCMScheduler.from_config(ddim.config)

    def load(*names, few_step, light):
        told.append(("load", names, few_step))
        return networks

    def fetch(*names, watch, few_step):
        told.append(("fetch", names, few_step))

    return Pipeline(load, fetch=fetch), told


def test_only_preview_asks_for_the_few_step_version(lcm, condition, image, networks):
    pipeline, told = lcm
    for mode, few_step in (("exact", False), ("preview", True), ("fast", False)):
        request = ask(condition, image, mode=mode)
        assert pipeline.fetch(request)
        networks.calls.clear()
        result = pipeline.generate(request)
        names = ("diorama", "weights-name")
        assert told == [("fetch", names, few_step), ("load", names, few_step)]
        told.clear()
    assert result.warnings == ()


@pytest.mark.parametrize(("mode", "expected"), [("preview", [False, True]), ("fast", [False] * 2)])
def test_only_the_maps_of_a_previews_pictures_may_be_rough(lcm, condition, image, mode, expected):
    allowed = []

    def draw(picture, _):
        allowed.append(is_rough())
        return picture.copy()

    annotator = replace(condition.annotator, preprocessors=(Preprocessor("Copy", draw),))
    lcm[0].generate(ask(replace(condition, annotator=annotator), image, mode=mode))
    assert allowed == expected


def test_a_preview_says_what_ran_and_is_made_again_from_its_file(
    lcm, condition, image, networks, tmp_path
):
    pipeline, _ = lcm
    steps = []
    result = pipeline.generate(
        ask(condition, image, mode="preview"), lambda progress: steps.append(progress.steps)
    )
    assert len(networks.calls) == PREVIEW_STEPS == max(steps)
    assert all(len(text) == 1 for _, text, _ in networks.calls), "no negative half"
    report = result.report()
    told = [report[name] for name in ("mode", "sampler", "steps", "guidance_scale")]
    assert told == ["preview", "lcm", PREVIEW_STEPS, 1.0]
    save_png(tmp_path / "out.png", result.images[0], result, 0)
    with Image.open(tmp_path / "out.png") as saved:
        text = saved.text
    assert "Steps: 4, Sampler: LCM, CFG scale: 1, " in text["parameters"]
    assert ", Mode: preview, " in text["parameters"]
    assert json.loads(text["controlloop"])["request"]["steps"] == PREVIEW_STEPS
    fields, notes = read_settings(tmp_path / "out.png", condition)
    # The sliders stay where they are, for who chooses another mode afterwards.
    assert fields["mode"] == "preview" and notes == []
    assert not fields.keys() & {"steps", "sampler", "guidance_scale"}
    params = condition.annotator.params(**fields.pop("params"))
    again = pipeline.generate(GenerationRequest.single(condition, image, params=params, **fields))
    assert np.array_equal(again.images[0], result.images[0])
    assert again.request.seed == result.request.seed


def test_other_tools_line_of_a_preview_is_read_alike(condition, image):
    line = "a cat\nSteps: 4, Sampler: LCM, CFG scale: 1, Seed: 1, Size: 256x256, Mode: preview"
    info = PngInfo()
    info.add_text("parameters", line)
    memory = io.BytesIO()
    Image.fromarray(image).save(memory, "PNG", pnginfo=info)
    fields, notes = read_settings(memory.getvalue())
    assert fields["mode"] == "preview" and notes == [] and "sampler" not in fields
    assert ask(condition, image, **fields).sampler == "lcm"
