"""What all pages of a process share: the models on offer, the pipeline, measured speeds."""

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from apps.web.limits import RequestLimits, Visits
from core.batching import MOST_ADMITTED, Weights
from core.condition import ALREADY_A_MAP, Condition
from core.errors import BadInput, SuiteError, WeightsMissing, Withheld
from core.networks import Networks
from core.pipeline import Pipeline
from core.request import DEFAULTS, Download, GenerationRequest, GenerationResult
from models.catalog.cards import Card
from models.catalog.lora_tags import split, tags_in
from models.store import Store

log = logging.getLogger(__name__)

ESTIMATE_STEPS = 2
"""Of the image that is made at the start to estimate how long one takes."""

SLOW_S = 20.0
"""If that image took longer, it is not made a second time for a better estimate."""

MOST_RUNS = 16
"""Concurrent runs, each with a thread and a picture: up to eight are sampled in one batch while as
many prepare for the next."""


class Suite:
    """What the pages share; thread-safe."""

    def __init__(
        self,
        store: Store,
        model: str = "",
        keep: Path | None = None,
        max_queue: int = MOST_ADMITTED,
        kept_hours: int = 24,
        pipeline: Callable[..., Pipeline] = Pipeline,
        limits: RequestLimits | None = None,
    ) -> None:
        """Read the cards; nothing is loaded yet. At most max_queue requests are admitted.

        `pipeline` makes a Pipeline from its arguments. Without `limits` a request has none.

        Raises:
            BadInput: there is no such model.
        """
        self.store = store
        self.model = store.registry.card(model or store.registry.default_model()).name
        """The model that pages start with."""
        self.keep = keep
        """A folder for copies of all finished images; None keeps none."""
        self.kept_hours = kept_hours
        """After which uploads and results are removed."""
        self.runs = min(MOST_RUNS, max_queue)
        """Concurrent runs over all pages."""
        self.limits = limits
        self.visits = Visits(limits.max_per_visitor if limits else max_queue)
        # One more, for the estimate at the start.
        self.pipeline = pipeline(
            self._load,
            max_queue + 1,
            self._fetch,
            self._weigh,
            store.most_control_bytes,
            limits.max_seconds if limits else math.inf,
        )
        self._cards = {card.name: card for card in store.registry.cards()}
        self._lock = threading.Lock()
        self._state: dict[str, str] = {}
        self._speed: dict[str, str] = {}
        self._estimating = False

    def models(self, condition: Condition) -> list[str]:
        """Return the names of the models with the condition's ControlNet, the suite's own first."""
        having = [name for name, card in self._cards.items() if card.has_control(condition.weights)]
        return [self.model, *(name for name in having if name != self.model)]

    def cards(self) -> list[Card]:
        """Return the cards of all models on offer."""
        return list(self._cards.values())

    def card(self, model: object) -> Card:
        """Return an offered model's card.

        Raises:
            BadInput: the model is not on offer.
        """
        if not isinstance(model, str) or model not in self._cards:
            raise BadInput(f"This model is not on offer here; choose {' or '.join(self._cards)}.")
        return self._cards[model]

    def defaults(self, model: str) -> dict[str, Any]:
        """Return every setting's default: the record's, unless the model's card has its own."""
        return {**DEFAULTS, **self.card(model).defaults, "model": model}

    def weights_note(self, model: str, prompt: str, hashes: Mapping[str, str]) -> str:
        """Return a note if a picture was made with other weights than those here; else "".

        `hashes` are the picture's, of its model with the LoRAs in `prompt`. Only what is here is
        compared.
        """
        if not hashes:
            return ""
        start = "controlnet "
        controls = [part.removeprefix(start) for part in hashes if part.startswith(start)]
        here = self.store.hashes(" ".join([model, *tags_in(prompt)]), *controls)
        other = [part for part, value in here.items() if hashes.get(part, value) != value]
        if not other:
            return ""
        return f"It was made with other weights than those here: {', '.join(other)}."

    def has_preview(self, model: object) -> bool:
        """Return whether a model can run the mode preview.

        Raises:
            BadInput: the model is not on offer.
        """
        try:
            self.store.registry.require_few_step(self.card(model))
        except WeightsMissing:
            return False
        return True

    def require_work(self, *requests: GenerationRequest) -> None:
        """Refuse requests that together take more work than one may.

        Raises:
            BadInput: they do.
        """
        work = sum(one.work for one in requests) / 1e6
        if self.limits and work > self.limits.max_work:
            raise BadInput(
                f"This asks for {math.ceil(work)} million pixels times steps times images, and at "
                f"most {self.limits.max_work} million are made at once here: please choose fewer "
                "images or steps, or a smaller image resolution."
            )

    def usual_preprocessor(self, condition: Condition, model: str) -> str:
        """Return the name of the preprocessor to start with: the model card's, or the first."""
        names = [one.name for one in condition.annotator.preprocessors]
        preferred = self.card(model).preprocessor(condition.weights)
        return preferred if preferred in names else names[0]

    def load_now(self, condition: Condition) -> None:
        """Download and load the first model's weights in this thread; it is not timed."""
        try:
            self._fetch(self.model, condition.weights, watch=lambda _: None)
            self._load(self.model, condition.weights)
        except SuiteError as error:
            log.warning("%s", error)  # the page's header says it too

    def load_in_background(
        self, condition: Condition, when: Callable[[], object] = lambda: None
    ) -> threading.Thread:
        """Download the first model's weights and time it, once `when`, called first, returns."""

        def report(download: Download) -> None:
            self._note(self.model, f"downloading {how_much(download)} …")

        def work() -> None:
            when()
            try:
                self._fetch(self.model, condition.weights, watch=report)
                with suppress(Withheld):  # a picture of few steps may look like anything
                    self._estimate(condition)
            except SuiteError as error:
                log.warning("%s", error)
                self._note(self.model, str(error))  # for the page's header
            except Exception:
                log.exception("Loading %s in the background failed.", self.model)
                self._note(self.model, NOT_LOADED)
            finally:
                self._estimating = False

        self._note(self.model, LOADING)
        self._estimating = True
        thread = threading.Thread(target=work, name="load", daemon=True)
        thread.start()
        return thread

    def _estimate(self, condition: Condition) -> None:
        """Estimate how long an image takes from one with few steps."""
        usual = self.defaults(self.model)
        grey = np.full((usual["image_resolution"],) * 2 + (3,), 127, np.uint8)
        few = {"steps": ESTIMATE_STEPS, "num_samples": 1, "preprocessor": ALREADY_A_MAP}
        request = GenerationRequest.single(condition, grey, **{**usual, **few})
        # Through the pipeline, which loads one model at a time: two would need twice the memory.
        made = self.pipeline.generate(request)
        if sum(made.seconds.values()) < SLOW_S:
            # The first one also compiles, allocates and reads from the disk: ten times its steps
            # would be ten times all that.
            made = self.pipeline.generate(request)
        self.measured(made, usual["steps"])

    def _fetch(
        self,
        model: str,
        *controls: str,
        watch: Callable[[Download], None],
        few_step: bool = False,
    ) -> None:
        self._require(model, controls, few_step)
        try:
            extras = self.store.extras(model)
            self.store.registry.fetch(
                model, *controls, watch=watch, few_step=few_step, extras=extras
            )
        except SuiteError as error:
            self._note(model, str(error), few_step)
            raise

    def _weigh(self, model: str, *controls: str, light: bool = False) -> Weights:
        try:
            return self.store.control_bytes(model, *controls, light=light)
        except SuiteError:
            return {}  # told when they are loaded

    def _load(
        self, model: str, *controls: str, few_step: bool = False, light: bool = False
    ) -> Networks:
        self._require(model, controls, few_step)
        is_version = few_step or light
        self._note(model, LOADING, is_version)
        try:
            networks = self.store.load(model, *controls, few_step=few_step, light=light)
        except SuiteError as error:
            self._note(model, str(error), is_version)
            raise
        except Exception:
            self._note(model, NOT_LOADED, is_version)
            raise
        self._note(split(model)[0], READY)  # with LoRAs it is the same model
        return networks

    def _require(self, model: str, controls: Sequence[str], few_step: bool) -> None:
        """Refuse what a model lacks; that is not a state of the model.

        Raises:
            WeightsMissing: it lacks a control or its LCM-LoRA.
        """
        card = self.store.registry.card(split(model)[0])
        for control in controls:
            self.store.registry.require_control(card, control)
        if few_step:
            self.store.registry.require_few_step(card)

    def _note(self, model: str, state: str, is_version: bool = False) -> None:
        """Note a model's state for the header; a version of it, with LoRAs or of a mode, has none.

        Visitors type the tags of LoRAs, any number of different ones.
        """
        if is_version or model not in self._cards:
            return
        with self._lock:
            if state != LOADING or self._state.get(model) != READY:
                self._state[model] = state

    def measured(self, result: GenerationResult, steps: int | None = None) -> str:
        """Store the seconds per image for the header, scaled to `steps` if given; return them.

        Returns "" if nothing was made, or not all of it.

        A time measured while other requests were running is replaced by one measured alone; the
        image that is made at the start to estimate the time is nobody's request.
        """
        if len(result.images) < result.request.num_samples or result.cancelled:
            return ""
        self._note(result.request.model, READY)  # also where another process has loaded it
        spent = sum(seconds for stage, seconds in result.seconds.items() if stage != "load")
        if steps:
            spent += result.seconds["sample"] * (steps / result.request.steps - 1)
        beside = "" if result.alone or self._estimating else ", while other requests were running"
        took = (
            f"about {duration(spent / len(result.images))} an image "
            f"({steps or result.request.steps} steps, {result.width} × {result.height}"
        )
        whose = "estimated at the start" if steps else "the last run on this server"
        with self._lock:
            model = result.request.model
            provisional = steps or not result.alone
            if not provisional or model not in self._speed:
                self._speed[model] = f"{took}, {whose}{beside})"
        return f"{took}, your last run here{beside})"

    def facts(self, model: str, *controls: str, own_speed: str = "") -> list[str]:
        """Return the header's facts: model, machine, and seconds per image or a missing control.

        `own_speed` is what `measured` returned for the visitor's own last run with the model.
        """
        card = self.card(model)
        try:
            for control in controls:
                self.store.registry.require_control(card, control)
        except SuiteError as error:
            return [card.title, self.machine, str(error)]
        with self._lock:
            state = self._state.get(model, "loads on the first run")
            speed = own_speed or self._speed.get(model, "speed: measured on the first run")
        return [card.title, self.machine, speed if state == READY else state]

    @property
    def machine(self) -> str:
        """What the networks run on, in a few words."""
        return self.store.device_note.partition(" (")[0]

    def hindrance(self) -> str:
        """Return why the first model makes no pictures yet; "" if it does, or loads on demand."""
        with self._lock:
            state = self._state.get(self.model, READY)
            return LOADING if self._estimating else "" if state == READY else state

    def has_finished_loading(self, model: str) -> bool:
        """Return whether the model is loaded and timed, has failed, or was never loaded."""
        with self._lock:
            return self._state.get(model) != LOADING and not self._estimating


LOADING = "loading the weights …"
READY = "ready"
NOT_LOADED = "The model could not be loaded; see the server's log."


def duration(seconds: float) -> str:
    """Return a time in words that no line break parts: "0.8 s", "12 s", "3 min"."""
    number, unit = f"{seconds:.1f}", "s"
    if seconds >= 10:
        number, unit = (f"{seconds:.0f}", "s") if seconds < 100 else (f"{seconds / 60:.0f}", "min")
    return f"{number}\N{NO-BREAK SPACE}{unit}"


def how_much(download: Download) -> str:
    """Return a download's progress in words: "1.2 of 5.0 GB"."""
    here, whole = download.bytes_here, download.bytes_whole
    if whole >= 1e9:
        return f"{here / 1e9:.1f} of {whole / 1e9:.1f} GB"
    return f"{here / 1e6:.0f} of {whole / 1e6:.0f} MB"


def long_duration(seconds: float) -> str:
    """Return a long time in words: "40 seconds", "3 minutes", "2 hours"."""
    for unit, length in (("seconds", 1), ("minutes", 60)):
        if seconds < 90 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.0f} hours"
