"""The map that a page shows before anything is made."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.web.pages import condition_page
from apps.web.pages.condition_page import _map_image

MAP = np.full((8, 12, 3), 200, np.uint8)


def test_a_map_is_shown_as_a_lossless_file_that_says_what_it_is() -> None:
    shown = _map_image(MAP, "Control map")
    assert Path(shown.value["path"]).name == "control-map.png"
    assert np.array_equal(np.asarray(Image.open(Path(shown.value["path"]))), MAP)
    assert shown.label == "Control map"


def test_a_map_that_cannot_be_saved_says_so_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(condition_page, "save_pil_to_cache", full)
    shown = _map_image(MAP, "Control map")
    assert shown.value is None and shown.visible
    assert shown.label.startswith("Control map: The server's disk is full")
