"""A site under floods of uploads, killed while it saves, and on disks that take nothing more."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._load_site import (
    PATIENCE_S,
    PICTURES,
    QUICK,
    Place,
    bugs_in,
    figure,
    heard,
    post,
    site_in,
)
from benchmarks._shared import Site
from benchmarks.pictures import PATIENCE_MS, QUIET, find_chromium
from core.files import PARTIAL

CALLS = 60
"""At once, of which 16 run and 20 wait."""
FLOOD, LARGE = 40, (5000, 4000)
"""How many large pictures, and their size: 20 megapixels."""
KILLS, SAVERS = 5, 6
DISK = "16m"
SENTENCES = ("The server's disk", "to the server's folder")
"""What stands in the sentences about what could not be kept."""
SHOWN = "[...document.querySelectorAll('.cl-card img')].filter((one) => one.naturalWidth).length"
OLD_S = 7200


# Uploads


def uploads(place: Place) -> dict[str, Any]:
    """Measure more requests than may wait, and a flood of large pictures."""
    with site_in(place) as site:
        overflow = _at_once(site, CALLS, PICTURES[0], {**QUICK, "mode": "exact"})
        large = place.temporary.parent / "large.jpg"
        _large_picture(large)
        before = memory_mb(site, "VmRSS")
        # From here on its peak is counted anew.
        Path(f"/proc/{site.process.pid}/clear_refs").write_text("5", encoding="utf-8")
        flood = _at_once(site, FLOOD, large, QUICK)
        peak = memory_mb(site, "VmHWM")
    both = (overflow, flood)
    return {
        "overflow": overflow,
        "flood": {"megapixels": LARGE[0] * LARGE[1] / 1e6, **flood},
        "memory_before_mb": before,
        "memory_peak_mb": peak,
        "lost": sum(one["accepted"] - one["done"] for one in both),
        "broken": sum(one["refused_without_a_sentence"] for one in both),
        "tracebacks": bugs_in(place),
    }


def memory_mb(site: Site, name: str) -> float:
    """Return a figure of a server's memory, VmRSS or VmHWM."""
    status = Path(f"/proc/{site.process.pid}/status").read_text(encoding="utf-8")
    return round(figure(status, name) / 1024, 1)


