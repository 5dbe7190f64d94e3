"""A request and its result: together enough to make the same images again.

Ranges and defaults are those of ControlNet v1.0's apps (lllyasviel/ControlNet, gradio_*2image.py).

A further setting is one more field here: page, endpoint, checks and PNG chunks follow the records.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from core.condition import ALREADY_A_MAP, Condition, ControlMap, PixelMask, RGBImage, Score
from core.errors import BadInput
from core.guidance import BALANCED, CONTROL_MODES
from core.images import CROP_AND_RESIZE, RESIZE_MODES, center_crop_to_aspect, fit_size
from core.modes import MODES, PREVIEW_STEPS
from core.params import bounded, checked, choice, json_object, settings_of, text, toggle
from core.sampling import steps_taken

LARGEST_SEED = 2**32 - 1
"""The largest seed that both numpy and torch accept."""

PARAMS_ARGUMENT = 13
"""Where the annotator's params stand among an endpoint's arguments."""

LCM_STEPS = 50
"""The steps that consistency models are distilled on; LCM samples at some of them (diffusers)."""

NEGATIVE_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, "
    "fewer digits, cropped, worst quality, low quality"
)


@dataclass(frozen=True, eq=False)
class ControlRequest:
    """One control: its condition, the picture its map is drawn from, and how the map acts.

    Raises:
        BadInput: no picture, a value of the wrong type or out of bounds, a preprocessor that the
            condition lacks, or params of another annotator.
    """

    condition: Condition
    image: RGBImage
    # fmt: off  (a setting takes two lines)
    preprocessor: str = text(
        "",
        "Preprocessor",
        "What draws the control map; by default the usual one.",
        100,
        argument=14,
    )
    params: Any = None
    """The annotator's params record; None for its defaults. Its order is PARAMS_ARGUMENT."""
    detect_resolution: int | None = bounded(
        None,
        128,
        1024,
        1,
        "Detect resolution",
        "Short side the map is drawn at, in pixels.",
        argument=6,
    )
    """None for the annotator's own; no effect if the annotator draws at output size."""
    strength: float = bounded(
        1.0,
        0.0,
        2.0,
        0.01,
        "Control strength",
        "How strongly the map is followed; 0 ignores it.",
        argument=8,
        row=4,
    )
    control_start: float = bounded(
        0.0,
        0.0,
        1.0,
        0.01,
        "Control start",
        "Fraction of the steps before control starts.",
        argument=16,
        row=5,
    )
    control_end: float = bounded(
        1.0,
        0.0,
        1.0,
        0.01,
        "Control end",
        "Fraction of the steps after which control stops.",
        argument=17,
        row=6,
    )
    control_mode: str = choice(
        BALANCED,
        tuple(CONTROL_MODES),
        "Control mode",
        "What matters more. Guess mode is more control for every map.",
        argument=20,
        row=6,
    )
    resize_mode: str = choice(
        CROP_AND_RESIZE,
        RESIZE_MODES,
        "Resize mode",
        "How a picture of another shape than the result's fits: cut, with filled margins, or "
        "stretched.",
        argument=21,
        row=6,
    )
    """The first control's picture sets the result's shape, so that its own differs only because the
    sides are rounded to multiples of 64."""
    pixel_perfect: bool = toggle(
        False,
        "Pixel perfect",
        "Draw the map with one pixel for each of the result, whatever the detect resolution.",
        argument=22,
        row=6,
    )
    """No effect if the annotator draws at output size."""
    edit: Mapping[str, Any] | None = json_object(
        "Edit",
        "Changes to the control map, as vectors in JSON (apps/README.md).",
        argument=40,
    )
    # fmt: on

    def __post_init__(self) -> None:
        if self.image is None:
            raise BadInput("There is no picture yet; please add one.")
        if (
            not isinstance(self.image, np.ndarray)
            or self.image.dtype != np.uint8
            or self.image.ndim != 3
            or self.image.shape[2] != 3
            or 0 in self.image.shape
        ):
            raise BadInput(
                "The picture must be an array of 8-bit RGB pixels, shape (height, width, 3)."
            )
        checked(self)
        annotator = self.condition.annotator
        names = [*(one.name for one in annotator.preprocessors), ALREADY_A_MAP]
        if self.preprocessor not in ("", *names):
            raise BadInput(
                f"{self.condition.title}: the preprocessor must be one of: {', '.join(names)}."
            )
        if self.params is not None and not isinstance(self.params, annotator.params):
            raise BadInput(f"These map settings are not those of {annotator.name}.")
        if self.edit is not None:
            if annotator.editor is None:
                raise BadInput(f"{self.condition.title}: these maps cannot be edited.")
            object.__setattr__(self, "edit", annotator.editor.check(self.edit))
        if self.control_start >= self.control_end:
            raise BadInput(
                f"Control start ({self.control_start:g}) must be less than "
                f"control end ({self.control_end:g})."
            )


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """Everything that decides the images.

    Settings that the mode fixes (preview: steps, sampler, guidance scale) are replaced on creation,
    so the record holds what runs.

    Raises:
        BadInput: no control, a value of the wrong type or out of bounds, or settings that do not
            go together.
    """

    controls: tuple[ControlRequest, ...]
    """At least one; their residuals are summed. The first one's picture sets the aspect ratio."""
    # fmt: off
    prompt: str = text("", "Prompt", "What the images should show.", argument=1)
    added_prompt: str = text(
        "best quality, extremely detailed", "Added prompt", "Appended to the prompt.",
        argument=2, row=1)
    negative_prompt: str = text(
        NEGATIVE_PROMPT, "Negative prompt", "What the images should not show.",
        argument=3, row=1)
    num_samples: int = bounded(
        1, 1, 12, 1, "Images", "How many; each has its own seed.",
        argument=4, row=2)
    image_resolution: int = bounded(
        512, 256, 768, 64, "Image resolution", "Length of the short side, in pixels.",
        argument=5, row=3)
    guess_mode: bool = toggle(
        False, "Guess mode", "Let the map alone decide; works best with guidance 3 to 5.",
        argument=9, row=7)
    steps: int = bounded(
        20, 1, 100, 1, "Steps", "Denoising steps; below 5, images stay noisy.",
        argument=7, row=8)
    guidance_scale: float = bounded(
        9.0, 0.1, 30.0, 0.1, "Guidance scale", "How strictly the prompt is followed; 1 is fastest.",
        argument=10, row=11)
    seed: int = bounded(
        -1, -1, LARGEST_SEED, 1, "Seed", "The same seed gives the same image; -1 draws one.",
        exact=True, argument=11, row=12)
    eta: float = bounded(
        0.0, 0.0, 1.0, 0.01, "eta (DDIM)", "Seeded noise added at every step; 0 is plain DDIM.",
        argument=12, row=13)
    model: str = text(
        "diorama", "Model", "The name of a model on offer.", 1000,
        argument=15, row=1)
    sampler: str = choice(
        "ddim", ("ddim", "lcm"), "Sampler", "lcm is for models and LoRAs made for a few steps.",
        argument=18, row=9)
    mode: str = choice(
        "exact", tuple(MODES), "Mode",
        "Fast skips work in the later steps, for nearly the same image. Preview is a "
        f"{PREVIEW_STEPS}-step LCM draft: it ignores steps, sampler, guidance and the negative "
        "prompt. Light is for little memory: the weights are in 8 bits, for nearly the same image.",
        argument=19, row=10)
    denoising_strength: float = bounded(
        1.0, 0.0, 1.0, 0.01, "Denoising strength",
        "How much of the picture is made anew; 1 keeps only its map, 0.5 much of its colours too.",
        argument=23, row=3)
    mask_blur: int = bounded(
        4, 0, 64, 1, "Mask blur", "With a mask: pixels inside its rim over which old fades to new.",
        argument=24, row=3)
    # fmt: on
    mask: PixelMask | None = None
    """(H, W), of the first control's picture: true where it may change, the rest stays; None
    changes all of it. Any size of the picture's aspect ratio, or the result's."""

    def __post_init__(self) -> None:
        if not self.controls:
            raise BadInput("No control was chosen; please choose at least one.")
        checked(self)
        decided = MODES[self.mode].settings
        for name, value in decided.items():
            object.__setattr__(self, name, value)
        if self.sampler == "lcm" and self.mode != "exact" and "sampler" not in decided:
            raise BadInput(
                "The sampler lcm already takes few steps; please use the mode exact with it."
            )
        if self.sampler == "lcm" and self.steps > LCM_STEPS:
            raise BadInput(
                f"Steps is {self.steps}; the sampler lcm takes at most {LCM_STEPS}, usually 4 to 8."
            )
        if self.changes_picture:
            _check_original(self.controls[0])
        if self.mask is not None:
            _check_mask(self.mask, self.controls[0].image, self.image_resolution)

    @classmethod
    def single(cls, condition: Condition, image: RGBImage, **settings: Any) -> "GenerationRequest":
        """Return a request with one control, from the fields of both records by name."""
        names = {field.name for field in fields(ControlRequest)}
        own = {name: value for name, value in settings.items() if name in names}
        rest = {name: value for name, value in settings.items() if name not in names}
        return cls(controls=(ControlRequest(condition, image, **own),), **rest)

    @property
    def changes_picture(self) -> bool:
        """Whether it starts from the first control's picture, not only from that one's map."""
        return self.denoising_strength < 1 or self.mask is not None

    @property
    def size(self) -> tuple[int, int]:
        """The images' (width, height) in pixels."""
        height, width = self.controls[0].image.shape[:2]
        return fit_size(width, height, self.image_resolution)

    @property
    def steps_taken(self) -> int:
        """How many of the steps run: the last ones, by the denoising strength."""
        return steps_taken(self.steps, self.denoising_strength)

    @property
    def work(self) -> int:
        """What sampling costs: pixels times steps times images."""
        wide, high = self.size
        return wide * high * self.steps_taken * self.num_samples

    @property
    def full_prompt(self) -> str:
        """The prompt and the added prompt, joined by a comma if both are set."""
        return ", ".join(part for part in (self.prompt, self.added_prompt) if part.strip())


