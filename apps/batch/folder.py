"""A folder's pictures through one condition: resumable, with a table of scores and contact sheets.

Everything is in the folder of the results: `images/` (PNGs with their settings), `maps/`,
`done.jsonl` (a line for each finished picture), `scores.csv` and `contact-1.png`, `contact-2.png`…
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job
from apps.web.sheet import Tile, drawn_sheet
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition, RGBImage
from core.errors import BadInput
from core.images import NOTHING, PAPER, read_image
from core.metadata import save_png
from core.params import settings_of
from core.picture_folder import PictureFolder, Row, name_of_its_files, read_folder
from core.png_chunks import read_bytes, write_png
from core.provenance import COMPOSITE, mark
from core.request import SETTINGS, GenerationRequest, GenerationResult, Progress

LEDGER, TABLE, SHEET = "done.jsonl", "scores.csv", "contact-{}.png"
IMAGES, MAPS = "images", "maps"
ROWS_OF_SHEET = 20
"""Pictures on one contact sheet."""
USUAL_SEED = 0
"""So that the same command makes the same images; a drawn seed could not be resumed."""
FIRST_COLUMNS = ("picture", "image", "seed", "score")
LAST_COLUMNS = ("seconds", "prompt", "warnings", "error")


@dataclass(frozen=True)
class Done:
    """One finished picture."""

    key: str
    """Of the picture's content and all settings: as long as it is the same, nothing is remade."""
    name: str
    """The picture's, as Row has it."""
    prompt: str
    images: list[str]
    """Their files, from the folder of the results."""
    control_map: str
    seeds: list[int]
    scores: list[float | None]
    """None where the map asks for nothing."""
    metrics: list[dict[str, float]]
    seconds: float
    warnings: list[str]


@dataclass
class Batch:
    """What a run has made, and what failed."""

    rows: list[Row]
    bad: dict[str, str]
    """Why a picture has no image, by its name."""
    done: dict[str, Done] = field(default_factory=dict)
    """By the picture's name."""
    kept: int = 0
    """How many of them were there before."""


class FolderRun:
    """The settings of a batch and its folders."""

    def __init__(
        self,
        suite: Suite,
        condition: Condition,
        out: Path,
        settings: Mapping[str, Any],
        prompt: str = "",
    ):
        """Check the settings: fields of a request and the annotator's, by name.

        `prompt` is for the pictures without a caption.

        Raises:
            SuiteError: a setting is unknown or out of bounds, or the model lacks the control.
        """
        self._suite, self._condition, self._out, self._prompt = suite, condition, out, prompt
        of_map = settings_of(condition.annotator.params)
        known = (SETTINGS.keys() | of_map.keys()) - {"prompt", "edit"}
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise BadInput(
                f"There is no setting {unknown[0][:40]!r}; there are: {', '.join(sorted(known))}."
            )
        model = suite.card(settings.get("model", suite.model)).name
        suite.store.registry.require_control(suite.card(model), condition.weights)
        usual = {**suite.defaults(model), "seed": USUAL_SEED}
        usual["preprocessor"] = suite.usual_preprocessor(condition, model)
        given = {name: value for name, value in settings.items() if name not in of_map}
        self._settings = {**usual, **given, "prompt": prompt}
        self._settings["params"] = condition.annotator.params(
            **{name: value for name, value in settings.items() if name in of_map}
        )
        if self._settings["seed"] == -1:
            raise BadInput(
                "A batch needs a seed, or it could not be resumed: please choose one from 0 on."
            )
        self.request_of(np.zeros((64, 64, 3), np.uint8), prompt)

    def request_of(self, image: RGBImage, prompt: str) -> GenerationRequest:
        """Return the request for one picture."""
        settings = {**self._settings, "prompt": prompt}
        return GenerationRequest.single(self._condition, image, **settings)

    def run(self, pictures: Path, tell: Callable[[str, Progress | None], None]) -> Batch:
        """Make what is missing; `tell` is called with a picture's name and its progress.

        A picture that fails is named in the result, and the next one is made. After a
        KeyboardInterrupt what is done is kept, and it is raised again.

        Raises:
            BadInput: the folder holds no picture, or the results cannot be written.
        """
        found = read_folder(pictures)
        batch = Batch(self._outside(found), dict(found.bad))
        try:
            for name in (IMAGES, MAPS):
                (self._out / name).mkdir(parents=True, exist_ok=True)
            try:
                self._make(batch, tell)
            finally:
                write_table(self._out / TABLE, batch)
                write_sheets(self._out, batch)
        except OSError as error:
            raise BadInput(f"{self._out} cannot be written: {error.strerror or error}.") from error
        return batch

    def _outside(self, found: PictureFolder) -> list[Row]:
        """Return the rows that are not results of an earlier run in the same folder."""
        out = self._out.resolve()
        return [row for row in found.rows if not row.picture.resolve().is_relative_to(out)]

    def _make(self, batch: Batch, tell: Callable[[str, Progress | None], None]) -> None:
        before = read_ledger(self._out / LEDGER)
        with (self._out / LEDGER).open("a", encoding="utf-8") as ledger:
            if ledger.tell():
                ledger.write("\n")  # the last line may have been cut off
            for row in batch.rows:
                tell(row.name, None)
                prompt = row.caption or self._prompt
                try:
                    content = read_bytes(row.picture)
                    key = self._key(content, prompt)
                    earlier = before.get(key)
                    if earlier and earlier.name == row.name and self._is_here(earlier):
                        batch.done[row.name] = earlier
                        batch.kept += 1
                        continue
                    image, notes = read_image(content, self._ground())
                    job = Job(self._suite.pipeline, self.request_of(image, prompt), notes)
                    done = self._saved(row, key, prompt, _result(job, row.name, tell))
                except Exception as error:  # noqa: BLE001 - named in the table; a bug is logged
                    batch.bad[row.name] = sentence_of(error)
                    continue
                batch.done[row.name] = done
                ledger.write(json.dumps(asdict(done), ensure_ascii=False) + "\n")
                ledger.flush()

    def _key(self, content: bytes, prompt: str) -> str:
        settings = {**self._settings, "prompt": prompt, "condition": self._condition.name}
        settings["params"] = asdict(self._settings["params"])
        told = json.dumps(settings, sort_keys=True, default=str).encode()
        return hashlib.sha256(hashlib.sha256(content).digest() + told).hexdigest()

    def _is_here(self, done: Done) -> bool:
        return all((self._out / file).is_file() for file in (*done.images, done.control_map))

    def _ground(self) -> int | None:
        """Return what lies under transparent parts, as for read_image."""
        if self._settings["preprocessor"] == ALREADY_A_MAP:
            return NOTHING
        return None if self._condition.input == "drawing" else PAPER

    def _saved(self, row: Row, key: str, prompt: str, result: GenerationResult) -> Done:
        own = name_of_its_files(row.name)
        many = len(result.images) > 1
        files = [
            f"{IMAGES}/{own.removesuffix('.png')}-{seed}.png" if many else f"{IMAGES}/{own}"
            for seed in result.seeds
        ]
        control_map = f"{MAPS}/{own}"
        for file in (*files, control_map):
            (self._out / file).parent.mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(files):
            save_png(self._out / file, result.images[index], result, index)
        (control,) = result.controls
        write_png(self._out / control_map, control.control_map, {})
        empty = control.asks_for_nothing
        return Done(
            key=key,
            name=row.name,
            prompt=prompt,
            images=files,
            control_map=control_map,
            seeds=list(result.seeds),
            scores=[None if empty else round(score, 2) for score in result.headlines],
            metrics=[{} if empty else dict(score.metrics) for score in control.scores],
            seconds=round(sum(result.seconds.values()), 2),
            warnings=list(result.warnings),
        )


