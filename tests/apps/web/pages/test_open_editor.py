"""What the editor beside a map opens with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import apps
from annotators import pose
from annotators._blazepose import Figure
from apps.web.files import new_folder, upload_folder
from apps.web.pages.condition_page import SingleControl
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, ControlMap

ARM = np.full((18, 2), np.nan)
ARM[[2, 3, 4]] = [[60, 60], [120, 70], [180, 120]]
HAND = np.array([180, 120]) + np.array([[3 * k, 25 * (k % 4)] for k in range(21)])


@pytest.fixture
def opened(suite: Suite) -> Any:
    """Open the editor of poses on a given map; return the canvas's value and the map's label."""

    def open_on(control_map: ControlMap) -> tuple[Any, str]:
        file = new_folder(Path(upload_folder())) / "map.png"
        Image.fromarray(control_map).save(file)
        given = suite.defaults("tiny") | {"preprocessor": ALREADY_A_MAP, "edit": None}
        given |= {"image": {"path": str(file)}, "prompt": ""}
        page = SingleControl(apps.find("pose2image"), suite)
        *shown, last = page._open_editor(given)
        return last[1]["value"], shown[-1][2].label

    return open_on


def test_a_given_map_is_read(opened: Any) -> None:
    value, label = opened(pose.draw_people([ARM], 256, 256))
    (person,) = value["people"]
    assert [k for k, joint in enumerate(person["body"]) if joint] == [2, 3, 4]
    assert person["body"][3] == [120, 70] and label == "Control map"


def test_it_is_told_if_a_part_of_it_cannot_be_read(opened: Any) -> None:
    value, label = opened(pose.draw_figures([Figure(ARM, (HAND,))], 256, 256))
    assert len(value["people"]) == 1 and "Only a part of it could be read" in label


def test_a_map_that_cannot_be_read_stays_below_to_be_traced(opened: Any) -> None:
    value, _ = opened(np.zeros((256, 256, 3), np.uint8))
    assert value is None
