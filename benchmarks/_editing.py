"""Six things that a visitor does with the mouse, as pictures of the page (benchmarks.pictures)."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WINDOW = (1280, 1000)
WIDE, HIGH, GAP, CAPTION = 620, 470, 12, 34
"""Of each picture in the sheet, in pixels, with the space between them and the text below."""
SETTLES_MS = 1500
PATIENCE_MS = 60_000


def editing_sheet(browser: Any, address: str) -> Image.Image:
    """Do all six things on the site at `address`; return the pictures, two in a row."""
    shots = []
    for name, caption, do in FLOWS:
        page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}/{name}")
        page.locator("#run").wait_for()
        page.wait_for_timeout(SETTLES_MS)
        do(page)
        page.wait_for_timeout(SETTLES_MS)
        shots.append((_shot(page), caption))
        page.close()
    rows = -(-len(shots) // 2)
    sheet = Image.new("RGB", (2 * WIDE + GAP, rows * (HIGH + CAPTION + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=22)
    for at, (shot, caption) in enumerate(shots):
        left, top = (at % 2) * (WIDE + GAP), (at // 2) * (HIGH + CAPTION + GAP)
        sheet.paste(shot, (left, top))
        draw.text((left, top + HIGH + 4), caption, "black", font)
    return sheet


def _shot(page: Any) -> Image.Image:
    """Return what stands below the page's header, or the dialog over it."""
    page.evaluate("document.querySelector('.cl-columns').scrollIntoView()")
    page.wait_for_timeout(500)
    shot = Image.open(BytesIO(page.screenshot())).convert("RGB")
    shot = shot.crop((0, 0, WINDOW[0], round(WINDOW[0] * HIGH / WIDE)))
    return shot.resize((WIDE, HIGH), Image.Resampling.LANCZOS)


def _drag(page: Any, *places: tuple[float, float]) -> None:
    """Draw through places of the canvas's picture, as shares of its sides."""
    screen = page.locator("#canvas .cv-screen")
    screen.scroll_into_view_if_needed()
    box = screen.bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(left + places[0][0] * side, top + places[0][1] * side)
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(left + x * side, top + y * side, steps=8)
    page.mouse.up()


def _live(page: Any) -> None:
    """Turn Live on, and wait for its picture."""
    page.locator("#live").click()
    page.locator(".cl-live .cl-made img").wait_for()


def _prompt(page: Any, text: str) -> None:
    page.locator("#prompt textarea").fill(text)


def _edit(page: Any, example: int) -> None:
    """Take an example and open the editor on its map."""
    page.locator(".cl-examples button").nth(example).click()
    page.locator("#image img").wait_for()
    page.wait_for_timeout(SETTLES_MS)
    page.locator("#edit").click()
    page.locator("#canvas .cv-screen").wait_for()
    page.wait_for_timeout(SETTLES_MS)


def draw_a_house(page: Any) -> None:
    """Draw a house and a tree, and watch them become a picture."""
    _prompt(page, "a red house and a tree on grass, a clear blue sky")
    _drag(page, (0.15, 0.5), (0.35, 0.25), (0.55, 0.5), (0.15, 0.5))
    _live(page)
    _drag(page, (0.2, 0.5), (0.2, 0.8), (0.5, 0.8), (0.5, 0.5))
    _drag(page, (0.3, 0.8), (0.3, 0.63), (0.4, 0.63), (0.4, 0.8))
    _drag(page, (0.74, 0.8), (0.74, 0.58))
    _drag(page, (0.79, 0.8), (0.79, 0.58))
    crown = [(0.765 + 0.13 * x, 0.43 + 0.15 * y) for x, y in _circle()]
    _drag(page, *crown)
    page.wait_for_timeout(2 * SETTLES_MS)


def _circle() -> list[tuple[float, float]]:
    half = 0.7071
    return [
        (0, -1), (half, -half), (1, 0), (half, half), (0, 1), (-half, half), (-1, 0),
        (-half, -half), (0, -1),
    ]  # fmt: skip


def lift_an_arm(page: Any) -> None:
    """Add a person to a pose, lift an arm, and make the picture."""
    _prompt(page, "a person in blue on sand, a sunset")
    page.get_by_role("button", name="Remove Image").click()
    page.locator("#edit").click()
    page.locator("#canvas .cv-screen").wait_for()
    page.get_by_label("Add a person").select_option("Standing")
    page.wait_for_timeout(SETTLES_MS)
    _drag(page, (0.38, 0.504), (0.2, 0.3))
    _drag(page, (0.62, 0.504), (0.85, 0.35))
    _live(page)


def paint_a_region(page: Any) -> None:
    """Paint a piece of ground into a segmentation."""
    _edit(page, 0)
    field = page.locator("#canvas").get_by_role("combobox")
    field.fill("sand")
    field.press("Enter")
    for y in (0.72, 0.8, 0.88):
        _drag(page, (0.05, y), (0.6, y))
    page.wait_for_timeout(SETTLES_MS)
    _live(page)


def mend_an_edge(page: Any) -> None:
    """Rub stray edges out of a Canny map."""
    _edit(page, 3)
    page.locator("#canvas [data-tool=eraser]").click()
    page.locator("#canvas input[type=range]").first.fill("12")
    for y in (0.05, 0.15, 0.25, 0.35, 0.45, 0.55):
        _drag(page, (0.7, y), (0.98, y))
    page.wait_for_timeout(SETTLES_MS)
    _live(page)


def compare_strengths(page: Any) -> None:
    """Compare strengths in a grid."""
    page.locator("#x_values textarea").fill("0, 0.5, 1, 1.5")
    page.locator("#run").click()
    page.locator("#stop").wait_for()
    page.locator("#run").wait_for()


def look_back(page: Any) -> None:
    """Look at what was made, two results beside each other."""
    for prompt in ("a red ball and a green box on snow", "a blue ball and an orange box on sand"):
        made = page.locator(".cl-history summary").count()
        _prompt(page, prompt)
        page.locator("#run").click()
        page.get_by_text(f"Your results in this browser ({made + 1})").wait_for()
        page.locator("#run").wait_for()
    page.locator(".cl-history summary").click()
    for at in range(2):
        page.locator(".cl-history input").nth(at).check()
    page.get_by_text("Compare two").click()


FLOWS: tuple[tuple[str, str, Callable[[Any], None]], ...] = (
    ("scribble2image_interactive", "Draw, and the picture follows the pen", draw_a_house),
    ("pose2image", "Drag the joints of a pose", lift_an_arm),
    ("seg2image", "Paint a kind of thing into a segmentation", paint_a_region),
    ("canny2image", "Rub out a stray edge, or add one", mend_an_edge),
    ("sweep", "See what a setting does, with the scores", compare_strengths),
    ("canny2image", "Compare, restore and save what was made", look_back),
)
"""App, caption, and what is done there."""
