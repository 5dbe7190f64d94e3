"""From the raw values of slots, of widgets or an API caller, to a request of several controls."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import apps
from apps.web.jobs.job import Job
from apps.web.jobs.request import checked_control, checked_whole
from apps.web.suite import Suite
from core.condition import Condition
from core.errors import BadInput
from core.request import ControlRequest

SLOTS = (1, 2, 3)
"""A slot's fields end in its number: control_1, image_1, …"""
OF_A_SLOT = ("control", *(field.name for field in fields(ControlRequest)[1:]))
"""The fields of a slot, those of a ControlRequest; "control" is its condition's name, "" for none;
"params" are annotator's settings by name."""


def combinable() -> dict[str, Condition]:
    """Return the conditions that a slot can hold, by name: those that start from a picture."""
    return {one.name: one for one in apps.conditions() if one.input != "canvas"}


def offered(suite: Suite, model: str) -> dict[str, Condition]:
    """Return those that a model has a ControlNet for."""
    card = suite.card(model)
    return {name: one for name, one in combinable().items() if card.has_control(one.weights)}


def job_of_several(suite: Suite, given: Mapping[str, Any]) -> Job:
    """Return the job of a checked request, from raw values by field name.

    A slot without a picture of its own uses the shared one, "image".

    Raises:
        SuiteError: something is missing, unreadable or out of its bounds.
    """
    card = suite.card(given["model"])
    known = offered(suite, card.name)
    controls: list[ControlRequest] = []
    notes: list[str] = []
    for slot in SLOTS:
        of_slot = {name: given[f"{name}_{slot}"] for name in OF_A_SLOT}
        name = of_slot["control"] or ""
        if name == "":
            continue
        if not isinstance(name, str) or name not in known:
            raise BadInput(
                f"{card.title} has no control {name!r}; it has: {', '.join(known) or 'none'}."
            )
        of_slot["image"] = of_slot["image"] or given["image"]
        control, more = checked_control(known[name], suite, card.name, of_slot)
        controls.append(control)
        notes += [note for note in more if note not in notes]
    return Job(suite.pipeline, *checked_whole(card, controls, given, notes))
