"""The README's pictures, put together from tiles of known colours."""

from PIL import Image

from benchmarks.pictures import CAPTION, GAP, HIGH, strip


def test_a_strip_has_its_pictures_in_order_and_at_one_height(tmp_path):
    sides = {"red": (10, 10), "lime": (40, 20), "blue": (300, 600)}
    for colour, size in sides.items():
        Image.new("RGB", size, colour).save(tmp_path / f"{colour}.png")
    whole = strip([(tmp_path / f"{colour}.png", "a caption") for colour in sides])
    widths = [HIGH, 2 * HIGH, HIGH // 2]
    assert whole.size == (sum(widths) + 2 * GAP, HIGH + CAPTION)
    left = 0
    for width, colour in zip(widths, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        assert whole.crop((left, 0, left + width, HIGH)).getcolors() == [(width * HIGH, colour)]
        captions = whole.crop((left, HIGH, left + width, HIGH + CAPTION)).convert("L")
        assert captions.getextrema()[0] < 100 < captions.getextrema()[1]  # dark text on white
        left += width + GAP