def _check_original(control: ControlRequest) -> None:
    """Check that there is a picture to change, rather than a drawing or a map."""
    given = ""
    if control.preprocessor == ALREADY_A_MAP:
        given = "the input is a control map already"
    elif control.condition.input != "photo":
        given = f"{control.condition.title} starts from a drawing"
    if given:
        raise BadInput(
            f"There is no picture to change, because {given}: please set Denoising strength to 1 "
            "and leave out the mask."
        )


def _check_mask(mask: object, picture: RGBImage, resolution: int) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
        raise BadInput("The mask must be an array of true and false, shape (height, width).")
    if not mask.any():
        raise BadInput("The mask is empty: please paint over what may change, or leave it out.")
    (high, wide), (height, width) = mask.shape, picture.shape[:2]
    of_result = (wide, high) == fit_size(width, height, resolution)
    if not of_result and center_crop_to_aspect(mask, picture).shape != mask.shape:
        raise BadInput(
            f"The mask has {wide} x {high} pixels and the picture {width} x {height}: please make "
            "it for this picture, with the same aspect ratio."
        )


SETTINGS_OF_ORIGINAL = ("denoising_strength", "mask_blur")
"""The settings that need a picture to change; apps that start from a drawing do not offer them."""

SETTINGS = settings_of(ControlRequest) | settings_of(GenerationRequest)
"""Every setting of a request with one control, by field name."""
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}


