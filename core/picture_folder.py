"""Folders of pictures with captions, as people's tools leave them; for annotating and training.

Four layouts are read, the first that a folder has:

- `prompt.json` of ControlNet's training tutorial: one JSON object a line with `source` (the control
  map), `target` (the picture) and `prompt`; an array of such objects is read too;
- `metadata.jsonl` or `metadata.csv` of Hugging Face datasets' image folder: a row for each picture
  with `file_name`, the caption as `text`, `prompt` or `caption`, and perhaps `conditioning_image`
  or, as datasets wants the names of further files, `conditioning_image_file_name`;
- pictures with a caption file of the same name beside each: `cat.jpg` with `cat.txt`, or
  `cat.caption`, `cat.jpg.txt` (kohya's sd-scripts, OneTrainer and their kin);
- such pictures in folders of their own, as kohya's `10_cat`; one of these folders may have a
  manifest, as `train/metadata.jsonl`.

Every row is checked before it is used, and what cannot be used is named once.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import BadInput
from core.files import files_below, find_file, is_file
from core.images import SUFFIXES, read_image

MANIFEST, DATASETS_MANIFEST, DATASETS_TABLE = "prompt.json", "metadata.jsonl", "metadata.csv"
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_NAMES = ("text", "prompt", "caption")
"""What a caption is called in metadata.jsonl; datasets' own examples have the first."""
MAP_NAMES = ("conditioning_image", "conditioning_image_file_name")
"""What the control map is called there; datasets opens columns that end in _file_name."""
FOREIGN_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")
"""Made beside pictures by macOS, Synology's and QNAP's file servers (thumbnails), and Windows."""
OTHER_SUFFIXES = (".jfif", ".jpe", ".jxl", ".psd", ".svg", ".pdf", ".tga")
"""Pictures by other names, and those that cannot be read: tried, so that they are named."""
MAX_NAME, HASH_LENGTH = 255, 12
"""Bytes of a file's name that Linux allows, and characters of the hash in a name that is cut."""
BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""How Windows' editors mark UTF-16; UTF-8's own mark is taken off in any case."""


@dataclass(frozen=True)
class Row:
    """One picture of a folder."""

    name: str
    """As the folder names it: its path from there, with forward slashes."""
    picture: Path
    caption: str
    control_map: Path | None = None
    """The control map that the folder brings with it; None where there is none."""


@dataclass
class PictureFolder:
    """A folder's usable rows, in its order, and the reason for each that is not."""

    rows: list[Row] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    """By name, as in Row, or "line N of prompt.json"."""

    @property
    def captioned(self) -> int:
        """How many rows have a caption."""
        return sum(bool(row.caption) for row in self.rows)


def read_folder(folder: Path) -> PictureFolder:
    """Return the rows of a folder in one of the four layouts; files are looked up, not decoded.

    Raises:
        BadInput: there is no such folder, nothing in it, or its manifest cannot be read.
    """
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}.")
    found = _listed_pictures(folder) or _loose_pictures(folder)
    if not found.rows and not found.bad:
        raise BadInput(
            f"There are no pictures in {folder}: put some there ({', '.join(SUFFIXES)}), or a "
            f"{MANIFEST}, {DATASETS_MANIFEST} or {DATASETS_TABLE} that lists them."
        )
    return found


def _listed_pictures(folder: Path) -> PictureFolder | None:
    """Return the rows of the folder's manifest; None where it has none."""
    for manifest, read in _MANIFESTS.items():
        if (folder / manifest).is_file():
            found = PictureFolder()
            for line, entry in _entries(folder / manifest):
                try:
                    found.rows.append(read(folder, entry))
                except BadInput as error:
                    found.bad[f"line {line} of {manifest}"] = str(error)
            return found
    return None


def picture_files(folder: Path) -> list[Path]:
    """Return a folder's pictures and those in the folders below it, by name.

    What systems leave beside pictures (`._cat.jpg`, `.DS_Store`, `__MACOSX/`) is no picture.
    """
    return [path for path in _own_files(folder) if path.suffix.lower() in _ANY_SUFFIX]


def _own_files(folder: Path) -> list[Path]:
    """Return the files below a folder that people put there."""
    return [
        path
        for path in files_below(folder)
        if not any(
            part.startswith(".") or part in FOREIGN_FOLDERS
            for part in path.relative_to(folder).parts
        )
    ]


def name_of_its_files(name: str) -> str:
    """Return the path, in a folder of results, of what is made of a picture: its own, with .png.

    With the picture's suffix, or cat.jpg and cat.png would share a file. A name that would be too
    long, or is not UTF-8 (an old archive's), is cut and told apart by a hash.
    """
    *folders, last = name.split("/")
    return "/".join([*(_short_name(folder) for folder in folders), _short_name(last, ".png")])


def _short_name(name: str, suffix: str = "") -> str:
    data = os.fsencode(name)
    if data.decode("utf-8", "ignore") == name and len(data) <= MAX_NAME - len(suffix):
        return name + suffix
    end = f"-{hashlib.sha256(data).hexdigest()[:HASH_LENGTH]}{suffix}"
    return data[: MAX_NAME - len(end)].decode("utf-8", "ignore") + end


