"""Many pictures through one condition: resumable, with a table of scores and contact sheets.

Everything is in the folder of the results: `images/` (PNGs with their settings), `maps/`,
`done.jsonl` (a line for each finished picture), `scores.csv` and `contact-1.png`, `contact-2.png`…
"""

import csv
import hashlib
import io
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apps.web.jobs.errors import sentence_of
from apps.web.jobs.job import Job, Partial
from apps.web.sheet import Tile, drawn_sheet, score_words
from apps.web.suite import Suite
from core.condition import ALREADY_A_MAP, Condition, RGBImage
from core.errors import BadInput
from core.files import ESCAPED, path_inside, write_whole
from core.images import NOTHING, PAPER, read_image
from core.marking import write_marked
from core.metadata import save_png
from core.params import settings_of
from core.picture_folder import PictureFolder, Row, name_of_its_files
from core.png_chunks import read_bytes, write_png
from core.provenance import COMPOSITE
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
    current: str = ""
    """The name of the picture that is being made."""
    sheets: list[Path] = field(default_factory=list)
    """The contact sheets, once there are some."""

    @property
    def total(self) -> int:
        """How many pictures there are, with those that cannot be read."""
        return len({row.name for row in self.rows} | self.bad.keys())

    @property
    def settled(self) -> int:
        """How many pictures are done or have failed."""
        return len(self.done) + len(self.bad)

    @property
    def mean_score(self) -> float | None:
        """The mean of all images' scores; None without any."""
        scores = [one for done in self.done.values() for one in done.scores if one is not None]
        return sum(scores) / len(scores) if scores else None


class FolderRun:
    """The settings of a batch and the folder of its results."""

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
        self.stopped = False
        self._job: Job | None = None
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

    def stop(self) -> None:
        """Stop within a step; finished pictures are kept. May be called in any thread."""
        self.stopped = True
        if self._job is not None:
            self._job.stop()

    def run(self, found: PictureFolder) -> Iterator[Batch | Progress | None]:
        """Make what is missing; yield the batch before each picture and at the end.

        In between yields progress and None as Job.run. A picture that fails is named in the batch,
        and the next one is made. After a KeyboardInterrupt what is done is kept, and it is raised
        again. Closing the iterator stops the run.

        Raises:
            BadInput: the results cannot be written.
        """
        batch = Batch(self._outside(found), dict(found.bad))
        try:
            for name in (IMAGES, MAPS):
                path_inside(self._out, name).mkdir(parents=True, exist_ok=True)
            try:
                yield from self._make(batch)
            finally:
                write_table(self._out / TABLE, batch)
                batch.sheets = write_sheets(self._out, batch)
        except OSError as error:
            raise BadInput(f"{self._out} cannot be written: {error.strerror or error}.") from error
        yield batch

    def _outside(self, found: PictureFolder) -> list[Row]:
        """Return the rows that are not results of an earlier run in the same folder."""
        out = self._out.resolve()
        return [row for row in found.rows if not row.picture.resolve().is_relative_to(out)]

    def _make(self, batch: Batch) -> Iterator[Batch | Progress | None]:
        before = read_ledger(self._out / LEDGER)
        with path_inside(self._out, LEDGER).open("a", encoding="utf-8", errors=ESCAPED) as ledger:
            if ledger.tell():
                ledger.write("\n")  # the last line may have been cut off
            for row in batch.rows:
                batch.current = row.name
                yield batch
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
                    result = yield from self._result(self.request_of(image, prompt), notes)
                    if result is None:
                        return
                    done = self._saved(row, key, prompt, result)
                except Exception as error:  # noqa: BLE001 - named in the table; a bug is logged
                    batch.bad[row.name] = sentence_of(error)
                    continue
                batch.done[row.name] = done
                ledger.write(json.dumps(asdict(done), ensure_ascii=False) + "\n")
                ledger.flush()

    def _result(
        self, request: GenerationRequest, notes: Sequence[str]
    ) -> Generator[Progress | None, None, GenerationResult | None]:
        """Make one picture's images; return None if stopped before all were finished."""
        self._job = Job(self._suite.pipeline, request, notes)
        if self.stopped:  # until here stop() found no job, from here this one
            return None
        for report in self._job.run():
            if isinstance(report, GenerationResult):
                return None if report.cancelled else report
            if not isinstance(report, Partial):
                yield report
        return None

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
            path_inside(self._out, file).parent.mkdir(parents=True, exist_ok=True)
        notes = [
            save_png(self._out / file, result.images[index], result, index)
            for index, file in enumerate(files)
        ]
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
            warnings=[*result.warnings, *dict.fromkeys(filter(None, notes))],
        )


def read_ledger(path: Path) -> dict[str, Done]:
    """Return what earlier runs have finished, by key; a line that was cut off is left out."""
    found: dict[str, Done] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
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
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [*FIRST_COLUMNS, *metrics, *LAST_COLUMNS])
    table.writeheader()
    for done in batch.done.values():
        for index, image in enumerate(done.images):
            row = {"picture": done.name, "image": image, "seed": done.seeds[index]}
            row |= {"score": done.scores[index], **done.metrics[index]}
            last = (done.seconds, done.prompt, " ".join(done.warnings), "")
            table.writerow(row | dict(zip(LAST_COLUMNS, last, strict=True)))
    for name, reason in batch.bad.items():
        table.writerow({"picture": name, "error": reason})
    whole = text.getvalue().encode("utf-8", ESCAPED)
    write_whole(path, lambda partial: partial.write_bytes(whole))


def write_sheets(out: Path, batch: Batch) -> list[Path]:
    """Draw contact sheets: each picture's map and images with scores, and why one has none."""
    for old in out.glob(SHEET.format("*")):
        old.unlink()
    names = [*batch.done, *batch.bad]
    sheets: list[Path] = []
    for start in range(0, len(names), ROWS_OF_SHEET):
        sheets.append(out / SHEET.format(len(sheets) + 1))
        shown = names[start : start + ROWS_OF_SHEET]
        write_marked(sheets[-1], _sheet(out, batch, shown), COMPOSITE)
    return sheets


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
        yield file, score_words(score)


def _small(path: Path) -> RGBImage:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))
