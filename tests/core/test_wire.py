"""What goes to another process comes back whole, its condition by name."""

import numpy as np
import pytest

from core.errors import BadInput
from core.request import Download, GenerationRequest, Progress
from core.wire import packed, unpacked


def test_a_result_comes_back_with_its_request(pipeline, condition, image):
    mask = np.eye(256, dtype=bool)
    settings = {"params": condition.annotator.params(level=9), "mask": mask, "seed": 3}
    request = GenerationRequest.single(condition, image, steps=2, image_resolution=256, **settings)
    made = pipeline.generate(request)
    again = unpacked(packed(made), {condition.name: condition})
    assert np.array_equal(again.images, made.images) and again.report() == made.report()
    assert again.controls[0].condition is again.request.controls[0].condition is condition
    assert np.array_equal(again.request.mask, mask)
    assert again.request.controls[0].params == condition.annotator.params(level=9)


@pytest.mark.parametrize(
    "record",
    [
        Progress("sample", 3, 20, 0, 1.5, np.zeros((8, 8, 3), np.uint8)),
        Progress("download", 0, 20, 0, None, None, Download("Far", 3, 9)),
    ],
)
def test_progress_comes_back(record):
    again = unpacked(packed(record), {})
    assert (again.stage, again.step, again.download) == (record.stage, record.step, record.download)
    assert np.array_equal(again.preview, record.preview)


def test_an_error_keeps_its_kind_and_sentence():
    error = unpacked(packed(BadInput("Too large.")), {})
    assert isinstance(error, BadInput) and str(error) == "Too large."


def test_a_condition_that_is_not_there_is_an_error(condition):
    with pytest.raises(KeyError):
        unpacked(packed(condition), {})
