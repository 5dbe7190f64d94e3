"""How soon a live picture follows the pen, in a browser; and whether it keeps up with a fast hand.

    python -m benchmarks.live [--before REVISION] [--editor NAME] [--strokes N] [--json]

Strokes are drawn with the mouse on the page of interactive scribbles (Diorama, 256 px). The time is
that of the page's own clock, from the pen's lifting to the frame that shows the finished picture.
With --before the same drawing is made in the build of a Git revision that had no live pictures:
there the time runs from the press on Run, in the mode preview. Both servers run while both are
measured, in three rounds of both. Then come 30 strokes in 30 seconds: none may be lost or late.
With --editor the strokes are those of an editor of maps, on an empty one, and only they are timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._shared import ROOT, command, machine, served
from benchmarks.pictures import QUIET, find_chromium

EDITORS = {
    "scribble": ("scribble2image_interactive", ""),
    "pose": ("pose2image", "Person: move, scale and turn"),
    "segments": ("seg2image", "Paint"),
    "lines": ("mlsd2image", "Draw a line"),
    "depth": ("depth2image", "Nearer"),
}
"""By name the page of each, and the tool to take; "" where the page is a canvas with a pen."""
PATIENCE_MS = 60_000
FAST_STROKES, ROUNDS = 30, 3
WATCH = """
window.shown = [];
window.began = 0;
const see = async (image) => {
  await image.decode();
  requestAnimationFrame(() => window.shown.push([image.src.length, performance.now()]));
};
let last = "";
new MutationObserver(() => {
  const image = document.querySelector(".cl-live .cl-made img, .cl-card .cl-made img");
  if (image && image.src !== last) {
    last = image.src;
    see(image);
  }
}).observe(document, { subtree: true, childList: true, attributes: true });
"""
"""Notes when a new picture is on screen."""


class Drawing:
    """One page in the browser, drawn on with the mouse."""

    def __init__(self, browser: Any, address: str, is_live: bool, editor: str = "scribble"):
        self.page = browser.new_page(viewport={"width": 1280, "height": 2600})
        self.page.set_default_timeout(PATIENCE_MS)
        # Not the first visit, which would fill an example in.
        self.page.add_init_script(
            "localStorage.setItem(`controlloop-visited:${location.pathname}`, '')"
        )
        self.page.add_init_script(
            f"document.addEventListener('DOMContentLoaded', () => {{{WATCH}}})"
        )
        starts = "pointerup" if is_live else "click"
        where = ".cv-screen" if is_live else "#run"
        self.page.add_init_script(
            f"document.addEventListener('{starts}', (event) => {{"
            f" if (event.target.closest?.('{where}')) window.began = performance.now(); }}, true)"
        )
        page, tool = EDITORS[editor]
        self.page.goto(f"{address}/{page}")
        self.is_live, self.editor = is_live, editor
        screen = "#canvas .cv-screen" if is_live else "#canvas canvas"
        self.screen = self.page.locator(screen).first
        if tool:
            self.page.locator("#edit").click()
            self.page.locator("#canvas").get_by_label(tool, exact=True).click()
        if editor == "pose":
            self.page.get_by_label("Add a person").select_option("Standing")
        self.screen.wait_for()
        self.page.wait_for_timeout(2000)  # the old canvas takes its brush up after a while
        self.page.locator("#prompt textarea").fill("a blue house and a tree on grass, a sunset")
        if is_live:
            self.page.locator("#live").click()
            if editor == "pose":  # there is a person already, of whom a picture is asked at once
                self.page.wait_for_function("window.shown.length > 0")
                self.page.wait_for_timeout(1000)  # it makes room beside the editor
        else:
            self.page.locator("#advanced button").first.click()
            self.page.locator("#mode").get_by_text("preview", exact=True).click()

    def stroke(self, number: int) -> None:
        """Draw a short line, each at a place of its own; or push the person there and back."""
        box = self.screen.bounding_box()
        to_right, down = 60, 40
        x = box["x"] + box["width"] * (0.2 + 0.02 * (number % 30))
        y = box["y"] + box["height"] * (0.3 + 0.1 * (number % 5))
        if self.editor == "pose":
            to_right, down = (-60 if number % 2 else 60), 0
            x, y = box["x"] + (box["width"] - to_right) / 2, box["y"] + box["height"] / 2
        mouse = self.page.mouse
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + to_right, y + down, steps=4)
        mouse.up()

    def seconds(self, number: int) -> float:
        """Draw one stroke; return the seconds until its picture is on screen."""
        shown = self.page.evaluate("window.shown.length")
        self.stroke(number)
        if not self.is_live:
            self.page.locator("#run").click()
        self.page.wait_for_function("count => window.shown.length > count", arg=shown)
        milliseconds = self.page.evaluate("window.shown[window.shown.length - 1][1] - window.began")
        if not self.is_live:
            self.page.locator("#run").wait_for()  # the page is ready for the next run
        return float(milliseconds) / 1000

    def keep_up(self) -> dict[str, Any]:
        """Draw a stroke every second; return what became of them."""
        before = self._drawn()
        shown = self.page.evaluate("window.shown.length")
        began = time.perf_counter()
        for number in range(FAST_STROKES):
            self.stroke(number)
            time.sleep(max(0.0, began + number + 1 - time.perf_counter()))
        self.page.wait_for_timeout(5000)
        times = self.page.evaluate("window.shown.map(([, at]) => at - window.began)")[shown:]
        return {
            "strokes": FAST_STROKES,
            "lost": FAST_STROKES - (self._drawn() - before),
            "pictures": len(times),
            "last_after": round(max(times) / 1000, 3),
        }

    def _drawn(self) -> int:
        """Return how many strokes the drawing has, from its SVG."""
        menu = self.page.locator("#canvas .cv-more")
        menu.locator("summary").click()
        with self.page.expect_download() as download:
            menu.get_by_label("Save as SVG").click()
        menu.locator("summary").click()
        return Path(download.value.path()).read_text(encoding="utf-8").count("<path")


@contextmanager
def build_of(revision: str) -> Iterator[Path]:
    """Check a revision out into a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "build"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(place), revision],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        try:
            yield place
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True
            )


