"""Fetches files that come in a wheel of the package index, without installing the package.

pip downloads the wheel, so that a mirror, proxy or certificate it is set up with holds here too.
The wheel is pinned by its hash, and only the files named are kept of it.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.errors import WeightsMissing
from models.catalog.download import Watch, amount
from models.catalog.paths import ANNOTATORS, shown

LOGGER = logging.getLogger(__name__)
LOOK_SECONDS = 0.2
"""Between two looks at what has come."""


@dataclass(frozen=True)
class Wheel:
    """Files that one wheel of a package holds."""

    name: str
    """Of the folder in ANNOTATORS that keeps them, and for the command line."""
    title: str
    package: str
    version: str
    python: str
    abi: str
    platform: str
    """Which of the release's wheels: this one on every machine, since the files are the same."""
    sha256: str
    size: int
    """In bytes, of the wheel."""
    licence: str
    """Of the files."""
    files: tuple[str, ...]
    """Paths in the wheel, kept under their last names; the licence's text is among them."""
    runtime: str
    """The module that runs them."""
    requirements: str
    """The file that brings it."""

    @property
    def folder(self) -> Path:
        """Where the files are kept."""
        return ANNOTATORS / self.name

    @property
    def missing(self) -> list[str]:
        """Those of `files` that are not kept yet."""
        return [one for one in self.files if not (self.folder / Path(one).name).is_file()]

    @property
    def advice(self) -> str:
        """What to run where the runtime is missing."""
        return f"pip install -r {self.requirements}"


BLAZEPOSE = Wheel(
    name="blazepose",
    title="BlazePose",
    package="mediapipe",
    version="0.10.21",
    python="3.11",
    abi="cp311",
    platform="manylinux_2_28_x86_64",
    sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    size=35_622_638,
    licence="Apache-2.0",
    files=(
        "mediapipe/modules/pose_detection/pose_detection.tflite",
        "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        "mediapipe/modules/holistic_landmark/hand_recrop.tflite",
        "mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
        "mediapipe/modules/face_detection/face_detection_short_range.tflite",
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "mediapipe-0.10.21.dist-info/LICENSE",
    ),
    runtime="ai_edge_litert",
    requirements="requirements-blazepose.txt",
)
WHEELS = {wheel.name: wheel for wheel in (BLAZEPOSE,)}


def fetch_wheel(wheel: Wheel, watch: Watch | None = None) -> Path:
    """Return the folder with the files of a wheel; where one is missing pip downloads the wheel.

    Raises:
        WeightsMissing: pip cannot fetch it, it is not the pinned one, or the disk is full.
        Exception: what `watch` raises; the download ends then.
    """
    if not wheel.missing:
        return wheel.folder
    advice = "connect and try again"
    try:
        wheel.folder.mkdir(parents=True, exist_ok=True)  # before the download, which may take long
        with tempfile.TemporaryDirectory() as scratch:
            problem = _download(wheel, Path(scratch), watch or (lambda here, whole: None))
            if not problem:
                _keep(wheel, next(Path(scratch).glob("*.whl")))
                return wheel.folder
    except OSError as error:
        place = f"{shown(Path(error.filename))}: " if error.filename else ""
        problem, advice = f"{place}{error.strerror or error}", "mend that and try again"
    raise WeightsMissing(
        f"{wheel.title} needs files of {wheel.package} {wheel.version} ({amount(wheel.size)}) from "
        f"the package index, but {problem}: {advice}, or put them into "
        f"{shown(wheel.folder)}."
    )


def _download(wheel: Wheel, scratch: Path, watch: Watch) -> str:
    """Bring the wheel into a folder; return what is wrong, "" for nothing."""
    options = (
        "--quiet --no-input --disable-pip-version-check --retries 1 --no-deps "
        "--only-binary=:all: --implementation cp"
    )
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--python-version", wheel.python, "--abi", wheel.abi]
    command += ["--platform", wheel.platform, "--dest", str(scratch)]
    said = scratch / "said"
    with said.open("wb") as output:
        pip = subprocess.Popen(
            [*command, f"{wheel.package}=={wheel.version}"],
            env={**os.environ, "TMPDIR": str(scratch)},  # there lies what has come so far
            stdout=output,
            stderr=output,
        )
        try:
            while pip.poll() is None:
                watch(min(_come(scratch), wheel.size), wheel.size)
                time.sleep(LOOK_SECONDS)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        LOGGER.warning("%s was not fetched: %s", wheel.package, "\n".join(lines))
        return f"pip cannot fetch it ({lines[-1].removeprefix('ERROR: ').rstrip('.')})"
    watch(wheel.size, wheel.size)
    with next(scratch.glob("*.whl")).open("rb") as file:
        damaged = hashlib.file_digest(file, "sha256").hexdigest() != wheel.sha256
    return "what came is not the wheel that was published" if damaged else ""


def _come(scratch: Path) -> int:
    """Return how many bytes of wheels are here; pip moves them meanwhile."""
    total = 0
    for file in scratch.rglob("*.whl"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _keep(wheel: Wheel, file: Path) -> None:
    """Unpack the files that are wanted of a wheel, each at once."""
    with zipfile.ZipFile(file) as archive:
        for name in wheel.files:
            kept = wheel.folder / Path(name).name
            part = kept.with_name(f"{kept.name}.part")
            part.write_bytes(archive.read(name))
            part.replace(kept)
