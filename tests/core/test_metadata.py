"""What a PNG remembers is enough to make the picture again, and no hostile PNG does harm."""

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from PIL.PngImagePlugin import PngInfo

from core.images import read_image
from core.metadata import SCHEMA, read_mask, read_settings, save_png
from core.request import GenerationRequest

PROMPT = "a ball\nNegative prompt: not this one\n“ünï” 🎈 <script>${x}</script> \0 end"


@pytest.fixture
def result(pipeline, condition, image):
    request = GenerationRequest.single(
        condition,
        image,
        prompt=PROMPT,
        added_prompt="sharp",
        negative_prompt="blur,\nSteps: 99",
        params=condition.annotator.params(level=99),
        preprocessor="Dark",
        num_samples=2,
        image_resolution=256,
        strength=0.75,
        steps=3,
        guidance_scale=4.5,
        seed=2**32 - 1,
        eta=0.5,
        control_end=0.9,
    )
    return pipeline.generate(request)


def with_texts(**texts):
    """Return a small PNG that carries the given texts."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def ours(**request):
    return with_texts(
        controlloop=json.dumps({"schema": SCHEMA, "condition": "bright2image", "request": request})
    )


def test_the_settings_make_the_same_picture_again(pipeline, condition, image, result, tmp_path):
    path = tmp_path / "out.png"
    save_png(path, result.images[1], result, 1)
    assert np.array_equal(read_image(path)[0], result.images[1])
    fields, notes = read_settings(path, condition)
    assert notes == []
    assert fields["prompt"] == PROMPT
    assert fields["seed"] == 0
    assert fields["params"] == {"level": 99}
    fields["params"] = condition.annotator.params(**fields["params"])
    again = pipeline.generate(GenerationRequest.single(condition, image, **fields))
    assert len(again.images) == 1
    assert np.array_equal(again.images[0], result.images[1])
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("shape", [(256, 256), (300, 400)])
def test_a_mask_is_kept_too_so_that_the_picture_can_be_made_again(pipeline, condition, shape):
    """Also at another aspect ratio, where the result's sides are rounded to 64."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, bool)
    mask[40:150, 33:131] = True
    given = {"denoising_strength": 0.75, "mask_blur": 2, "steps": 4, "seed": 5}
    given |= {"image_resolution": 256, "params": condition.annotator.params(level=99)}
    made = pipeline.generate(GenerationRequest.single(condition, image, mask=mask, **given))
    file = io.BytesIO()
    save_png(file, made.images[0], made, 0)
    fields, _ = read_settings(file.getvalue(), condition)
    fields["params"] = condition.annotator.params(**fields["params"])
    kept = read_mask(file.getvalue())
    assert kept.shape == (made.height, made.width)
    again = pipeline.generate(GenerationRequest.single(condition, image, mask=kept, **fields))
    assert np.array_equal(again.images[0], made.images[0])
    assert len(file.getvalue()) - len(Image.open(file).tobytes()) < 20_000


@pytest.mark.parametrize("stored", [7, [], "", "no base64", "AAAA", "A" * 200_000, None])
def test_a_mask_that_is_none_is_none(stored):
    text = json.dumps({"schema": SCHEMA, "request": {}, "mask": stored})
    assert read_mask(with_texts(controlloop=text)) is None
    assert read_mask(with_texts()) is None


def test_a_mask_of_noise_is_left_out(pipeline, condition, image):
    """It would make the text longer than is read."""
    noise = np.random.default_rng(0).random((1280, 1280)) < 0.5
    request = GenerationRequest.single(condition, image, mask=noise, image_resolution=768, steps=1)
    result = replace(pipeline.generate(request), width=1280, height=1280)
    file = io.BytesIO()
    save_png(file, result.images[0], result, 0)
    assert read_mask(file.getvalue()) is None and read_settings(file.getvalue(), condition)[0]


def test_the_chunks_hold_what_the_contract_says(result):
    file = io.BytesIO()
    save_png(file, result.images[0], result, 0)
    texts = Image.open(io.BytesIO(file.getvalue())).text
    stored = json.loads(texts["controlloop"])
    assert stored["schema"] == SCHEMA
    assert stored["condition"] == "bright2image"
    assert stored["seed"] == stored["request"]["seed"] == 2**32 - 1
    assert stored["model"] == "fake"
    assert stored["hashes"] == {"unet": "abc123"}
    assert stored["score"]["metrics"].keys() == {"same"}
    assert "image" not in stored["request"]
    last = texts["parameters"].splitlines()[-1]
    assert last.startswith(
        "Steps: 3, Sampler: DDIM, CFG scale: 4.5, Seed: 4294967295, Size: 256x256"
    )


