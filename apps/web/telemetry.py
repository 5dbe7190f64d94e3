"""What the server tells those who run it: log lines with the request's id, and Prometheus' metrics.

The counts are this process's own, so they are kept in one place for all pages.
"""

import importlib
import json
import logging
import shutil
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from core.request import GenerationRequest, GenerationResult

log = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="-")
"""Of the request that this thread works for."""
TEXT = "%(asctime)s %(name)s %(levelname)s %(request)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, request, message, and a request's facts."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        told = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "request": getattr(record, "request", "-"),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def set_up_logging(kind: str) -> None:
    """Log to the standard error, as text or as JSON, unless logging is set up already."""
    logging.basicConfig(level=logging.INFO, handlers=[log_handler(kind)])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def log_handler(kind: str, stream: TextIO | None = None) -> logging.Handler:
    """Return a handler that writes text or JSON with the request's id; None is standard error."""

    def add_request(record: logging.LogRecord) -> bool:
        record.request = REQUEST_ID.get()
        return True

    handler = logging.StreamHandler(stream)
    handler.addFilter(add_request)
    handler.setFormatter(JsonLines() if kind == "json" else logging.Formatter(TEXT))
    return handler


@dataclass
class Counts:
    """What has happened since the start; thread-safe."""

    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list[float]))
    """How many requests had a stage, and the seconds that these took: [count, sum]."""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By app and outcome: done, stopped or failed."""
    errors: Counter[str] = field(default_factory=Counter)
    """What visitors were told, by its kind."""
    images: int = 0
    at_work: int = 0
    """Requests that are being made, or wait in the pipeline."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_error(self, kind: str) -> None:
        """Count one that a visitor was told."""
        with self._lock:
            self.errors[kind] += 1

    def begin(self) -> None:
        """Count a request that begins."""
        with self._lock:
            self.at_work += 1

    def end(self, app: str, outcome: str, result: GenerationResult | None) -> None:
        """Count one that ends."""
        with self._lock:
            self.at_work -= 1
            self.requests[app, outcome] += 1
            self.images += len(result.images) if result else 0
            for stage, seconds in (result.seconds if result else {}).items():
                count, total = self.stages.get(stage) or (0, 0.0)
                self.stages[stage] = [count + 1, total + seconds]

    def copied(self) -> "Counts":
        """Return them as they are now."""
        with self._lock:
            return Counts(
                dict(self.stages), self.requests.copy(), self.errors.copy(), self.images,
                self.at_work,
            )  # fmt: skip


COUNTS = Counts()


@contextmanager
def observed(
    request_id: str, request: GenerationRequest
) -> Iterator[Callable[[GenerationResult | None], None]]:
    """Count and log a request that is made in the block; call what is yielded with its result."""
    app, began = "+".join(one.condition.name for one in request.controls), perf_counter()
    made: list[GenerationResult | None] = []
    outcome, token = "failed", REQUEST_ID.set(request_id)
    COUNTS.begin()
    try:
        yield made.append
        result = made[0] if made else None
        outcome = "stopped" if result is None or result.cancelled else "done"
    except Exception as error:
        error.add_note(f"Request {request_id}")  # for the log of a bug
        raise
    finally:
        result = made[0] if made else None
        COUNTS.end(app, outcome, result)
        facts: dict[str, Any] = {
            "app": app,
            "model": request.model,
            "outcome": outcome,
            "images": len(result.images) if result else 0,
            "asked": request.num_samples,
            "seconds": round(perf_counter() - began, 3),
            "stages": result.seconds if result else {},
        }
        words = " ".join(f"{name}={value}" for name, value in facts.items() if name != "stages")
        log.info("%s", words, extra={"facts": facts})
        REQUEST_ID.reset(token)


def serve_metrics(port: int, waiting: Callable[[], int], folders: list[Path]) -> Any:
    """Serve Prometheus' metrics at a port of their own; `folders` are those whose disk may fill.

    Returns the server and its thread.

    Raises:
        SystemExit: prometheus-client is missing, or the port is in use.
    """
    try:
        library = importlib.import_module("prometheus_client")
        families = importlib.import_module("prometheus_client.core")
    except ImportError:
        sys.exit(
            "CONTROLLOOP_METRICS_PORT needs prometheus-client: "
            "pip install -r requirements-metrics.txt"
        )
    registry = library.CollectorRegistry()
    library.ProcessCollector(registry=registry)  # with the memory in use
    registry.register(_Metrics(families, waiting, folders))
    try:
        return library.start_http_server(port, registry=registry)
    except OSError as error:
        sys.exit(f"CONTROLLOOP_METRICS_PORT is {port}, which cannot be served: {error}")


@dataclass(frozen=True, eq=False)
class _Metrics:
    """Prometheus' collector of COUNTS."""

    families: Any
    waiting: Callable[[], int]
    folders: list[Path]

    def collect(self) -> Iterator[Any]:
        """Yield each metric with its help."""
        now = COUNTS.copied()
        gauge, counter = self.families.GaugeMetricFamily, self.families.CounterMetricFamily
        yield gauge("controlloop_waiting", "Events in the queue.", self.waiting())
        yield gauge("controlloop_at_work", "Requests in the pipeline.", now.at_work)
        yield counter("controlloop_images", "Images made.", now.images)
        requests = counter("controlloop_requests", "Requests ended.", labels=["app", "outcome"])
        for labels, count in now.requests.items():
            requests.add_metric(labels, count)
        yield requests
        errors = counter("controlloop_errors", "What visitors were told.", labels=["kind"])
        for kind, count in now.errors.items():
            errors.add_metric([kind], count)
        yield errors
        stages = self.families.SummaryMetricFamily(
            "controlloop_stage_seconds", "Seconds of a request's stages.", labels=["stage"]
        )
        for stage, (times, seconds) in now.stages.items():
            stages.add_metric([stage], times, seconds)
        yield stages
        free = gauge("controlloop_disk_free_bytes", "Free bytes on its disk.", labels=["folder"])
        for folder in self.folders:
            free.add_metric([str(folder)], shutil.disk_usage(folder).free)
        yield free
