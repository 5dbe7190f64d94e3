"""Many pictures at once on a page: each is shown as it is done, and all of them can be saved."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from PIL import Image

from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, PATIENCE_S, HeldRun, expect

browser, page = test_browser.browser, test_browser.page
pytestmark = test_browser.pytestmark
desktop = pytest.mark.parametrize("page", ["desktop"], indirect=True)


def _send(page: Any, folder: Path, *names: str) -> None:
    """Choose pictures of these names, a caption of the first, and a damaged file."""
    files = [folder / name for name in names]
    for shade, file in enumerate(files):
        Image.new("RGB", (96, 64), (40 * shade, 90, 90)).save(file)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    files[0].with_suffix(".txt").write_text("a blue box", encoding="utf-8")
    page.locator("#many button").first.click()
    page.set_input_files(
        "#many-files input[type=file]",
        [*files, folder / "broken.png", files[0].with_suffix(".txt")],
    )
    expect(page.locator("#many-files .file")).to_have_count(len(names) + 2, timeout=PATIENCE_MS)
    page.fill("#prompt textarea", "the red ball")
    page.locator("#run-many").click()


@desktop
def test_every_picture_is_made_and_the_damaged_one_is_named(page: Any, tmp_path: Path) -> None:
    _send(page, tmp_path, "a.png", "b.png")
    figures = page.locator("#results figure")
    expect(page.locator("#results h2")).to_contain_text(
        "2 of 3 pictures · 1 failed", timeout=PATIENCE_MS
    )
    expect(figures).to_have_count(3)
    expect(figures.nth(2)).to_contain_text("damaged")
    expect(figures.nth(2)).to_contain_text("broken.png")
    with page.expect_download() as saved:
        page.get_by_text("Save all").click()
    with ZipFile(saved.value.path()) as archive:
        names = {f"{kind}/{name}.png.png" for kind in ("images", "maps") for name in "ab"}
        assert set(archive.namelist()) == names | {"contact-1.png", "scores.csv"}
        table = archive.read("scores.csv").decode()
    assert "a blue box" in table and "the red ball" in table and "broken.png" in table
    expect(page.locator("#run")).to_be_visible()


@desktop
def test_stop_keeps_what_is_done(page: Any, tmp_path: Path, held: HeldRun) -> None:
    """The first picture is held in its first step, so none is done when it is stopped."""
    _send(page, tmp_path, "a.png", "b.png")
    assert held.at_work.wait(PATIENCE_S)
    page.keyboard.press("Escape")
    held.must_stop()
    expect(page.locator("#results")).to_contain_text("Stopped: 0 of", timeout=PATIENCE_MS)
    expect(page.locator("#run")).to_be_visible()