def check_rows(found: PictureFolder) -> Iterator[Row]:
    """Decode every picture and map; yield the rows that can be used, and move the others to `bad`.

    It reads the whole folder: a second for some twenty photographs.
    """
    rows, found.rows = found.rows, []
    for row in rows:
        try:
            for path in (row.picture, row.control_map):
                if path is not None:
                    read_image(path)
        except BadInput as error:
            found.bad[row.name] = str(error)
            continue
        found.rows.append(row)
        yield row


def _loose_pictures(folder: Path) -> PictureFolder:
    """Return the pictures that no manifest lists, and those that a manifest further below does."""
    found = PictureFolder()
    files = _own_files(folder)
    listed = sorted({path.parent for path in files if path.name in _MANIFESTS})
    for below in listed:
        if any(other in below.parents for other in listed):
            continue  # the upper one's manifest lists what is below
        inside = _listed_pictures(below) or PictureFolder()
        prefix = below.relative_to(folder).as_posix()
        found.rows += (replace(row, name=f"{prefix}/{row.name}") for row in inside.rows)
        found.bad |= {f"{prefix}, {name}": reason for name, reason in inside.bad.items()}
    for path in files:
        if path.suffix.lower() not in _ANY_SUFFIX or set(listed) & set(path.parents):
            continue
        name = path.relative_to(folder).as_posix()
        try:
            found.rows.append(Row(name, path, caption_beside(path)))
        except BadInput as error:
            found.bad[name] = str(error)
    return found


def caption_beside(picture: Path) -> str:
    """Return the text of the caption file beside a picture, in one line; "" where there is none.

    Raises:
        BadInput: it is not text in UTF-8 or UTF-16.
    """
    for suffix in (*CAPTION_SUFFIXES, *(one.upper() for one in CAPTION_SUFFIXES)):
        for path in (picture.with_suffix(suffix), picture.with_name(picture.name + suffix)):
            if is_file(path):
                return _one_line(_read_text(path))
    return ""


def _one_line(text: str) -> str:
    """Return text without line ends of any kind, U+2028, U+2029 and U+0085 among them."""
    return " ".join(text.split())


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return data.decode(BYTE_ORDER_MARKS.get(data[:2], "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not UTF-8 text: please save it as such.") from error
    except OSError as error:
        raise BadInput(f"{path.name} cannot be read: {error.strerror or error}.") from error


def _entries(manifest: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line, or of each element of a JSON array.

    A line that is not JSON is yielded as its text. A table's rows have the line in which they end.
    """
    text = _read_text(manifest)
    if manifest.suffix == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        try:
            for row in table:
                yield table.line_num, row
        except csv.Error as error:
            raise BadInput(f"{manifest} is not a valid table: {error}.") from error
        return
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except json.JSONDecodeError as error:
            raise BadInput(f"{manifest} is not valid JSON, from line {error.lineno} on.") from error
        return
    # Not splitlines, which also splits at characters that may stand inside a line of JSON.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError:
                yield number, line


def _controlnet_row(folder: Path, entry: Any) -> Row:
    entry = _object(entry, ("source", "target", "prompt"))
    name = str(entry["target"])
    picture, control_map = _file(folder, name), _file(folder, str(entry["source"]))
    return Row(name, picture, _one_line(str(entry["prompt"])), control_map)


def _datasets_row(folder: Path, entry: Any) -> Row:
    entry = _object(entry, ("file_name",))
    name = str(entry["file_name"])
    caption = next((str(entry[key]) for key in CAPTION_NAMES if entry.get(key)), "")
    control_map = next((entry[key] for key in MAP_NAMES if entry.get(key)), None)
    picture = _file(folder, name)
    caption = _one_line(caption) or caption_beside(picture)
    return Row(name, picture, caption, _file(folder, str(control_map)) if control_map else None)


def _object(entry: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise BadInput("It is not a JSON object; fix or delete it.")
    for name in names:
        if not isinstance(entry.get(name), str):
            raise BadInput(f'It has no text "{name}"; every line needs {", ".join(names)}.')
    return entry


def _file(folder: Path, name: str) -> Path:
    home = os.path.normpath(folder)
    for spelt in (name, name.replace("\\", "/")):  # Windows' tools write "\\" between folders
        path = Path(os.path.normpath(folder / spelt))
        if not path.is_relative_to(home):
            raise BadInput(f"{name} lies outside the folder; move it in.")
        found = find_file(folder, str(path.relative_to(home)))
        if found is not None:
            return found
    raise BadInput(f"There is no file {name}.")


_ANY_SUFFIX = (*SUFFIXES, *OTHER_SUFFIXES)
_MANIFESTS = {
    MANIFEST: _controlnet_row,
    DATASETS_MANIFEST: _datasets_row,
    DATASETS_TABLE: _datasets_row,
}
"""What reads a row of each, in the order in which they are looked for."""
