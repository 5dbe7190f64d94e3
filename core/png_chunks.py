"""PNG files as bytes: their text chunks, read under caps and written whole.

Everything read here is hostile until checked: lengths are capped before anything is unpacked.
"""

import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.condition import RGBImage
from core.errors import BadInput
from core.files import write_whole

MAX_TEXT_BYTES = 256 * 1024
"""The longest text chunk that is read, unpacked; our own are below 20 kB."""
MAX_FILE_BYTES = 100 * 1024 * 1024
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
XMP_KEYWORD = "XML:com.adobe.xmp"
"""Of the chunk that holds XMP, always an iTXt (XMP Specification part 3, 1.1.5)."""
DAMAGED = (
    *(OSError, ValueError, TypeError, SyntaxError, EOFError, LookupError, ArithmeticError),
    struct.error,
)
"""What Pillow's readers raise for a broken file."""


def write_png(
    target: str | Path | IO[bytes],
    image: RGBImage,
    texts: Mapping[str, str],
    compress_level: int = 6,
) -> None:
    """Write an image and one text chunk per keyword; a file at a path is replaced whole."""
    info = PngInfo()
    for keyword, text in texts.items():
        if keyword == XMP_KEYWORD or _means_two_things(text):
            info.add_itxt(keyword, text)
        else:
            info.add_text(keyword, text)
    picture = Image.fromarray(image)
    if not isinstance(target, str | Path):
        picture.save(target, format="PNG", pnginfo=info, compress_level=compress_level)
        return
    write_whole(
        Path(target),
        lambda path: picture.save(path, format="PNG", pnginfo=info, compress_level=compress_level),
    )


def _means_two_things(text: str) -> bool:
    """Return whether a text in Latin-1, which tEXt should hold, would be taken for UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8") != text
    except UnicodeError:
        return False


def read_bytes(source: str | Path | bytes) -> bytes:
    """Return a file's bytes.

    Raises:
        BadInput: there is no such file, or it is too large.
    """
    if isinstance(source, bytes):
        return source
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput("The file could not be opened; please choose it again.") from error
    if len(data) > MAX_FILE_BYTES:
        raise BadInput(f"The file is larger than {MAX_FILE_BYTES // 2**20} MB; please shrink it.")
    return data


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (kind, body, whole chunk) up to the first truncated one; nothing if data is not a PNG.

    Checksums are not verified.
    """
    position = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            return
        yield data[position + 4 : position + 8], data[position + 8 : end - 4], data[position:end]
        position = end


def without_text(data: bytes) -> bytes:
    """Return a PNG without its text chunks; other data unchanged.

    Pillow rejects a whole picture for one oversized text, so pixels and texts are read separately.
    """
    kept, end = [data[: len(SIGNATURE)]], len(SIGNATURE)
    for kind, _, whole in chunks(data):
        end += len(whole)
        if kind not in TEXT_CHUNKS:
            kept.append(whole)
    return b"".join(kept) + data[end:]


def is_cut_off(data: bytes) -> bool:
    """Return whether data is a PNG without its end."""
    return data.startswith(SIGNATURE) and all(kind != b"IEND" for kind, _, _ in chunks(data))


def read_texts(data: bytes, keywords: Collection[str]) -> dict[str, str]:
    """Return the texts under the given keywords; "" for one that is broken or too long."""
    found: dict[str, str] = {}
    for kind, body, _ in chunks(data):
        if kind in TEXT_CHUNKS:
            keyword, _, rest = body.partition(b"\0")
            name = keyword.decode("latin-1")
            if name in keywords:
                found[name] = found.get(name) or _text_of(kind, rest)
    return found


def _text_of(kind: bytes, rest: bytes) -> str:
    """Return the text after a chunk's keyword (PNG specification 11.3.3), "" if unreadable."""
    packed, encoding = kind == b"zTXt", "latin-1"
    if packed:
        rest = rest[1:]  # the method byte; there is only one
    if kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES + 1)
        except zlib.error:
            return ""
    if len(rest) > MAX_TEXT_BYTES:
        return ""
    try:
        return rest.decode("utf-8")  # which some tools write into any of the three
    except UnicodeDecodeError:
        return rest.decode(encoding, errors="replace")
