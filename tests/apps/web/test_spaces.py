"""The site with the variables that a Space sets, on a CPU and on ZeroGPU, as a visitor uses it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.apps.web import test_browser
from tests.apps.web.test_browser import PATIENCE_MS, expect

ROOT = Path(__file__).parents[3]
PATIENCE_S = 180
HERE = Path(__file__).parent

pytestmark = test_browser.pytestmark
browser = test_browser.browser
needs_spaces = pytest.mark.skipif(
    find_spec("spaces") is None or torch.version.cuda is None,
    reason="spaces is not installed (requirements-dev.txt), or PyTorch is one without CUDA",
)

OF_A_SPACE = {
    "SYSTEM": "spaces",
    "SPACE_ID": "someone/controlloop",
    "SPACE_HOST": "someone-controlloop.hf.space",
    "SPACE_AUTHOR_NAME": "someone",
    "SPACE_REPO_NAME": "controlloop",
    "SPACE_TITLE": "ControlLoop",
    "ACCELERATOR": "none",
    "CPU_CORES": "2",
    "MEMORY": "16Gi",
    "GRADIO_SERVER_NAME": "0.0.0.0",
}


class DeviceAPI(BaseHTTPRequestHandler):
    """What ZeroGPU's machine answers: it lends a GPU to everybody at once."""

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        lent = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
        body = json.dumps(lent).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def device_api() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), DeviceAPI)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _zero_gpu(api: ThreadingHTTPServer) -> dict[str, str]:
    address = f"http://127.0.0.1:{api.server_address[1]}"
    return {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": address}


@contextlib.contextmanager
def _site(program: Path, home: Path, variables: dict[str, str]) -> Iterator[str]:
    """Run a program until the block ends; yield its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    # After a fork OpenMP's threads are gone; on a GPU nothing waits for them.
    given |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1", **variables}
    address = f"http://127.0.0.1:{port}/"
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, str(program)],
            cwd=ROOT, env=os.environ | OF_A_SPACE | given, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            end = time.monotonic() + PATIENCE_S
            while True:
                try:
                    urllib.request.urlopen(address, timeout=5).read()
                    break
                except OSError:
                    assert server.poll() is None, (home / "log.txt").read_text()
                    assert time.monotonic() < end, (home / "log.txt").read_text()
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def _make_a_picture(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}canny2image")
    page.locator(".cl-examples button").first.click()
    expect(page.locator("#image img")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#run").click()
    expect(page.locator(".cl-card")).to_have_count(1, timeout=2 * PATIENCE_MS)
    expect(page.locator(".cl-card")).to_contain_text("/ 100")
    page.close()


def test_a_cpu_space_makes_pictures(browser: Any, tmp_path: Path) -> None:
    with _site(ROOT / "launch.py", tmp_path, {}) as address:
        _make_a_picture(browser, address)


@needs_spaces
def test_on_zero_gpu_pictures_are_made_where_a_gpu_is_lent(
    browser: Any, tmp_path: Path, device_api: ThreadingHTTPServer
) -> None:
    variables = _zero_gpu(device_api) | {"CONTROLLOOP_DEVICE": "cpu"}
    with _site(HERE / "zero_gpu_site.py", tmp_path, variables) as address:
        assert device_api.asked == ["/startup-report"], "it has found the decorated function"
        _make_a_picture(browser, address)
    _, schedule, allowed, released = device_api.asked
    assert schedule.startswith("/schedule") and "durationSeconds=2" in schedule
    assert allowed.startswith("/allow") and released == "/release?allowToken=token&fail=false"


PLACED = """
import spaces, torch
from spaces.zero.torch.patching import cuda_aliases
from models.store import Store
lent, plain = Store().load("diorama", "canny"), Store("cpu", "float16").load("diorama", "canny")
# It is fitted when it is loaded: its last digit may differ.
torch.testing.assert_close(cuda_aliases[lent.preview_matrix], plain.preview_matrix)
assert lent.preview_matrix.device.type == "cuda"
pairs = []
for one, other in ((lent.unet, plain.unet), (lent.vae, plain.vae)):
    pairs += zip(one.parameters(), other.parameters(), strict=True)
assert len(pairs) > 100
for placed, wanted in pairs:
    assert placed.device.type == "cuda" and wanted.device.type == "cpu"
    assert torch.equal(cuda_aliases[placed], wanted)
"""


@needs_spaces
def test_weights_are_placed_before_there_is_a_gpu(
    tmp_path: Path, device_api: ThreadingHTTPServer
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLACED],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)} | _zero_gpu(device_api),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
