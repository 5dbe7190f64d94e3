"""The job of the several-controls page or its endpoint, from the raw values of its slots."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import apps
from apps.web.jobs.job import Job
from apps.web.jobs.request import checked_control, checked_whole
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import BadInput
from core.request import ControlRequest, GenerationRequest

SLOTS = (1, 2, 3)
"""A slot's fields end in its number: control_1, image_1, …"""
SLOT_FIELDS = (
    "control",
    *(field.name for field in fields(ControlRequest) if field.name != "condition"),
)
"""A slot's fields without its number: those of a ControlRequest, where "control", the name of a
condition, "" for none, stands for the condition, and "params" are the annotator's settings by name.
"""


def combinable() -> dict[str, Condition]:
    """Return the conditions that a slot can hold, by name: all that start from a picture."""
    return {one.name: one for one in apps.conditions() if one.input != "canvas"}


def offered(suite: Suite, model: str) -> dict[str, Condition]:
    """Return the combinable conditions that a model has a ControlNet for, by name."""
    card = suite.card(model)
    return {name: one for name, one in combinable().items() if card.has_control(one.weights)}


def new_several_job(suite: Suite, given: Mapping[str, Any]) -> Job:
    """Check the values of the several-controls page, or of its endpoint, and build a Job.

    Raises:
        SuiteError: as checked_several.
    """
    request, notes = checked_several(suite, given)
    suite.require_work(request)
    return Job(suite.pipeline, request, notes)


def checked_several(suite: Suite, given: Mapping[str, Any]) -> tuple[GenerationRequest, list[str]]:
    """Return the request made of the page's values by field name, and notes on its pictures.

    A slot without a picture of its own uses the shared one, "image".

    Raises:
        SuiteError: something is missing, unreadable or out of its bounds.
    """
    card = suite.card(given["model"])
    known = offered(suite, card.name)
    controls: list[ControlRequest] = []
    notes: list[str] = []
    for slot in SLOTS:
        values = {name: given[f"{name}_{slot}"] for name in SLOT_FIELDS}
        name = values["control"] or ""
        if name == "":
            continue
        if not isinstance(name, str) or name not in known:
            there = [f"{key} ({condition.title})" for key, condition in known.items()]
            given_as = repr(str(name)[:40])
            raise BadInput(
                f"{card.title} has no control {given_as}; it has: {', '.join(there) or 'none'}."
            )
        values["image"] = values["image"] or given["image"]
        control, new_notes = checked_control(known[name], suite, card.name, values)
        controls.append(control)
        notes += [note for note in new_notes if note not in notes]  # the picture may be shared
    return checked_whole(card, controls, given, notes)
