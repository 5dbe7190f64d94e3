"""The settings of an image, stored in its PNG and read back from ours and other tools' pictures.

We write three text chunks: `parameters` in AUTOMATIC1111's layout, which other tools read,
`controlloop`, JSON of the whole request, and XMP that says that a machine made the picture
(core/provenance.py). We also read AUTOMATIC1111 (core/webui.py), Fooocus,
InvokeAI, ComfyUI and others (core/other_tools.py). What is read is untrusted: numbers are clamped,
unknown names are listed and ignored.
"""

import base64
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from core import other_tools, webui
from core.condition import ALREADY_A_MAP, Condition, PixelMask, RGBImage
from core.errors import BadInput
from core.exif_texts import read_exif_texts
from core.images import bright, open_picture, read_image
from core.marking import write_marked
from core.modes import MODES
from core.original import original_of
from core.other_tools import NOT_PLAIN, UNREADABLE, parsed
from core.params import restored, settings_of
from core.png_chunks import (
    XMP_KEYWORD,
    is_cut_off,
    read_bytes,
    read_texts,
    without_text,
)
from core.prompt_syntax import unapplied_note
from core.provenance import source_type_of
from core.request import SETTINGS, ControlRequest, GenerationRequest, GenerationResult
from core.restoring import Restored, without_shut_window

LOGGER = logging.getLogger(__name__)

PROMPTS = ("prompt", "added_prompt", "negative_prompt")
LONGEST_MASK = 100_000
"""Characters of a mask; painted ones have about a thousand."""
SCHEMA = 1
"""Version of the JSON's layout; later versions keep the fields of earlier ones."""
KEYWORDS = (
    "controlloop",
    "parameters",
    "invokeai_metadata",
    "sd-metadata",
    "Dream",
    "Comment",
    *("prompt", "workflow"),
    *("negative-prompt", "seed", "steps", "scale", "sampler"),
    *("negative_prompt", "num_inference_steps", "guidance_scale"),
    XMP_KEYWORD,
)
"""The text chunks that are read, in the order of `read_settings`."""
CUT_OFF = "The picture is incomplete, and its settings may be lost; please choose it again."
CONTROLS_READ = 8
"""Controls read beyond the first, more than we ever write; a hostile file may list thousands."""


def save_png(
    target: str | Path | IO[bytes], image: RGBImage, result: GenerationResult, index: int
) -> str:
    """Write image `index` of a result, lossless, with its settings and marked as made by a machine.

    A path is replaced atomically. Nothing of the uploaded file goes in: its EXIF may hold a
    location. Returns a sentence for the user if it could not be marked as asked, as write_marked.
    """
    texts = {
        "parameters": webui.text_of(result, index),
        "controlloop": json.dumps(_settings(result, index)),
    }
    return write_marked(target, image, source_type_of(result.request), result.model, texts)


def _settings(result: GenerationResult, index: int) -> dict[str, Any]:
    """Return the JSON: a request for this one image, the model and device used, and the score."""
    first, *others = result.request.controls
    further = [
        {
            "condition": control.condition.name,
            "own_picture": control.image is not first.image,
            "request": _values(control) | _params(control),
            "score": asdict(made.scores[index]),
        }
        for control, made in zip(others, result.controls[1:], strict=True)
    ]
    this_image = {"seed": result.seeds[index], "num_samples": 1}
    return (
        {
            "schema": SCHEMA,
            "condition": first.condition.name,
            "request": _values(first) | _values(result.request) | this_image | _params(first),
            "seed": result.seeds[index],
            "model": result.model,
            "hashes": result.hashes,
            "device": result.device,
            "dtype": result.dtype,
            "width": result.width,
            "height": result.height,
            "score": asdict(result.scores[index]),
        }
        | ({"further": further} if further else {})
        | _mask(result)
    )


def _mask(result: GenerationResult) -> dict[str, Any]:
    """Return the mask at the result's size, as a PNG of one bit a pixel in base64."""
    original = original_of(result.request, (result.width, result.height))
    if original is None or original.mask is None:
        return {}
    memory = io.BytesIO()
    Image.fromarray(original.mask).save(memory, "PNG", optimize=True)
    encoded = base64.b64encode(memory.getvalue()).decode()
    # No brush leaves as much; with more, no reader would take the text.
    return {"mask": encoded} if len(encoded) <= LONGEST_MASK else {}


