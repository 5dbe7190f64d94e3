"""What a ControlNet learns from: pictures with captions, and a control map for each.

Any `Examples` can be the data: a folder of your own trains the same way as Diorama's scenes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from annotators.__main__ import annotate_folder
from core.condition import Annotator, ControlMap, RGBImage
from core.consistency import Extractor
from core.errors import BadInput
from core.images import NOTHING, PAPER, fit_size, read_image, resize, resize_map
from core.picture_folder import PictureFolder, read_folder
from training.diorama.dataset import PictureSource

MAX_NAMED = 5  # bad rows of a folder that an error names
EMPTY_MAP_SAMPLE = 96  # maps that are drawn to estimate how many of a condition's are empty
MAX_EMPTY_MAPS = 0.1  # if more are empty, most rows are drawn from those with a map
MAX_ASPECT_DIFFERENCE = 0.15  # of a map to its picture, as a logarithm: sides are rounded to 64
SHEET_COLUMNS, SHEET_ROWS, THUMBNAIL = 8, 4, 128  # of the contact sheet of --check; pixels
NO_MAP = (
    "It has no control map: run `python -m annotators {name}` first, or name it in prompt.json."
)


class Examples(PictureSource, Protocol):
    """Pictures with captions and control maps."""

    captions: list[str]

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, height, width, 3) uint8."""
        ...

    def maps_of(self, pictures: Sequence[RGBImage], rows: Sequence[int]) -> np.ndarray:
        """The maps (N, height, width, 3) uint8 of other pictures of the size of these rows."""
        ...


class FolderExamples:
    """A user's own pictures with their control maps (core/picture_folder.py).

    Pictures and maps are read as the app reads them, centre-cropped and resized: to a square of
    `size` pixels or, given the `multiple` of the base, to the bucket of their shape; maps with
    their annotator's interpolation. Rows of a batch must have one size.

    Raises:
        BadInput: a picture or its map is missing or cannot be read; the first few are named.
    """

    def __init__(
        self, folder: Path, annotator: Annotator, size: int, multiple: int | None = None
    ) -> None:
        found = read_folder(folder)
        for row in found.rows:
            if row.control_map is None:
                found.bad[row.name] = NO_MAP.format(name=annotator.name)
        _refuse(folder, found.bad)
        self._pairs = [(row.picture, row.control_map or row.picture) for row in found.rows]
        self._annotator = annotator
        self.folder, self.size = folder, size
        self.captions = [row.caption for row in found.rows]
        self.fingerprint = fingerprint(found)
        self.sizes = [(size, size)] * len(self)
        """(width, height) of each row."""
        if multiple:
            self.fingerprint += "-buckets"
            shapes = (_read(picture, PAPER).shape for picture, _ in self._pairs)
            self.sizes = [bucket(width, height, size, multiple) for height, width, _ in shapes]

    def __len__(self) -> int:
        return len(self._pairs)

    def check(self) -> None:
        """Decode every map, so that a broken one ends the run before its first step.

        Raises:
            BadInput: one cannot be read.
        """
        for _, control_map in self._pairs:
            _read(control_map, NOTHING)

    def _cropped(self, row: int, ground: int, path: Path) -> np.ndarray:
        """Return the largest centre crop of the row's aspect ratio."""
        picture = _read(path, ground)
        height, width = picture.shape[:2]
        wide, high = self.sizes[row]
        scale = min(width / wide, height / high)
        cut_width, cut_height = round(wide * scale), round(high * scale)
        left, top = (width - cut_width) // 2, (height - cut_height) // 2
        return picture[top : top + cut_height, left : left + cut_width]

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures, (N, height, width, 3) uint8."""
        return np.stack(
            [resize(self._cropped(r, PAPER, self._pairs[r][0]), self.sizes[r]) for r in rows]
        )

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, height, width, 3) uint8."""
        interpolation = self._annotator.interpolation
        return np.stack(
            [
                resize_map(
                    self._cropped(r, NOTHING, self._pairs[r][1]), self.sizes[r], interpolation
                )
                for r in rows
            ]
        )

    def maps_of(self, pictures: Sequence[RGBImage], rows: Sequence[int]) -> np.ndarray:
        """The maps (N, height, width, 3) uint8 of other pictures, with the default settings."""
        extractor = default_extractor(self._annotator)
        pairs = zip(pictures, rows, strict=True)
        return np.stack([extractor.extract(one, self.sizes[row], self.size) for one, row in pairs])


