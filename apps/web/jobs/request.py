"""From the raw values of widgets or an API caller to a checked request."""

import base64
import binascii
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from apps.web.files import LARGEST_UPLOAD, LARGEST_UPLOAD_MB, new_folder, upload_folder
from apps.web.jobs.job import Job
from apps.web.jobs.mask import mask_of
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition, PixelMask, RGBImage
from core.errors import BadInput
from core.images import BROWSER_FORMATS, NOTHING, PAPER, bright, open_picture, read_image
from core.params import settings_of
from core.png_chunks import read_bytes, write_png
from core.provenance import carried
from core.request import DEFAULTS, SETTINGS, ControlRequest, GenerationRequest
from models.catalog.cards import Card

RESULT_NAME = re.compile(r"controlloop-[0-9a-f]{32}/[\w-]+\.png")
"""A run's folder, as files.new_folder names it, and a file in it."""
NOT_AN_UPLOAD = "The file is not an upload, or is no longer here; please choose it again."
LONGEST_DATA_URL = 2 * LARGEST_UPLOAD
"""Characters: base64 has four for three bytes, and may be broken into lines."""
FILE_ADDRESS = "/gradio_api/file="
"""In the address of a file that Gradio serves; its path follows."""


def checked_request(
    condition: Condition, suite: Suite, given: Mapping[str, Any]
) -> tuple[GenerationRequest, list[str]]:
    """Return the request made of raw values by field name, and notes on the picture.

    The values include the annotator's settings, each under its own name.

    Raises:
        SuiteError: something is missing, unreadable or out of bounds.
    """
    card = suite.card(given["model"])
    params = {name: given[name] for name in settings_of(condition.annotator.params)}
    control, notes = checked_control(condition, suite, card.name, {**given, "params": params})
    return checked_whole(card, [control], given, notes)


def checked_control(
    condition: Condition, suite: Suite, model: str, given: Mapping[str, Any]
) -> tuple[ControlRequest, list[str]]:
    """Return the control made of raw values by field name, and notes on its picture.

    An empty preprocessor or detect resolution stands for the model's usual one. "params" are the
    annotator's settings by name; missing ones have their defaults.

    Raises:
        SuiteError: something is missing, unreadable or out of bounds.
    """
    values = {name: given[name] for name in settings_of(ControlRequest) if name in given}
    if not values["preprocessor"]:
        values["preprocessor"] = suite.usual_preprocessor(condition, model)
    if values.get("detect_resolution") is None:
        values["detect_resolution"] = suite.defaults(model)["detect_resolution"]
    params = _params(condition, given["params"])
    ground: int | None = PAPER
    if values["preprocessor"] == ALREADY_A_MAP:
        ground = NOTHING
    elif condition.input == "drawing":
        ground = None  # by the lines' own brightness
    edit = SETTINGS["edit"].check(values.get("edit"))
    if not path_in(given["image"]) and (edit or condition.input == "canvas"):
        image, notes = _paper(condition, edit), list[str]()
    else:
        image, notes = given_picture(given["image"], ground)
    return ControlRequest(condition, image, params=params, **values), notes


def checked_whole(
    card: Card, controls: Sequence[ControlRequest], given: Mapping[str, Any], notes: Sequence[str]
) -> tuple[GenerationRequest, list[str]]:
    """Return the request made of controls and raw values by field name, and all notes.

    None, as of an emptied box, is the model's default.

    Raises:
        SuiteError: something is missing or out of bounds.
    """
    usual: dict[str, Any] = {**DEFAULTS, **card.defaults, "model": card.name}
    values = {
        name: usual[name] if given[name] is None else given[name]
        for name in settings_of(GenerationRequest)
    }
    mask = given_mask(given["mask"]) if given.get("mask") else None
    request = GenerationRequest(tuple(controls), mask=mask, **values)
    return request, [*notes, *resolution_notes(card, request)]


def _params(condition: Condition, given: object) -> Any:
    """Return the annotator's params record."""
    known = settings_of(condition.annotator.params)
    if not isinstance(given or {}, dict):
        raise BadInput(
            f'{condition.title}: map settings must be given by name, as {{"name": value}}.'
        )
    settings: dict[str, Any] = dict(given or {})  # type: ignore[call-overload]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise BadInput(
            f"{condition.title} has no map setting {str(unknown[0])[:40]!r}; "
            f"it has: {', '.join(known) or 'none'}."
        )
    return condition.annotator.params(**settings)


def resolution_notes(card: Card, request: GenerationRequest) -> list[str]:
    """Return a note if the model is not made for the request's resolution."""
    if card.min_resolution <= request.image_resolution <= card.max_resolution:
        return []
    return [
        f"{card.title} is made for images of {card.min_resolution} to {card.max_resolution} pixels "
        "on the short side; other sizes look worse."
    ]


