"""The progress of one generation: its reports, timings and warnings, and its cancellation."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.condition import RGBImage
from core.errors import SuiteError
from core.images import to_images
from core.networks import Networks
from core.request import Download, Progress

LOGGER = logging.getLogger(__name__)

STAGES = ("prepare", "map", "load", "text", "sample", "decode", "reextract")
DOWNLOAD_TIMED_S = 2.0
"""Seconds of a download before its end is estimated: the first ones are slow."""


class Stopped(Exception):
    """The user has cancelled; caught by the pipeline, not an error."""


@dataclass
class ProgressReporter:
    """Reports one generation's progress to its caller, and stops it when cancelled."""

    on_progress: Callable[[Progress], None] | None
    cancelled: Callable[[], bool] | None
    preview_every: int
    """Steps from one preview to the next; 0 for none."""
    steps: int
    images: int
    most_seconds: float = math.inf
    """That the stages may take together; waiting between them does not count."""
    warnings: list[str] = field(default_factory=list)
    images_done: int = 0
    was_cancelled: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _steps_timed: int = 0
    _seconds_timed: float = 0.0
    _last_step: float | None = None
    _batch_steps_done: int = 0
    """Finished steps of the current batch, summed over its images."""
    _seconds_waited: float = 0.0
    """Spent between two stages, waiting for the device."""
    _stage_began: float | None = None
    _stage_ended: float = 0.0
    _download_start: tuple[str, float, int] | None = None
    """Its title, when it started, and the bytes that were here already."""

    def warn(self, warning: str) -> None:
        """Add a warning, unless it was added before."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def stop_if_cancelled(self) -> None:
        """Raise Stopped if the caller has cancelled.

        Raises:
            Stopped: the caller has.
            SuiteError: it took too long.
        """
        if self.cancelled is not None and self.cancelled():
            self.was_cancelled = True
            raise Stopped
        running = 0.0 if self._stage_began is None else time.perf_counter() - self._stage_began
        if sum(self.seconds.values()) + running > self.most_seconds:
            raise SuiteError(
                f"A request may take {self.most_seconds:.0f} seconds here, and this one took more: "
                "please choose fewer images or steps, or a smaller image resolution."
            )

    def waiting(self, ahead: int) -> None:
        """Report that other requests have the device, so many before this; stop if cancelled."""
        left = self._seconds_left()
        self._report(Progress("wait", 0, self.steps, self.images_done, left, None, ahead=ahead))
        self.stop_if_cancelled()

    def downloaded(self, now: Download) -> None:
        """Report how far a download is; stop if cancelled."""
        clock = time.monotonic()
        if self._download_start is None or self._download_start[0] != now.title:
            self._download_start = now.title, clock, now.bytes_here
        _, began, before = self._download_start
        left = None
        if clock - began >= DOWNLOAD_TIMED_S and now.bytes_here > before:
            left = (now.bytes_whole - now.bytes_here) * (clock - began) / (now.bytes_here - before)
        self._report(Progress("download", 0, self.steps, 0, left, None, now))
        self.stop_if_cancelled()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report a stage (one of STAGES, or "encode"), and add up its seconds."""
        self._report(Progress(name, 0, self.steps, self.images_done, self._seconds_left(), None))
        started = self._stage_began = time.perf_counter()
        self._last_step = None
        if name == "sample":
            self._seconds_waited += started - self._stage_ended
        try:
            yield
        finally:
            self._stage_began, self._stage_ended = None, time.perf_counter()
            spent = self._stage_ended - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def stepped(self, step: int, batch: int, networks: Networks, clean: Tensor) -> None:
        """Report a batch's finished step (from 1); stop if cancelled.

        `clean` are the predicted clean latents (B, C, h, w), for the preview; with a safety checker
        there is none, because only finished pictures are checked.
        """
        now = time.perf_counter()
        if self._last_step is not None:  # a batch's first step includes warming up
            self._steps_timed += batch
            self._seconds_timed += now - self._last_step
        self._last_step = now
        preview = None
        wanted = (
            self.preview_every and step % self.preview_every == 0 and not networks.checks_safety
        )
        if wanted and self.on_progress is not None:
            preview = self._preview(networks, clean)
        self._batch_steps_done = step * batch
        left = self._seconds_left()
        self._report(Progress("sample", step, self.steps, self.images_done, left, preview))
        self.stop_if_cancelled()

    def _preview(self, networks: Networks, clean: Tensor) -> RGBImage | None:
        try:
            return to_images(torch.nan_to_num(networks.preview(clean[:1])))[0]
        except Exception:
            LOGGER.exception("This run goes on without previews")
            self.preview_every = 0
            return None

    def finished(self, images: int) -> None:
        """Count images that are decoded and scored."""
        self.images_done += images
        self._batch_steps_done = 0

    def _seconds_left(self) -> float | None:
        """Estimate the seconds left: those of the steps, and of waiting, decoding and scoring."""
        if not self._steps_timed:
            return None
        per_step = self._seconds_timed / self._steps_timed
        images_left = self.images - self.images_done
        steps_left = images_left * self.steps - self._batch_steps_done
        other = self._seconds_waited + self.seconds["decode"] + self.seconds["reextract"]
        per_image = other / self.images_done if self.images_done else 0.0
        return steps_left * per_step + images_left * per_image

    def _report(self, progress: Progress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)
