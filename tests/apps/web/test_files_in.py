"""Files that a visitor brings: damaged ones are told by name, HEIC is taken, drops restore."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from apps.web.files import new_folder
from apps.web.jobs.request import for_browser
from core.images import read_image
from core.provenance import GENERATED, packet, read_claims
from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, _finished, _upload, expect

XMP_TAG = 700
"""Of a TIFF."""

browser, page = test_browser.browser, test_browser.page
in_a_browser = test_browser.pytestmark


def _marked(test: Any) -> Any:
    for mark in in_a_browser:
        test = mark(test)
    return test


def _gradient() -> Image.Image:
    columns, rows = np.meshgrid(np.arange(96), np.arange(64))
    return Image.fromarray(np.dstack([columns * 2, rows * 3, columns]).astype(np.uint8))


def _heic() -> bytes:
    import pillow_heif

    pillow_heif.register_heif_opener()  # for Pillow's save
    memory = io.BytesIO()
    _gradient().save(memory, "HEIF", quality=95)
    return memory.getvalue()


def _record(name: str, data: bytes) -> dict[str, str]:
    file = new_folder(Path(get_upload_folder())) / name
    file.write_bytes(data)
    return {"path": str(file)}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_what_a_browser_shows_stays_the_file_that_it_is(kind: str) -> None:
    memory = io.BytesIO()
    _gradient().save(memory, kind)
    assert for_browser(_record(f"x.{kind}", memory.getvalue())) == ""


def test_what_no_browser_shows_becomes_the_png_that_it_is_read_as() -> None:
    memory = io.BytesIO()
    _gradient().save(memory, "TIFF", tiffinfo={XMP_TAG: packet(GENERATED).encode()})
    for name, data, kinds in (
        ("x.tiff", memory.getvalue(), (GENERATED,)), ("x.heic", _heic(), ()),
    ):  # fmt: skip
        shown = for_browser(_record(name, data))
        assert shown.endswith("/x.png")
        assert read_claims(shown).source_types == kinds
        assert np.array_equal(read_image(shown)[0], read_image(data)[0])


@_marked
@pytest.mark.parametrize("kind", ["", "image/heic"])
def test_an_iphones_photograph_is_shown_and_used(page: Any, kind: str) -> None:
    """Few systems know its type, and Gradio refuses a file without one."""
    file = {"name": "IMG_0001.HEIC", "mimeType": kind, "buffer": _heic()}
    page.set_input_files("#image input[type=file]", file)
    page.wait_for_function("document.querySelector('#image img')?.naturalWidth === 96")
    page.locator("#run").click()
    _finished(page)


@_marked
def test_a_damaged_file_is_told_by_its_name_when_it_is_added(page: Any, tmp_path: Path) -> None:
    whole = (test_browser.PHOTOS / "coffee.jpg").read_bytes()
    (tmp_path / "half <b>.jpg").write_bytes(whole[: len(whole) // 2])
    page.set_input_files("#image input[type=file]", tmp_path / "half <b>.jpg")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("half <b>.jpg: The picture is incomplete", timeout=PATIENCE_MS)
    expect(page.locator("#image img")).to_have_count(0)


DROP = """([selector, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const given = { bubbles: true, cancelable: true, dataTransfer: transfer };
  document.querySelector(selector).dispatchEvent(new DragEvent("dragover", given));
  return !document.querySelector(selector).dispatchEvent(new DragEvent("drop", given));
}"""


def _drop(page: Any, on: str, name: str, kind: str, data: bytes) -> None:
    """Drop a file on a part of the page; what nobody takes would replace the page."""
    assert page.evaluate(DROP, [on, name, kind, base64.b64encode(data).decode()])


@_marked
def test_a_picture_dropped_anywhere_restores_its_settings(page: Any) -> None:
    _upload(page)
    page.fill("#prompt textarea", "the red ball")
    page.locator("#run").click()
    _finished(page)
    made = page.request.get(page.locator(".cl-made img").evaluate("i => i.src")).body()
    page.fill("#prompt textarea", "something else")
    _drop(page, ".cl-head h1", "made.png", "image/png", made)
    expect(page.locator(".cl-restored")).to_contain_text("Restored", timeout=PATIENCE_MS)
    expect(page.locator(".cl-restored")).to_be_in_viewport(ratio=0.9)
    expect(page.locator("#prompt textarea")).to_have_value("the red ball")


@_marked
def test_a_picture_without_settings_is_not_said_to_lack_its_input(page: Any) -> None:
    photograph = (test_browser.PHOTOS / "coffee.jpg").read_bytes()
    _drop(page, ".cl-head h1", "coffee.jpg", "image/jpeg", photograph)
    expect(page.locator(".cl-restored")).to_have_text(
        "This picture holds no settings.", timeout=PATIENCE_MS
    )


@_marked
def test_a_dropped_picture_never_takes_the_place_of_a_page(browser: Any, address: str) -> None:
    photograph = (test_browser.PHOTOS / "coffee.jpg").read_bytes()
    for name in ("", "annotator", "sweep"):
        page = browser.new_page()
        page.goto(f"{address}{name}")
        page.locator("h1").wait_for(timeout=PATIENCE_MS)
        _drop(page, "h1", "coffee.jpg", "image/jpeg", photograph)
        if name:
            expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
        page.close()


@_marked
def test_a_picture_dropped_on_the_input_is_the_input(page: Any) -> None:
    _drop(page, "#image [aria-dropeffect]", "IMG_0001.HEIC", "", _heic())
    page.wait_for_function("document.querySelector('#image img')?.naturalWidth === 96")
    assert page.locator(".cl-restored").count() == 0
