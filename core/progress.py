"""One generation's clock, its warnings, and its line to the caller: progress out, cancel in."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.images import to_images
from core.networks import Networks
from core.request import Download, Progress

STAGES = ("prepare", "map", "load", "text", "sample", "decode", "reextract")


DOWNLOAD_TIMED_S = 2.0
"""Seconds of a download before its end is estimated: the first ones are slow."""


class Stopped(Exception):
    """The user asked to stop; no error, and caught by the pipeline."""


@dataclass
class Run:
    """What one generation has done so far."""

    on_progress: Callable[[Progress], None] | None
    cancelled: Callable[[], bool] | None
    preview_every: int
    steps: int
    images: int
    warnings: list[str] = field(default_factory=list)
    images_done: int = 0
    was_cancelled: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _steps_timed: int = 0
    _seconds_timed: float = 0.0
    _last_step: float | None = None
    _steps_of_batch: int = 0
    """Finished steps of the batch under way, summed over its images."""
    _waited: float = 0.0
    """Seconds in which others had the device, between the stages before and after."""
    _stage_ended: float = 0.0
    _download_began: tuple[str, float, int] | None = None
    """Of what, when, and with how many bytes that were here from another time."""

    def stop_if_cancelled(self) -> None:
        """Raise Stopped if the caller asked to stop."""
        if self.cancelled is not None and self.cancelled():
            self.was_cancelled = True
            raise Stopped

    def waiting(self) -> None:
        """Report that others have the device, then stop if that was asked."""
        self._tell(Progress("wait", 0, self.steps, self.images_done, self._left(), None))
        self.stop_if_cancelled()

    def downloaded(self, now: Download) -> None:
        """Report what has come of the weights, then stop if that was asked."""
        clock = time.monotonic()
        if self._download_began is None or self._download_began[0] != now.title:
            self._download_began = now.title, clock, now.bytes_here
        _, began, before = self._download_began
        left = None
        if clock - began >= DOWNLOAD_TIMED_S and now.bytes_here > before:
            left = (now.bytes_whole - now.bytes_here) * (clock - began) / (now.bytes_here - before)
        self._tell(Progress("download", 0, self.steps, 0, left, None, now))
        self.stop_if_cancelled()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and add up its seconds."""
        self._tell(Progress(name, 0, self.steps, self.images_done, self._left(), None))
        started = time.perf_counter()
        self._last_step = None
        if name == "sample":
            self._waited += started - self._stage_ended
        try:
            yield
        finally:
            self._stage_ended = time.perf_counter()
            self.seconds[name] += self._stage_ended - started

    def stepped(self, step: int, batch: int, networks: Networks, clean: Tensor) -> None:
        """Report a finished step of a batch, then stop if that was asked."""
        now = time.perf_counter()
        if self._last_step is not None:  # a batch's first step also pays for warming up
            self._steps_timed += batch
            self._seconds_timed += now - self._last_step
        self._last_step = now
        preview = None
        if self.preview_every and step % self.preview_every == 0 and self.on_progress is not None:
            preview = to_images(torch.nan_to_num(networks.preview(clean[:1])))[0]
        self._steps_of_batch = step * batch
        left = self._left()
        self._tell(Progress("sample", step, self.steps, self.images_done, left, preview))
        self.stop_if_cancelled()

    def finished(self, images: int) -> None:
        """Count images that are decoded and scored."""
        self.images_done += images
        self._steps_of_batch = 0

    def _left(self) -> float | None:
        """Estimate the seconds left: of the steps still to do, and what each image has beside."""
        if not self._steps_timed:
            return None
        per_step = self._seconds_timed / self._steps_timed
        images_left = self.images - self.images_done
        steps_left = images_left * self.steps - self._steps_of_batch
        beside = self._waited + self.seconds["decode"] + self.seconds["reextract"]
        per_image = beside / self.images_done if self.images_done else 0.0
        return steps_left * per_step + images_left * per_image

    def _tell(self, progress: Progress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)
