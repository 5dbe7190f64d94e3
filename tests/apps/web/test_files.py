"""Where finished pictures go."""

from pathlib import Path

import pytest
from gradio.utils import get_upload_folder

from apps.web.files import upload_folder


@pytest.mark.parametrize("named", ["", "elsewhere"])
def test_the_upload_folder_is_gradios(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", named)
    assert upload_folder() == Path(get_upload_folder())