def test_a1111_text_is_the_fallback():
    text = (
        "a cat, <lora:x:1>\nsecond line\nNegative prompt: blurry, ugly\n"
        "Steps: 28, Sampler: Euler a, CFG scale: 7.5, Seed: 123, Size: 640x512, "
        'Model hash: abc, ControlNet 0: "Module: canny, Weight: 1", Version: v1.9'
    )
    fields, notes = read_settings(with_texts(parameters=text))
    assert fields == {
        "prompt": "a cat, <lora:x:1>\nsecond line",
        "added_prompt": "",
        "negative_prompt": "blurry, ugly",
        "steps": 28,
        "guidance_scale": 7.5,
        "seed": 123,
        "image_resolution": 512,
        "strength": 1.0,
    }
    assert any("Euler a" in note for note in notes)
    assert any("Model hash" in note for note in notes)


def test_a1111_knows_our_other_sampler_and_mode():
    text = "a cat\nSteps: 4, Sampler: LCM, CFG scale: 1, Seed: 1, Size: 256x256, Mode: exact"
    fields, notes = read_settings(with_texts(parameters=text))
    assert (fields["sampler"], fields["mode"], notes) == ("lcm", "exact", [])


def test_a1111_text_of_ours_reads_the_same_numbers(result):
    file = io.BytesIO()
    save_png(file, result.images[0], result, 0)
    text = Image.open(io.BytesIO(file.getvalue())).text["parameters"]
    fields, _ = read_settings(with_texts(parameters=text))
    assert (fields["steps"], fields["guidance_scale"], fields["eta"]) == (3, 4.5, 0.5)
    assert (fields["seed"], fields["image_resolution"]) == (2**32 - 1, 256)


LARGE_SEED = 2**63 + 1
"""As ComfyUI and InvokeAI draw them."""


@pytest.mark.parametrize("seed", [2**32, LARGE_SEED, 2**64 - 1, -7, 5.5])
@pytest.mark.parametrize(
    "texts",
    [
        lambda seed: {"parameters": f"p\nSteps: 3, Seed: {seed}"},
        lambda seed: {"parameters": json.dumps({"prompt": "p", "seed": str(seed)})},
        lambda seed: {"invokeai_metadata": json.dumps({"positive_prompt": "p", "seed": seed})},
        lambda seed: {"controlloop": json.dumps({"schema": SCHEMA, "request": {"seed": seed}})},
    ],
    ids=["A1111", "Fooocus", "InvokeAI", "ours"],
)
def test_a_seed_that_does_not_fit_is_told_and_never_another(texts, seed):
    fields, notes = read_settings(with_texts(**texts(seed)))
    assert "seed" not in fields
    assert f"Seed {seed} is not a whole number from -1 to 4294967295" in " ".join(notes)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(first=st.integers(-1, 2**65), second=st.integers(-1, 2**65), of_json=st.booleans())
def test_two_seeds_never_become_one(first, second, of_json):
    def restored(seed):
        text = (
            json.dumps({"prompt": "p", "seed": seed}) if of_json else f"p\nSteps: 3, Seed: {seed}"
        )
        return read_settings(with_texts(parameters=text))[0].get("seed")

    assert restored(first) in (None, first)
    assert first == second or restored(first) is None or restored(first) != restored(second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "only a prompt",
        "a\nNegative prompt: b",
        "Steps: 1e9, Size: 0x0, Seed: NaN, CFG scale: -inf",
        "p\nSteps: 5, Seed: " + "9" * 4000,
        "p\nSteps: 5, Size: axb, Seed: 0x10, CFG scale: 7,5",
        "p\n" + "Steps: 5, " + " " * 100_000 + "x" * 100_000,
        "p\nSteps: 5, " + ", ".join(f"k{i}: {i}" for i in range(10_000)),
        "Negative prompt:" * 10_000 + "\nSteps: 3",
    ],
)
def test_hostile_a1111_text(text, condition, image):
    fields, notes = read_settings(with_texts(parameters=text))
    GenerationRequest.single(condition, image, **fields)
    assert notes or fields
    assert sum(len(note) for note in notes) < 2000


