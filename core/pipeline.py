"""The one pipeline: a request in, pictures with their scores out.

`Pipeline.generate` is the whole flow, top to bottom. It is the same for every condition, and keeps
nothing between requests but the queue they wait in.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Protocol

import numpy as np

from core.batching import MOST_ADMITTED, Admission, Batcher, Weights
from core.condition import (
    ALREADY_A_MAP,
    ControlMap,
    Preprocessor,
    RGBImage,
    Score,
    rough_maps,
)
from core.consistency import Extractor, in_doubt
from core.diffusion import ControlTrack, Diffusion, batches, is_guided
from core.errors import SuiteError, Withheld, bug_sentence
from core.guidance import MORE_PROMPT, acts
from core.images import (
    CROP_AND_RESIZE,
    MOST_DRAWN_PIXELS,
    RESIZE_AND_FILL,
    center_crop_to_aspect,
    drawing_size,
    filled,
    fit_size,
    inner_size,
    pixel_perfect_resolution,
    resize_map,
    to_images,
)
from core.memory import oom_as_device_unavailable
from core.modes import MODES
from core.networks import Networks
from core.original import original_of
from core.progress import ProgressReporter, Stopped
from core.prompt_syntax import MOST_TOKENS, unapplied_note
from core.request import (
    LARGEST_SEED,
    SETTINGS,
    ControlRequest,
    ControlResult,
    Download,
    GenerationRequest,
    GenerationResult,
    Progress,
)
from core.shares import OnWait, Shares

LOGGER = logging.getLogger(__name__)


class Load(Protocol):
    """Loads networks onto their device."""

    def __call__(
        self, model: str, /, *controls: str, few_step: bool = False, light: bool = False
    ) -> Networks:
        """Return a model with ControlNets, or its few-step or light version (MODES).

        `model` is a name or a path.
        """


class Fetch(Protocol):
    """Downloads what Load would read."""

    def __call__(
        self,
        model: str,
        /,
        *controls: str,
        watch: Callable[[Download], None],
        few_step: bool = False,
    ) -> None:
        """Call `watch` with the progress now and then; what it raises stops the download."""


class Weigh(Protocol):
    """Tells how many bytes of memory the ControlNets of Load take."""

    def __call__(self, model: str, /, *controls: str, light: bool = False) -> Weights:
        """Return the bytes of each, or of its light version, by what identifies it."""


LARGEST_DRAWN_SEED = 2**31 - 1
"""A drawn seed also fits v1.0's slider and other tools."""
COARSE_BEYOND = 4
"""A picture enlarged more than this gives a coarse map."""
CROPPED = (
    "{title}: its picture was centre-cropped, because its aspect ratio is not the first control's."
)
DRAWN_SMALLER = (
    "{title}: the map was drawn at {width} x {height}, because a strip at detect resolution "
    "{resolution} takes too much memory."
)
LARGEST_READ = 1024
"""Longer side in pixels at which a ready map is read; joints and lines are seen in smaller ones."""
GUESSED = (
    "{title}: guess mode is on, so its control mode is more control; switch guess mode off to have "
    "more prompt."
)
EXACT_COLOURS = ("nearest", "lines")
"""The interpolations of maps whose colours are only those that were drawn."""
LCM_GUIDANCE = 2.0
"""LCM-LoRA's authors advise 1 to 2 (huggingface.co/latent-consistency/lcm-lora-sdv1-5)."""
DISTILLED = "This model is a distilled LCM: please choose the sampler lcm, with 4 to 8 steps."
EMPTY_MAP_GIVEN = "The control map is empty: it shows nothing to follow."
UNLIKE = (
    "The preprocessor {name} was trained on other kinds of pictures than this one, and its map may "
    "be wrong: choose another preprocessor."
)
RESULTS_UNLIKE = (
    "The preprocessor {name}, which draws the maps of the results, was trained on other kinds of "
    "pictures: do not rely on the score."
)
MOST_DOUBT_OF_RESULTS = 1.5
"""Generated images are less clear than scenes: of Diorama's some lie at 1.25."""
UNCHANGED = (
    "At denoising strength 0 no step is taken: the picture only goes through the autoencoder."
)
WITHHELD = (
    "The safety checker withheld {which} of {count}, as perhaps unsafe: please try another prompt "
    "or seed."
)
ALL_WITHHELD = (
    "The safety checker withheld all that was made, as perhaps unsafe: please try another prompt "
    "or seed."
)
DROPPED_WORDS_SHOWN = 300
"""Characters of a cut prompt shown in the warning."""


