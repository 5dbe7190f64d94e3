"""Several controls at once, from what the widgets or an API caller gave. Knows no widgets."""

from dataclasses import fields
from typing import Any

import apps
from apps.web.jobs.job import Job
from apps.web.jobs.request import given_picture, resolution_notes
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition
from core.errors import BadInput
from core.params import settings_of
from core.request import ControlRequest, GenerationRequest

SLOTS = (1, 2, 3)
"""A slot's fields end in its number: control_1, image_1, …"""
OF_A_SLOT = (
    "control",
    "image",
    "preprocessor",
    "params",
    "detect_resolution",
    "strength",
    "control_start",
    "control_end",
)
"""The fields of a slot; "control" is a condition's name, "" for none; "params" are the annotator's
settings by name, without those that are as usual."""

NONE_CHOSEN = "No control was chosen: please choose at least one."


def combinable() -> dict[str, Condition]:
    """Return the conditions that may stand in a slot, by name: those that start from a picture."""
    return {one.name: one for one in apps.conditions() if one.input != "canvas"}


def offered(suite: Suite, model: str) -> dict[str, Condition]:
    """Return those of them that a model has a ControlNet for."""
    card = suite.card(model)
    return {name: one for name, one in combinable().items() if card.has_control(one.weights)}


def job_of_several(suite: Suite, given: dict[str, Any]) -> Job:
    """Return the job of raw values by field name, checked.

    A slot without a picture of its own takes the shared one, "image". The first control's picture
    gives the result its shape.

    Raises:
        SuiteError: something is missing, unreadable or out of its bounds.
    """
    given = dict(given)
    shared = given.pop("image")
    slots = [{name: given.pop(f"{name}_{slot}") for name in OF_A_SLOT} for slot in SLOTS]
    card = suite.card(given["model"])
    known = offered(suite, card.name)
    asked: list[tuple[Condition, ControlRequest]] = []
    notes: list[str] = []
    for slot in slots:
        name = slot.pop("control") or ""
        if name == "":
            continue
        if not isinstance(name, str) or name not in known:
            raise BadInput(
                f"{card.title} has no control {name!r}; it has: {', '.join(known) or 'none'}."
            )
        more, control = _control(suite, known[name], card.name, shared, slot)
        asked.append((known[name], control))
        notes += [note for note in more if note not in notes]
    if not asked:
        raise BadInput(NONE_CHOSEN)
    (condition, first), *further = asked
    own = {field.name: getattr(first, field.name) for field in fields(first)}
    request = GenerationRequest(**own, **given, further=tuple(further))
    return Job(suite.pipeline, condition, request, [*notes, *resolution_notes(card, request)])


def _control(
    suite: Suite, condition: Condition, model: str, shared: object, slot: dict[str, Any]
) -> tuple[list[str], ControlRequest]:
    """Return notes on the slot's picture, and its part of the request."""
    names = [one.name for one in condition.annotator.preprocessors]
    preprocessor = slot.pop("preprocessor") or suite.usual_preprocessor(condition, model)
    if preprocessor not in (*names, ALREADY_A_MAP):
        ways = ", ".join([*names, ALREADY_A_MAP])
        raise BadInput(f"{condition.title}: the preprocessor must be one of: {ways}.")
    params = _params(condition, slot.pop("params"))
    resolution = slot.pop("detect_resolution")
    if resolution is None:
        resolution = suite.defaults(model)["detect_resolution"]
    image, notes = given_picture(slot.pop("image") or shared)
    return notes, ControlRequest(
        image=image,
        preprocessor=preprocessor,
        params=params,
        detect_resolution=resolution,
        **slot,
    )


def _params(condition: Condition, given: object) -> Any:
    """Return the annotator's settings of those given by name."""
    of_map = settings_of(condition.annotator.params)
    if not isinstance(given or {}, dict):
        raise BadInput(
            f'{condition.title}: map settings must be given by name, as {{"name": value}}.'
        )
    settings: dict[str, Any] = dict(given or {})  # type: ignore[call-overload]
    unknown = [name for name in settings if name not in of_map]
    if unknown:
        raise BadInput(
            f"{condition.title} has no map setting {str(unknown[0])[:40]!r}; "
            f"it has: {', '.join(of_map) or 'none'}."
        )
    return condition.annotator.params(**settings)