def test_fooocus_json_gives_what_is_known_and_lists_the_rest(condition, image):
    """The keys of Fooocus' own writer, which gives the seed as text."""
    text = json.dumps(
        {
            "prompt": "a cat",
            "negative_prompt": "blurry",
            "full_prompt": ["a cat, cinematic"],
            "prompt_expansion": "",
            "steps": 30,
            "guidance_scale": 4.0,
            "seed": "4061",
            "sampler": "dpmpp_2m_sde_gpu",
            "loras": [],
            "version": "Fooocus v2.5.5",
        }
    )
    fields, notes = read_settings(with_texts(fooocus_scheme="fooocus", parameters=text))
    assert fields == {
        "prompt": "a cat",
        "added_prompt": "",
        "negative_prompt": "blurry",
        "steps": 30,
        "guidance_scale": 4.0,
        "seed": 4061,
    }
    assert notes == ["Ignored: full_prompt, sampler, version."]
    GenerationRequest.single(condition, image, **fields)


def test_invokeai_metadata_gives_what_is_known_and_lists_the_rest(condition, image):
    """Its `strength` is our denoising strength, and its `model` none of ours."""
    text = json.dumps(
        {
            "generation_mode": "img2img",
            "positive_prompt": "a cat",
            "seed": 4061,
            "steps": 30,
            "cfg_scale": 7.5,
            "strength": 0.3,
            "model": {"name": "x"},
            "clip_skip": None,
        }
    )
    fields, notes = read_settings(with_texts(invokeai_metadata=text, invokeai_graph="{}"))
    assert fields == {
        "prompt": "a cat",
        "added_prompt": "",
        "negative_prompt": "",
        "steps": 30,
        "guidance_scale": 7.5,
        "seed": 4061,
        "denoising_strength": 0.3,
    }
    assert notes == ["Ignored: generation_mode, model."]
    GenerationRequest.single(condition, image, **fields)


@pytest.mark.parametrize(
    "texts",
    [{"prompt": '{"3": {"class_type": "KSampler"}}'}, {"workflow": '{"nodes": []}'}],
)
def test_a_comfyui_workflow_is_named(texts):
    fields, notes = read_settings(with_texts(**texts))
    assert fields == {}
    assert notes == ["This picture holds a ComfyUI workflow; its settings cannot be read here."]


def test_a_workflow_too_long_to_read_is_still_named():
    assert "ComfyUI" in read_settings(with_texts(workflow="{" * 300_000))[1][0]


def test_parameters_beside_a_workflow_are_read():
    fields, notes = read_settings(with_texts(prompt="{}", workflow="{}", parameters="p\nSteps: 3"))
    assert fields["steps"] == 3
    assert notes == []


def test_a_prompt_that_any_tool_wrote_is_no_workflow():
    assert read_settings(with_texts(prompt="a cat")) == ({}, ["This picture holds no settings."])


def test_a_prompt_may_begin_with_a_brace():
    fields, _ = read_settings(with_texts(parameters="{red|blue} ball\nSteps: 3"))
    assert (fields["prompt"], fields["steps"]) == ("{red|blue} ball", 3)


@pytest.mark.parametrize("keyword", ["parameters", "invokeai_metadata"])
@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"a":' * 50_000,
        "{" * 300_000,
        "{}",
        "null",
        "[1]",
        '{"seed": ' + "9" * 5000 + "}",
        '{"seed": "' + "9" * 5000 + '", "steps": "x", "cfg_scale": [1, 2]}',
        '{"seed": NaN, "steps": -Infinity, "guidance_scale": 1e999}',
        '{"seed": 1e300, "steps": true, "prompt": {"a": 1}}',
        '{"seed": -7, "steps": 1e9, "prompt": "' + "x" * 9999 + '"}',
        json.dumps({f"{i}" * 99: i for i in range(1000)}),
        '{"of_a_new_tool": {"prompt": "a cat"}}',
        '{"sui_image_params": {"prompt": 5, "seed": "x"}}',
        '{"sui_image_params": 5}',
    ],
)
def test_hostile_json_of_other_tools(keyword, text, condition, image):
    fields, notes = read_settings(with_texts(**{keyword: text}))
    GenerationRequest.single(condition, image, **fields)
    assert notes
    assert sum(len(note) for note in notes) < 2000