@dataclass(frozen=True, eq=False)
class _Finished:
    image: RGBImage
    reextracted: tuple[ControlMap, ...]
    """One for each control, as the scores."""
    scores: tuple[Score, ...]
    seed: int


class Pipeline:
    """Makes pictures with the networks that `load` returns."""

    def __init__(
        self,
        load: Load,
        most_requests: int = MOST_ADMITTED,
        fetch: Fetch | None = None,
        weigh: Weigh | None = None,
        most_weights: float = math.inf,
        most_seconds: float = math.inf,
    ) -> None:
        """Load nothing yet. Without `fetch`, loading downloads too.

        generate may be called from many threads; more than `most_requests` at once are refused.
        Requests wait while the ControlNets in use, by `weigh`, leave too little of `most_weights`
        bytes for theirs. One that has been at work for most_seconds is ended.
        """
        self._load = load
        self._fetch = fetch
        self._weigh: Weigh = weigh or (lambda *_, **__: {})
        self._batcher = Batcher(most_requests, most_weights)
        self._most_seconds = most_seconds
        self._drawing = Shares(MOST_DRAWN_PIXELS)
        """Of the pixels that maps are drawn from at the same time."""

    def fetch(
        self,
        request: GenerationRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        map_only: bool = False,
    ) -> bool:
        """Download the weights that `generate` would need; return False if cancelled.

        With `map_only`, only those that `draw_map` would. It needs no device, so call it before
        waiting for one.

        Raises:
            SuiteError: they cannot be downloaded.
        """
        reporter = ProgressReporter(
            on_progress, cancelled, 0, request.steps_taken, request.num_samples
        )
        names = [control.condition.weights for control in request.controls]
        try:
            reporter.stop_if_cancelled()
            for control in request.controls:
                _fetch_preprocessor(_preprocessor(control), reporter)
            if self._fetch and not map_only:
                self._fetch(
                    request.model, *names, watch=reporter.downloaded, few_step=_few_step(request)
                )
        except Stopped:
            return False
        return True

    def draw_map(
        self, request: GenerationRequest, on_wait: OnWait = lambda _: None, index: int = 0
    ) -> ControlMap:
        """Return a control's map as `generate` would use it, without touching a model.

        `index` is the control's in the request. on_wait is called now and then while others' maps
        are drawn.

        Raises:
            BadInput: the picture cannot be fitted or its map not drawn.
            DeviceUnavailable: memory ran out.
            Exception: what on_wait raises.
        """
        control = _resolved_control(request.controls[index], request)
        control = replace(control, image=_cropped(control, request))
        with self._drawing.taken(_drawn_pixels(control, request), on_wait):
            return _control_map(_extractor(control), control, request)

    def begin_edit(self, request: GenerationRequest) -> dict[str, Any]:
        """Return the edit that stands for the first control's map, detected or given.

        It is {} if there is none: the editor draws over the map, or cannot read the given one.

        Raises:
            BadInput: the picture cannot be fitted or looked at.
            DeviceUnavailable: memory ran out.
        """
        control = _resolved_control(request.controls[0], request)
        pixels = _drawn_pixels(control, request)
        with self._drawing.taken(pixels), oom_as_device_unavailable():
            if control.preprocessor == ALREADY_A_MAP:
                return _read_map(_extractor(control), control)
            return _extractor(control).begin_edit(
                control.image, request.size, request.image_resolution
            )

    def generate(
        self,
        request: GenerationRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        preview_every: int = 0,
        on_images: Callable[[GenerationResult], None] | None = None,
    ) -> GenerationResult:
        """Make the request's pictures, and measure how well each followed its control maps.

        on_progress is called at every stage and step; every preview_every-th step (0: never) has a
        small preview. on_images gets the result so far whenever images are done. An image that the
        model's safety checker holds to be unsafe is left out, with a warning. Once cancelled() is
        true, generation ends within a step, and the result holds the images finished so far,
        perhaps none, and no controls if their maps still waited for others' to be drawn. If a later
        image fails, however it does, those before it are returned with the reason among the
        warnings.

        Raises:
            SuiteError: bad input, a model that cannot be loaded, or the first image failed.
            Withheld: every image is held to be unsafe.
            Busy: too many requests are waiting.
        """
        reporter = ProgressReporter(
            on_progress,
            cancelled,
            preview_every,
            request.steps_taken,
            request.num_samples,
            self._most_seconds,
        )
        with reporter.stage("prepare"):
            request = resolved(request)
            seeds = image_seeds(request.seed, request.num_samples)
            size = request.size
            reporter.warnings += _size_notes(request, size)
            reporter.warnings += _window_notes(request)
            reporter.warnings += _control_mode_notes(request)
            original = original_of(request, size)
            if not request.steps_taken:
                reporter.warnings.append(UNCHANGED)

        extractors: list[Extractor] = []
        tracks: list[ControlTrack] = []
        finished: list[_Finished] = []
        withheld: list[int] = []
        networks, admission = None, Admission()

        def so_far() -> GenerationResult:
            return GenerationResult(
                images=tuple(one.image for one in finished),
                controls=tuple(
                    ControlResult(
                        track.control.condition,
                        track.control_map,
                        reextracted=tuple(made.reextracted[index] for made in finished),
                        scores=tuple(made.scores[index] for made in finished),
                    )
                    for index, track in enumerate(tracks)
                ),
                seeds=tuple(one.seed for one in finished),
                seconds={stage: round(seconds, 4) for stage, seconds in reporter.seconds.items()},
                warnings=(*reporter.warnings, *_withheld_notes(withheld, seeds)),
                request=request,
                model=networks.name if networks else request.model,
                device=str(networks.device) if networks else "",
                dtype=str(networks.dtype).removeprefix("torch.") if networks else "",
                width=size[0],
                height=size[1],
                hashes=_hashes(networks, request) if networks else {},
                cancelled=reporter.was_cancelled,
                alone=admission.alone,
            )

        try:
            with reporter.stage("map"), oom_as_device_unavailable():
                extractors = [_extractor(control) for control in request.controls]
                tracks = [
                    self._track(control, extractor, request, reporter)
                    for control, extractor in zip(request.controls, extractors, strict=True)
                ]
            reporter.stop_if_cancelled()
            names = [control.condition.weights for control in request.controls]
            mode = MODES[request.mode]
            weights = self._weigh(request.model, *names, light=mode.light)
            with (
                self._batcher.admitted(request.model, reporter.waiting, weights) as admission,
                oom_as_device_unavailable(),
            ):
                with reporter.stage("load"):
                    networks = self._load(
                        request.model, *names, few_step=mode.few_step, light=mode.light
                    )
                reporter.warnings += _prompt_notes(networks, request)
                reporter.warnings += _sampler_notes(networks, request)
                diffusion = Diffusion(networks, request, tracks, reporter, self._batcher, original)
                for batch in batches(seeds, networks, size):
                    pictures = diffusion.pictures(batch)
                    networks = diffusion.networks
                    with reporter.stage("reextract"), rough_maps(_few_step(request)):
                        images = to_images(pictures)
                        if original is not None:
                            images = [original.kept_in(image) for image in images]
                        unsafe = self._unsafe(networks, images)
                        withheld += compress(batch, unsafe)
                        safe = [not one for one in unsafe]
                        images, kept = list(compress(images, safe)), list(compress(batch, safe))
                        finished += self._scored(extractors, tracks, images, kept, reporter)
                    reporter.finished(len(batch))
                    if kept:
                        _tell(on_images, so_far)
            if withheld and not finished:
                raise Withheld(ALL_WITHHELD)
            with self._drawing.taken(size[0] * size[1]), rough_maps(_few_step(request)):
                reporter.warnings += _result_notes(extractors, request, finished)
        except Stopped:
            LOGGER.info("Stopped with %d of %d images finished.", len(finished), len(seeds))
        except Exception as error:
            if not finished:
                raise
            reason = str(error) if isinstance(error, SuiteError) else bug_sentence(error)
            reporter.warn(f"Only {len(finished)} of {len(seeds)} images were made: {reason}")

        return so_far()

    def _track(
        self,
        control: ControlRequest,
        extractor: Extractor,
        request: GenerationRequest,
        reporter: ProgressReporter,
    ) -> ControlTrack:
        """Return a control with its map; warn of what is unusual about them."""
        image = _cropped(control, request)
        if image.shape != control.image.shape:
            reporter.warnings.append(CROPPED.format(title=control.condition.title))
        reporter.warnings += _strip_notes(control)
        with self._drawing.taken(_drawn_pixels(control, request), reporter.waiting):
            control_map = _control_map(extractor, replace(control, image=image), request)
            notes = map_notes(control, control_map)
        of = f"{control.condition.title}: " if len(request.controls) > 1 else ""
        reporter.warnings += [f"{of}{note}" for note in notes]
        return ControlTrack(control, control_map)

    def _unsafe(self, networks: Networks, images: Sequence[RGBImage]) -> list[bool]:
        """Return which images the model's safety checker holds to be unsafe."""
        if not networks.checks_safety:
            return [False] * len(images)
        with self._batcher.decoding:  # one request at a time, as decoding: it takes memory too
            return networks.unsafe(images)

    def _scored(
        self,
        extractors: Sequence[Extractor],
        tracks: Sequence[ControlTrack],
        images: Sequence[RGBImage],
        seeds: Sequence[int],
        reporter: ProgressReporter,
    ) -> Iterator[_Finished]:
        """Yield each image when it is measured, so that what fails later does not lose it."""
        for image, seed in zip(images, seeds, strict=True):
            measured = []
            for extractor, track in zip(extractors, tracks, strict=True):
                pixels = max(image.shape[0] * image.shape[1], extractor.pixels(image))
                with self._drawing.taken(pixels, lambda _: reporter.stop_if_cancelled()):
                    measured.append(extractor.reextract_and_score(image, track.control_map))
            found, scores = zip(*measured, strict=True)
            yield _Finished(image, found, scores, seed)
            if seed != seeds[-1]:  # of many controls and a large map it takes seconds
                reporter.stop_if_cancelled()


