"""What a picture says of how it was made: IPTC's digital source type, in the picture's XMP.

The AI Act of the EU (article 50) asks for a mark that machines read; search engines and photo
libraries know this one. A picture made from noise is GENERATED, one made by changing a given
picture EDITED, and a sheet that shows generated pictures beside maps and labels a COMPOSITE. A
control map shows no generated picture: it is a measurement of one, or of a photograph, and none of
the vocabulary's terms means that, so it carries no mark.

`python -m core.provenance FILE...` prints what files claim. A claim is no proof: whoever has the
file can remove it or write another.

Sources: cv.iptc.org/newscodes/digitalsourcetype, the IPTC Photo Metadata Standard 2025.1, and the
XMP Specification part 3 (where the packet stands in each format).
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from core import watermark
from core.content_credentials import read_manifest
from core.errors import BadInput
from core.images import open_picture, read_image
from core.png_chunks import MAX_TEXT_BYTES, SIGNATURE, XMP_KEYWORD, read_bytes, read_texts
from core.request import GenerationRequest

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = "trainedAlgorithmicMedia"
EDITED = "compositeWithTrainedAlgorithmicMedia"
"""Changed by a generative model, as with inpainting or image to image."""
COMPOSITE = "compositeSynthetic"
"""Composed of several elements, at least one of them generated."""
MEANING = {
    GENERATED: "made by a generative model",
    EDITED: "a given picture, changed by a generative model",
    COMPOSITE: "composed of several pictures, at least one made by a generative model",
    "algorithmicMedia": "made by an algorithm that was not trained on samples",
    "digitalCapture": "taken with a camera",
    "computationalCapture": "taken with a camera, from several frames",
    "humanEdits": "changed by a person, without a generative model",
    "digitalCreation": "made by a person with digital tools",
}
"""The vocabulary's terms that the command explains."""

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
XMP = "http://ns.adobe.com/xap/1.0/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
SOURCE_TYPE, SYSTEM, TOOL = "DigitalSourceType", "AISystemUsed", "CreatorTool"
NOT_IN_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot write, most of them control characters."""
LONGEST_CLAIM = 300
"""Characters of a value that are read; a hostile file may hold more."""
MANIFEST = b"jumd" + bytes.fromhex("63327061 0011 0010 8000 00AA00389B71")
"""How a C2PA manifest store begins, in whichever format it is embedded (C2PA 2.1, 11.1.4)."""


@dataclass(frozen=True)
class Claims:
    """What a file says of itself; untrusted."""

    source_types: tuple[str, ...] = ()
    """IPTC's, without the vocabulary's address if that is what they begin with."""
    systems: tuple[str, ...] = ()
    """The models that are named."""
    tools: tuple[str, ...] = ()
    """The programs that are named."""
    has_manifest: bool = False
    """Whether there is a C2PA manifest; core/content_credentials.py reads it."""


def source_type_of(request: GenerationRequest) -> str:
    """Return what a request's pictures are: EDITED if it changes a given one, else GENERATED."""
    return EDITED if request.changes_picture else GENERATED


def mark(source_type: str, system: str = "", tool: str = "ControlLoop") -> dict[str, str]:
    """Return the text chunk, by its keyword, that marks a PNG as `packet` does."""
    return {XMP_KEYWORD: packet(source_type, system, tool)}


def packet(source_type: str, system: str = "", tool: str = "ControlLoop") -> str:
    """Return an XMP packet for any format; write_png and Pillow's `xmp=` take it.

    `system` names the model and `tool` the program that made the picture; "" leaves it out.
    """
    said = {
        f"Iptc4xmpExt:{SOURCE_TYPE}": VOCABULARY + source_type,
        f"Iptc4xmpExt:{SYSTEM}": system,
        f"xmp:{TOOL}": tool,
    }
    properties = "".join(
        f"\n{name}={quoteattr(NOT_IN_XML.sub(' ', value))}" for name, value in said.items() if value
    )
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f'<rdf:RDF xmlns:rdf="{RDF}">\n'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC}" xmlns:xmp="{XMP}"'
        f"{properties}/>\n"
        "</rdf:RDF>\n</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    )


