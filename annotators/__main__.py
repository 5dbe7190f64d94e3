"""Annotates a folder of pictures: `python -m annotators canny my_pictures my_training_data`.

OUTPUT_DIR gets `source/` (the control maps), `target/` (the pictures at the maps' size) and
`prompt.json`, one line a picture: what `python -m training.train_control --folder` reads. A prompt
is taken from a text file beside its picture (`cat.jpg`, `cat.txt`). What is there already is kept,
so the command resumes; a file that is no picture is named and passed over.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from annotators import annotator_names, find_annotator
from core.condition import Annotator, Preprocessor
from core.consistency import Extractor
from core.errors import BadInput, SuiteError
from core.images import fit_size, read_image, resize
from core.params import controls
from core.request import GenerationRequest


def annotate_folder(
    extractor: Extractor, pictures: Path, out: Path, resolution: int
) -> dict[str, str]:
    """Draw the control map of every picture that has none yet.

    Maps are `resolution` pixels on the short side. Returns the files that could not be used, with
    the reason.

    Raises:
        BadInput: there is no such folder, or nothing in it.
    """
    files = sorted(f for f in pictures.glob("*") if f.is_file() and f.suffix not in (".txt", ""))
    if not files:
        raise BadInput(f"There are no pictures in {pictures}.")
    for name in ("source", "target"):
        (out / name).mkdir(parents=True, exist_ok=True)
    manifest = out / "prompt.json"
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
    done = {json.loads(line)["source"] for line in lines}
    failed: dict[str, str] = {}
    with manifest.open("a", encoding="utf-8") as manifest_file:
        for file in tqdm(files, unit="picture"):
            # The whole name, or cat.jpg and cat.png would share a map.
            source, target = f"source/{file.name}.png", f"target/{file.name}.png"
            if source in done:
                continue
            try:
                picture, _ = read_image(file)
                size = fit_size(picture.shape[1], picture.shape[0], resolution)
                control_map = extractor.extract(picture, size)
            except BadInput as error:
                failed[file.name] = str(error)
                continue
            Image.fromarray(control_map).save(out / source)
            Image.fromarray(resize(picture, size)).save(out / target)
            text = file.with_suffix(".txt")
            prompt = text.read_text(encoding="utf-8").strip() if text.exists() else ""
            line = {"source": source, "target": target, "prompt": prompt}
            manifest_file.write(json.dumps(line, ensure_ascii=False) + "\n")
            manifest_file.flush()
    return failed


def _preprocessor(annotator: Annotator, name: str | None) -> Preprocessor:
    names = [one.name for one in annotator.preprocessors]
    if name is not None and name not in names:
        raise BadInput(f"--preprocessor must be one of: {', '.join(names)}.")
    return annotator.preprocessors[names.index(name) if name else 0]


def _params(annotator: Annotator, settings: list[str]) -> object:
    known = controls(annotator.params)
    values: dict[str, object] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            raise BadInput(f"--set takes NAME=VALUE with a name of: {', '.join(known) or 'none'}.")
        try:
            values[name] = json.loads(value)  # numbers, true and false; anything else is text
        except json.JSONDecodeError:
            values[name] = value
    return annotator.params(**values)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 if a picture could not be used."""
    parser = argparse.ArgumentParser(
        prog="python -m annotators", description=__doc__.split("\n")[0]
    )
    parser.add_argument("condition", choices=annotator_names())
    parser.add_argument("input_dir", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--preprocessor", help="one of the condition's; default: its first")
    parser.add_argument("--resolution", type=int, default=512, help="short side of the maps")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="low_threshold=50 ..."
    )
    options = parser.parse_args(arguments)
    try:
        controls(GenerationRequest)["detect_resolution"].check(options.resolution)
        annotator = find_annotator(options.condition)
        detect = None if annotator.detect_resolution is None else options.resolution
        chosen = _preprocessor(annotator, options.preprocessor)
        extractor = Extractor(annotator, chosen, _params(annotator, options.set), detect)
        failed = annotate_folder(
            extractor, options.input_dir, options.output_dir, options.resolution
        )
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