def _tell(
    on_images: Callable[[GenerationResult], None] | None, so_far: Callable[[], GenerationResult]
) -> None:
    if on_images:
        on_images(so_far())


# What the request left open


def resolved(request: GenerationRequest) -> GenerationRequest:
    """Return the request with its seed drawn and every control's open settings filled in."""
    return replace(
        request,
        seed=draw_seed() if request.seed == -1 else request.seed,
        controls=tuple(_resolved_control(control, request) for control in request.controls),
    )


def draw_seed() -> int:
    """Return a random seed."""
    return secrets.randbelow(LARGEST_DRAWN_SEED + 1)


def _resolved_control(control: ControlRequest, request: GenerationRequest) -> ControlRequest:
    """Return it with preprocessor, params and detect resolution filled in."""
    annotator = control.condition.annotator
    detect_resolution = annotator.detect_resolution
    if detect_resolution is not None:
        own = _preprocessor(control).detect_resolution
        detect_resolution = control.detect_resolution or own or detect_resolution
        if control.pixel_perfect:
            height, width = _cropped(control, request).shape[:2]
            perfect = pixel_perfect_resolution(width, height, request.size, control.resize_mode)
            # Beyond its bounds a map would take too much memory, or be too small for a network.
            detect_resolution, _ = SETTINGS["detect_resolution"].clamp(perfect)
    return replace(
        control,
        preprocessor=control.preprocessor or annotator.preprocessors[0].name,
        params=annotator.params() if control.params is None else control.params,
        detect_resolution=detect_resolution,
    )


