"""What the benchmark of live pictures takes hold of is on the pages."""

from pathlib import Path

import pytest

import apps
from apps.web import html
from benchmarks.live import EDITORS, main


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_has_its_page_and_tool(name):
    page, tool = EDITORS[name]
    editor = apps.find(page).annotator.editor
    script = Path(html.__file__).parent / "canvas" / f"{editor.name}.js"
    assert f'label: "{tool}' in script.read_text(encoding="utf-8")


def test_only_scribbles_have_a_build_before(capsys):
    with pytest.raises(SystemExit):
        main(["--before", "HEAD", "--editor", "pose"])
    assert "leave --editor or --before out" in capsys.readouterr().err
