#!/usr/bin/env bash
# One would guess: opening a picture with Pillow and saving it with exif=image.getexif() hands its
# EXIF on, so a generated JPEG or WebP keeps its settings in UserComment.
# The bytes are handed on, the type of the field is not: UNDEFINED (7) becomes BYTE (1). Pillow reads
# it as before; exiv2 (and what is built on it) now shows a row of numbers in place of the text, and
# piexif gives a tuple of numbers, which its own UserComment.load refuses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==12.3.0 piexif==1.1.3 pyexiv2==2.16.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import piexif
import pyexiv2
from piexif.helper import UserComment
from PIL import Image

print(*(f"{name} {version(name)}" for name in ("pillow", "piexif", "pyexiv2")))
pyexiv2.set_log_level(4)
EXIF, COMMENT = 0x8769, 0x9286
text = "a red ball, ☃\nSteps: 20, Seed: 7"
comment = UserComment.dump(text, "unicode")
written = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})


def by_exiv2(path):
    image = pyexiv2.Image(path)
    try:
        return image.read_exif()["Exif.Photo.UserComment"]
    finally:
        image.close()


for suffix in ("jpg", "webp"):
    first, again = (f"{sys.argv[1]}/{name}.{suffix}" for name in ("first", "again"))
    Image.new("RGB", (16, 16)).save(first, exif=written)
    with Image.open(first) as image:
        image.save(again, exif=image.getexif())
    with Image.open(again) as image:
        assert image.getexif().get_ifd(EXIF)[COMMENT] == comment
    print(f"{suffix}, as written: exiv2 {by_exiv2(first)!r}")
    print(f"{suffix}, saved again: exiv2 {by_exiv2(again)[:30]!r}...")
    assert by_exiv2(first) == f"charset=Unicode {text}"
    assert by_exiv2(again) == " ".join(map(str, comment))
    assert UserComment.load(piexif.load(first)["Exif"][COMMENT]) == text
    found = piexif.load(again)["Exif"][COMMENT]
    try:
        UserComment.load(found)
        raise SystemExit("piexif reads it now")
    except ValueError as error:
        print(f"{suffix}, saved again: piexif {type(found).__name__}, {error}")
PYTHON
# Seen:
# pillow 12.3.0 piexif 1.1.3 pyexiv2 2.16.0
# jpg, as written: exiv2 'charset=Unicode a red ball, ☃\nSteps: 20, Seed: 7'
# jpg, saved again: exiv2 '85 78 73 67 79 68 69 0 0 97 0 '...
# jpg, saved again: piexif tuple, unable to determine appropriate encoding
# webp, as written: exiv2 'charset=Unicode a red ball, ☃\nSteps: 20, Seed: 7'
# webp, saved again: exiv2 '85 78 73 67 79 68 69 0 0 97 0 '...
# webp, saved again: piexif tuple, unable to determine appropriate encoding