def image_seeds(seed: int, count: int) -> list[int]:
    """Return each image's seed: seed, seed + 1, ..., and 0 after the largest."""
    return [(seed + index) % (LARGEST_SEED + 1) for index in range(count)]


def _few_step(request: GenerationRequest) -> bool:
    return MODES[request.mode].few_step


# The control map


def _cropped(control: ControlRequest, request: GenerationRequest) -> RGBImage:
    """Return the picture that a control's map shows: as its resize mode says, cut to shape."""
    if control.resize_mode != CROP_AND_RESIZE:
        return control.image
    return center_crop_to_aspect(control.image, request.controls[0].image)


def _extractor(control: ControlRequest) -> Extractor:
    """Return what draws the maps; for an input that is a map already, the default preprocessor."""
    return Extractor(
        control.condition.annotator,
        _preprocessor(control),
        control.params,
        control.detect_resolution,
        control.pixel_perfect,
    )


def _preprocessor(control: ControlRequest) -> Preprocessor:
    known = control.condition.annotator.preprocessors
    return next((one for one in known if one.name == control.preprocessor), known[0])


def _fetch_preprocessor(preprocessor: Preprocessor, reporter: ProgressReporter) -> None:
    """Download what a preprocessor needs, and report the progress."""
    if preprocessor.fetch:
        preprocessor.fetch(
            watch=lambda here, whole: reporter.downloaded(Download(preprocessor.name, here, whole))
        )