def _large_picture(path: Path) -> None:
    """Write a photograph-like JPEG: forms and some noise."""
    small = Image.open(PICTURES[0]).convert("RGB").resize(LARGE, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(-8, 9, (*LARGE[::-1], 1), np.int16)
    noisy = np.clip(np.asarray(small, np.int16) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=85)


def _at_once(site: Site, count: int, picture: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Send requests at the same time and wait for all answers; return what became of them."""
    outcomes: list[str] = []
    sentences: Counter[str] = Counter()

    def call(number: int) -> None:
        try:
            event = post(site.address, "canny2image", number, settings, picture)
        except urllib.error.HTTPError as refusal:
            told = refusal.read().decode()
            sentences[told] += 1
            is_sentence = refusal.code < 500 or refusal.code == 503
            outcomes.append("refused" if is_sentence and "detail" in told else "wordless")
            return
        said = list(heard(site.address, "canny2image", event))
        outcomes.append("done" if any(b"event: complete" in line for line in said) else "failed")

    with ThreadPoolExecutor(count) as threads:
        for one in [threads.submit(call, number) for number in range(count)]:
            one.result()
    counted = Counter(outcomes)
    return {
        "asked": count,
        "accepted": counted["done"] + counted["failed"],
        "done": counted["done"],
        "refused": counted["refused"],
        "refused_without_a_sentence": counted["wordless"],
        "refusals": sorted(sentences),
    }


# Killed while saving


def kills(place: Place) -> dict[str, Any]:
    """Kill a server again and again while it saves, then look at the files and start it again."""
    output = place.temporary.parent / "output"
    settings = {"CONTROLLOOP_OUTPUT": str(output), "CONTROLLOOP_RESULTS_GB": "1"}
    left = place.temporary / "controlloop" / "0" / "left-by-another"
    chance = random.Random(0)
    for _ in range(KILLS):
        with site_in(place, **settings) as site:
            _save_without_end(site, output, chance.uniform(0, 1))
        if not left.exists():
            left.mkdir()
            (left / "large").touch()
            os.truncate(left / "large", 2 * 10**9)  # beyond what may be kept; it takes no room
    partial = list(output.glob(PARTIAL.format("*")))
    for file in partial:
        old = time.time() - OLD_S
        os.utime(file, (old, old))  # younger ones may be another server's
    pictures = [*output.glob("*.png"), *place.temporary.rglob("*.png")]
    broken = [str(one) for one in pictures if not is_whole(one)]
    with site_in(place, **settings):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and (left.exists() or any(map(Path.exists, partial))):
            time.sleep(1)
    folders = [one.name for one in (place.temporary / "controlloop").iterdir()]
    return {
        "kills": KILLS,
        "pictures": len(pictures),
        "broken": len(broken),
        "cut_off": len(partial),
        "cleaned_up": folders == ["0"] and not left.exists() and not any(map(Path.exists, partial)),
    }


def is_whole(picture: Path) -> bool:
    """Tell whether a picture can be read to its end."""
    try:
        with Image.open(picture) as opened:
            opened.load()
    except (OSError, SyntaxError):  # Pillow's for a PNG's broken chunk
        return False
    return True


def _save_without_end(site: Site, output: Path, wait: float) -> None:
    """Have it make pictures from several callers; kill it a while after the first was saved."""
    over = threading.Event()

    def save(number: int) -> None:
        with suppress(OSError, HTTPException):  # the server is killed meanwhile
            while not over.is_set():
                event = post(site.address, "canny2image", number, {**QUICK, "num_samples": 4})
                for _ in heard(site.address, "canny2image", event):
                    pass

    before = len(list(output.glob("*.png")))
    threads = [threading.Thread(target=save, args=(at,), daemon=True) for at in range(SAVERS)]
    for one in threads:
        one.start()
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and len(list(output.glob("*.png"))) < before + SAVERS:
        time.sleep(0.02)
    time.sleep(wait)
    over.set()
    site.process.send_signal(signal.SIGKILL)
    site.process.wait()
    for one in threads:
        one.join(PATIENCE_S)


# Disks that take nothing more


class Disks:
    """Two small disks of a server, in a mount namespace of its own: results, and the operator's."""

    def __init__(self, place: Place) -> None:
        """Mount nothing yet."""
        self.folders = {
            "results": place.temporary,
            "operator's folder": place.temporary.parent / "output",
        }

    def prefix(self) -> list[str]:
        """Return what stands before a command that shall see them."""
        for folder in self.folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        mount = f'mount -t tmpfs -o size={DISK} tmpfs "$1" && mount -t tmpfs -o size={DISK} '
        mount += 'tmpfs "$2" && shift 2 && exec "$@"'
        folders = map(str, self.folders.values())
        return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh",
                *folders]  # fmt: skip

    def hindrance(self) -> str:
        """Return why they cannot be had here; "" if they can."""
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            return "unshare and nsenter of util-linux are not there"
        tried = subprocess.run([*self.prefix(), "true"], capture_output=True, text=True)
        return tried.stderr.strip() if tried.returncode else ""

    @contextmanager
    def spoilt(self, site: Site, name: str, way: str) -> Iterator[None]:
        """Fill a disk, or make it read-only, for the duration of the block."""
        spoil, mend = {
            "full": ('head -c 1G /dev/zero > "$1/filler"; true', 'rm "$1/filler"'),
            # Above it, as files in it are open.
            "read-only": (
                'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"',
                'umount "$1"',
            ),
        }[way]
        self._do(site, spoil, name)
        try:
            yield
        finally:
            self._do(site, mend, name)

    def _do(self, site: Site, script: str, name: str) -> None:
        inside = ["nsenter", "--target", str(site.process.pid), "--user", "--preserve-credentials",
                  "--mount"]  # fmt: skip
        folder = str(self.folders[name])
        subprocess.run([*inside, "sh", "-c", script, "sh", folder], check=True, capture_output=True)


def disks(place: Place) -> dict[str, Any]:
    """See in a browser what a page shows where a disk is full or read-only."""
    both = Disks(place)
    if hindrance := both.hindrance():
        return {"skipped": hindrance}
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of requirements-dev

    output = str(both.folders["operator's folder"])
    shown: dict[str, dict[str, Any]] = {}
    with (
        site_in(place, both.prefix(), CONTROLLOOP_OUTPUT=output) as site,
        sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=find_chromium(), args=QUIET)
        for name in both.folders:
            for way in ("full", "read-only"):
                page = _ready_page(browser, site)
                with both.spoilt(site, name, way):
                    shown[f"{name}, {way}"] = _run(page)
                page.close()
        browser.close()
    return {
        "shown": shown,
        "broken": sum(not is_told(one) for one in shown.values()),
        "tracebacks": bugs_in(place),
    }


def is_told(shown: dict[str, Any]) -> bool:
    """Tell whether pictures are shown, and one sentence says what could not be kept."""
    return shown["pictures"] > 0 and len(shown["sentences"]) == 1


def _ready_page(browser: Any, site: Site) -> Any:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    # Not the first visit, which would fill an example in.
    page.add_init_script("localStorage.setItem(`controlloop-visited:${location.pathname}`, '')")
    page.goto(f"{site.address}/canny2image")
    page.set_input_files("#image input[type=file]", PICTURES[0])
    page.locator("#image img").wait_for()
    page.locator("#prompt textarea").fill("a red ball")
    return page


def _run(page: Any) -> dict[str, Any]:
    page.locator("#run").click()
    page.locator(".cl-results").wait_for()
    page.wait_for_function(f"{SHOWN} > 0")
    told = page.locator(".cl-results").inner_text().splitlines()
    return {
        "pictures": page.evaluate(SHOWN),
        "sentences": [line for line in told if any(sign in line for sign in SENTENCES)],
    }


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "uploads": uploads,
    "kills": kills,
    "disks": disks,
}
