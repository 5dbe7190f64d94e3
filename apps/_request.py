"""From what the widgets or an API caller gave to a checked request. Knows no widgets."""

import functools
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from apps._job import Job
from apps._suite import Suite
from core.condition import ALREADY_A_MAP, Condition, RGBImage
from core.errors import BadInput
from core.images import read_image
from core.params import controls
from core.request import GenerationRequest


def checked_request(
    condition: Condition, suite: Suite, given: dict[str, Any]
) -> tuple[GenerationRequest, list[str]]:
    """Return the request of raw values by field name, and notes on the picture.

    Raises:
        SuiteError: something is missing, unreadable or out of its bounds.
    """
    given = dict(given)
    card = suite.card(given["model"])
    names = [*(one.name for one in condition.annotator.preprocessors), ALREADY_A_MAP]
    if given["preprocessor"] not in names:
        raise BadInput(f"The preprocessor must be one of: {', '.join(names)}.")
    picture = given.pop("image")
    of_map = controls(condition.annotator.params)
    params = condition.annotator.params(**{name: given.pop(name) for name in of_map})
    image, notes = given_picture(picture)
    request = GenerationRequest(image=image, params=params, **given)
    if not card.min_resolution <= request.image_resolution <= card.max_resolution:
        notes = [
            *notes,
            f"{card.title} is made for pictures of {card.min_resolution} to {card.max_resolution} "
            "pixels on the short side; at others, expect less.",
        ]
    return request, notes


def new_job(condition: Condition, suite: Suite, given: dict[str, Any]) -> Job:
    """Return the job of raw values, checked.

    Raises:
        SuiteError: as checked_request.
    """
    return Job(suite.pipeline, condition, *checked_request(condition, suite, given))


def given_picture(record: object) -> tuple[RGBImage, list[str]]:
    """Return the picture of Gradio's file record {"path": ...}, and notes on it.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    path = record.get("path") if isinstance(record, dict) else None
    if not path:
        raise BadInput("There is no picture yet: please add one, or take an example.")
    return _decoded(uploaded(path))


def uploaded(path: object) -> str:
    """Return the path of an upload, or of a file that was made here for the page.

    Gradio checks only records that say they are its own, so a caller who leaves that out could name
    any file of the server.

    Raises:
        BadInput: the file lies elsewhere, or is gone.
    """
    try:
        file = Path(str(path)).resolve()
        if file.is_file() and file.is_relative_to(Path(get_upload_folder()).resolve()):
            return str(file)
    except (OSError, ValueError):  # no file can have such a name
        pass
    raise BadInput("The file is no upload, or is no longer here: please choose it again.")


@functools.lru_cache(maxsize=2)  # of up to 120 MB each
def _decoded(path: str) -> tuple[RGBImage, list[str]]:
    """Read an upload once for the many looks a moving slider takes; its path is its content's."""
    return read_image(path)