def measure(before: str, strokes: int, editor: str = "scribble") -> dict[str, Any]:
    """Measure live pictures, and runs of the earlier build where one is named."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of requirements-dev

    with ExitStack() as stack:
        only = ("--only", EDITORS[editor][0])
        live = stack.enter_context(served("launch.py", *only))
        old = ""
        if before:
            place = stack.enter_context(build_of(before))
            old = stack.enter_context(served("launch.py", *only, root=place))
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=find_chromium(), args=QUIET
        )
        stack.callback(browser.close)
        builds = {"live": (live, True)} | ({"run before": (old, False)} if old else {})
        times: dict[str, list[float]] = {name: [] for name in builds}
        for _ in range(ROUNDS):
            for name, build in builds.items():
                # One page at a time: the earlier one's canvas is drawn anew at every frame.
                drawing = Drawing(browser, *build, editor)
                drawing.seconds(0)  # loads the networks
                times[name] += [drawing.seconds(at + 1) for at in range(strokes // ROUNDS)]
                drawing.page.close()
        kept_up = Drawing(browser, live, True).keep_up() if editor == "scribble" else None
    rows = {
        name: {
            "median": round(float(np.median(found)), 3),
            "p95": round(float(np.percentile(found, 95)), 3),
        }
        for name, found in times.items()
    }
    ratio = rows["run before"]["median"] / rows["live"]["median"] if old else None
    return {
        "editor": editor,
        "strokes": strokes,
        "before": before,
        "seconds": rows,
        "times_as_fast": ratio and round(ratio, 2),
        "fast_hand": kept_up,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; `arguments` replace sys.argv. Returns 1 if strokes were lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="", help="a Git revision without live pictures")
    parser.add_argument("--editor", choices=EDITORS, default="scribble")
    parser.add_argument("--strokes", type=int, default=18)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    if options.before and options.editor != "scribble":
        parser.error("An earlier build is measured with scribbles: leave --editor or --before out.")
    result = measure(options.before, options.strokes, options.editor)
    for name, row in result["seconds"].items():
        print(f"{name:12} median {row['median']:.2f} s, p95 {row['p95']:.2f} s")
    if result["times_as_fast"]:
        print(f"{result['times_as_fast']:.1f} times as fast as Run in mode preview before")
    hand = result["fast_hand"]
    if hand:
        print(
            f"{hand['strokes']} strokes in as many seconds: {hand['lost']} lost, "
            f"{hand['pictures']} pictures, the last {hand['last_after']:.2f} s after the last one"
        )
    if options.json:
        facts = {
            "command": command("live", arguments),
            "machine": machine(torch.device("cpu"), torch.bfloat16),
        }
        print(json.dumps(facts | result))
    return int(bool(hand) and hand["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