def new_job(condition: Condition, suite: Suite, given: Mapping[str, Any]) -> Job:
    """Return the job of a checked request.

    Raises:
        SuiteError: as checked_request.
    """
    request, notes = checked_request(condition, suite, given)
    suite.require_work(request)
    return Job(suite.pipeline, request, notes)


def given_mask(record: object) -> PixelMask:
    """Return the mask that was painted on the page, an edit, or sent as a picture, by its record.

    Raises:
        BadInput: it cannot be read.
    """
    if path_in(record) is None and isinstance(record, dict):
        return mask_of(record)
    return bright(given_picture(record, NOTHING)[0])


def given_picture(record: object, ground: int | None = PAPER) -> tuple[RGBImage, list[str]]:
    """Return the picture of Gradio's file record {"path": ...}, and notes on it.

    `ground` is what lies under its transparent parts, as for read_image.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    path = path_in(record)
    if not path:
        raise BadInput("There is no picture yet; please add one, or click an example.")
    return _decoded(uploaded(path), ground)


def _paper(condition: Condition, edit: object) -> RGBImage:
    """Return the white paper that an edit stands on where there is no picture.

    Raises:
        BadInput: there is no edit, or nothing in it, or it is not one of the condition's.
    """
    editor = condition.annotator.editor
    if editor is None:
        raise BadInput(f"{condition.title}: these maps cannot be edited; please add a picture.")
    checked = editor.check(edit) if isinstance(edit, dict) else {}
    if not any(value for name, value in checked.items() if name != "size"):
        raise BadInput("The canvas is empty: please draw something first.")
    width, height = checked["size"]
    return np.full((height, width, 3), PAPER, np.uint8)


def for_browser(record: object) -> str:
    """Return the path of a PNG of a picture that browsers cannot show (HEIC, TIFF); else "".

    It says of its making what the picture said.
    One with transparent parts is left as it is, because what lies under them depends on its use.

    Raises:
        BadInput: as given_picture.
    """
    path = uploaded(path_in(record))
    content = read_bytes(path)
    header = open_picture(content)
    if header.format in BROWSER_FORMATS or header.has_transparency_data:
        return ""
    picture, _ = given_picture(record)
    shown = new_folder(upload_folder()) / f"{Path(path).stem}.png"
    write_png(shown, picture, carried(content))
    return str(shown)


def path_in(record: object) -> object:
    """Return the path in Gradio's file record {"path": ...}; None for anything else."""
    return record.get("path") if isinstance(record, dict) else None


def uploaded(path: object) -> str:
    """Return a path after checking that it is in the upload folder.

    Gradio checks only records marked as its own; without the mark, a caller could name any file on
    the server.

    Raises:
        BadInput: the file is elsewhere, or is gone.
    """
    try:
        file = Path(str(path)).resolve()
        if file.is_file() and file.is_relative_to(upload_folder().resolve()):
            return str(file)
    except (OSError, ValueError):  # not a possible file name
        pass
    raise BadInput(NOT_AN_UPLOAD)


def kept_upload(path: object) -> str:
    """Return the path of an upload that a browser remembers; "" if it is no longer here."""
    try:
        return uploaded(path) if path else ""
    except BadInput:
        return ""


def own_file(url: str) -> str:
    """Return the path of the upload or result that an address of this server names; "" for others.

    Whoever knows the address knows the path too, and it could be sent itself.
    """
    _, _, path = url.partition(FILE_ADDRESS)
    try:
        return uploaded(unquote(path)) if path else ""
    except BadInput:
        return ""


def bytes_of_data_url(url: str) -> bytes:
    """Return the content of a base64 data URL, RFC 2397; line breaks and missing "=" do not matter.

    Raises:
        BadInput: it has no base64, or more than an upload may have.
    """
    head, _, text = url.partition(",")
    if not head.lower().endswith(";base64"):
        raise BadInput('A data URL must be "data:image/png;base64,…", with the type of the file.')
    too_large = BadInput(f"The picture has more than {LARGEST_UPLOAD_MB} MB; please shrink it.")
    if len(text) > LONGEST_DATA_URL:
        raise too_large
    text = "".join(unquote(text).split()).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise BadInput("The data URL's base64 is damaged; please encode the file again.") from None
    if len(data) > LARGEST_UPLOAD:
        raise too_large
    return data


def sent_result(name: str) -> str:
    """Return the path of a result from its name in "Send to": "<its run's folder>/<file>".

    The folder's random name is known only to those who have seen the result.

    Raises:
        BadInput: there is no such result, or it is no longer here.
    """
    if RESULT_NAME.fullmatch(name):
        file = upload_folder() / name
        if file.is_file():
            return uploaded(file)
    raise BadInput("The picture that was sent is no longer here; please make it again.")


@functools.lru_cache(maxsize=2)  # of up to 120 MB each
def _decoded(path: str, ground: int | None) -> tuple[RGBImage, list[str]]:
    """Read an upload once while a slider moves; its path contains a hash of its content."""
    return read_image(path, ground)