@dataclass(frozen=True, eq=False)
class ControlResult:
    """One control's map and how well it was kept; the tuples hold one entry per finished image."""

    condition: Condition
    control_map: ControlMap
    """The map fed to the ControlNet, at output size."""
    reextracted: tuple[ControlMap, ...]
    scores: tuple[Score, ...]

    @property
    def asks_for_nothing(self) -> bool:
        """Whether the map is empty: then there is no score.

        A comparison would say only whether the result's map is empty too.
        """
        annotator = self.condition.annotator
        return bool(annotator.empty_message) and annotator.is_empty(self.control_map)


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """The finished images with their controls' maps and scores; tuples have one entry per image."""

    images: tuple[RGBImage, ...]
    controls: tuple[ControlResult, ...]
    """In the request's order."""
    seeds: tuple[int, ...]
    """The seed that gives each image on its own."""
    seconds: dict[str, float]
    """Per stage: prepare, map, load, text, sample, decode, reextract."""
    warnings: tuple[str, ...]
    request: GenerationRequest
    """With seed, preprocessors, params and detect resolutions filled in."""
    model: str
    device: str
    dtype: str
    width: int
    height: int
    hashes: dict[str, str]
    cancelled: bool
    alone: bool = True
    """Whether no other request ran meanwhile; otherwise the seconds are longer."""

    @property
    def control_map(self) -> ControlMap:
        """The first control's map."""
        return self.controls[0].control_map

    @property
    def reextracted(self) -> tuple[ControlMap, ...]:
        """The first control's maps, re-extracted from each image."""
        return self.controls[0].reextracted

    @property
    def scores(self) -> tuple[Score, ...]:
        """The first control's scores."""
        return self.controls[0].scores

    @property
    def asks_for_nothing(self) -> bool:
        """Whether all control maps are empty, so that there is no score."""
        return all(one.asks_for_nothing for one in self.controls)

    @property
    def headlines(self) -> tuple[float, ...]:
        """Each image's headline score, 0..100: the mean over its controls.

        Controls whose map is empty do not count, unless all are.
        """
        asking = [one for one in self.controls if not one.asks_for_nothing] or self.controls
        return tuple(
            sum(score.headline for score in scores) / len(scores)
            for scores in zip(*(control.scores for control in asking), strict=True)
        )

    def report(self) -> dict[str, Any]:
        """Return the report as JSON (apps/README.md, "The report").

        With several controls an image's headline is their mean, and "controls" lists each one's. It
        is None where the map is empty.
        """
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "mode": self.request.mode,
            "sampler": self.request.sampler,
            "steps": self.request.steps,
            "guidance_scale": self.request.guidance_scale,
            "width": self.width,
            "height": self.height,
            "seeds": list(self.seeds),
            "scores": [self._scores_of(index) for index in range(len(self.images))],
            "seconds": dict(self.seconds),
            "warnings": list(self.warnings),
        }

    def _scores_of(self, index: int) -> dict[str, Any]:
        each = [
            {
                "condition": control.condition.name,
                "headline": None if control.asks_for_nothing else control.scores[index].headline,
                "metrics": {} if control.asks_for_nothing else dict(control.scores[index].metrics),
            }
            for control in self.controls
        ]
        if len(each) == 1:
            return {"headline": each[0]["headline"], "metrics": each[0]["metrics"]}
        headline = None if self.asks_for_nothing else self.headlines[index]
        return {"headline": headline, "metrics": {}, "controls": each}


@dataclass(frozen=True)
class Download:
    """The progress of downloading weights that a request needs."""

    title: str
    """The model's."""
    bytes_here: int
    bytes_whole: int


@dataclass(frozen=True, eq=False)
class Progress:
    """One progress report of a running generation."""

    stage: str
    """prepare, map, load, text, sample, decode or reextract; download before them, and wait while
    other requests have the device."""
    step: int
    """Finished steps of this image, 0..steps."""
    steps: int
    image_index: int
    seconds_left: float | None
    """Estimate for the whole request; None until there is one."""
    preview: RGBImage | None
    """A small picture of the image so far; None if not asked for."""
    download: Download | None = None
    """In the stage download."""
    ahead: int = 0
    """In the stage wait: how many requests are before this one; 0 if that is not known."""
