"""Generates an image for every picture of a folder, and a table of their scores.

    python -m apps.batch canny2image my_pictures --prompt "a red ball" --out results
    python -m apps.batch depth2image my_pictures --out results --set strength=0.8 --set steps=10

A picture's prompt is the text beside it (`cat.jpg`, `cat.txt` or `cat.caption`) or in
`metadata.jsonl`, else --prompt. OUT gets `images/`, `maps/`, `scores.csv` and contact sheets. What
is done is not made again while the picture and the settings are the same, so that the command
resumes. A picture that fails is named, in scores.csv too, and the others are made.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from apps.batch.folder import TABLE, Batch, FolderRun
from apps.web.jobs.several import combinable
from apps.web.suite import Suite, how_much
from core.condition import Condition
from core.errors import BadInput, SuiteError
from core.marking import Marks, mark_with
from core.picture_folder import read_folder
from models.store import Store

SUFFIX = "2image"
"""May be left out of an app's name."""


def condition_named(name: str) -> Condition:
    """Return the condition of an app's name, "canny2image" or "canny".

    Raises:
        BadInput: there is none; the message lists all names.
    """
    known = combinable()
    found = known.get(name) or known.get(name + SUFFIX)
    if found is None:
        raise BadInput(f"There is no condition {name!r}; there are: {', '.join(known)}.")
    return found


def setting_of(text: str) -> tuple[str, Any]:
    """Return the name and the value of NAME=VALUE: a number, true, false, or text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--set takes NAME=VALUE, such as strength=0.8, not {text!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a picture has no image, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("condition", help="an app's name, such as canny2image or canny")
    parser.add_argument("folder", type=Path, help="the pictures; folders inside are read too")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--prompt", default="", help="for pictures without a caption")
    parser.add_argument(
        "--model", default="", help="the name of a model or the path of a checkpoint"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the app's endpoint, such as strength=0.8 or low_threshold=50; may be "
        "repeated",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    bar = tqdm(unit=" pictures", disable=None)
    try:
        condition = condition_named(options.condition)
        settings = dict(setting_of(one) for one in options.set)
        mark_with(Marks.read())
        suite = Suite(Store(), options.model)
        run = FolderRun(suite, condition, options.out, settings, options.prompt)
        batch = Batch([], {})
        for report in run.run(read_folder(options.folder)):
            if isinstance(report, Batch):
                batch = report
                bar.update(batch.settled - bar.n)
                bar.set_description(batch.current[-40:])
            elif report and report.download is not None:
                bar.set_description(f"{report.download.title}: {how_much(report.download)}")
    except SuiteError as error:
        bar.close()
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        bar.close()
        print("Interrupted: run the same command again to go on.", file=sys.stderr)
        return 130
    bar.close()
    for name, reason in batch.bad.items():
        print(f"{name}: {reason}", file=sys.stderr)
    made = len(batch.done) - batch.kept
    mean = "" if batch.mean_score is None else f", mean score {batch.mean_score:.0f} / 100"
    print(f"{made} made, {batch.kept} kept, {len(batch.bad)} failed{mean}: {options.out / TABLE}")
    return 1 if batch.bad else 0


if __name__ == "__main__":
    sys.exit(main())
