"""The one pipeline: a condition and a request in, pictures with their scores out.

`Pipeline.generate` is the flow of design.md, top to bottom. It asks nothing about which condition
it serves, and keeps nothing between requests.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from core.condition import (
    ALREADY_A_MAP,
    Annotator,
    Condition,
    ControlMap,
    RGBImage,
    Score,
)
from core.consistency import Extractor
from core.diffusion import Diffusion, batches
from core.errors import BadInput, SuiteError
from core.images import fit_size, resize_map, to_images
from core.networks import Networks
from core.progress import Run, Stopped
from core.request import LARGEST_SEED, GenerationRequest, GenerationResult, Progress

LOGGER = logging.getLogger(__name__)

Load = Callable[[str, str], Networks]
"""(model name or path, control name) -> networks, loaded and on their device."""

LARGEST_DRAWN_SEED = 2**31 - 1
"""A drawn seed also fits v1.0's slider and other tools."""
COARSE_BEYOND = 4
"""A picture enlarged more than this has fewer real edges than its map pretends."""
EMPTY_MAP_GIVEN = "The control map is empty: it has one value everywhere."
DROPPED_WORDS_SHOWN = 300
"""Characters of a cut prompt that are repeated in the warning."""


class Pipeline:
    """Makes pictures, given a way to load networks."""

    def __init__(self, load: Load) -> None:
        """Remember how to load; nothing is loaded yet."""
        self._load = load

    def draw_map(self, condition: Condition, request: GenerationRequest) -> ControlMap:
        """Return the control map that `generate` would use, without touching a model.

        Raises:
            BadInput: the picture, the preprocessor or the params will not do.
        """
        request = settled(request, condition.annotator)
        return _control_map(_extractor(condition.annotator, request), request, _size(request))

    def generate(
        self,
        condition: Condition,
        request: GenerationRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        preview_every: int = 0,
    ) -> GenerationResult:
        """Make the pictures asked for, and measure how well each kept the map.

        on_progress hears of every stage and step; every preview_every-th step (0: never) comes with
        a small preview. Once cancelled() is true, the run ends within a step and the result holds
        the images finished so far, perhaps none. If a later image fails, those before it are
        returned with the reason among the warnings.

        Raises:
            SuiteError: the input will not do, a model cannot be loaded, or the first image failed.
        """
        run = Run(on_progress, cancelled, preview_every, request.steps, request.num_samples)
        with run.stage("prepare"):
            request = settled(request, condition.annotator)
            seeds = image_seeds(request.seed, request.num_samples)
            size = _size(request)
            run.warnings += _size_notes(request, size)

        with run.stage("map"):
            extractor = _extractor(condition.annotator, request)
            control_map = _control_map(extractor, request, size)
            run.warnings += empty_notes(condition.annotator, request, control_map)

        finished: list[_Finished] = []
        networks = None
        try:
            run.stop_if_cancelled()
            with run.stage("load"):
                networks = self._load(request.model, condition.weights)
            run.warnings += _prompt_notes(networks, request)
            diffusion = Diffusion(networks, condition.weights, request, control_map, run)
            for batch in batches(seeds, networks.device):
                pictures = diffusion.pictures(batch)
                networks = diffusion.networks
                with run.stage("reextract"):
                    finished += _scored(extractor, control_map, pictures, batch)
                run.finished(len(batch))
        except Stopped:
            LOGGER.info("Stopped with %d of %d images finished.", len(finished), len(seeds))
        except SuiteError as error:
            if not finished:
                raise
            run.warnings.append(f"Only {len(finished)} of {len(seeds)} images were made: {error}")

        return GenerationResult(
            images=tuple(one.image for one in finished),
            control_map=control_map,
            reextracted=tuple(one.reextracted for one in finished),
            scores=tuple(one.score for one in finished),
            seeds=tuple(one.seed for one in finished),
            seconds={stage: round(seconds, 4) for stage, seconds in run.seconds.items()},
            warnings=tuple(run.warnings),
            request=request,
            condition_name=condition.name,
            model=networks.name if networks else request.model,
            device=str(networks.device) if networks else "",
            dtype=str(networks.dtype).removeprefix("torch.") if networks else "",
            width=size[0],
            height=size[1],
            hashes=dict(networks.hashes) if networks else {},
            cancelled=run.was_cancelled,
        )


