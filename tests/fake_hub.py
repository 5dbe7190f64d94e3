"""A model hub on this machine, as far as the hub's client asks one for files."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.catalog import download

REVISION = "0123456789" * 4


class FakeHub:
    """Serves files by "owner/name/path"; says what was asked of it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.ranges: list[str] = []
        """What of a file was asked for, in order."""
        self.refusals: list[int] = []
        """HTTP statuses of the next answers; 200 is what is asked for."""
        self.go_on = threading.Event()
        """For a test that lets something wait in before_piece."""
        self.before_piece: Callable[[int], bool] = lambda sent: True
        """Asked before each piece, with the bytes sent; False breaks the connection off."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def _refuses(self) -> bool:
        status = self.fake.refusals.pop(0) if self.fake.refusals else 200
        if status == 200:
            return False
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def do_HEAD(self) -> None:
        if not self._refuses():
            self._send(None)

    def do_GET(self) -> None:
        if self._refuses():
            return
        if self.path.startswith("/api/models/"):
            body = json.dumps({"id": "someone/it", "sha": REVISION}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self._send(self.headers.get("Range", ""))

    def _send(self, part: str | None) -> None:
        content = self.fake.files.get(self.path[1:].replace(f"/resolve/{REVISION}", ""))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(part.removeprefix("bytes=").rstrip("-")) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if part is None:
            return
        self.fake.ranges.append(part)
        for sent in range(start, len(content), download.PIECE):
            if not self.fake.before_piece(sent):
                self.close_connection = True
                return
            try:
                self.wfile.write(content[sent : sent + download.PIECE])
            except OSError:  # who asked has gone
                self.close_connection = True
                return


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of those who hang up."""


@contextmanager
def serving(files: Mapping[str, bytes], cache: Path) -> Iterator[FakeHub]:
    """Have the hub's client ask this one, with a cache of its own."""
    fake = FakeHub(files)
    handler = type("Answer", (_Answer,), {"fake": fake})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        constants = "huggingface_hub.constants"
        patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        patch.setattr(f"{constants}.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
        patch.setattr(download, "_last_silence", {"at": -float("inf")})
        patch.setattr(download, "PAUSE_S", 0.02)
        try:
            yield fake
        finally:
            server.shutdown()
            server.server_close()
