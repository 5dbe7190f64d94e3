"""A server that is killed in a run and started again: the open page keeps what was done."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, _open_advanced, _opened, _set, _upload, expect
from tests.apps.web.test_serving import ROOT, wait_for

browser = test_browser.browser
pytestmark = test_browser.pytestmark


@pytest.mark.slow
def test_a_killed_server_costs_the_image_in_work_alone(browser: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--only", "canny2image", "--port", str(port)]
    command = [sys.executable, str(ROOT / "launch.py"), *options]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "CONTROLLOOP_MODEL": "diorama"}
    address = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen(command, env=environment)
    try:
        wait_for(address)
        with _opened(browser, "desktop", f"{address}canny2image") as page:
            _upload(page)
            page.fill("#prompt textarea", "a red ball")
            _open_advanced(page)
            _set(page, "num_samples", "12")
            page.locator("#run").click()
            history = page.locator(".cl-history")
            # Some are done, and the rest is in work: one by one, or a few together.
            some = re.compile(r"\(([2-9]|10)\)")
            expect(history.locator("summary")).to_contain_text(some, timeout=PATIENCE_MS)
            server.kill()
            server.wait()
            server = subprocess.Popen(command, env=environment)
            wait_for(address)
            expect(page.locator(".cl-empty")).to_be_visible(timeout=PATIENCE_MS)  # it reloads
            expect(page.locator("#prompt textarea")).to_have_value("a red ball")
            expect(page.locator("#image img")).to_be_visible()
            history.locator("summary").click()
            expect(history.locator("img").nth(1)).to_be_visible()
            page.wait_for_function(
                "[...document.querySelectorAll('.cl-history img')].every((i) => i.naturalWidth)",
                timeout=PATIENCE_MS,
            )
    finally:
        server.kill()
        server.wait()
