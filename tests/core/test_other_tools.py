"""Pictures of other tools than AUTOMATIC1111, as their writers leave them."""

import html
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metadata import read_settings
from core.other_tools import from_comfyui, from_dream, from_json, from_sd_metadata
from tests.core.test_metadata import with_texts

BALL = {"prompt": "a red ball", "added_prompt": "", "negative_prompt": "grey"}
NUMBERS = {"steps": 30, "seed": 42, "guidance_scale": 7.5, "image_resolution": 512}


@pytest.mark.parametrize(
    "text",
    [
        '"a red ball [grey]" -s 30 -S 42 -W 512 -H 768 -C 7.5 -A ddim',
        "a red ball [grey] -s 30 -S 42 -W 512 -H 768 -C 7.5 -A ddim",
        '"a [grey] red ball" -s30 -W768 -H512 -C7.5 -Addim -S42',
    ],
)
def test_invokeais_command_line(text):
    fields, notes = read_settings(with_texts(Dream=text))
    assert (fields, notes) == (BALL | NUMBERS, [])


def test_the_strength_of_image_to_image():
    """ComfyUI's 30 steps are the last of 50; from an empty picture its `denoise` means nothing."""
    assert from_dream("a ball -s 30 -S 42 -f 0.6")[0]["denoising_strength"] == 0.6
    made = {"positive_prompt": "a ball", "strength": 0.6}
    assert from_json(json.dumps(made))[0]["denoising_strength"] == 0.6
    nodes = graph(denoise=0.6)
    assert "denoising_strength" not in from_comfyui(json.dumps(nodes))[0]
    nodes["5"] = {"class_type": "VAEEncode", "inputs": {}}
    fields, _ = from_comfyui(json.dumps(nodes))
    assert (fields["denoising_strength"], fields["steps"]) == (0.6, 50)


def test_a_command_line_with_dashes_and_quotes_in_the_prompt():
    fields, notes = from_dream('a "well-lit" -style ball -s 30 -S 42 -A k_lms -G 0.8 --fit')
    assert (fields["prompt"], fields["steps"], fields["seed"]) == (
        'a "well-lit" -style ball',
        30,
        42,
    )
    assert "sampler k_lms" in notes[0] and notes[1] == "Ignored: -G."


@pytest.mark.parametrize(
    "prompt", ["a red ball [grey]", [{"prompt": "a red ball [grey]", "weight": 1}]]
)
def test_invokeais_sd_metadata(prompt):
    image = {
        "prompt": prompt, "steps": 30, "cfg_scale": 7.5, "seed": 42, "width": 512, "height": 768,
        "sampler": "ddim", "type": "txt2img", "variations": [], "postprocessing": None,
    }  # fmt: skip
    stored = {"model": "stable diffusion", "app_id": "invoke-ai/InvokeAI", "image": image}
    fields, notes = read_settings(with_texts(**{"sd-metadata": json.dumps(stored), "Dream": "x"}))
    assert (fields, notes) == (BALL | NUMBERS, ["Ignored: type."])


def test_weighted_parts_of_an_invokeai_prompt_are_told():
    parts = [{"prompt": "a ball", "weight": 0.7}, {"prompt": "a cube", "weight": 0.3}]
    fields, notes = from_sd_metadata(json.dumps({"image": {"prompt": parts}}))
    assert fields["prompt"] == "a ball a cube"
    assert notes == ["The weights of the prompt's parts were left out."]


@pytest.mark.parametrize(
    "texts",
    [
        {"invokeai_metadata": '{"positive_prompt": "", "negative_prompt": "", "seed": 4}'},
        {"parameters": '{"prompt": "", "negative_prompt": "", "seed": "4"}'},
        {"parameters": "\nSteps: 4, Seed: 4"},
        {"Dream": '"" -s 4 -S 4'},
        {"sd-metadata": '{"image": {"prompt": "", "seed": 4}}'},
    ],
)
def test_an_empty_prompt_is_restored_as_one(texts):
    fields, _ = read_settings(with_texts(**texts))
    assert fields["seed"] == 4
    assert [fields[n] for n in ("prompt", "added_prompt", "negative_prompt")] == ["", "", ""]


def test_sizes_of_fooocus_and_invokeai():
    assert from_json('{"prompt": "p", "resolution": "(1152, 640)"}')[0]["image_resolution"] == 640
    assert from_json('{"prompt": "p", "width": 512, "height": 768}') == (
        {"prompt": "p", "added_prompt": "", "negative_prompt": "", "image_resolution": 512},
        [],
    )


def test_swarmuis_json():
    made = {
        "prompt": "a red ball", "negativeprompt": "grey", "steps": 30, "seed": 42, "cfgscale": 7.5,
        "width": 512, "height": 768, "sampler": "euler",
    }  # fmt: skip
    stored = json.dumps({"sui_image_params": made, "sui_extra_data": {"date": "x"}})
    fields, notes = read_settings(with_texts(parameters=stored))
    assert (fields, notes) == (BALL | NUMBERS, ["Ignored: sampler."])


def test_novelais_comment():
    made = {
        "prompt": "a red ball", "uc": "grey", "steps": 30, "seed": 42, "scale": 7.5,
        "width": 512, "height": 768,
    }  # fmt: skip
    texts = {"Comment": json.dumps(made), "Software": "NovelAI", "Description": "a red ball"}
    assert read_settings(with_texts(**texts)) == (BALL | NUMBERS, [])


@pytest.mark.parametrize("comment", ["Created with GIMP", '{"prompt": "x"}', "[1]", "7"])
def test_another_tools_comment_holds_no_settings(comment):
    assert read_settings(with_texts(Comment=comment)) == ({}, ["This picture holds no settings."])


