"""Gradio is imported without writing stubs for editors, and its components work all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = """
import gradio as gr

class Own(gr.HTML):
    pass

with gr.Blocks():
    assert Own("text").change(lambda: None, None, None)
"""


@pytest.mark.parametrize(("first", "is_written"), [("", True), ("import apps.web", False)])
def test_no_stub_is_written_beside_a_component(
    first: str, is_written: bool, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    subprocess.run(
        [sys.executable, "-c", f"{first}\nimport own"],
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
    )
    assert (tmp_path / "own.pyi").exists() == is_written
