"""Annotates a folder of pictures: `python -m annotators canny my_pictures my_training_data`.

OUTPUT_DIR gets `source/` (the control maps), `target/` (the pictures at the maps' size) and
`prompt.json` with one line per picture, as `python -m training.train_control --folder` reads them.
Prompts come from a text file beside each picture (`cat.jpg`, `cat.txt` or `cat.caption`) or from
`metadata.jsonl`; folders inside are read too (core/picture_folder.py). Existing maps are kept, so
the command resumes; `annotator.json` holds the settings, which must then be the same. Pictures with
an empty map and unreadable files are skipped and reported.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from annotators import annotator_names, find_annotator
from core.condition import Annotator, Preprocessor
from core.consistency import Extractor, in_doubt
from core.errors import BadInput, SuiteError
from core.files import ESCAPED, path_inside, write_whole
from core.images import fit_size, read_image, resize
from core.memory import oom_as_device_unavailable
from core.params import settings_of
from core.picture_folder import Row, name_of_its_files, read_folder
from core.png_chunks import write_png
from core.request import DEFAULTS, ControlRequest
from models.catalog.download import shell_bar

SETTINGS, MANIFEST = "annotator.json", "prompt.json"
MAX_NAMED = 5
"""Number of pictures with empty maps that are reported by name."""


@dataclass
class Skipped:
    """The pictures that did not become training data."""

    failed: dict[str, str] = field(default_factory=dict)
    """Files that could not be used, with the reason."""
    empty: list[str] = field(default_factory=list)
    """Files whose control map is empty."""
    unlike: int = 0
    """How many are unlike those that the preprocessor was trained on."""
    without_caption: int = 0
    """How many were taken that have no caption."""


def annotate_folder(extractor: Extractor, pictures: Path, out: Path, resolution: int) -> Skipped:
    """Draw the missing control maps of a folder's pictures; return the skipped ones.

    Maps are `resolution` pixels on the short side.

    Raises:
        BadInput: `pictures` holds none, or `out` holds maps with other settings or cannot be
            written.
    """
    found = read_folder(pictures)
    rows = [row for row in found.rows if not row.picture.resolve().is_relative_to(out.resolve())]
    try:
        for name in ("source", "target"):
            path_inside(out, name).mkdir(parents=True, exist_ok=True)
        _keep_settings(extractor, resolution, out)
        return _annotate(extractor, rows, out, resolution, Skipped(found.bad))
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror or error}.") from error


def _keep_settings(extractor: Extractor, resolution: int, out: Path) -> None:
    settings = {
        "condition": extractor.annotator.name,
        "preprocessor": extractor.preprocessor.name,
        "resolution": resolution,
        "detect_resolution": extractor.detect_resolution,
        **asdict(extractor.params),
    }
    file = out / SETTINGS
    try:
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        before = {}
    if not before and not _read_manifest(out / MANIFEST):
        text = json.dumps(settings, indent=2) + "\n"
        write_whole(file, lambda partial: partial.write_text(text, encoding="utf-8"))
    elif not before:
        raise BadInput(
            f"{out} has maps but no {SETTINGS} with their settings: choose another folder."
        )
    elif before != settings:
        other = next(name for name in before | settings if before.get(name) != settings.get(name))
        raise BadInput(
            f"The maps in {out} were drawn with {other} {before.get(other)}, not "
            f"{settings.get(other)}: choose another folder."
        )


def _read_manifest(manifest: Path) -> list[str]:
    """Return a manifest's complete lines; the last may have been cut off by a stopped run."""
    if not manifest.exists():
        return []
    # Not splitlines: it also splits at characters that JSON strings may contain.
    lines = manifest.read_bytes().decode("utf-8", "replace").split("\n")
    complete = []
    for k, line in enumerate(lines):
        try:
            if line.strip():
                complete.append(json.dumps(json.loads(line), ensure_ascii=False))
        except json.JSONDecodeError as error:
            if any(rest.strip() for rest in lines[k + 1 :]):
                raise BadInput(
                    f"Line {k + 1} of {manifest} is not valid JSON; fix or delete it."
                ) from error
    return complete