def _drawn_pixels(control: ControlRequest, request: GenerationRequest) -> int:
    """Return how many pixels the drawing of a control's map works on."""
    size = request.size
    return max(size[0] * size[1], _extractor(control).pixels(control.image))


def _read_map(extractor: Extractor, control: ControlRequest) -> dict[str, Any]:
    """Return the edit that stands for a ready map; {} if nothing can be read."""
    editor = extractor.annotator.editor
    if not editor or not editor.read:
        return {}
    height, width = control.image.shape[:2]
    side = min(max(height, width), LARGEST_READ)
    return editor.read(_map_at(inner_size(width, height, (side, side)), extractor, control))


def _control_map(
    extractor: Extractor, control: ControlRequest, request: GenerationRequest
) -> ControlMap:
    editor, size = extractor.annotator.editor, request.size
    if control.edit is None or editor is None or editor.begin:
        return _detected_map(extractor, control, request)
    if editor.is_whole(control.edit):
        return editor.draw(control.edit, np.zeros((size[1], size[0], 3), np.uint8))
    return editor.draw(control.edit, _detected_map(extractor, control, request))


def _detected_map(
    extractor: Extractor, control: ControlRequest, request: GenerationRequest
) -> ControlMap:
    size = request.size
    if control.resize_mode != RESIZE_AND_FILL:
        return _map_at(size, extractor, control, request.image_resolution)
    height, width = control.image.shape[:2]
    inner = _map_at(inner_size(width, height, size), extractor, control)
    return filled(inner, size, exact=extractor.annotator.interpolation in EXACT_COLOURS)


def _map_at(
    size: tuple[int, int],
    extractor: Extractor,
    control: ControlRequest,
    resolution: int | None = None,
) -> ControlMap:
    """Draw a control's map, or take the ready one, at (width, height); as Extractor.extract.

    An edit that stands for what is found in the picture is drawn instead of it.
    """
    editor = extractor.annotator.editor
    if editor and editor.begin and control.edit is not None:
        return editor.draw(control.edit, np.zeros((size[1], size[0], 3), np.uint8))
    if control.preprocessor == ALREADY_A_MAP:
        annotator = extractor.annotator
        if annotator.fit_map:
            return annotator.fit_map(control.image, size)
        return resize_map(control.image, size, annotator.interpolation)
    with oom_as_device_unavailable():
        return extractor.extract(control.image, size, resolution)


def _strip_notes(control: ControlRequest) -> list[str]:
    """Return a note if a long picture's map is drawn smaller than was asked for."""
    height, width = control.image.shape[:2]
    resolution = control.detect_resolution
    if resolution is None or control.preprocessor == ALREADY_A_MAP:
        return []
    drawn_at = drawing_size(width, height, resolution)
    if drawn_at == fit_size(width, height, resolution):
        return []
    title = control.condition.title
    wide, high = drawn_at
    return [DRAWN_SMALLER.format(title=title, width=wide, height=high, resolution=resolution)]


def map_notes(control: ControlRequest, control_map: ControlMap) -> list[str]:
    """Return a warning if the picture or the map is unusual for its kind; at most one."""
    annotator, preprocessor = control.condition.annotator, _preprocessor(control)
    given = control.preprocessor == ALREADY_A_MAP or control.edit is not None
    if not given and in_doubt(preprocessor, control.image):
        told = UNLIKE.format(name=preprocessor.name)
        return [f"{annotator.empty_message} {told}" if annotator.empty_in_doubt else told]
    if annotator.empty_message and annotator.is_empty(control_map):
        return [EMPTY_MAP_GIVEN if given else annotator.empty_message]
    return [note] if (note := annotator.map_warning(control_map)) else []