def test_ranges_are_clamped_with_a_note(condition, image):
    fields, notes = read_settings(
        ours(
            steps=10**9,
            seed=float("nan"),
            strength=-5,
            prompt="x" * 9999,
            guess_mode="yes",
            num_samples=1e300,
            image=[1, 2],
            params={"level": 999, "colour": "red"},
            preprocessor="Nothing",
        ),
        condition,
    )
    assert fields.pop("params") == {"level": 254}
    GenerationRequest.single(condition, image, **fields)
    assert (fields["steps"], fields["strength"], len(fields["prompt"])) == (100, 0.0, 4000)
    assert "seed" not in fields
    assert "guess_mode" not in fields
    assert "preprocessor" not in fields
    said = " ".join(notes)
    for word in ("Steps", "Seed", "strength", "Prompt", "Guess", "image", "Level", "colour"):
        assert word in said


def test_a_window_that_never_opens_is_left_out(condition, image):
    fields, notes = read_settings(ours(control_start=0.9, control_end=0.1))
    del fields["params"]
    GenerationRequest.single(condition, image, **fields)
    assert "Control start" in notes[0]


def test_from_another_app_the_map_settings_stay_out(result, condition):
    other = json.dumps(
        {
            "schema": SCHEMA,
            "condition": "pose2image",
            "request": {"steps": 7, "params": {"level": 3}, "preprocessor": "Bright"},
        }
    )
    fields, notes = read_settings(with_texts(controlloop=other), condition)
    assert fields == {"steps": 7}
    assert "pose2image" in notes[0]


def test_a_later_version_gives_what_is_known(image):
    later = {"schema": SCHEMA + 1, "request": {"steps": 7, "warp": 9}, "more": {}}
    fields, notes = read_settings(with_texts(controlloop=json.dumps(later)))
    assert fields == {"steps": 7, "params": {}}
    assert "another version" in notes[0]
    assert "warp" in notes[1]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{",
        "null",
        "[]",
        '{"request": 3}',
        '{"request": {"steps": ' + "9" * 5000 + "}}",
        '{"schema": null, "request": {"params": [1], "seed": {"a": []}, "model": null}}',
        '{"schema": 1, "request": {"params": {"level": {"deep": []}, "' + "x" * 999 + '": 1}}}',
    ],
)
def test_hostile_json(text, condition):
    for about in (None, condition):
        fields, notes = read_settings(with_texts(controlloop=text), about)
        assert notes or about is None
        assert fields.get("params", {}) in ({}, {"x" * 40: 1})


@pytest.mark.parametrize("data", [b"", b"not a PNG", with_texts(), with_texts(parameters="")])
def test_a_file_without_settings_gives_one_note(data):
    fields, notes = read_settings(data)
    assert fields == {}
    assert len(notes) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Steps: 25, Sampler: DDIM, CFG scale: 7, Seed: 11\nTemplate: {a|b},\non grass",
        'Steps: 25, CFG scale: 7, Seed: 11, Note: "a \\"sign\\", Steps: up, Seed: of doubt"',
        "Steps: 25 | Seed: 11 | Sampler: UniPC | CFG scale: 7",
    ],
    ids=["lines after", "quotes", "bars"],
)
def test_what_extensions_and_forks_write_costs_no_setting(line):
    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", f"a ball\nNegative prompt: low\n{line}")
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    settings, _ = read_settings(file.getvalue())
    assert (settings["prompt"], settings["negative_prompt"]) == ("a ball", "low")
    assert (settings["steps"], settings["seed"], settings["guidance_scale"]) == (25, 11, 7.0)


def test_a_file_that_is_no_whole_picture_is_told():
    whole = with_texts()
    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "JPEG")
    for data in (whole, photo.getvalue()):
        assert read_settings(data) == ({}, ["This picture holds no settings."])
    for data, words in (
        (whole[:60], "incomplete, and its settings may be lost"),
        (b"hello", "not an image we can read"),
        (b"", "is empty"),
        (photo.getvalue()[:1], "not an image we can read"),
    ):
        fields, (told,) = read_settings(data)
        assert not fields and words in told


def test_a_photograph_of_any_size_is_looked_into():
    """Pillow's own opener refuses one of 200 megapixels; only its header is read here."""
    block = Image.Exif()
    block[ExifTag.Make] = 'prompt:{"3": {"class_type": "KSampler", "inputs": {"seed": 5}}}'
    for exif, wanted in ((b"", {}), (block.tobytes(), {"seed": 5})):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG", exif=exif)
        data = bytearray(file.getvalue())
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 12288, 16384)
        fields, notes = read_settings(bytes(data))
        assert fields == wanted and notes