def _annotate(
    extractor: Extractor, rows: list[Row], out: Path, resolution: int, skipped: Skipped
) -> Skipped:
    lines = _read_manifest(out / MANIFEST)
    done = {json.loads(line)["source"] for line in lines}
    repaired = "".join(f"{line}\n" for line in lines)  # without a line that was cut off
    write_whole(
        out / MANIFEST,
        lambda partial: partial.write_text(repaired, encoding="utf-8", errors=ESCAPED),
    )
    with (out / MANIFEST).open("a", encoding="utf-8", errors=ESCAPED) as manifest_file:
        for row in tqdm(rows, unit="picture"):
            name = name_of_its_files(row.name)
            source, target = f"source/{name}", f"target/{name}"
            if source in done:
                continue
            try:
                picture, _ = read_image(row.picture)
                size = fit_size(picture.shape[1], picture.shape[0], resolution)
                control_map = extractor.extract(picture, size, resolution)
                skipped.unlike += in_doubt(extractor.preprocessor, picture)
            except BadInput as error:
                skipped.failed[row.name] = str(error)
                continue
            annotator = extractor.annotator
            if annotator.empty_message and annotator.is_empty(control_map):
                skipped.empty.append(row.name)
                continue
            for file, image in (
                (source, control_map),
                (target, resize(picture, size, resolution)),
            ):
                path_inside(out, file).parent.mkdir(parents=True, exist_ok=True)
                write_png(out / file, image, {})
            line = {"source": source, "target": target, "prompt": row.caption}
            manifest_file.write(json.dumps(line, ensure_ascii=False) + "\n")
            manifest_file.flush()
            skipped.without_caption += not row.caption
    return skipped


def _preprocessor(annotator: Annotator, name: str | None) -> Preprocessor:
    names = [preprocessor.name for preprocessor in annotator.preprocessors]
    if name is not None and name not in names:
        raise BadInput(f"--preprocessor must be one of: {', '.join(names)}.")
    return annotator.preprocessors[names.index(name) if name else 0]


def _params(annotator: Annotator, settings: list[str]) -> object:
    known = settings_of(annotator.params)
    values: dict[str, object] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise BadInput(f"--set takes NAME=VALUE with a name of: {', '.join(known) or 'none'}.")
        try:
            values[name] = json.loads(value)  # a number, true or false; anything else is text
        except json.JSONDecodeError:
            values[name] = value
    return annotator.params(**values)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a picture could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m annotators", description=__doc__.split("\n")[0]
    )
    parser.add_argument("condition", choices=annotator_names())
    parser.add_argument("input_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--preprocessor", help="one of the condition's; default: its first")
    parser.add_argument(
        "--resolution",
        type=int,
        default=DEFAULTS["image_resolution"],
        help="short side of the maps",
    )
    parser.add_argument(
        "--detect-resolution",
        type=int,
        help="short side at which maps are drawn before resizing; default: the preprocessor's",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the condition, such as low_threshold=50; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        settings_of(ControlRequest)["detect_resolution"].check(options.resolution)
        annotator = find_annotator(options.condition)
        preprocessor = _preprocessor(annotator, options.preprocessor)
        detect = annotator.detect_resolution
        if detect is not None:
            detect = options.detect_resolution or preprocessor.detect_resolution or detect
            settings_of(ControlRequest)["detect_resolution"].check(detect)
        extractor = Extractor(annotator, preprocessor, _params(annotator, options.set), detect)
        if preprocessor.fetch:
            with shell_bar(preprocessor.name) as watch:
                preprocessor.fetch(watch=watch)
        with oom_as_device_unavailable():
            skipped = annotate_folder(
                extractor, options.input_dir, options.output_dir, options.resolution
            )
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    for name, reason in skipped.failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if skipped.empty:
        names = ", ".join(skipped.empty[:MAX_NAMED]) + ", ..." * (len(skipped.empty) > MAX_NAMED)
        count = len(skipped.empty)
        print(f"Skipped, because their control map is empty: {count} ({names})", file=sys.stderr)
    if skipped.unlike:
        print(
            f"Unlike the pictures that {preprocessor.name} was trained on: {skipped.unlike}. "
            "Do not rely on their maps; choose another --preprocessor.",
            file=sys.stderr,
        )
    if skipped.without_caption:
        print(
            f"Without a caption: {skipped.without_caption} (write cat.txt beside cat.jpg).",
            file=sys.stderr,
        )
    return 1 if skipped.failed else 0


if __name__ == "__main__":
    sys.exit(main())
