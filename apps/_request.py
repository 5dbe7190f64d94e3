"""From what the widgets or an API caller gave to a checked request. Knows no widgets."""

import functools
from typing import Any

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
    suite.card(given["model"])
    names = [*(one.name for one in condition.annotator.preprocessors), ALREADY_A_MAP]
    if given["preprocessor"] not in names:
        raise BadInput(f"The preprocessor must be one of: {', '.join(names)}.")
    picture = given.pop("image")
    of_map = controls(condition.annotator.params)
    params = condition.annotator.params(**{name: given.pop(name) for name in of_map})
    image, notes = given_picture(picture)
    return GenerationRequest(image=image, params=params, **given), notes


def new_job(condition: Condition, suite: Suite, given: dict[str, Any]) -> Job:
    """Return the job of raw values, checked.

    Raises:
        SuiteError: as checked_request.
    """
    return Job(suite.pipeline, condition, *checked_request(condition, suite, given))


def given_picture(record: object) -> tuple[RGBImage, list[str]]:
    """Return the picture of Gradio's file record {"path": ...}, and notes on it.

    Gradio has checked that the file is an upload.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    path = record.get("path") if isinstance(record, dict) else None
    if not path:
        raise BadInput("There is no picture yet: please add one, or take an example.")
    return _decoded(path)


@functools.lru_cache(maxsize=2)  # of up to 120 MB each
def _decoded(path: str) -> tuple[RGBImage, list[str]]:
    """Read an upload once for the many looks a moving slider takes; its path is its content's."""
    return read_image(path)