def _refuse(folder: Path, bad: dict[str, str]) -> None:
    """Raise the reasons, by name, of the first rows that cannot be used, if there are any."""
    if bad:
        more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        reasons = "; ".join(f"{name}: {bad[name]}" for name in list(bad)[:MAX_NAMED])
        raise BadInput(f"{folder} cannot be trained on as it is. {reasons}{more}")


def default_extractor(annotator: Annotator) -> Extractor:
    """Return what draws a condition's maps by default."""
    preprocessor = annotator.preprocessors[0]
    detect = annotator.detect_resolution
    detect = detect and (preprocessor.detect_resolution or detect)
    return Extractor(annotator, preprocessor, annotator.params(), detect)


def _read(path: Path, ground: int) -> RGBImage:
    try:
        return read_image(path, ground)[0]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def fingerprint(found: PictureFolder) -> str:
    """Return 8 characters that change with the files of a folder's rows, and with their order."""
    files = [file for row in found.rows for file in (row.picture, row.control_map) if file]
    facts = repr([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    return hashlib.sha256(facts.encode()).hexdigest()[:8]


def bucket(width: int, height: int, size: int, multiple: int) -> tuple[int, int]:
    """Return the (width, height) of a picture's bucket, as in NovelAI's aspect-ratio bucketing.

    Its sides are multiples of `multiple` within a factor of two of `size`, its area is at most
    size², and its aspect ratio is the nearest to the picture's.
    """
    sides = range(math.ceil(size / 2 / multiple) * multiple, 2 * size + 1, multiple)
    largest = [(one, size * size // one // multiple * multiple) for one in sides]
    buckets = [
        pair for one, other in largest if other in sides for pair in ((one, other), (other, one))
    ]
    return min(buckets, key=lambda one: abs(math.log(one[0] / one[1] * height / width)))


def with_maps(folder: Path, annotator: Annotator, size: int, out: Path) -> Path:
    """Return a folder with control maps: itself, or one in `out` where they are drawn now.

    Maps are drawn, with the condition's first preprocessor and default settings, if the folder has
    none at all. They are drawn once, and again after a picture or a caption has changed.

    Raises:
        BadInput: the folder has no pictures, or one cannot be used; the first few are named.
    """
    found = read_folder(folder)
    if found.bad or any(row.control_map for row in found.rows):
        return folder
    captions = hashlib.sha256(repr([row.caption for row in found.rows]).encode()).hexdigest()[:8]
    drawn = out / f"maps-{annotator.name}-{size}-{fingerprint(found)}-{captions}"
    print(f"{folder} has no control maps: they are drawn into {drawn}", flush=True)
    skipped = annotate_folder(default_extractor(annotator), folder, drawn, size)
    _refuse(folder, skipped.failed)
    if skipped.empty:
        print(f"Left out, because their map is empty: {', '.join(skipped.empty)}", flush=True)
    return drawn


def check_folder(folder: Path, annotator: Annotator, size: int, sheet: Path) -> bool:
    """Read every row once; print what would be learned from; tell whether all can be used.

    `sheet` gets a contact sheet of the first pictures, each above its map.

    Raises:
        BadInput: there is nothing in the folder, or its manifest cannot be read.
    """
    found = read_folder(folder)
    extractor = None if any(row.control_map for row in found.rows) else default_extractor(annotator)
    usable, captioned, empty = 0, 0, 0
    shown: list[tuple[RGBImage, RGBImage]] = []
    for row in found.rows:
        try:
            picture = _read(row.picture, PAPER)
            if extractor:
                shape = fit_size(picture.shape[1], picture.shape[0], size)
                control_map = extractor.extract(picture, shape, size)
            elif row.control_map:
                control_map = _read(row.control_map, NOTHING)
            else:
                raise BadInput(NO_MAP.format(name=annotator.name))
            _require_one_shape(picture, control_map)
        except BadInput as error:
            found.bad[row.name] = str(error)
            continue
        usable, captioned = usable + 1, captioned + bool(row.caption)
        empty += annotator.is_empty(control_map)
        if len(shown) < SHEET_COLUMNS * SHEET_ROWS:
            shown.append((_thumbnail(picture), _thumbnail(annotator.preview(control_map))))
    for name, reason in found.bad.items():
        print(f"{name}: {reason}")
    maps = "to be drawn" if extractor else "from the folder"
    print(f"{usable} of {usable + len(found.bad)} pictures of {folder} can be learned from:")
    print(f"{captioned} have a caption; maps of {annotator.name} are {maps}, {empty} are empty.")
    if shown:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        _contact_sheet(shown).save(sheet)
        print(f"Contact sheet: {sheet}", flush=True)
    return not found.bad


def _require_one_shape(picture: RGBImage, control_map: ControlMap) -> None:
    """Refuse a map of another aspect ratio: cropped alike, the two would not match.

    Raises:
        BadInput: the aspect ratios differ by more than that rounding.
    """
    (height, width), (high, wide) = picture.shape[:2], control_map.shape[:2]
    if abs(math.log(width * high / (height * wide))) > MAX_ASPECT_DIFFERENCE:
        raise BadInput(
            f"Its map has another shape, {wide} x {high} pixels, than the picture's "
            f"{width} x {height}: draw it again."
        )


def _thumbnail(picture: RGBImage) -> RGBImage:
    height, width = picture.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return resize(picture[top : top + side, left : left + side], (THUMBNAIL, THUMBNAIL))


def _contact_sheet(shown: list[tuple[RGBImage, RGBImage]]) -> Image.Image:
    nothing = (np.full((THUMBNAIL, THUMBNAIL, 3), PAPER, np.uint8),) * 2
    shown = shown + [nothing] * (-len(shown) % SHEET_COLUMNS)
    lines = []
    for k in range(0, len(shown), SHEET_COLUMNS):
        for part in zip(*shown[k : k + SHEET_COLUMNS], strict=True):
            lines.append(np.concatenate(part, 1))
    return Image.fromarray(np.concatenate(lines))


def rows_with_maps(data: Examples, is_empty: Callable[[ControlMap], bool], batch: int) -> Tensor:
    """Return the rows with a non-empty map, as int64 indices; all rows if few maps are empty.

    An empty map teaches nothing, and only a fifth of the scenes have people.
    """

    def has_map(rows: Sequence[int]) -> list[bool]:
        parts = [rows[k : k + batch] for k in range(0, len(rows), batch)]
        return [not is_empty(m) for part in parts for m in data.maps(part)]

    sampled = np.random.default_rng(0).permutation(len(data))[:EMPTY_MAP_SAMPLE].tolist()
    if np.mean(has_map(sampled)) > 1 - MAX_EMPTY_MAPS:
        return torch.arange(len(data))
    rows = torch.tensor(has_map(range(len(data)))).nonzero()[:, 0]
    print(f"{len(rows)} of {len(data)} maps are not empty", flush=True)
    return rows if len(rows) else torch.arange(len(data))


def map_tensor(maps: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 maps → (B, 3, H, W) in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps)).to(device).permute(0, 3, 1, 2)
    return tensor.float().div(255).contiguous(memory_format=torch.channels_last)