def _values(record: ControlRequest | GenerationRequest) -> dict[str, Any]:
    return {name: getattr(record, name) for name in settings_of(type(record))}


def _params(control: ControlRequest) -> dict[str, Any]:
    params = control.params
    known = is_dataclass(params) and not isinstance(params, type)
    return {"params": asdict(params) if known else {}}


def read_settings(source: str | Path | bytes, condition: Condition | None = None) -> Restored:
    """Read the settings in a picture, whatever it holds: a PNG's text chunks, or any one's EXIF.

    Returns values of SETTINGS by name, within bounds, with "params" as a dict of the annotator's
    settings, and one note per value that was changed, ignored or unreadable. With a condition its
    params and preprocessor are checked too. "model" is free text: use it only if it is on offer.

    Raises:
        BadInput: the file cannot be opened, or is too large.
    """
    texts = _texts_in(source)
    readers: dict[str, Callable[[str], Restored]] = {
        "controlloop": lambda text: _from_json(text, condition),
        "parameters": lambda text: _from_parameters(text, condition),
        "invokeai_metadata": other_tools.from_json,
        "sd-metadata": other_tools.from_sd_metadata,
        "Dream": other_tools.from_dream,
        "Comment": other_tools.from_novelai,
        "prompt": lambda text: _from_prompt(text, texts),
        XMP_KEYWORD: other_tools.from_xmp,
    }
    notes: list[str] = []
    for keyword, read in readers.items():
        if keyword in texts:
            settings, more = read(texts[keyword])
            notes += more
            if settings:
                # What the mode fixes is left out, so that another mode keeps the page's settings.
                for name in MODES[settings.get("mode", "exact")].settings:
                    settings.pop(name, None)
                prompts = [settings.get(name, "") for name in PROMPTS]
                return settings, [*notes, *filter(None, [unapplied_note(*prompts)])]
    if not notes and "workflow" in texts:
        notes.append(NOT_PLAIN)
    return {}, notes or [_why_nothing(read_bytes(source))]


def _why_nothing(data: bytes) -> str:
    """Return why a file holds no settings: it is no picture, an incomplete one, or has none."""
    try:
        open_picture(without_text(data))
    except BadInput as error:
        return str(error)
    return CUT_OFF if is_cut_off(data) else "This picture holds no settings."


def _texts_in(source: str | Path | bytes) -> dict[str, str]:
    """Return a picture's texts by PNG keyword; where it has chunks, they come before its EXIF."""
    data = read_bytes(source)
    return read_exif_texts(data) | read_texts(data, KEYWORDS)


def _from_json(text: str, condition: Condition | None) -> Restored:
    stored = parsed(text)
    if not isinstance(stored, dict) or not isinstance(stored.get("request"), dict):
        return {}, [UNREADABLE]
    notes = []
    schema = stored.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        notes.append("The settings are of another version; those known here were restored.")
    request = dict(stored["request"])
    params = request.pop("params", {})
    settings, more = restored(SETTINGS, request)
    more += _with_plain(settings, params)
    if condition is not None:
        more += _fit_to(condition, settings, stored.get("condition"))
        if stored.get("further"):
            more.append("It was made with several controls; only the first was restored.")
    return settings, notes + more