def test_the_chunks_of_kohyas_scripts():
    texts = {
        "prompt": "a red ball",
        "seed": "42",
        "sampler": "k_lms",
        "steps": "30",
        "scale": "7.5",
    }
    fields, notes = read_settings(with_texts(**texts, **{"negative-prompt": "grey"}))
    assert fields == {n: v for n, v in (BALL | NUMBERS).items() if n != "image_resolution"}
    assert "sampler k_lms" in notes[0]


def test_the_chunks_of_easy_diffusion():
    texts = {
        "prompt": "a red ball",
        "negative_prompt": "grey",
        "seed": "42",
        "num_inference_steps": "30",
        "guidance_scale": "7.5",
        "use_stable_diffusion_model": "sd-v1-5",
    }
    wanted = {n: v for n, v in (BALL | NUMBERS).items() if n != "image_resolution"}
    assert read_settings(with_texts(**texts)) == (wanted, [])
    del texts["seed"]
    assert read_settings(with_texts(**texts)) == ({}, ["This picture holds no settings."])


def test_draw_things_xmp():
    made = {"c": "a red <ball> & grass", "uc": "grey", "steps": 30, "seed": 42, "scale": 7.5,
            "size": "512x768", "sampler": "DDIM", "model": "sd_v1.5_f16.ckpt"}  # fmt: skip
    comment = html.escape(json.dumps(made), quote=False)
    xmp = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description>
      <dc:description><rdf:Alt><rdf:li>a red ball</rdf:li></rdf:Alt></dc:description>
      <exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{comment}</rdf:li></rdf:Alt>
      </exif:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"""
    fields, notes = read_settings(with_texts(**{"XML:com.adobe.xmp": xmp}))
    assert fields == BALL | NUMBERS | {"prompt": made["c"]}
    assert notes == ["Ignored: sampler, model."]
    for other in (xmp.replace('"uc"', '"other"'), "<x:xmpmeta/>", "<exif:UserComment>" * 1000):
        told = read_settings(with_texts(**{"XML:com.adobe.xmp": other}))
        assert told == ({}, ["This picture holds no settings."])


def graph(**changes):
    """Return ComfyUI's default graph with a ControlNet; `changes` are the sampler's inputs."""
    nodes = {
        "3": ("KSampler", {"seed": 42, "steps": 30, "cfg": 7.5, "sampler_name": "ddim",
                           "scheduler": "normal", "denoise": 1, "model": ["4", 0],
                           "positive": ["10", 0], "negative": ["10", 1],
                           "latent_image": ["5", 0]} | changes),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": "v1-5-pruned-emaonly.ckpt"}),
        "5": ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": "a red ball", "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "grey", "clip": ["4", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "10": ("ControlNetApplyAdvanced", {"positive": ["11", 0], "negative": ["7", 0]}),
        "11": ("ControlNetApply", {"conditioning": ["6", 0]}),
        "12": ("Text Multiline", {"text": "elsewhere"}),
        "13": ("CLIPTextEncode", {"text": ["12", 0], "clip": ["4", 1]}),
        "14": ("ControlNetApply", {"conditioning": ["14", 0]}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_comfyuis_graph_with_plain_inputs():
    texts = {"prompt": json.dumps(graph()), "workflow": '{"nodes": []}'}
    fields, notes = read_settings(with_texts(**texts))
    assert fields == BALL | NUMBERS
    assert notes == [
        "This picture holds a ComfyUI workflow; only its sampler and the texts were read."
    ]


@pytest.mark.parametrize("positive", [["13", 0], ["14", 0], ["99", 0], "x", 3, ["6"], None])
def test_a_text_that_is_not_plain_is_told(positive):
    fields, notes = from_comfyui(json.dumps(graph(positive=positive)))
    assert not {"prompt", "added_prompt"} & fields.keys()
    assert (fields["negative_prompt"], fields["seed"]) == ("grey", 42)
    assert notes[0].endswith("read, but not its prompt.")


def test_a_seed_that_is_linked_is_left_out():
    fields, notes = from_comfyui(json.dumps(graph(seed=["9", 0])))
    assert "seed" not in fields and notes[0].endswith("read, but not its seed.")


def test_another_sampler_of_comfyui_is_told():
    assert "sampler euler" in from_comfyui(json.dumps(graph(sampler_name="euler")))[1][1]
    assert from_comfyui(json.dumps(graph(sampler_name="lcm")))[0]["sampler"] == "lcm"


def test_two_samplers_are_not_plain():
    nodes = graph() | {"20": {"class_type": "KSamplerAdvanced", "inputs": {}}}
    fields, notes = from_comfyui(json.dumps(nodes))
    assert fields == {} and "ComfyUI" in notes[0]


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(changes=st.dictionaries(st.sampled_from(list(graph()["3"]["inputs"])), JSON_VALUES))
def test_whatever_a_sampler_holds_a_graph_is_read_without_harm(changes):
    fields, notes = from_comfyui(json.dumps(graph(**changes)))
    assert notes and "ComfyUI" in notes[0]
    for name, value in graph()["3"]["inputs"].items():
        ours = {"seed": "seed", "steps": "steps", "cfg": "guidance_scale"}.get(name)
        if ours and name not in changes:
            assert fields[ours] == value


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    prompt=st.text(st.characters(exclude_characters='[]"', exclude_categories=["C", "Z"])),
    order=st.permutations(["-S 42", "-W 512", "-H 768", "-C 7.5", "-A ddim"]),
    quotes=st.booleans(),
)
def test_invokeais_switches_in_any_order(prompt, order, quotes):
    words = f'"{prompt}"' if quotes else prompt
    fields, notes = from_dream(" ".join([words, "-s 30", *order]))
    assert fields == BALL | NUMBERS | {"prompt": prompt, "negative_prompt": ""}
    assert notes == []
