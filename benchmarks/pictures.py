"""The pictures of README.md: what each app makes of an example, and the page at work.

    python -m benchmarks.pictures [NAME ...]

Starts the site with Diorama on the CPU, calls every app over HTTP with an example of its own and a
fixed seed, and saves `pictures/<app>.jpg`: the input, the map and the result with its score. `page`
is the page of one app with its results, in Chromium; `editing` six things done there with the
mouse. Examples and seeds were chosen by eye; an app
that CHOSEN lacks has its first example and seed 0.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file
from PIL import Image, ImageDraw, ImageFont

import apps
from benchmarks._editing import editing_sheet
from benchmarks._shared import ROOT, served
from core.provenance import COMPOSITE, packet, read_claims

PICTURES = ROOT / "pictures"
PAGE = "canny2image"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
WINDOW, PAGE_IMAGES = (1280, 1010), 2
PATIENCE_MS = 120_000
HIGH, GAP, CAPTION = 256, 8, 36
"""Of a strip, in pixels: its pictures' height, the space between them, and the text below."""
QUALITY, QUALITY_OF_SHEET = 88, 78


@dataclass(frozen=True)
class Chosen:
    """The example that an app is shown with; `arguments` are the endpoint's, if not the default."""

    example: int = 0
    seed: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)


PERSON_AND_BALL = "a person in purple and a yellow ball on snow, a cloudy sky"
CHOSEN = {
    "annotator": Chosen(
        1, arguments={"names": ["depth: Diorama", "normal: Diorama", "seg: Diorama"]}
    ),
    "canny2image": Chosen(2, 1),
    "depth2image": Chosen(0, 3),
    "fake_scribble2image": Chosen(1, 1),
    "hed2image": Chosen(2, 1),
    "lineart2image": Chosen(1, 3),
    "mlsd2image": Chosen(1, 1),
    "multi2image": Chosen(2, 1, {"prompt": PERSON_AND_BALL}),
    "normal2image": Chosen(0, 2),
    "pose2image": Chosen(1, 0),
    "scribble2image_interactive": Chosen(2, 3),
    "sweep": Chosen(2, 1, {"prompt": PERSON_AND_BALL, "x_values": "0, 0.5, 1"}),
}


def made(client: Client, name: str) -> list[tuple[Path, str]]:
    """Call an app; return its pictures with their captions: input, maps, result with its score."""
    app, chosen = apps.find(name), CHOSEN.get(name, Chosen())
    example = app.examples[chosen.example]
    file = ROOT / "test_imgs" / (example if isinstance(example, str) else example.image)
    arguments = {"image": handle_file(str(file)), **chosen.arguments}
    if not isinstance(example, str):
        arguments["prompt"] = example.prompt
    if "names" not in arguments:
        arguments["seed"] = chosen.seed
    answer = client.predict(api_name=f"/{name}", **arguments)
    if len(answer) == 2:  # a tool that only draws maps
        maps, report = answer
        captions = [one.partition(":")[0] for one in report["maps"]]
        return [(file, "input"), *zip(map(Path, maps), captions, strict=True)]
    if len(answer) == 3:  # a grid of several
        return [(Path(answer[0]), "a setting's effect, with scores")]
    control_map, images, _, report = answer
    maps = [control_map] if isinstance(control_map, str) else control_map
    score = report["scores"][0]["headline"]
    return [
        (file, "input"),
        *((Path(one), "control map") for one in maps),
        (Path(images[0]), f"result · {score:.0f} / 100"),
    ]


def strip(pictures: Sequence[tuple[Path, str]]) -> Image.Image:
    """Put pictures of any size side by side, each with its caption below."""
    tiles = []
    for path, _ in pictures:
        tile = Image.open(path).convert("RGB")
        tiles.append(
            tile.resize((round(tile.width * HIGH / tile.height), HIGH), Image.Resampling.LANCZOS)
        )
    wide = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    whole = Image.new("RGB", (wide, HIGH + CAPTION), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=24)
    left = 0
    for tile, (_, caption) in zip(tiles, pictures, strict=True):
        whole.paste(tile, (left, 0))
        middle = (left + tile.width // 2, HIGH + CAPTION // 2)
        draw.text(middle, caption, fill="#17212b", font=font, anchor="mm")
        left += tile.width + GAP
    return whole


def find_chromium() -> str:
    """Return the path of a Chromium.

    Raises:
        SystemExit: there is none.
    """
    found = next((path for one in CHROMIUM if (path := shutil.which(one))), None)
    if found is None:
        raise SystemExit(f"The page's picture needs one of: {', '.join(CHROMIUM)}.")
    return found


def screenshot(address: str, name: str) -> Image.Image:
    """Take an app's example, run it, and return a picture of the page with its results."""
    from playwright.sync_api import expect, sync_playwright  # noqa: PLC0415 - of requirements-dev

    chosen = CHOSEN.get(name, Chosen())
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=QUIET)
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}/{name}")
        expect(page.get_by_text("an image (")).to_be_visible()  # it has been timed
        page.locator(".cl-examples button").nth(chosen.example).click()
        expect(page.locator("#image img")).to_be_visible()
        advanced = page.get_by_role("button", name="Advanced options")
        advanced.click()
        for setting, value in (("seed", chosen.seed), ("num_samples", PAGE_IMAGES)):
            box = page.locator(f"#{setting} input[type=number]")
            box.fill(str(value))
            box.press("Tab")
        advanced.click()
        page.locator("#run").click()
        expect(page.locator(".cl-card").first).to_be_visible()
        expect(page.locator("#run")).to_be_visible()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(1000)  # what fades in or out has done so
        shot = Image.open(BytesIO(page.screenshot()))
        browser.close()
    return shot.convert("RGB")


def editing(address: str) -> Image.Image:
    """Return the sheet of what can be done with the mouse."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of requirements-dev

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=QUIET)
        sheet = editing_sheet(browser, address)
        browser.close()
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="of apps, page, editing; without any: all", metavar="NAME"
    )
    options = parser.parse_args(arguments)
    known = [*apps.names(), "page", "editing"]
    for name in options.names:
        if name not in known:
            parser.error(f"there is no {name!r}: choose from {', '.join(known)}")
    names = options.names or known
    os.environ["CONTROLLOOP_DEVICE"] = "cpu"
    PICTURES.mkdir(exist_ok=True)
    with served("launch.py", "--model", "diorama") as address:
        client = Client(address, verbose=False)
        for name in names:
            generated = True
            if name == "page":
                picture = screenshot(address, PAGE)
            elif name == "editing":
                picture = editing(address)
            else:
                found = made(client, name)
                picture = strip(found)
                generated = any(read_claims(path).source_types for path, _ in found)
                print(name, *(caption for _, caption in found[1:]), flush=True)
            quality = QUALITY_OF_SHEET if name == "editing" else QUALITY
            picture.save(
                PICTURES / f"{name}.jpg",
                quality=quality,
                subsampling=0,
                optimize=True,
                xmp=packet(COMPOSITE).encode() if generated else b"",
            )


if __name__ == "__main__":
    main()
