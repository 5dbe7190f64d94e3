"""What tools leave in pictures, but for AUTOMATIC1111's text, which is core/webui.py's.

Each reader takes the text of one chunk, which is untrusted, and returns what means the same here
and notes on the rest.
"""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from core.params import restored
from core.request import SETTINGS
from core.restoring import Restored, left_out, number, of_sampler

UNREADABLE = "The picture's settings could not be read: the text is damaged or too long."

JSON_NAMES = {
    "prompt": "prompt",
    "positive_prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "steps": "steps",
    "guidance_scale": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "negativeprompt": "negative_prompt",
    "cfgscale": "guidance_scale",
    "uc": "negative_prompt",
    "scale": "guidance_scale",
    "num_inference_steps": "steps",
    "c": "prompt",
    "strength": "denoising_strength",
}
"""Names of Fooocus (modules/meta_parser.py) and InvokeAI (invocations/metadata.py); then two of
SwarmUI's, two of NovelAI's, one of Easy Diffusion's and two of Draw Things'.

Equal names may mean something else: `strength` is that of image-to-image in InvokeAI, NovelAI and
Draw Things, not the control's.
"""
PROMPTS = ("prompt", "negative_prompt")
SWARMUI = "sui_image_params"
"""The key under which SwarmUI has its own."""
CHUNKS = (
    {
        "prompt": "prompt",
        "negative-prompt": "negative_prompt",
        "seed": "seed",
        "steps": "steps",
        "scale": "guidance_scale",
    },
    {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "seed": "seed",
        "num_inference_steps": "steps",
        "guidance_scale": "guidance_scale",
    },
)
"""The chunks of tools that write one for each setting: gen_img.py and its kin (of
kohya-ss/sd-scripts), and Easy Diffusion."""
TAG = re.compile(r"<[^<>]*>")

SWITCHES = {
    **{"s": "steps", "S": "seed", "C": "guidance_scale", "W": "width", "H": "height"},
    "f": "denoising_strength",
}
"""InvokeAI's switches before version 2 (dream_prompt_str in ldm/invoke/args.py); -A is its
sampler."""
SWITCH = re.compile(r"(?:^|\s)-([A-Za-z]) ?([\w.]+)")
FIRST_SWITCH = re.compile(r"(?:^|\s)(?=-s ?\d)")
BANNED = re.compile(r"\[([^\[\]]*)\]")
"""InvokeAI's negative prompt, until version 3: words of the prompt in square brackets."""

COMFYUI = "This picture holds a ComfyUI workflow; "
NOT_PLAIN = COMFYUI + "its settings cannot be read here."
SAMPLERS = ("KSampler", "KSamplerAdvanced")
SAMPLER_INPUTS = {
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "steps",
    "cfg": "guidance_scale",
}
LINKS_FOLLOWED = 20
"""Nodes from a sampler to its text; a hostile graph may go in circles."""


def from_json(text: str) -> Restored:
    """Read the flat JSON of Fooocus, SwarmUI, or InvokeAI from version 3 on."""
    stored = parsed(text)
    stored = stored.get(SWARMUI, stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict):
        return {}, [UNREADABLE]
    given = {
        name: value
        for name, value in stored.items()
        if value not in (None, "", [], {}) or (value == "" and JSON_NAMES.get(name) in PROMPTS)
    }
    found: dict[str, object] = {}
    for name, ours in JSON_NAMES.items():
        if name in given:
            value = given.pop(name)
            # Fooocus writes its seed as text.
            found[ours] = number(value) if ours == "seed" and isinstance(value, str) else value
    if not found:
        return {}, ["The picture's settings are of an unknown tool.", *left_out(given)]
    # "(1152, 896)" in Fooocus, "512x768" in Draw Things.
    sides = re.findall(r"\d{1,9}", str(given.pop("resolution", given.pop("size", ""))))
    found |= _size(given.pop("width", None), given.pop("height", None))
    found |= _size(*map(int, sides)) if len(sides) == 2 else {}
    settings, notes = _restored(found)
    return settings, notes + left_out(given)