# Results and warnings


def _result_notes(
    extractors: Sequence[Extractor], request: GenerationRequest, finished: Sequence[_Finished]
) -> list[str]:
    """Return a warning for each preprocessor that knows none of the results, nor saw the input."""
    return [
        RESULTS_UNLIKE.format(name=extractor.reextracting.name)
        for extractor, control in zip(extractors, request.controls, strict=True)
        if (control.preprocessor == ALREADY_A_MAP or extractor.annotator.reextract)
        and all(
            in_doubt(extractor.reextracting, one.image, MOST_DOUBT_OF_RESULTS) for one in finished
        )
    ]


def _withheld_notes(withheld: Sequence[int], seeds: Sequence[int]) -> list[str]:
    """Return the warning that names the images of these seeds; none without any."""
    if not withheld:
        return []
    *others, last = (str(seeds.index(seed) + 1) for seed in withheld)
    which = f"images {', '.join(others)} and {last}" if others else f"image {last}"
    return [WITHHELD.format(which=which, count=len(seeds))]


def _size_notes(request: GenerationRequest, size: tuple[int, int]) -> list[str]:
    notes = []
    made_at = f"{size[0]} x {size[1]}"
    height, width = request.controls[0].image.shape[:2]
    if min(size) != request.image_resolution:
        notes.append(
            f"Image resolution {request.image_resolution} is not a multiple of 64, so the picture "
            f"is made at {made_at}."
        )
    if min(size) > COARSE_BEYOND * min(width, height):
        notes.append(
            f"The picture has only {width} x {height} pixels and was enlarged to {made_at}; a "
            "larger one gives a finer map."
        )
    return notes


def _sampler_notes(networks: Networks, request: GenerationRequest) -> list[str]:
    if networks.takes_guidance_scale:
        return [] if request.sampler == "lcm" else [DISTILLED]
    if request.sampler != "lcm" or request.guidance_scale <= LCM_GUIDANCE:
        return []
    return [
        f"The sampler lcm is made for a guidance scale of 1 to {LCM_GUIDANCE:g}: at "
        f"{request.guidance_scale:g} colours and contrasts burn out."
    ]


def _window_notes(request: GenerationRequest) -> list[str]:
    """Return a warning for each control whose window holds no whole step."""
    many, steps = len(request.controls) > 1, request.steps_taken
    return [
        f"{f'{control.condition.title}: ' * many}The map has no effect: none of the "
        f"{steps} steps lies wholly between control start {control.control_start:g} and "
        f"control end {control.control_end:g}; widen them or take more steps."
        for control in request.controls
        if control.strength
        and steps
        and not acts(steps, control.control_start, control.control_end)
    ]


def _control_mode_notes(request: GenerationRequest) -> list[str]:
    if not request.guess_mode:
        return []
    return [
        GUESSED.format(title=control.condition.title)
        for control in request.controls
        if control.control_mode == MORE_PROMPT
    ]


def _hashes(networks: Networks, request: GenerationRequest) -> dict[str, str]:
    prompts = [request.full_prompt, request.negative_prompt]
    return networks.hashes | networks.prompt_hashes(prompts)


def _prompt_notes(networks: Networks, request: GenerationRequest) -> list[str]:
    notes: list[str] = []
    prompts: list[str] = []
    if not request.full_prompt.strip():
        notes.append("The prompt is empty: the control map alone decides.")
    for label, prompt in (
        (
            "prompt with the added prompt" if request.added_prompt.strip() else "prompt",
            request.full_prompt,
        ),
        ("negative prompt", request.negative_prompt if is_guided(networks, request) else ""),
    ):
        _, dropped = networks.fit_prompt(prompt)
        if dropped:
            words = dropped[:DROPPED_WORDS_SHOWN] + "..." * (len(dropped) > DROPPED_WORDS_SHOWN)
            notes.append(f"The {label} is longer than {MOST_TOKENS} tokens; left out: {words}")
        prompts.append(prompt)
    return [*notes, *filter(None, [unapplied_note(*prompts)])]