# What the request left open


def settled(request: GenerationRequest, annotator: Annotator) -> GenerationRequest:
    """Return the request with seed, preprocessor, params and detect resolution filled in.

    Raises:
        BadInput: no such preprocessor, or the params are another annotator's.
    """
    names = [one.name for one in annotator.preprocessors]
    if request.preprocessor not in ("", ALREADY_A_MAP, *names):
        raise BadInput(f"Preprocessor must be one of: {', '.join([*names, ALREADY_A_MAP])}.")
    params = annotator.params() if request.params is None else request.params
    if not isinstance(params, annotator.params):
        raise BadInput(f"The map settings given are not those of {annotator.name}.")
    detect_resolution = annotator.detect_resolution
    if detect_resolution is not None and request.detect_resolution is not None:
        detect_resolution = request.detect_resolution
    return replace(
        request,
        seed=secrets.randbelow(LARGEST_DRAWN_SEED + 1) if request.seed == -1 else request.seed,
        preprocessor=request.preprocessor or names[0],
        params=params,
        detect_resolution=detect_resolution,
    )


def image_seeds(seed: int, count: int) -> list[int]:
    """Return each image's seed: seed, seed + 1, ..., starting again at 0 behind the largest."""
    return [(seed + index) % (LARGEST_SEED + 1) for index in range(count)]


def _size(request: GenerationRequest) -> tuple[int, int]:
    height, width = request.image.shape[:2]
    return fit_size(width, height, request.image_resolution)


# The control map


def _extractor(annotator: Annotator, request: GenerationRequest) -> Extractor:
    """Return what draws the maps; where the input is a map already, the default way re-extracts."""
    named = (one for one in annotator.preprocessors if one.name == request.preprocessor)
    preprocessor = next(named, annotator.preprocessors[0])
    return Extractor(annotator, preprocessor, request.params, request.detect_resolution)


def _control_map(
    extractor: Extractor, request: GenerationRequest, size: tuple[int, int]
) -> ControlMap:
    if request.preprocessor == ALREADY_A_MAP:
        return resize_map(request.image, size, extractor.annotator.interpolation)
    return extractor.extract(request.image, size)


def empty_notes(
    annotator: Annotator, request: GenerationRequest, control_map: ControlMap
) -> list[str]:
    """Return what to say of a map that is all one value, where that is unusual; at most one."""
    if not annotator.empty_message or control_map.min() != control_map.max():
        return []
    given = request.preprocessor == ALREADY_A_MAP
    return [EMPTY_MAP_GIVEN if given else annotator.empty_message]


# What came out, and what should be said


@dataclass(frozen=True, eq=False)
class _Finished:
    image: RGBImage
    reextracted: ControlMap
    score: Score
    seed: int


def _scored(
    extractor: Extractor, control_map: ControlMap, pictures: Tensor, seeds: Sequence[int]
) -> list[_Finished]:
    finished = []
    for image, seed in zip(to_images(pictures), seeds, strict=True):
        found, score = extractor.reextract_and_score(image, control_map)
        finished.append(_Finished(image, found, score, seed))
    return finished


def _size_notes(request: GenerationRequest, size: tuple[int, int]) -> list[str]:
    notes = []
    made_at = f"{size[0]} x {size[1]}"
    height, width = request.image.shape[:2]
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


def _prompt_notes(networks: Networks, request: GenerationRequest) -> list[str]:
    notes = []
    if not request.full_prompt.strip():
        notes.append("The prompt is empty: the control map alone decides.")
    for label, prompt in (
        ("prompt with the added prompt", request.full_prompt),
        ("negative prompt", request.negative_prompt),
    ):
        _, dropped = networks.fit_prompt(prompt)
        if dropped:
            words = dropped[:DROPPED_WORDS_SHOWN] + "..." * (len(dropped) > DROPPED_WORDS_SHOWN)
            notes.append(f"The {label} is longer than 75 tokens; left out: {words}")
    return notes
