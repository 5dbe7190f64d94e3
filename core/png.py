"""PNG files that remember how they were made, and the reading of such files from strangers.

Two text chunks: `parameters` in AUTOMATIC1111's layout, which other tools read, and `controlloop`,
JSON of the whole request. Everything read here is hostile until checked: lengths are capped before
anything is unpacked or parsed, numbers are clamped, unknown names are listed and left out.
"""

import json
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.condition import ALREADY_A_MAP, Condition, RGBImage
from core.errors import BadInput
from core.params import restored
from core.request import GenerationRequest, GenerationResult

SCHEMA = 1
"""Version of the JSON's layout; a reader of a later version still knows the earlier fields."""
MAX_TEXT_BYTES = 256 * 1024
"""The longest text chunk that is looked at, unpacked; our own are below 20 kB."""
MAX_FILE_BYTES = 100 * 1024 * 1024
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

A1111_NAMES = {
    "Steps": "steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Eta": "eta",
    "Size": "image_resolution",
}
"""AUTOMATIC1111's names for the settings that mean the same here."""


def save_png(
    target: str | Path | IO[bytes], image: RGBImage, result: GenerationResult, index: int
) -> None:
    """Write image `index` of a result, exact and with its settings; a path is replaced whole.

    Nothing of the uploaded file goes in (its EXIF may hold a position), only what was asked for.
    """
    info = PngInfo()
    info.add_text("parameters", _a1111_text(result, index))
    info.add_text("controlloop", json.dumps(_settings(result, index)))
    picture = Image.fromarray(image)
    if not isinstance(target, str | Path):
        picture.save(target, format="PNG", pnginfo=info)
        return
    path = Path(target)
    unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        picture.save(unfinished, format="PNG", pnginfo=info)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _settings(result: GenerationResult, index: int) -> dict[str, Any]:
    """Return the JSON: the request that makes this one image alone, and what it was made with."""
    request = {
        field.name: getattr(result.request, field.name)
        for field in fields(GenerationRequest)
        if field.name not in ("image", "params")
    }
    params = result.request.params
    request["params"] = (
        asdict(params) if is_dataclass(params) and not isinstance(params, type) else {}
    )
    request |= {"seed": result.seeds[index], "num_samples": 1}
    return {
        "schema": SCHEMA,
        "condition": result.condition_name,
        "request": request,
        "seed": result.seeds[index],
        "model": result.model,
        "hashes": result.hashes,
        "device": result.device,
        "dtype": result.dtype,
        "width": result.width,
        "height": result.height,
        "score": asdict(result.scores[index]),
    }


def _a1111_text(result: GenerationResult, index: int) -> str:
    """Return the settings in AUTOMATIC1111's layout: prompt, negative prompt, one line of pairs."""
    request = result.request
    pairs = {
        "Steps": request.steps,
        "Sampler": request.sampler.upper(),
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": result.seeds[index],
        "Size": f"{result.width}x{result.height}",
        "Model": re.sub(r"[,:\s]+", " ", result.model),
        "Eta": f"{request.eta:g}",
        "ControlNet 0": f'"Module: {result.condition_name}, Weight: {request.strength:g}, '
        f"Guidance Start: {request.control_start:g}, "
        f'Guidance End: {request.control_end:g}"',
    }
    line = ", ".join(f"{name}: {value}" for name, value in pairs.items())
    text = f"{request.full_prompt}\nNegative prompt: {request.negative_prompt}\n{line}"
    return text.replace("\0", "")  # a NUL would end the chunk's text for other readers