def from_novelai(text: str) -> Restored:
    """Read NovelAI's JSON; nothing and no note for another tool's comment."""
    stored = parsed(text)
    known = isinstance(stored, dict) and {"prompt", "uc"} <= stored.keys()
    return from_json(text) if known else ({}, [])


def from_xmp(text: str) -> Restored:
    """Read Draw Things' JSON, the user's comment in XMP; nothing and no note for another XMP."""
    comment = text.partition("<exif:UserComment>")[2].partition("</exif:UserComment>")[0]
    inside = html.unescape(TAG.sub("", comment))
    stored = parsed(inside.strip())
    known = isinstance(stored, dict) and {"c", "uc"} <= stored.keys()
    return from_json(inside) if known else ({}, [])


def from_chunks(texts: Mapping[str, str]) -> Restored:
    """Read a picture whose settings have a chunk each; nothing and no note for any other."""
    optional = {"negative-prompt", "negative_prompt"}
    names = next((one for one in CHUNKS if one.keys() - optional <= texts.keys()), None)
    if names is None:
        return {}, []
    found: dict[str, object] = {
        ours: texts[name] if ours in PROMPTS else number(texts[name])
        for name, ours in names.items()
        if name in texts
    }
    settings, notes = _restored(found)
    return settings, notes + of_sampler(settings, texts.get("sampler", "ddim"))


def from_sd_metadata(text: str) -> Restored:
    """Read the JSON of InvokeAI 2: {"image": {"prompt": text or weighted texts, …}}."""
    stored = parsed(text)
    image = stored.get("image") if isinstance(stored, dict) else None
    if not isinstance(image, dict):
        return {}, [UNREADABLE]
    given = {name: value for name, value in image.items() if value not in (None, [], {})}
    parts = given.pop("prompt", None)
    texts = [one.get("prompt") for one in parts if isinstance(one, dict)] if _is_list(parts) else []
    prompt = " ".join(one for one in texts if isinstance(one, str)) if texts else parts
    found = {
        JSON_NAMES[name]: given.pop(name)
        for name in ("seed", "steps", "cfg_scale")
        if name in given
    }
    found |= _size(given.pop("width", None), given.pop("height", None))
    if isinstance(prompt, str):
        found |= _without_banned(prompt)
    settings, notes = _restored(found)
    if len(texts) > 1:
        notes.append("The weights of the prompt's parts were left out.")
    notes += of_sampler(settings, str(given.pop("sampler", "ddim")))
    return settings, notes + left_out(given)


def from_dream(text: str) -> Restored:
    """Read InvokeAI's command line before version 2: a prompt and switches such as -s 50."""
    first = FIRST_SWITCH.search(text)
    if first is None:
        return {}, [UNREADABLE]
    prompt, switches = text[: first.start()].strip(), text[first.start() :]
    if len(prompt) > 1 and prompt[0] == prompt[-1] == '"':
        prompt = prompt[1:-1]
    given: dict[str, str] = {}
    for letter, value in SWITCH.findall(switches):
        given.setdefault(letter, value)
    found: dict[str, object] = {
        name: number(given.pop(letter)) for letter, name in SWITCHES.items() if letter in given
    }
    found |= _size(found.pop("width", None), found.pop("height", None))
    settings, notes = _restored(found | _without_banned(prompt))
    notes += of_sampler(settings, given.pop("A", "ddim"))
    return settings, notes + left_out([f"-{letter}" for letter in given])


