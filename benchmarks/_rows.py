"""What is measured of each picture, kept as it comes, so that an interrupted run goes on."""

import json
from pathlib import Path
from typing import Any


class Rows:
    """The measured rows of a folder, each under a key of all that it depends on."""

    def __init__(self, folder: Path) -> None:
        """Read the rows that are there; one that was cut off is dropped."""
        self.folder = folder
        self.resumed = 0
        """How many were taken from an earlier run."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "rows.jsonl"
        *whole, _ = self._file.read_text("utf-8").split("\n") if self._file.exists() else [""]
        self._file.write_text("".join(f"{line}\n" for line in whole), "utf-8")
        self._known: dict[str, dict[str, Any]] = {row["key"]: row for row in map(json.loads, whole)}

    def get(self, key: str) -> dict[str, Any] | None:
        """The row of a key, unless it is not known or a picture of it was deleted."""
        row = self._known.get(key)
        if row is None or not all((self.folder / name).is_file() for name in row["pictures"]):
            return None
        self.resumed += 1
        return row

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a row; it names its files in "pictures", which are there already."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._known[row["key"]] = row
        return row
