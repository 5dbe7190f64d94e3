"""Pictures in a grid with labels and captions, drawn as one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.condition import RGBImage

TILE = 256
"""Longest side of a picture in the grid, in pixels; a smaller one stays as it is."""
GAP, MARGIN = 8, 16
TEXT, SMALL, LINE, SMALL_LINE = 18, 15, 24, 20
"""Sizes and line heights of labels and of notes, in pixels."""
LABEL_LINES, NOTE_LINES = 4, 9
"""More of a text is cut off."""
ROW_LABELS = 190
"""Width of the labels at the left, in pixels; less if all are shorter."""
INK, MUTED, EMPTY, PAPER = "#17212b", "#5c6975", "#eef1f3", "#ffffff"


def score_words(score: float | None) -> str:
    """Return an image's score, 0..100, in words that no line break parts; None: there is none."""
    if score is None:
        return "no score: its map is empty"
    return f"{score:.0f} / 100".replace(" ", "\N{NO-BREAK SPACE}")


@dataclass(frozen=True, eq=False)
class Tile:
    """One place of the grid."""

    picture: RGBImage | None
    """None for a place without one."""
    caption: str = ""
    """Below the picture."""
    note: str = ""
    """In the place of the picture."""


def drawn_sheet(
    tiles: Mapping[tuple[int, int], Tile],
    shape: tuple[int, int],
    title: str = "",
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> RGBImage:
    """Draw tiles by (column, row) in a grid of `shape`, with a title and labels if there are any.

    Places without a tile stay empty. Characters that Pillow's own font lacks are drawn as boxes.
    """
    label, small = ImageFont.load_default(TEXT), ImageFont.load_default(SMALL)
    wide, high = _tile_size(tiles)
    heads = [_wrapped(text, label, wide, LABEL_LINES) for text in columns]
    sides = [_wrapped(text, label, ROW_LABELS, LABEL_LINES) for text in rows]
    beside = max((label.getlength(line) for lines in sides for line in lines), default=0)
    captions = SMALL_LINE if any(tile.caption for tile in tiles.values()) else 0
    left = MARGIN + (round(beside) + 2 * GAP if rows else 0)
    width = left + shape[0] * (wide + GAP) - GAP + MARGIN
    above = _wrapped(title, label, width - 2 * MARGIN, LABEL_LINES)
    heads_top = MARGIN + len(above) * LINE + (GAP if above else 0)
    top = heads_top + max(map(len, heads), default=0) * LINE + (GAP if heads else 0)
    height = top + shape[1] * (high + captions + GAP) - GAP + MARGIN

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)

    def write(
        lines: Sequence[str],
        x: float,
        y: float,
        centred: bool,
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
        line: int,
        ink: str,
    ) -> None:
        for index, text in enumerate(lines):
            draw.text((x, y + index * line), text, ink, font, anchor="ma" if centred else "la")

    write(above, MARGIN, MARGIN, False, label, LINE, INK)
    for column, lines in enumerate(heads):
        middle = left + column * (wide + GAP) + wide / 2
        write(lines, middle, heads_top, True, label, LINE, INK)
    for row, lines in enumerate(sides):
        y = top + row * (high + captions + GAP) + max(0, high - len(lines) * LINE) / 2
        write(lines, MARGIN, y, False, label, LINE, INK)
    for column in range(shape[0]):
        for row in range(shape[1]):
            x, y = left + column * (wide + GAP), top + row * (high + captions + GAP)
            tile = tiles.get((column, row), Tile(None))
            if tile.picture is None:
                draw.rectangle((x, y, x + wide - 1, y + high - 1), EMPTY)
                note = _wrapped(tile.note, small, wide - 2 * GAP, NOTE_LINES)
                write(note, x + GAP, y + GAP, False, small, SMALL_LINE, INK)
            else:
                shown = _shown(tile.picture)
                inset = (wide - shown.width) // 2, (high - shown.height) // 2
                sheet.paste(shown, (x + inset[0], y + inset[1]))
            write([tile.caption], x + wide / 2, y + high + 2, True, small, SMALL_LINE, MUTED)
    return np.array(sheet)


def _tile_size(tiles: Mapping[tuple[int, int], Tile]) -> tuple[int, int]:
    """Return the width and height that all tiles have."""
    sizes = [_shown(tile.picture).size for tile in tiles.values() if tile.picture is not None]
    return (
        max((size[0] for size in sizes), default=TILE),
        max((size[1] for size in sizes), default=TILE),
    )


def _shown(picture: RGBImage) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, most: int
) -> list[str]:
    """Return a text in lines of at most a width in pixels, the last of `most` cut if need be."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, font, width))
    if len(lines) > most:
        lines = [*lines[: most - 1], _cut(f"{lines[most - 1]} …", font, width)]
    return lines


def _cut(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return a word that is no wider than a width, its end left out."""
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(f"{word}…") > width:
        word = word[:-1]
    return f"{word}…"
