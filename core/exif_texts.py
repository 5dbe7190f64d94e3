"""The texts in a picture's EXIF, where tools keep settings in files other than PNG.

AUTOMATIC1111 and its kin write UserComment, ComfyUI Make and Model ("prompt:{…}", "workflow:{…}").
Everything read here is hostile until checked.
"""

from PIL import Image
from PIL.ExifTags import IFD, Base

from core import infotext
from core.errors import BadInput
from core.images import open_picture
from core.png_chunks import DAMAGED, MAX_TEXT_BYTES, chunks

USER_COMMENT_CODES = (b"ASCII\0\0\0", b"UNICODE\0", b"\0\0\0\0\0\0\0\0")
"""What the first eight bytes of a UserComment say of its encoding; the last: nothing."""
FORMATS = ("JPEG", "MPO", "WEBP", "AVIF")
"""Whose EXIF is read; a PNG's is a chunk."""
COMFYUI_TAGS = (Base.ImageDescription, Base.Make, Base.Model)
COMFYUI_NAMES = ("prompt", "workflow")


def read_exif_texts(data: bytes) -> dict[str, str]:
    """Return the texts in the EXIF of a PNG, JPEG, WebP or AVIF, by the PNG keyword they stand for.

    "" for one that is too long; nothing for a file without EXIF, or with one that is damaged.
    """
    block = _exif_of(data)
    exif = Image.Exif()
    found: dict[str, str] = {}
    try:
        exif.load(block)
        comment = exif.get_ifd(IFD.Exif).get(Base.UserComment)
        texts = [exif.get(tag) for tag in COMFYUI_TAGS]
        little_endian = exif.endian == "<"
    except DAMAGED:
        return {}
    if isinstance(comment, bytes | str):
        raw = comment.encode("latin-1", "replace") if isinstance(comment, str) else comment
        if len(raw) > MAX_TEXT_BYTES:
            found["parameters"] = ""
        elif _is_settings(said := user_comment(raw, little_endian)):
            found["parameters"] = said
    for text in texts:
        name, _, value = text.partition(":") if isinstance(text, str) else ("", "", "")
        if name.lower() in COMFYUI_NAMES:
            found[name.lower()] = value.rstrip("\0") if len(value) <= MAX_TEXT_BYTES else ""
    return found


def _is_settings(text: str) -> bool:
    """Return whether it may be a tool's text; a camera's comment is not."""
    return text.lstrip().startswith("{") or infotext.parse(text) is not None


def _exif_of(data: bytes) -> bytes:
    """Return a picture's EXIF block; nothing if it has none."""
    for kind, body, _ in chunks(data):
        if kind == b"eXIf":
            return body
    try:
        with open_picture(data) as picture:
            block = picture.info.get("exif", b"") if picture.format in FORMATS else b""
    except BadInput:
        return b""
    return block if isinstance(block, bytes) else b""


def user_comment(raw: bytes, little_endian: bool) -> str:
    """Return the text of a UserComment (EXIF 2.32, 4.6.5), whichever encoding its writer took.

    UTF-16 should be in the byte order of the whole EXIF, but most writers take big endian.
    """
    code, body = raw[:8], raw[8:]
    if code not in USER_COMMENT_CODES:
        code, body = b"", raw
    if code != b"ASCII\0\0\0" and b"\0" in body.rstrip(b"\0"):
        return _utf16(body, little_endian)
    text = body.rstrip(b"\0")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return _utf16(body, little_endian) if code == b"UNICODE\0" else text.decode("latin-1")


def _utf16(body: bytes, little_endian: bool) -> str:
    """Decode UTF-16 in the order in which more characters are ASCII; settings always have some."""
    if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        little_endian, body = body[:2] == b"\xff\xfe", body[2:]
    else:
        high_first, low_first = body[0::2].count(0), body[1::2].count(0)
        if high_first != low_first:
            little_endian = low_first > high_first
    text = body.decode("utf-16-le" if little_endian else "utf-16-be", errors="replace")
    return text.rstrip("\0")