def read_claims(source: str | Path | bytes) -> Claims:
    """Read what a PNG, JPEG, WebP, AVIF, HEIC or TIFF claims; nothing where its XMP is damaged.

    A JPEG's extended XMP, of more than 64 kB, is not read.

    Raises:
        BadInput: the file cannot be opened, or is no picture.
    """
    data = read_bytes(source)
    found = _parsed(_packet_in(data))
    return Claims(
        source_types=_values(found, IPTC, SOURCE_TYPE),
        systems=_values(found, IPTC, SYSTEM),
        tools=_values(found, XMP, TOOL),
        has_manifest=MANIFEST in data,
    )


def carried(source: str | Path | bytes) -> dict[str, str]:
    """Return the text chunk with which a picture's copy claims what it claims, and nothing else.

    Raises:
        BadInput: as read_claims.
    """
    claims = read_claims(source)
    of_vocabulary = [one for one in claims.source_types if one.isalpha()]
    if not of_vocabulary:
        return {}
    return mark(of_vocabulary[0], ", ".join(claims.systems), ", ".join(claims.tools))


def _packet_in(data: bytes) -> str:
    """Return a picture's XMP, "" if it has none or too much."""
    if data.startswith(SIGNATURE):
        return read_texts(data, [XMP_KEYWORD]).get(XMP_KEYWORD, "")
    with open_picture(data) as picture:
        found = picture.info.get("xmp", b"")
    if not isinstance(found, bytes) or len(found) > MAX_TEXT_BYTES:
        return ""
    return found.decode("utf-8", errors="replace")


def _parsed(text: str) -> ElementTree.Element | None:
    """Return a packet's tree; None if it is damaged.

    XMP has no document type, and without one XML can neither grow nor reach for other files.
    """
    text = text.strip("\0\ufeff \t\r\n")
    if re.search("<!(DOCTYPE|ENTITY)", text):
        return None
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None


def _values(tree: ElementTree.Element | None, namespace: str, name: str) -> tuple[str, ...]:
    """Return a property's values, each once: attributes, elements or references (XMP part 1, 7)."""
    return tuple(dict.fromkeys(filter(None, _all_values(tree, f"{{{namespace}}}{name}"))))


def _all_values(tree: ElementTree.Element | None, name: str) -> Iterator[str]:
    for element in tree.iter() if tree is not None else ():
        said = [element.get(name, "")]
        if element.tag == name:
            said += [element.get(f"{{{RDF}}}resource", ""), *element.itertext()]
        yield from (one.strip().removeprefix(VOCABULARY)[:LONGEST_CLAIM] for one in said)


def told(claims: Claims) -> str:
    """Return what a file claims, in a few lines."""
    lines = [
        f"Digital source type: {one}" + (f" ({MEANING[one]})" if one in MEANING else "")
        for one in claims.source_types
    ]
    lines = lines or ["It claims no digital source type; that does not say how it was made."]
    lines += [f"Model: {one}" for one in claims.systems]
    lines += [f"Program: {one}" for one in claims.tools]
    return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(
        prog="python -m core.provenance",
        description="Print what pictures claim of how they were made. A claim is no proof.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="PNG, JPEG, WebP and others")
    parser.add_argument(
        "--watermark",
        action="store_true",
        help="also look for ControlLoop's watermark in the pixels, which takes seconds",
    )
    options = parser.parse_args(arguments)
    if options.watermark and not watermark.is_here():
        parser.error(f"to look for the watermark, run `{watermark.INSTALL}` first")
    failed = False
    for file in options.files:
        try:
            said = _all_told(read_bytes(file), options.watermark)
        except BadInput as error:
            said, failed = str(error), True
        print(f"{file}\n  " + said.replace("\n", "\n  "))
    sys.exit(2 if failed else 0)


def _all_told(data: bytes, look_for_watermark: bool) -> str:
    claims = read_claims(data)
    said = [told(claims)]
    if claims.has_manifest:
        said.append(read_manifest(data))
    if look_for_watermark:
        right = watermark.bits_right(read_image(data)[0])
        found = "carries" if right >= watermark.ENOUGH else "does not carry"
        said.append(f"It {found} ControlLoop's watermark: {right} of {len(watermark.BITS)} bits.")
    return "\n".join(said)


if __name__ == "__main__":
    main()
