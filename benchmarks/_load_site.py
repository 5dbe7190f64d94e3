"""A server under load as its operator sees it, and requests as its visitors make them."""

import base64
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.client import Job
from PIL import Image

import apps
from benchmarks._shared import ROOT, Site, running
from core.condition import RGBImage

PICTURES = sorted((ROOT / "test_imgs").glob("diorama_*.png"))
PROMPTS = ("a red ball on grass", "two blue boxes", "a white house and a tree", "a yellow car")
QUICK = {"mode": "preview", "image_resolution": 256, "num_samples": 1}
"""Settings of a short request: one picture of 256 px, in four steps."""
LONG = {"mode": "exact", "image_resolution": 256, "num_samples": 12, "steps": 100}
"""Settings of a request that is given up: whoever waits for its end would notice."""
PATIENCE_S = 600
BUG = "Something went wrong"


@dataclass(frozen=True)
class Place:
    """Where a server of this benchmark keeps what."""

    folder: Path
    """Of the benchmark."""
    part: str

    @property
    def home(self) -> Path:
        """Its user's home, with the compiled kernels; the same for all parts."""
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        """Uploads and results."""
        return self.folder / self.part / "temporary"

    @property
    def log(self) -> Path:
        """What the server writes."""
        return self.folder / self.part / "server.log"

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the server's variables: this process's own without ours, and `settings`."""
        usual = {k: v for k, v in os.environ.items() if not k.startswith("CONTROLLOOP_")}
        folders = {"HOME": self.home, "TMPDIR": self.temporary, "GRADIO_TEMP_DIR": self.temporary}
        usual.pop("XDG_CACHE_HOME", None)
        return usual | {name: str(path) for name, path in folders.items()} | dict(settings)


@contextmanager
def site_in(place: Place, prefix: Sequence[str] = (), **settings: str) -> Iterator[Site]:
    """Start the whole suite on Diorama and wait until it is ready; `prefix` stands before python.

    `settings` are variables of its environment.
    """
    for folder in (place.home, place.temporary):
        folder.mkdir(parents=True, exist_ok=True)
    command = [*prefix, sys.executable, str(ROOT / "launch.py"), "--model", "diorama"]
    with running(command, environment=place.environment(settings), log=place.log) as site:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            with suppress(OSError):
                get(f"{site.address}/readyz")
                break
            time.sleep(0.2)
        yield site


def get(address: str, timeout: float = PATIENCE_S) -> bytes:
    """Fetch an address of the site.

    Raises:
        OSError: It does not answer, or with an error.
    """
    with urllib.request.urlopen(address, timeout=timeout) as answer:
        return bytes(answer.read())


def condition_apps() -> list[str]:
    """Return the names of the apps that make pictures of a picture."""
    return [one.name for one in apps.conditions()]


# Requests


def visitor(address: str) -> Client:
    """Come to the site; what a request makes stays there."""
    # Its usual five seconds would hide how long a busy server takes.
    patient = {"timeout": PATIENCE_S}
    return Client(address, verbose=False, download_files=False, httpx_kwargs=patient)


def given(number: int, settings: Mapping[str, Any] = QUICK) -> dict[str, Any]:
    """Return the arguments of a request; each number has its own picture, prompt and seed."""
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": number,
        **settings,
    }


def picture_for(number: int) -> Path:
    """Return the picture that a request starts from."""
    return PICTURES[number % len(PICTURES)]


def ask(client: Client, app: str, number: int, settings: Mapping[str, Any] = QUICK) -> Job:
    """Send a request of a number, through the queue."""
    image = handle_file(picture_for(number))
    return client.submit(image=image, api_name=f"/{app}", **given(number, settings))


def pixels_of(job: Job) -> RGBImage:
    """Wait for a request's first picture, with a client that does not download."""
    _, images, _, _ = job.result(PATIENCE_S)
    return pixels(get(images[0]["url"]))


def pixels(png: bytes) -> RGBImage:
    """Return the pixels of a PNG."""
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def post(
    address: str, app: str, number: int, settings: Mapping[str, Any], picture: Path | None = None
) -> str:
    """Send a request of a number as curl does, with its own picture or this; return its event.

    Raises:
        HTTPError: It is refused.
    """
    data = base64.b64encode((picture or picture_for(number)).read_bytes()).decode()
    body = {"image": {"url": f"data:image/jpeg;base64,{data}"}, **given(number, settings)}
    asked = urllib.request.Request(
        f"{address}/gradio_api/call/v2/{app}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        return str(json.load(answer)["event_id"])


def heard(address: str, app: str, event: str) -> Generator[bytes]:
    """Listen to a request; the connection is dropped where the caller stops listening."""
    call = f"{address}/gradio_api/call/v2/{app}/{event}"
    with urllib.request.urlopen(call, timeout=PATIENCE_S) as stream:
        yield from stream


def vanish_from(address: str, app: str, number: int) -> bool:
    """Send a long request, and drop the connection in its first picture.

    Returns whether it came so far.
    """
    listening = heard(address, app, post(address, app, number, LONG))
    try:
        return any(b'"stage": "sample"' in line for line in listening)
    finally:
        listening.close()


# What the server holds


@dataclass(frozen=True)
class Holding:
    """What a server holds at one time."""

    requests: int
    """How many it has answered."""
    seconds: float
    memory_mb: float
    """Resident."""
    threads: int
    descriptors: int
    files: int
    """In its folder of uploads and results."""
    files_mb: float


def holding(site: Site, place: Place, requests: int, seconds: float) -> Holding:
    """Look at a running server."""
    process = Path(f"/proc/{site.process.pid}")
    status = (process / "status").read_text(encoding="utf-8")
    sizes = []
    for parent, _, names in os.walk(place.temporary):
        for name in names:
            with suppress(FileNotFoundError):  # removed meanwhile
                sizes.append(Path(parent, name).lstat().st_size)
    return Holding(
        requests,
        round(seconds, 1),
        round(figure(status, "VmRSS") / 1024, 1),
        figure(status, "Threads"),
        len(list((process / "fd").iterdir())),
        len(sizes),
        round(sum(sizes) / 1e6, 1),
    )


def figure(status: str, name: str) -> int:
    """Return a figure of /proc/PID/status; sizes are in KiB."""
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    assert found, f"no {name}"
    return int(found[1])


def bugs_in(place: Place) -> int:
    """Return how many errors of our own the server's log has."""
    if not place.log.exists():
        return 0
    return place.log.read_text(encoding="utf-8", errors="replace").count("Traceback (most recent")
