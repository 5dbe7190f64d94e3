#!/usr/bin/env bash
# One would guess: offline, snapshot_download returns the repository's folder if it is all in the cache,
# and raises LocalEntryNotFoundError otherwise, as hf_hub_download does for a file.
# It returns the folder if a single file was ever fetched from that revision, also when allow_patterns
# asks for weights and none is there. With local_dir, any folder that is not empty will do, of whatever
# content: it is returned for a repository that was never downloaded, with a line in the log.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0
export HF_HOME=$folder/home HF_HUB_OFFLINE=1 HF_HUB_VERBOSITY=error
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

print("huggingface_hub", version("huggingface_hub"))
# The cache as it is after hf_hub_download("someone/model", "config.json").
cache, commit = Path(sys.argv[1]) / "cache", "0" * 40
snapshot = cache / "models--someone--model" / "snapshots" / commit
snapshot.mkdir(parents=True)
(snapshot / "config.json").write_text("{}")
refs = cache / "models--someone--model" / "refs"
refs.mkdir()
(refs / "main").write_text(commit)
notes, empty = Path(sys.argv[1]) / "notes", Path(sys.argv[1]) / "empty"
notes.mkdir(), empty.mkdir()
(notes / "shopping.txt").write_text("eggs")


def listed(call):
    try:
        return sorted(path.name for path in Path(call()).iterdir())
    except LocalEntryNotFoundError as error:
        return type(error).__name__


model, weights = "someone/model", "model.safetensors"
refused = LocalEntryNotFoundError.__name__
for name, call, expected in (
    ("the weights", lambda: hf_hub_download(model, weights, cache_dir=cache), refused),
    ("the snapshot", lambda: snapshot_download(model, cache_dir=cache), ["config.json"]),
    (
        "the weights of the snapshot",
        lambda: snapshot_download(model, cache_dir=cache, allow_patterns=[weights]),
        ["config.json"],
    ),
    (
        "another repository, into notes",
        lambda: snapshot_download("no/such", cache_dir=cache, local_dir=notes),
        ["shopping.txt"],
    ),
    (
        "another repository, into an empty folder",
        lambda: snapshot_download("no/such", cache_dir=cache, local_dir=empty),
        refused,
    ),
):
    found = listed(call)
    print(f"{name}: {found}")
    assert found == expected
PYTHON
# Seen:
# huggingface_hub 2.4.0
# the weights: LocalEntryNotFoundError
# the snapshot: ['config.json']
# the weights of the snapshot: ['config.json']
# another repository, into notes: ['shopping.txt']
# another repository, into an empty folder: LocalEntryNotFoundError