def from_comfyui(text: str) -> Restored:
    """Read ComfyUI's graph, if one sampler's inputs are plain: numbers, and texts as written.

    Nothing and no note is returned for what is not such a graph: any tool may call a chunk
    "prompt".
    """
    graph = parsed(text)
    if not isinstance(graph, dict) or not any(_class_of(node) for node in graph.values()):
        return {}, []
    samplers = [node for node in graph.values() if _class_of(node) in SAMPLERS]
    if len(samplers) != 1:
        return {}, [NOT_PLAIN]
    inputs = _inputs_of(samplers[0])
    found: dict[str, object] = {
        ours: inputs[name]
        for name, ours in SAMPLER_INPUTS.items()
        if isinstance(inputs.get(name), int | float)
    }
    for name, ours in (("positive", "prompt"), ("negative", "negative_prompt")):
        said = _text_at(graph, inputs.get(name))
        if said is not None:
            found[ours] = said
    if not found:
        return {}, [NOT_PLAIN]
    latents = _node_at(graph, inputs.get("latent_image"))
    if _class_of(latents) == "EmptyLatentImage":
        found |= _size(_inputs_of(latents).get("width"), _inputs_of(latents).get("height"))
    else:
        found |= _denoise(inputs.get("denoise"), found.get("steps"))
    settings, notes = _restored(found)
    notes += of_sampler(settings, str(inputs.get("sampler_name", "ddim")))
    wanted = dict.fromkeys([*PROMPTS, *SAMPLER_INPUTS.values()])
    missing = [SETTINGS[name].label.lower() for name in wanted if name not in found]
    rest = f", but not its {', '.join(missing)}" if missing else ""
    notes.insert(0, f"{COMFYUI}only its sampler and the texts were read{rest}.")
    return settings, notes


def _class_of(node: object) -> str:
    name = node.get("class_type") if isinstance(node, dict) else None
    return name if isinstance(name, str) else ""


def _inputs_of(node: object) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _node_at(graph: Mapping[str, object], link: object) -> object:
    """Return the node that an input is linked to; a link is [node's name, output's number]."""
    if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str | int):
        return graph.get(str(link[0]))
    return None


def _text_at(graph: Mapping[str, object], link: object) -> str | None:
    """Return the text that a sampler's input leads to, through nodes that apply ControlNets."""
    for _ in range(LINKS_FOLLOWED):
        node = _node_at(graph, link)
        inputs = _inputs_of(node)
        if _class_of(node) == "CLIPTextEncode":
            text = inputs.get("text")
            return text if isinstance(text, str) else None
        if not _class_of(node).startswith("ControlNetApply") or not isinstance(link, list):
            return None
        # The node that takes both texts has an output for each.
        link = inputs.get("conditioning", inputs.get("negative" if link[1] else "positive"))
    return None


def _denoise(denoise: object, steps: object) -> dict[str, object]:
    """Return the settings of image-to-image: ComfyUI takes all of its steps, we a fraction."""
    if not isinstance(denoise, int | float) or not 0 < denoise < 1:
        return {}
    found: dict[str, object] = {"denoising_strength": denoise}
    return found | ({"steps": steps / denoise} if isinstance(steps, int | float) else {})


def _size(width: object, height: object) -> dict[str, object]:
    """Return the short side as a setting, if both are numbers."""
    if isinstance(width, int | float) and isinstance(height, int | float):
        return {"image_resolution": min(width, height)}
    return {}


def _without_banned(prompt: str) -> dict[str, object]:
    """Return a prompt and the negative prompt inside it."""
    kept = re.sub(r" {2,}", " ", BANNED.sub(" ", prompt)).strip() if "[" in prompt else prompt
    return {"prompt": kept, "negative_prompt": " ".join(BANNED.findall(prompt))}


def _restored(found: dict[str, object]) -> Restored:
    """Return settings within their bounds; the other tool's prompt is the whole one."""
    if isinstance(found.get("prompt"), str):
        found["added_prompt"] = ""
        found.setdefault("negative_prompt", "")
    return restored(SETTINGS, found)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def parsed(text: str) -> object:
    """Return the value of a JSON text; None if it is not valid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
