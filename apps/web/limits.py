"""What one request, one visitor and all requests together may take of this server.

How many requests may wait and what is kept of results is read beside them, in serve.py; for those
who run the server apps/README.md lists all.
"""

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from core.errors import Busy


def _limit(variable: str, usual: int, most: int) -> Any:
    return field(default=usual, metadata={"variable": variable, "most": most})


def read_whole(variables: Mapping[str, str], name: str, usual: int, most: int) -> int:
    """Return a variable's whole number from 1 to `most`; the usual one if it is not set.

    Raises:
        SystemExit: as require_whole.
    """
    return require_whole(name, variables.get(name) or str(usual), 1, most)


def require_whole(name: str, text: str, least: int, most: int) -> int:
    """Return a variable's whole number from `least` to `most`.

    Raises:
        SystemExit: it is none; the message is one line that names it.
    """
    if not text.isdecimal() or not least <= int(text) <= most:
        sys.exit(f"{name} is {text!r}; it must be a whole number from {least} to {most}.")
    return int(text)


@dataclass(frozen=True)
class RequestLimits:
    """Whole numbers of at least 1."""

    max_per_visitor: int = _limit("CONTROLLOOP_MAX_PER_VISITOR", 5, 1000)
    """Requests that one visitor may have, running and waiting; this machine's own are not limited.
    """
    max_work: int = _limit("CONTROLLOOP_MAX_WORK", 1500, 1_000_000)
    """Pixels times steps times images of a request, in millions; of all cells for a sweep."""
    max_seconds: int = _limit("CONTROLLOOP_MAX_SECONDS", 28_800, 1_000_000)
    """Of a request at work; waiting for others does not count."""
    max_upload_mb: int = _limit("CONTROLLOOP_MAX_UPLOAD_MB", 30, 1000)
    """Of a picture's file."""
    max_decoded_mp: int = _limit("CONTROLLOOP_MAX_DECODED_MP", 80, 10_000)
    """Megapixels that are decoded at the same time; a larger picture is decoded alone."""
    controlnet_gb: int = _limit("CONTROLLOOP_CONTROLNET_GB", 2, 1000)
    """Of the ControlNets in memory, in use and kept; one request may need more, alone."""

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> "RequestLimits":
        """Read and check the variables.

        Raises:
            SystemExit: one is malformed; the message is one line that names it.
        """
        return cls(
            **{
                one.name: read_whole(
                    variables,
                    one.metadata["variable"],
                    getattr(cls, one.name),
                    one.metadata["most"],
                )
                for one in fields(cls)
            }
        )


class Visits:
    """How many requests of each visitor are made past the queue, as live pictures are."""

    def __init__(self, most: int) -> None:
        """Let each have at most so many at the same time."""
        self._most = most
        self._now: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def one_of(self, visitor: str) -> Iterator[None]:
        """Count one for the duration of the block; "", this machine itself, is not limited.

        Raises:
            Busy: the visitor has as many already.
        """
        with self._lock:
            if visitor and self._now[visitor] >= self._most:
                raise Busy(f"One visitor may have {self._most} live pictures at the same time.")
            self._now[visitor] += 1
        try:
            yield
        finally:
            with self._lock:
                self._now[visitor] -= 1
                if not self._now[visitor]:
                    del self._now[visitor]