def read_controls(
    source: str | Path | bytes, conditions: Mapping[str, Condition]
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Read the controls of a picture in their order: ours, or else sd-webui-controlnet's units.

    Returns for each its condition's name and its settings of ControlRequest, within bounds, with
    "params" as a dict and "own_picture" (bool: not the first control's); and notes as
    read_settings.
    """
    texts = _texts_in(source)
    stored = parsed(texts.get("controlloop", ""))
    if not isinstance(stored, dict):
        return webui.controls_from(texts.get("parameters", ""), conditions)
    further = stored.get("further", [])
    found: list[tuple[str, dict[str, Any]]] = []
    notes: list[str] = []
    for entry in [stored, *(further[:CONTROLS_READ] if isinstance(further, list) else [])]:
        name = entry.get("condition") if isinstance(entry, dict) else None
        request = entry.get("request") if isinstance(entry, dict) else None
        condition = conditions.get(name) if isinstance(name, str) else None
        if condition is None or not isinstance(request, dict):
            notes.append(f"One of its controls is unknown here: {name!s:.40}.")
            continue
        of_control = settings_of(ControlRequest)
        given = {field: value for field, value in request.items() if field in of_control}
        settings, more = restored(of_control, given)
        more += _with_plain(settings, request.get("params"))
        notes += more + _fit_to(condition, settings, name)
        found.append((condition.name, settings | {"own_picture": bool(entry.get("own_picture"))}))
    return found, notes


def read_mask(source: str | Path | bytes) -> PixelMask | None:
    """Read the mask (H, W) that a picture of ours was made with, at the picture's size.

    None if it was made without one, or if what is there is none: it is untrusted.
    """
    stored = parsed(_texts_in(source).get("controlloop", ""))
    encoded = stored.get("mask") if isinstance(stored, dict) else None
    if not isinstance(encoded, str) or len(encoded) > LONGEST_MASK:
        return None
    try:
        mask = bright(read_image(base64.b64decode(encoded, validate=True))[0])
    except (BadInput, ValueError) as error:
        LOGGER.info("The mask in a picture could not be read: %s", error)
        return None
    return mask if mask.any() else None


def read_hashes(source: str | Path | bytes) -> dict[str, str]:
    """Read the short hashes, by part, of the weights that made a picture of ours; else nothing.

    They are as GenerationResult has them, but untrusted.
    """
    stored = parsed(_texts_in(source).get("controlloop", ""))
    hashes = stored.get("hashes") if isinstance(stored, dict) else None
    return {name: value for name, value in _plain(hashes).items() if isinstance(value, str)}


def _fit_to(condition: Condition, settings: dict[str, Any], made_by: object) -> list[str]:
    """Check params and preprocessor against the condition, in place; return notes."""
    if made_by != condition.name:
        del settings["params"]
        settings.pop("preprocessor", None)
        settings.pop("detect_resolution", None)
        return [
            f"The picture was made by another app ({made_by!s:.40}); its map settings were ignored."
        ]
    settings["params"], notes = restored(
        settings_of(condition.annotator.params), settings["params"]
    )
    names = [ALREADY_A_MAP, "", *(p.name for p in condition.annotator.preprocessors)]
    if settings.get("preprocessor", "") not in names:
        notes.append(f"The preprocessor {settings.pop('preprocessor')!s:.40} is unknown here.")
    return notes


def _with_plain(settings: dict[str, Any], params: object) -> list[str]:
    """Add the annotator's settings, and check that control starts before it stops; return notes."""
    settings["params"] = _plain(params)
    return without_shut_window(settings)


def _plain(params: object) -> dict[str, Any]:
    """Return at most 50 numbers, bools and short texts of a mapping."""
    if not isinstance(params, Mapping):
        return {}
    return {
        str(name)[:40]: value[:400] if isinstance(value, str) else value
        for name, value in list(params.items())[:50]
        if isinstance(value, bool | int | float | str)
    }


def _from_prompt(text: str, texts: Mapping[str, str]) -> Restored:
    """Read a `prompt` chunk: ComfyUI's graph, or that of a tool with a chunk for each setting."""
    settings, notes = other_tools.from_comfyui(text)
    return (settings, notes) if notes else other_tools.from_chunks(texts)


def _from_parameters(text: str, condition: Condition | None) -> Restored:
    """Read a `parameters` chunk: a tool's JSON, or else AUTOMATIC1111's layout."""
    if not text:
        return {}, [UNREADABLE]
    # A prompt may begin with a brace too: "{red|blue} ball".
    if isinstance(parsed(text), dict):
        settings, notes = other_tools.from_comfyui(text)
        return (settings, notes) if notes else other_tools.from_json(text)
    return webui.settings_from(text, condition)
