"""What another process reports becomes one result, however the reports end."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import apps
from apps.web.jobs.job import Partial
from apps.web.remote import gather
from apps.web.suite import Suite
from core.errors import BadInput
from core.request import GenerationRequest, GenerationResult, Progress
from core.wire import packed

CONDITION = apps.find("canny2image")
REQUEST = GenerationRequest.single(
    CONDITION, np.zeros((256, 256, 3), np.uint8), steps=1, image_resolution=256, model="tiny"
)


@pytest.fixture
def made(suite: Suite) -> GenerationResult:
    return suite.pipeline.generate(replace(REQUEST, seed=3))


def gathered(*reports: Any, told: list[Any] | None = None) -> GenerationResult:
    """Gather reports; an exception among them is raised instead of arriving."""

    def arriving() -> Iterator[bytes]:
        for one in reports:
            if isinstance(one, Exception) and not isinstance(one, BadInput):
                raise one
            yield packed(one)

    hear = None if told is None else told.append
    return gather(arriving(), {CONDITION.name: CONDITION}, REQUEST, hear, hear)


def test_the_last_report_is_the_result(made: GenerationResult) -> None:
    told: list[Any] = []
    progress = Progress("sample", 1, 1, 0, None, None)
    found = gathered(progress, None, Partial(made), made, told=told)
    assert np.array_equal(found.images, made.images) and not found.cancelled
    assert [type(one) for one in told] == [Progress, GenerationResult]


def test_reports_that_end_early_were_stopped(made: GenerationResult) -> None:
    found = gathered(Partial(made), None)
    assert found.cancelled and len(found.images) == 1
    nothing = gathered(None)
    assert nothing.cancelled and nothing.images == () and nothing.width == nothing.height == 256


def test_what_is_made_outlives_a_failure(made: GenerationResult) -> None:
    found = gathered(Partial(made), BadInput("The disk is full."))
    assert len(found.images) == 1 and "The disk is full." in found.warnings[-1]
    assert len(gathered(Partial(made), OSError("gone")).images) == 1


@pytest.mark.parametrize("error", [BadInput("No such model."), OSError("gone")])
def test_a_failure_before_the_first_picture_is_raised(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        gathered(None, error)