def read_settings(
    source: str | Path | bytes, condition: Condition | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Read the settings a PNG carries; never fails on what the file holds.

    Returns fields of GenerationRequest by name, each within its bounds ("params" as a dict of the
    annotator's settings), and one note per thing changed, left out or unreadable. With a condition,
    its own params and preprocessor are checked too; without one they pass as plain values. "model"
    is free text from the file: use it only if it is one of the models on offer.
    """
    texts = _texts(read_bytes(source))
    if "controlloop" in texts:
        fields_, notes = _from_json(texts["controlloop"], condition)
        if fields_:
            return fields_, notes
    else:
        notes = []
    if "parameters" in texts:
        settings, more = _from_a1111(texts["parameters"])
        return settings, notes + more
    return {}, notes or ["This picture carries no settings."]


def _from_json(text: str, condition: Condition | None) -> tuple[dict[str, Any], list[str]]:
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict) or not isinstance(stored.get("request"), dict):
        return {}, ["The picture's own settings could not be read."]
    notes = []
    schema = stored.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        notes.append("The settings come from another version; what is known here was restored.")
    request = dict(stored["request"])
    params = request.pop("params", {})
    settings, more = restored(GenerationRequest, request)
    settings["params"] = _plain(params)
    if settings.get("control_start", 0.0) >= settings.get("control_end", 1.0):
        settings.pop("control_start", None)
        settings.pop("control_end", None)
        more.append("Control start was not before control end; both were left as they are.")
    if condition is not None:
        more += _fit_to(condition, settings, stored.get("condition"))
    return settings, notes + more


def _fit_to(condition: Condition, settings: dict[str, Any], made_by: object) -> list[str]:
    """Check params and preprocessor against the condition, in place; return notes."""
    if made_by != condition.name:
        del settings["params"]
        settings.pop("preprocessor", None)
        settings.pop("detect_resolution", None)
        return [
            f"The picture was made by another app ({made_by!s:.40}); its map settings stay out."
        ]
    settings["params"], notes = restored(condition.annotator.params, settings["params"])
    names = [ALREADY_A_MAP, "", *(p.name for p in condition.annotator.preprocessors)]
    if settings.get("preprocessor", "") not in names:
        notes.append(f"Preprocessor {settings.pop('preprocessor')!s:.40} is not known here.")
    return notes


def _plain(params: object) -> dict[str, Any]:
    """Return at most 50 numbers, switches and short texts of a mapping."""
    if not isinstance(params, Mapping):
        return {}
    return {
        str(name)[:40]: value[:400] if isinstance(value, str) else value
        for name, value in list(params.items())[:50]
        if isinstance(value, bool | int | float | str)
    }


def _from_a1111(text: str) -> tuple[dict[str, Any], list[str]]:
    """Read AUTOMATIC1111's layout; the whole prompt becomes "prompt", the added prompt empty."""
    head, _, last = text.rstrip().rpartition("\n")
    pairs = dict(re.findall(r'([A-Za-z][\w -]{0,39}): ("[^"]*"|[^,]*)', last[:4000]))
    if "Steps" not in pairs:
        return {}, ["The picture's settings could not be read: the line of numbers is missing."]
    prompt, _, negative = f"\n{head}".partition("\nNegative prompt:")
    found: dict[str, object] = {
        "prompt": prompt.removeprefix("\n"),
        "added_prompt": "",
        "negative_prompt": negative.removeprefix(" "),
    }
    for name, ours in A1111_NAMES.items():
        if name in pairs:
            found[ours] = _number(pairs[name])
    settings, notes = restored(GenerationRequest, found)
    left_out = [name for name in pairs if name not in A1111_NAMES and name != "Sampler"]
    if left_out:
        notes.append(f"Left as they are here: {', '.join(left_out[:8])}.")
    sampler = pairs.get("Sampler", "DDIM").strip()
    if sampler.upper() != "DDIM":
        notes.append(f"The picture was made with the sampler {sampler[:40]}; here DDIM is used.")
    return settings, notes


def _number(text: str) -> float | str:
    """Return the number in a text; of a size such as 512x768 the short side."""
    try:
        numbers = [float(part) for part in text.split("x")[:2]]
    except ValueError:
        return text
    return min(numbers)


def read_bytes(source: str | Path | bytes) -> bytes:
    """Return a file's bytes.

    Raises:
        BadInput: there is no such file, or it is too large.
    """
    if isinstance(source, bytes):
        return source
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput("The file could not be opened; please choose it again.") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadInput(f"The file is larger than {MAX_FILE_BYTES // 2**20} MB; please shrink it.")
    return data


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (kind, body, whole chunk) of a PNG up to the first cut off; nothing of other files."""
    position = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            return
        yield data[position + 4 : position + 8], data[position + 8 : end - 4], data[position:end]
        position = end


def without_text(data: bytes) -> bytes:
    """Return a PNG without its text chunks, anything else as it is.

    Pillow refuses a whole picture for one oversized text; pictures and settings are read apart.
    """
    kept, end = [data[: len(SIGNATURE)]], len(SIGNATURE)
    for kind, _, whole in chunks(data):
        end += len(whole)
        if kind not in TEXT_CHUNKS:
            kept.append(whole)
    return b"".join(kept) + data[end:]


def _texts(data: bytes) -> dict[str, str]:
    """Return our two text chunks by keyword, where present, whole and not too long."""
    found: dict[str, str] = {}
    for kind, body, _ in chunks(data):
        keyword, _, rest = body.partition(b"\0")
        if kind not in TEXT_CHUNKS or keyword not in (b"parameters", b"controlloop"):
            continue
        text = _text_of(kind, rest)
        if text is not None:
            found.setdefault(keyword.decode("ascii"), text)
    return found


def _text_of(kind: bytes, rest: bytes) -> str | None:
    """Return the text behind a chunk's keyword (PNG specification 11.3.3), None if unreadable."""
    packed, encoding = kind == b"zTXt", "latin-1"
    if packed:
        rest = rest[1:]  # the method byte; there is only one
    if kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[-1]  # behind language and translated keyword
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES + 1)
        except zlib.error:
            return None
    if len(rest) > MAX_TEXT_BYTES:
        return None
    return rest.decode(encoding, errors="replace")
