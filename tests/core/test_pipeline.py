"""The pipeline on a fake model that paints the control map."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from core.condition import ALREADY_A_MAP, Preprocessor
from core.consistency import Extractor
from core.diffusion import DECODED_IN_FLOAT32, SAMPLED_IN_FLOAT32
from core.errors import BadInput, DeviceUnavailable, SuiteError
from core.images import MOST_DRAWN_PIXELS, resize_map
from core.memory import OUT_OF_MEMORY
from core.pipeline import EMPTY_MAP_GIVEN, Pipeline, image_seeds, resolved
from core.progress import ProgressReporter
from core.request import Download, GenerationRequest


def ask(condition, image, **settings):
    defaults = {"prompt": "a ball", "image_resolution": 256, "steps": 4, "seed": 5}
    return GenerationRequest.single(condition, image, **(defaults | settings))


def test_the_map_is_kept_and_scored(pipeline, condition, image):
    result = pipeline.generate(ask(condition, image))
    assert (result.width, result.height) == (256, 256)
    assert result.control_map.dtype == np.uint8
    assert np.array_equal(result.control_map, image)
    assert result.images[0].shape == (256, 256, 3)
    assert result.images[0][:, :120].max() < 32
    assert result.images[0][:, 136:].min() > 223
    assert np.array_equal(result.reextracted[0], result.control_map)
    assert result.scores[0].headline == 100
    assert result.hashes == {"unet": "abc123"}
    assert not result.warnings


def test_an_empty_prompt_gives_a_warning(pipeline, condition, image):
    silent = {"prompt": " ", "added_prompt": ""}
    assert "prompt is empty" in pipeline.generate(ask(condition, image, **silent)).warnings[0]
    spoken = {"prompt": "", "added_prompt": "best quality"}
    assert not pipeline.generate(ask(condition, image, **spoken)).warnings


def test_a_long_negative_prompt_gives_a_warning_where_it_has_an_effect(pipeline, condition, image):
    long = ask(condition, image, negative_prompt="dull " * 605, guidance_scale=2)
    (told,) = pipeline.generate(long).warnings
    prompt = ask(condition, image, prompt="red " * 605, added_prompt="")
    assert pipeline.generate(prompt).warnings[0].startswith("The prompt is longer than 600")
    assert told.startswith("The negative prompt is longer than 600 tokens; left out: dull")
    assert not pipeline.generate(replace(long, guidance_scale=1)).warnings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 4, "control_end": 0.2}, True),
        ({"steps": 10, "control_start": 0.35, "control_end": 0.45}, True),
        ({"steps": 20, "control_start": 0.97}, True),
        ({"steps": 4, "control_end": 0.25}, False),
        ({"steps": 4, "control_end": 0.2, "strength": 0.0}, False),
    ],
    ids=str,
)
def test_a_window_without_a_whole_step_is_told(pipeline, condition, image, settings, told):
    made = pipeline.generate(ask(condition, image, **settings))
    without = pipeline.generate(ask(condition, image, **(settings | {"strength": 0.0})))
    assert any("The map has no effect" in note for note in made.warnings) == told
    if told:
        assert np.array_equal(made.images[0], without.images[0])


def doubtful(condition, doubt, **changes):
    preprocessor = replace(condition.annotator.preprocessors[0], doubt=doubt)
    annotator = replace(condition.annotator, preprocessors=(preprocessor,), **changes)
    return replace(condition, annotator=annotator)


def test_a_picture_that_the_preprocessor_does_not_know_is_told(pipeline, condition, image):
    made = pipeline.generate(ask(doubtful(condition, lambda _: 1.1), image))
    (told,) = made.warnings
    assert "trained on other kinds of pictures than this one" in told
    assert made.control_map.any()
    strict = doubtful(condition, lambda _: 1.1, empty_in_doubt=True)
    empty = pipeline.generate(ask(strict, image))
    assert empty.warnings[0].startswith(f"{strict.annotator.empty_message} The preprocessor")
    assert not empty.control_map.any()
    annotator = strict.annotator
    extractor = Extractor(annotator, annotator.preprocessors[0], annotator.params(), None)
    found, _ = extractor.reextract_and_score(image, image)
    assert np.array_equal(found, image), "a result's map is never left empty"
    assert not pipeline.generate(ask(doubtful(condition, lambda _: 1.0), image)).warnings


@pytest.mark.parametrize(("doubts", "told"), [((2.0, 2.0), True), ((2.0, 1.2), False)])
def test_of_a_ready_map_it_is_told_where_no_result_is_known(
    pipeline, condition, image, doubts, told
):
    found = iter(doubts)
    doubted = doubtful(condition, lambda _: next(found))
    asked = ask(doubted, image, preprocessor=ALREADY_A_MAP, num_samples=2)
    warnings = pipeline.generate(asked).warnings
    assert any("do not rely on the score" in note for note in warnings) == told


def test_the_warning_of_an_empty_ready_map_names_no_thresholds(pipeline, condition, image):
    given = ask(condition, np.zeros_like(image), preprocessor=ALREADY_A_MAP)
    assert pipeline.generate(given).warnings == (EMPTY_MAP_GIVEN,)


def test_without_control_the_score_falls(pipeline, condition, image):
    result = pipeline.generate(ask(condition, image, strength=0))
    assert result.scores[0].headline < 60


def test_the_report_is_the_contract(pipeline, condition, image):
    report = pipeline.generate(ask(condition, image, num_samples=2)).report()
    assert list(report) == [
        "model",
        "device",
        "dtype",
        "mode",
        "sampler",
        "steps",
        "guidance_scale",
        "width",
        "height",
        "seeds",
        "scores",
        "seconds",
        "warnings",
    ]
    assert report["model"] == "fake"
    assert report["device"] == "cpu"
    assert report["dtype"] == "float32"
    assert report["mode"] == "exact"
    assert report["seeds"] == [5, 6]
    assert report["scores"][1] == {"headline": 100.0, "metrics": {"same": 1.0}}
    assert set(report["seconds"]) == {
        "prepare",
        "map",
        "load",
        "text",
        "sample",
        "decode",
        "reextract",
    }


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_image_i_is_the_image_made_alone(pipeline, condition, image, eta):
    together = pipeline.generate(ask(condition, image, num_samples=3, eta=eta))
    assert together.seeds == (5, 6, 7)
    for seed, picture in zip(together.seeds, together.images, strict=True):
        alone = pipeline.generate(ask(condition, image, seed=seed, eta=eta))
        assert np.array_equal(alone.images[0], picture)
    assert not np.array_equal(together.images[0], together.images[1])


def test_images_are_told_as_they_are_done(pipeline, condition, image):
    told = []
    result = pipeline.generate(ask(condition, image, num_samples=3), on_images=told.append)
    counts = [len(one.images) for one in told]
    assert counts == sorted(set(counts)) and counts[-1] == 3
    for one in told:
        assert one.seeds == result.seeds[: len(one.seeds)]
        assert all(map(np.array_equal, one.images, result.images))


def test_a_drawn_seed_is_reported_and_makes_the_picture_again(pipeline, condition, image):
    drawn = pipeline.generate(ask(condition, image, seed=-1))
    assert drawn.request.seed == drawn.seeds[0] >= 0
    again = pipeline.generate(drawn.request)
    assert np.array_equal(again.images[0], drawn.images[0])
    other = pipeline.generate(ask(condition, image, seed=-1))
    assert other.seeds != drawn.seeds


def test_seeds_wrap_around_after_the_largest():
    assert image_seeds(2**32 - 1, 3) == [2**32 - 1, 0, 1]


def test_prompt_parts_are_joined_only_where_both_speak(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, prompt="", added_prompt="ab", negative_prompt="xyz"))
    assert networks.calls[0][1] == [3.0, 2.0]
    assert ask(condition, image, prompt="a", added_prompt="b").full_prompt == "a, b"
    assert ask(condition, image, prompt=" ", added_prompt="").full_prompt == ""


def test_guidance_one_runs_one_half(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, guidance_scale=1, steps=3))
    assert [len(text) for _, text, _ in networks.calls] == [1, 1, 1]


def test_guess_mode_gives_the_unconditional_half_no_control(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, guess_mode=True, steps=2, strength=0.5))
    controlled = [bool(scales) for _, _, scales in networks.calls]
    assert controlled == [False, True, False, True]
    scales = networks.calls[1][2][0]
    assert scales[-1] == 0.5
    assert scales[0] == pytest.approx(0.5 * 0.825**12)


def test_control_window(pipeline, condition, image, networks):
    pipeline.generate(ask(condition, image, control_start=0.25, control_end=0.75, steps=4))
    assert [bool(scales) for _, _, scales in networks.calls] == [False, True, True, False]


def test_already_a_map_is_fed_as_it_is_and_reextracted_the_default_way(pipeline, condition, image):
    grey = image // 2 + 10
    request = ask(condition, grey, preprocessor=ALREADY_A_MAP)
    result = pipeline.generate(request)
    assert np.array_equal(result.control_map, grey)
    assert set(np.unique(result.reextracted[0])) <= {0, 255}


def test_the_chosen_preprocessor_draws_both_maps(pipeline, condition, image):
    result = pipeline.generate(ask(condition, image, preprocessor="Dark"))
    assert np.array_equal(result.control_map, 255 - image)
    assert np.array_equal(result.reextracted[0], 255 - (result.images[0] > 127) * np.uint8(255))


def test_params_reach_the_map(pipeline, condition, image):
    params = condition.annotator.params(level=200)
    drawn = pipeline.draw_map(ask(condition, image // 2, params=params))
    assert drawn.max() == 0
    assert pipeline.draw_map(ask(condition, image // 2, params=None)).max() == 0
    params = condition.annotator.params(level=100)
    assert pipeline.draw_map(ask(condition, image // 2, params=params)).max() == 255


def test_a_map_is_drawn_at_its_own_resolution(condition, image):
    seen = []

    def draw(picture, params):
        seen.append(picture.shape)
        return picture

    first, second = condition.annotator.preprocessors
    annotator = replace(
        condition.annotator,
        preprocessors=(replace(first, draw=draw), second),
        detect_resolution=128,
    )
    own = replace(condition, annotator=annotator)
    drawn = Pipeline(None).draw_map(ask(own, image))
    assert seen == [(128, 128, 3)]
    assert drawn.shape == (256, 256, 3)
    Pipeline(None).draw_map(ask(own, image, detect_resolution=192))
    assert seen[1] == (192, 192, 3)
    Pipeline(None).draw_map(ask(condition, image, detect_resolution=192))
    (control,) = resolved(ask(condition, image, detect_resolution=192)).controls
    assert control.detect_resolution is None


@pytest.fixture
def slow_eyes(condition):
    """The condition at detect resolution 1024, whose drawings count how many run at once."""
    lock, now, most, sizes = threading.Lock(), [0], [0], []

    def draw(picture, params):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            sizes.append(picture.shape[:2])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return picture

    annotator = replace(
        condition.annotator,
        preprocessors=(Preprocessor("Slow", draw),),
        detect_resolution=1024,
    )
    return replace(condition, annotator=annotator), most, sizes


def test_large_maps_are_drawn_one_after_the_other(pipeline, slow_eyes):
    """Those of requests, those re-extracted from results and those only looked at together."""
    own, most, sizes = slow_eyes
    strip = np.zeros((100, 800, 3), np.uint8)
    request = ask(own, strip, steps=1)
    with ThreadPoolExecutor(6) as threads:
        made = [threads.submit(pipeline.generate, request) for _ in range(3)]
        drawn = [threads.submit(pipeline.draw_map, request) for _ in range(3)]
        assert all(one.result(60).shape == (256, 2048, 3) for one in drawn)
        results = [one.result(60) for one in made]
    assert most == [1] and len(sizes) == 9
    assert {high * wide <= MOST_DRAWN_PIXELS for high, wide in sizes} == {True}
    (note,) = [one for one in results[0].warnings if "takes too much memory" in one]
    assert f"drawn at {sizes[0][1]} x {sizes[0][0]}" in note and "resolution 1024" in note


@pytest.mark.slow
def test_a_request_stopped_while_it_waits_to_draw_draws_nothing(pipeline, slow_eyes):
    own, _, sizes = slow_eyes
    request = ask(own, np.zeros((64, 64, 3), np.uint8))
    with pipeline._drawing.taken(MOST_DRAWN_PIXELS):
        result = pipeline.generate(request, cancelled=lambda: True)
    assert (result.cancelled, result.images, result.controls, sizes) == (True, (), (), [])


def test_a_stop_is_heard_between_the_scores_of_two_images(networks, pipeline, condition, image):
    """Scoring may take seconds; what is scored is kept."""
    networks.largest_batch, scored = 4, []
    one = condition.annotator
    own = replace(
        condition,
        annotator=replace(one, score=lambda *maps: (scored.append(1), one.score(*maps))[1]),
    )
    request = ask(own, image, num_samples=4)
    result = pipeline.generate(request, cancelled=lambda: len(scored) == 2)
    assert result.cancelled and len(result.images) == len(scored) == 2


def test_a_request_ends_when_it_has_been_at_work_for_too_long(networks, condition, image):
    """What is finished by then is kept; waiting for others does not count."""
    predict, pipeline = networks.predict, Pipeline(lambda *_, **__: networks, most_seconds=0.5)
    slow_from = 9

    def slowly(call):
        time.sleep(0.2 * (len(networks.calls) >= slow_from))
        return predict(call)

    networks.predict = slowly
    with ThreadPoolExecutor(1) as threads:
        with pipeline._batcher.lease(networks, "another", 1, lambda _: None):
            made = threads.submit(pipeline.generate, ask(condition, image, num_samples=9))
            time.sleep(0.6)
        result = made.result(60)
    assert 2 <= len(result.images) < 9 and not result.cancelled
    assert "of 9 images were made: A request may take 0 seconds here" in result.warnings[-1]
    slow_from = 0
    with pytest.raises(SuiteError, match="and this one took more: please choose fewer images"):
        pipeline.generate(ask(condition, image))


@pytest.mark.parametrize(("side", "enlarged"), [(270, True), (300, False)])
@pytest.mark.parametrize("resolution", ["image_resolution", "detect_resolution"])
def test_the_resolution_asked_for_decides_how_a_picture_is_resized(
    condition, side, enlarged, resolution
):
    """280 is rounded to 256: from 270 that is enlarging as in v1.0, though 256 is less."""
    seen = []
    annotator = replace(
        condition.annotator,
        preprocessors=(Preprocessor("Look", lambda image, _: (seen.append(image), image)[1]),),
        detect_resolution=None if resolution == "image_resolution" else 256,
    )
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    own = replace(condition, annotator=annotator)
    Pipeline(None).draw_map(ask(own, picture, **{resolution: 280}))
    flag = cv2.INTER_LANCZOS4 if enlarged else cv2.INTER_AREA
    assert np.array_equal(seen[0], cv2.resize(picture, (256, 256), interpolation=flag))


def test_unknown_preprocessor_and_foreign_params(condition, image):
    with pytest.raises(BadInput, match="Bright, Dark, None"):
        ask(condition, image, preprocessor="HED")
    with pytest.raises(BadInput, match="bright"):
        ask(condition, image, params=object())


def test_a_flat_map_gives_a_warning_and_still_runs(pipeline, condition):
    result = pipeline.generate(ask(condition, np.zeros((256, 256, 3), np.uint8)))
    assert result.warnings == ("Nothing bright was found.",)
    assert len(result.images) == 1


def test_dropped_words_are_named(pipeline, condition, image):
    prompt = " ".join(f"w{i}" for i in range(605))
    result = pipeline.generate(ask(condition, image, prompt=prompt, added_prompt="best"))
    assert any("w600" in w and "best" in w and "w599" not in w for w in result.warnings)


def test_size_is_snapped_visibly_and_small_pictures_are_named(pipeline, condition):
    result = pipeline.generate(ask(condition, np.zeros((5, 5, 3), np.uint8), image_resolution=300))
    assert (result.width, result.height) == (320, 320)
    assert "multiple of 64" in result.warnings[0]
    assert "only 5 x 5 pixels" in result.warnings[1]


def test_a_distilled_lcm_is_asked_once_and_has_no_negative_prompt(condition, image, networks):
    """It takes the guidance scale as an input: of any size, and instead of a second text."""
    networks.takes_guidance_scale = True
    networks.make_scheduler = lambda _: LCMScheduler()
    pipeline = Pipeline(lambda *_, **__: networks)
    settings = {"guidance_scale": 8.0, "negative_prompt": "blurry " * 80}
    assert not pipeline.generate(ask(condition, image, sampler="lcm", **settings)).warnings
    asked = [texts for _, texts, _ in networks.calls]
    assert asked and all(len(texts) == 1 for texts in asked)
    (told,) = pipeline.generate(ask(condition, image, **settings)).warnings
    assert "choose the sampler lcm" in told


def test_lcm_at_a_high_guidance_gives_a_warning(condition, image, networks):
    ddim = networks.make_scheduler
    networks.make_scheduler = lambda _: LCMScheduler.from_config(ddim("ddim").config)
    pipeline = Pipeline(lambda *_, **__: networks)
    warned = pipeline.generate(ask(condition, image, sampler="lcm"))
    assert [note for note in warned.warnings if "burn out" in note]
    quiet = pipeline.generate(ask(condition, image, sampler="lcm", guidance_scale=1.5))
    assert not quiet.warnings and quiet.scores[0].headline > 95


def test_strips_are_refused(pipeline, condition):
    with pytest.raises(BadInput, match="strip"):
        pipeline.generate(ask(condition, np.zeros((16, 8192, 3), np.uint8)))


# Progress and cancel


def test_progress_counts_steps_images_and_time(pipeline, condition, image):
    heard = []
    pipeline.generate(
        ask(condition, image, num_samples=2), on_progress=heard.append, preview_every=2
    )
    steps = [(p.image_index, p.step) for p in heard if p.stage == "sample" and p.step]
    assert steps == [(i, s) for i in (0, 1) for s in (1, 2, 3, 4)]
    assert max(p.image_index for p in heard) == 1
    stages = list(dict.fromkeys(p.stage for p in heard))
    assert stages == ["prepare", "map", "load", "text", "sample", "decode", "reextract"]
    previews = [p.preview.shape for p in heard if p.preview is not None]
    assert previews == [(32, 32, 3)] * 4
    assert heard[0].seconds_left is None
    assert all(p.seconds_left is not None and p.seconds_left >= 0 for p in heard[-5:])


def test_time_left_counts_what_is_left(condition, image, networks, pipeline, monkeypatch):
    """One second a step: after step 2 of the first of two images, 4 steps each, 6 s are left."""
    monkeypatch.setattr("core.progress.time.perf_counter", lambda: float(len(networks.calls)))
    heard = []
    pipeline.generate(ask(condition, image, num_samples=2), on_progress=heard.append)
    second = next(p for p in heard if p.stage == "sample" and p.step == 2)
    assert second.seconds_left == 6


def test_a_download_says_how_long_it_takes_and_stops(condition, image, networks, monkeypatch):
    """At 10 bytes a second, of which the 5 that were here say nothing; first ones are too few."""
    clock = iter((0.0, 1.0, 2.0, 4.0))
    monkeypatch.setattr("core.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    came = (5, 15, 25, 45)
    names, heard = [], []

    def fetch(model, *controls, watch, few_step):
        names.append((model, *controls))
        for here in came:
            watch(Download("Far", here, 105))

    pipeline = Pipeline(lambda *_, **__: networks, fetch=fetch)
    assert pipeline.fetch(ask(condition, image), heard.append)
    assert names == [("diorama", "weights-name")]
    assert [p.stage for p in heard] == ["download"] * 4
    assert [p.download.bytes_here for p in heard] == list(came)
    assert [p.seconds_left for p in heard] == [None, None, 8, 6]
    clock = iter((0.0, 1.0, 2.0, 4.0))
    assert not pipeline.fetch(ask(condition, image), heard.append, lambda: len(heard) == 6)
    assert len(heard) == 6


def test_time_left_counts_the_wait_for_the_device(monkeypatch):
    """Two images, of two steps of one second and ten seconds of waiting each, are left: 24 s."""
    clock, heard = [0.0], []
    monkeypatch.setattr("core.progress.time.perf_counter", lambda: clock[0])
    reporter = ProgressReporter(heard.append, None, 0, steps=2, images=3)
    with reporter.stage("text"):
        clock[0] += 1
    clock[0] += 10
    with reporter.stage("sample"):
        for step in (1, 2):
            clock[0] += 1
            reporter.stepped(step, 1, None, None)
    reporter.finished(1)
    reporter.waiting(3)
    assert heard[-1].stage == "wait" and heard[-1].seconds_left == 24
    assert heard[-1].ahead == 3


@pytest.mark.parametrize(("stop_at", "kept"), [(0, 0), (3, 0), (6, 1), (12, 2)])
def test_cancel_ends_within_a_step_and_keeps_finished_images(
    pipeline, condition, image, networks, stop_at, kept
):
    result = pipeline.generate(
        ask(condition, image, num_samples=3), cancelled=lambda: len(networks.calls) >= stop_at
    )
    assert len(networks.calls) == stop_at
    assert result.cancelled
    assert len(result.images) == len(result.seeds) == len(result.scores) == kept
    assert result.control_map.max() == 255
    again = pipeline.generate(ask(condition, image))
    assert not again.cancelled
    assert len(again.images) == 1


@pytest.mark.parametrize(("part", "counts"), [("draw", (0, 0)), ("decode", (4, 1))])
def test_a_stop_within_a_part_is_heard_at_its_end(
    pipeline, condition, image, networks, monkeypatch, part, counts
):
    """An annotator and a decoder run to their end; what they have made is kept."""
    stopped = []
    owner, name = (Extractor, "extract") if part == "draw" else (type(networks), "decode")
    work = getattr(owner, name)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *args: (work(*args), stopped.append(1))[0])
        result = pipeline.generate(ask(condition, image, num_samples=3), cancelled=lambda: stopped)
    assert result.cancelled and (len(networks.calls), len(result.images)) == counts
    assert len(pipeline.generate(ask(condition, image)).images) == 1


def test_after_an_annotators_bug_the_next_request_works(pipeline, condition, image):
    fails = Preprocessor("Broken", lambda *_: 1 / 0)
    broken = replace(condition, annotator=replace(condition.annotator, preprocessors=(fails,)))
    with pytest.raises(ZeroDivisionError):
        pipeline.generate(ask(broken, image))
    assert len(pipeline.generate(ask(condition, image)).images) == 1


@pytest.mark.parametrize("side", [1, 5])
def test_a_picture_of_one_pixel_is_enlarged_and_that_is_told(pipeline, condition, side):
    result = pipeline.generate(ask(condition, np.full((side, side, 3), 255, np.uint8)))
    assert result.images[0].shape == (256, 256, 3)
    assert any(f"only {side} x {side} pixels" in note for note in result.warnings)


# NaN and infinity


@pytest.mark.parametrize(
    ("fault", "copied", "steps", "warning"),
    [
        ({"broken_at": 2}, "all", 3 * 4, SAMPLED_IN_FLOAT32),
        ({"broken_decode": True}, "vae", 2 * 4, DECODED_IN_FLOAT32),
    ],
)
def test_only_what_overflowed_runs_again_in_float32(
    condition, image, networks, fault, copied, steps, warning
):
    """Of two images of four steps: the first sampled twice, or decoded twice; the second once."""
    half = replace(networks, dtype=torch.float16, **fault)
    result = Pipeline(lambda *_, **__: half).generate(ask(condition, image, num_samples=2))
    assert half.copied_to_float32 == [copied] and len(half.calls) == steps
    assert result.warnings == (warning.format("float16"),)
    assert result.dtype == ("float32" if copied == "all" else "float16")
    good = Pipeline(lambda *_, **__: networks).generate(ask(condition, image, num_samples=2))
    for mine, wanted in zip(result.images, good.images, strict=True):
        assert np.array_equal(mine, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("fault", [{"broken_at": 0}, {"broken_decode": True}])
def test_not_finite_even_in_float32_is_an_error_not_a_black_image(
    condition, image, networks, dtype, fault
):
    broken = replace(networks, dtype=dtype, broken_for_good=True, **fault)
    with pytest.raises(SuiteError, match="NaN or infinite"):
        Pipeline(lambda *_, **__: broken).generate(ask(condition, image))


def test_a_later_failure_keeps_the_finished_images(condition, image, networks):
    broken = replace(networks, broken_at=6, broken_for_good=True)
    result = Pipeline(lambda *_, **__: broken).generate(ask(condition, image, num_samples=3))
    assert result.seeds == (5,)
    assert "Only 1 of 3" in result.warnings[0]


@pytest.mark.parametrize(
    "failure",
    [(KeyError("/secret"), "Something went wrong on our side"), (MemoryError(), OUT_OF_MEMORY)],
    ids=["bug", "memory"],
)
@pytest.mark.parametrize(
    ("part", "largest_batch"),
    [("predict", 1), ("reextract_and_score", 1), ("reextract_and_score", 4)],
)
def test_whatever_fails_later_keeps_the_finished_images(
    condition, image, networks, monkeypatch, failure, part, largest_batch
):
    """The seventh image of twelve fails while it is sampled, or while it is scored."""
    error, told = failure
    owner = type(networks) if part == "predict" else Extractor
    work, left = getattr(owner, part), [6 * (4 if part == "predict" else 1)]

    def fails(*args):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return work(*args)

    monkeypatch.setattr(owner, part, fails)
    networks = replace(networks, largest_batch=largest_batch)
    result = Pipeline(lambda *_, **__: networks).generate(ask(condition, image, num_samples=12))
    assert len(result.images) == len(result.scores) == 6
    warning = result.warnings[-1]
    assert warning.startswith(f"Only 6 of 12 images were made: {told}") and "secret" not in warning


def test_a_preview_that_fails_costs_no_image(condition, image, networks, monkeypatch, caplog):
    heard = []
    monkeypatch.setattr(type(networks), "preview", lambda *_: 1 / 0)
    result = Pipeline(lambda *_, **__: networks).generate(
        ask(condition, image, num_samples=2), heard.append, preview_every=1
    )
    assert len(result.images) == 2 and not result.warnings
    assert all(one.preview is None for one in heard)
    assert caplog.text.count("ZeroDivisionError") == 1


def test_memory_that_runs_out_while_a_map_is_drawn_is_told(condition, image, pipeline, monkeypatch):
    for name in ("extract", "__init__"):
        with monkeypatch.context() as patched, pytest.raises(DeviceUnavailable, match="memory"):
            patched.setattr(Extractor, name, _no_memory)
            pipeline.generate(ask(condition, image))


def _no_memory(*_, **__):
    raise MemoryError


def test_previews_of_nothing_do_not_hide_it(condition, image, networks):
    broken = replace(networks, broken_at=0, broken_for_good=True)
    heard = []
    with pytest.raises(SuiteError, match="NaN or infinite"):
        Pipeline(lambda *_, **__: broken).generate(
            ask(condition, image), heard.append, preview_every=1
        )
    assert len(heard) > 4


def test_the_map_shown_is_the_map_fed(condition, image, networks):
    hints = []
    predict = networks.predict

    def spy(call):
        hints.extend(control.hint for control in call.controls)
        return predict(call)

    networks.predict = spy
    request = ask(condition, image[:, 100:150], preprocessor=ALREADY_A_MAP)
    result = Pipeline(lambda *_, **__: networks).generate(request)
    shown = resize_map(image[:, 100:150], (result.width, result.height), "nearest")
    assert np.array_equal(result.control_map, shown)
    fed = (hints[0][0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(fed, result.control_map)


@pytest.mark.parametrize("result_is_empty", [False, True])
def test_an_empty_map_has_no_score_whatever_the_result_shows(
    networks, condition, image, result_is_empty
):
    """Not 0 where the result shows something and 100 where it does not."""
    pipeline = Pipeline(lambda *_, **__: networks)
    request = ask(condition, image * 0, strength=1.0 if result_is_empty else 0.0)
    report = pipeline.generate(request).report()
    assert report["scores"] == [{"headline": None, "metrics": {}}]
    both = GenerationRequest(request.controls * 2, prompt="a ball", steps=4, image_resolution=256)
    (told,) = pipeline.generate(both).report()["scores"]
    assert told["headline"] is None and [one["headline"] for one in told["controls"]] == [None] * 2