def _result(job: Job, name: str, tell: Callable[[str, Progress | None], None]) -> GenerationResult:
    """Run a job to its end."""
    for report in job.run():
        if isinstance(report, GenerationResult) and report.images:
            return report
        if isinstance(report, Progress):
            tell(name, report)
    raise BadInput("No image was made.")


def read_ledger(path: Path) -> dict[str, Done]:
    """Return what earlier runs have finished, by key; a line that was cut off is left out."""
    found: dict[str, Done] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                done = Done(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[done.key] = done
    return found


def write_table(path: Path, batch: Batch) -> None:
    """Write a line for each image and for each picture without one, as CSV (UTF-8)."""
    metrics = list(
        dict.fromkeys(name for one in batch.done.values() for m in one.metrics for name in m)
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*FIRST_COLUMNS, *metrics, *LAST_COLUMNS])
        table.writeheader()
        for done in batch.done.values():
            for index, image in enumerate(done.images):
                row = {"picture": done.name, "image": image, "seed": done.seeds[index]}
                row |= {"score": done.scores[index], **done.metrics[index]}
                last = (done.seconds, done.prompt, " ".join(done.warnings), "")
                table.writerow(row | dict(zip(LAST_COLUMNS, last, strict=True)))
        for name, reason in batch.bad.items():
            table.writerow({"picture": name, "error": reason})


def write_sheets(out: Path, batch: Batch) -> None:
    """Draw contact sheets: each picture's map and images with scores, and why one has none."""
    for old in out.glob(SHEET.format("*")):
        old.unlink()
    names = [*batch.done, *batch.bad]
    for start in range(0, len(names), ROWS_OF_SHEET):
        shown = names[start : start + ROWS_OF_SHEET]
        number = start // ROWS_OF_SHEET + 1
        write_png(out / SHEET.format(number), _sheet(out, batch, shown), mark(COMPOSITE))


def _sheet(out: Path, batch: Batch, names: Sequence[str]) -> RGBImage:
    tiles: dict[tuple[int, int], Tile] = {}
    wide = 1 + max(
        (len(batch.done[name].images) for name in names if name in batch.done), default=1
    )
    for row, name in enumerate(names):
        if name not in batch.done:
            tiles[0, row] = Tile(None, note=batch.bad[name])
            continue
        for column, (file, caption) in enumerate(_captioned(batch.done[name])):
            tiles[column, row] = Tile(_small(out / file), caption)
    heads = ["Control map", *(["Image"] if wide == 2 else [f"Image {k}" for k in range(1, wide)])]
    return drawn_sheet(tiles, (wide, len(names)), "", heads, list(names))


def _captioned(done: Done) -> Iterator[tuple[str, str]]:
    yield done.control_map, ""
    for file, score in zip(done.images, done.scores, strict=True):
        yield file, "no score: its map is empty" if score is None else f"{score:.0f} / 100"


def _small(path: Path) -> RGBImage:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))
