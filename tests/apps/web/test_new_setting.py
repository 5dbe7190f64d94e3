"""A further setting costs one edit: its field in core/request.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ADDED = {
    "strength": '    warp: float = bounded(0.5, 0.0, 1.0, 0.1, "Warp", "Bends it.")\n',
    "steps": '    glow: bool = toggle(False, "Glow", "Adds light.")\n',
}
"""One setting of a control and one of the whole request, before a field in the middle."""

PROGRAM = """
import io, sys
from pathlib import Path
import gradio as gr
import numpy as np
import pytest
from PIL import Image
import apps
from apps.web.files import upload_folder
from apps.web.pages.condition_page import SingleControl
from apps.web.pages.page import Page
from apps.web.pages.several_page import ControlSlots
from apps.web.suite import Suite
from core.condition import Score
from core.errors import BadInput
from core.metadata import read_settings, save_png
from core.request import ControlResult, GenerationRequest, GenerationResult
from models.store import Store

pytestmark = pytest.mark.slow

suite = Suite(Store("cpu", "float32", Path(sys.argv[1])), "tiny")
canny, several = apps.find("canny2image"), apps.find("multi2image")
pages, arguments, helps = {}, {}, {}
for app, part in ((canny, SingleControl), (several, ControlSlots)):
    controls = part(app, suite)
    with gr.Blocks(analytics_enabled=False) as blocks:
        pages[app.name] = Page(blocks, app, suite, controls)
    endpoint = controls.endpoint(pages[app.name].layout.fields)
    arguments[app.name] = list(endpoint.arguments)
    helps[app.name] = {name: told for name, (_, told) in endpoint.arguments.items()}

# The page, and the endpoint behind what was there before.
fields = pages["canny2image"].layout.fields
assert (fields["warp"].maximum, fields["warp"].label) == (1.0, "Warp")
assert list(fields)[-4:] == ["warp", "glow", "edit", "mask"]  # canvases stand above the results
assert arguments["canny2image"][-2:] == ["warp", "glow"]
assert helps["canny2image"]["warp"] == "Warp (0 to 1). Bends it."
assert {"glow", "warp_1", "warp_3"} <= set(arguments["multi2image"])
assert "warp_2" in pages["multi2image"].layout.fields

# From the page's values, or a caller's, to the request.
image = np.full((64, 64, 3), 127, np.uint8)
path = upload_folder() / "x.png"
path.parent.mkdir(parents=True, exist_ok=True)
Image.fromarray(image).save(path)
for name in ("canny2image", "multi2image"):
    page = pages[name]
    values = {field: widget.value for field, widget in page.layout.fields.items()}
    warp = "warp" if name == "canny2image" else "warp_1"
    values |= {"image": {"path": str(path)}, warp: 0.2, "glow": True}
    request = page.controls.job(page.layout.values_of(list(values.values()))).request
    assert (request.controls[0].warp, request.glow) == (0.2, True)
    values[warp] = 7
    with pytest.raises(BadInput, match="Warp"):
        page.controls.job(page.layout.values_of(list(values.values())))

# The PNG, and back into both pages.
given = {"params": canny.annotator.params(), "warp": 0.2, "glow": True}
request = GenerationRequest.single(canny, image, **given)
made = ControlResult(canny, image, (image,), (Score(1, "F1", {"F1": 1}),))
result = GenerationResult(
    images=(image,), controls=(made,), seeds=(1,), seconds={}, warnings=(), request=request,
    model="tiny", device="cpu", dtype="float32", width=64, height=64, hashes={}, cancelled=False,
)
memory = io.BytesIO()
save_png(memory, image, result, 0)
settings, notes = read_settings(memory.getvalue(), canny)
assert (settings["warp"], settings["glow"], notes) == (0.2, True, [])
single, slots = (pages[name].controls.read_png(memory.getvalue())[0] for name in pages)
assert (single["warp"], single["glow"], slots["warp_1"], slots["glow"]) == (0.2, True, 0.2, True)
"""


@pytest.mark.slow
def test_page_endpoint_checks_and_file_follow_the_records(
    models_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "core", tmp_path / "core", ignore=lambda *_: ["__pycache__"])
    for name in ("apps", "annotators", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    records = tmp_path / "core" / "request.py"
    text = records.read_text(encoding="utf-8")
    for name, line in ADDED.items():
        assert text.count(f"    {name}: ") > 0
        text = text.replace(f"    {name}: ", f"{line}    {name}: ", 1)
    records.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(models_folder)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
