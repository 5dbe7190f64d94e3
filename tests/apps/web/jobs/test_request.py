"""From raw values to a request: what lies under the transparent parts of an upload."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import apps
from apps.web.files import new_folder, upload_folder
from apps.web.jobs.request import checked_request, given_picture
from apps.web.suite import Suite
from core.condition import ControlMap
from core.errors import BadInput
from core.params import settings_of


def drawn_map(suite: Suite, name: str, layer: Any, **settings: Any) -> ControlMap:
    """Return the control map that page and endpoint feed for an upload (H, W, 4)."""
    file = new_folder(Path(upload_folder())) / "layer.png"
    Image.fromarray(layer).save(file)
    condition = apps.find(name)
    usual = {key: one.default for key, one in settings_of(condition.annotator.params).items()}
    given = suite.defaults("tiny") | usual | {"image": {"path": str(file)}, "prompt": "a ball"}
    request, _ = checked_request(condition, suite, given | settings)
    return suite.pipeline.draw_map(request)


@pytest.mark.parametrize("name", ["pose2image", "depth2image", "canny2image", "seg2image"])
def test_nothing_drawn_on_a_ready_map_is_nothing(suite: Suite, name: str) -> None:
    layer = np.zeros((256, 256, 4), np.uint8)
    cv2.circle(layer, (128, 128), 60, (160, 160, 160, 255), -1)
    fed = drawn_map(suite, name, layer, preprocessor="None")
    assert fed[0, 0].max() == 0 and fed[128, 128].min() > 0


@pytest.mark.parametrize("drawing", ["light lines on dark", "dark lines on light", "detect"])
def test_lines_on_nothing_are_lines(suite: Suite, drawing: str) -> None:
    ink = 255 if drawing.startswith("light") else 0
    layer = np.full((256, 256, 4), 255 - ink, np.uint8)
    layer[..., 3] = 0
    cv2.line(layer, (30, 30), (220, 200), (ink, ink, ink, 255), 6)
    fed = drawn_map(suite, "scribble2image", layer, preprocessor="Drawing", drawing=drawing)
    assert 0.005 < (fed > 127).mean() < 0.2


def test_a_picture_lies_on_white(suite: Suite) -> None:
    layer = np.zeros((256, 256, 4), np.uint8)
    layer[64:192, 64:192] = (255, 255, 255, 255)
    assert not drawn_map(suite, "canny2image", layer, preprocessor="Canny").any()


def test_an_upload_that_was_removed_is_to_be_chosen_again() -> None:
    file = new_folder(Path(upload_folder())) / "gone.png"
    Image.new("RGB", (64, 64)).save(file)
    assert given_picture({"path": str(file)})[0].shape == (64, 64, 3)
    file.unlink()
    with pytest.raises(BadInput, match="no longer here; please choose it again"):
        given_picture({"path": str(file)})


@pytest.mark.parametrize("painted", ["white on black", "white on nothing", "grey"])
def test_a_mask_is_what_is_bright(suite: Suite, painted: str) -> None:
    files = [new_folder(Path(upload_folder())) / name for name in ("grey.png", "mask.png")]
    Image.new("RGB", (64, 64), "grey").save(files[0])
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[..., 3] = 255 * (painted != "white on nothing")
    layer[:16, :32] = (140, 140, 140, 255) if painted == "grey" else 255
    Image.fromarray(layer).save(files[1])
    condition = apps.find("canny2image")
    usual = {key: one.default for key, one in settings_of(condition.annotator.params).items()}
    image, mask = ({"path": str(file)} for file in files)
    given = suite.defaults("tiny") | usual | {"image": image, "prompt": "a ball"}
    request, notes = checked_request(condition, suite, given | {"mask": mask})
    assert request.mask is not None and np.array_equal(request.mask, layer[..., 0] > 0)
    assert notes == []
    assert checked_request(condition, suite, given | {"mask": None})[0].mask is None


def test_an_emptied_box_is_its_default(suite: Suite) -> None:
    file = new_folder(Path(upload_folder())) / "grey.png"
    Image.new("RGB", (64, 64), "grey").save(file)
    condition = apps.find("canny2image")
    usual = {key: one.default for key, one in settings_of(condition.annotator.params).items()}
    given = suite.defaults("other") | usual | {"image": {"path": str(file)}, "prompt": "a ball"}
    request, _ = checked_request(condition, suite, given | {"seed": None, "steps": None})
    assert (request.seed, request.steps) == (-1, 4)
