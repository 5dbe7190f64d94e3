"""The papers' ablations in miniature: small ControlNets for edges, trained beside Diorama's base.

    python -m training.study sudden-convergence

Each run trains from nothing on rendered scenes of 128 px, by `training.train_control` as on a
user's own pictures, and is scored on held-out scenes as in the apps. Written are NAME.png, the
scores against the steps, and NAME.md, a table. A study that was stopped goes on where it was.
The last two train nothing.

sudden-convergence  the diffusion loss alone, and with ControlNet++'s reward
zero-convolution    zero convolutions, Gaussian ones, and ControlNet-lite, in the four settings of
                    the prompt (Zhang et al. 2023, "Adding Conditional Control", section 4.3)
dataset-size        100, 1,000 and 10,000 scenes
reward-threshold    the reward at timesteps up to 200, as in ControlNet++, and at all
t2i-adapter         a ControlNet, and a T2I-Adapter (Mou et al. 2023), with the time of a step
guidance            guidance scales from 1 to 7.5, with Diorama's ControlNet for edges: the control
                    score, and the share of named things that have their named colour
gradient-memory     what a reward's gradients keep in memory, by the steps of sampling that they go
                    back through (`training.gradient_memory`)
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ControlNetModel, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from PIL import Image
from torch import Tensor, nn

from annotators import find_annotator
from core.condition import Annotator, Condition
from core.pipeline import Pipeline
from core.request import GenerationRequest
from models.store import Store
from training.adapter import make_adapter
from training.base import Base
from training.diorama.colours import colour_hits
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene
from training.examples import FolderExamples, default_extractor, with_maps
from training.gradient_memory import kept_for_reward
from training.log import read_log
from training.progress import progress_line
from training.train_control import SMALL_MAP_ENCODER, Make, Training, make_control, trained
from training.validation import Curves, draw_curves, read_curve

CONDITION, SIZE = "canny", 128
SCENES, HELD_OUT_SCENES = 1000, 24
RECIPE = ("--size", f"{SIZE}", "--batch", "12", "--learning-rate", "1e-3", "--sheet-every", "0")
REWARD = ("--reward", "edges")
STEPS, VALIDATIONS = 300, 6
INSUFFICIENT = "a picture"
MODEL = "diorama"
REWARDED_SIZE, SAMPLED_STEPS = 256, (1, 2, 5, 10, 20)
GUIDANCE_SCALES, GUIDANCE_SCENES = (1.0, 2.0, 3.0, 5.0, 7.5), 128  # scenes as in the benchmark


class ControlNetLite(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The paper's ControlNet-lite: a single convolution in place of each copied block.

    It takes and returns what a diffusers ControlNetModel does; timestep and text are not looked at.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, in_channels: int, widths: Sequence[int], layers_per_block: int) -> None:
        """`widths` are the UNet's channels by level, of `layers_per_block` outputs each."""
        super().__init__()
        first = widths[0]
        self.embedding = ControlNetConditioningEmbedding(
            first, block_out_channels=SMALL_MAP_ENCODER
        )
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.blocks, before = nn.ModuleList(), first
        for level, width in enumerate(widths):
            for _ in range(layers_per_block):
                self.blocks.append(nn.Conv2d(before, width, 3, padding=1))
                before = width
            if level < len(widths) - 1:
                self.blocks.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.middle = nn.Conv2d(before, before, 3, padding=1)
        outputs = [self.conv_in, *self.blocks, self.middle]
        widths = [one.out_channels for one in outputs if isinstance(one, nn.Conv2d)]
        self.zeros = nn.ModuleList(nn.Conv2d(one, one, 1) for one in widths)
        for one in self.zeros.parameters():
            nn.init.zeros_(one)

    def forward(
        self, sample: Tensor, _timestep: Tensor, _text: Tensor, maps: Tensor, return_dict: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Return the residuals of the UNet's encoder and of its middle block."""
        assert not return_dict
        outputs = [self.conv_in(sample) + self.embedding(maps)]
        for block in self.blocks:
            outputs.append(block(nn.functional.silu(outputs[-1])))
        outputs.append(self.middle(nn.functional.silu(outputs[-1])))
        *down, middle = (zero(one) for zero, one in zip(self.zeros, outputs, strict=True))
        return down, middle


def make_lite(_: Base, unet: Any, __: Path | None) -> ControlNetLite:
    """Return a ControlNet-lite for a UNet, as `make_control` does a ControlNet."""
    config = unet.config
    widths = tuple(config.block_out_channels)
    made: ControlNetLite = ControlNetLite(config.in_channels, widths, config.layers_per_block)
    return made


def make_gaussian(base: Base, unet: Any, start: Path | None) -> ControlNetModel:
    """Return a ControlNet whose zero convolutions begin as ordinary ones, with Gaussian weights."""
    control: ControlNetModel = make_control(base, unet, start)
    ends = [*control.controlnet_down_blocks, control.controlnet_mid_block]
    for one in [*ends, control.controlnet_cond_embedding.conv_out]:
        nn.init.kaiming_normal_(one.weight, nonlinearity="linear")
    return control


@dataclass(frozen=True)
class Run:
    """One line of a study."""

    options: tuple[str, ...] = ()
    """More arguments of `training.train_control`."""
    make: Make = make_control
    scenes: int = SCENES


@dataclass(frozen=True)
class Found:
    """What a study found: its table and its figure."""

    head: list[str]
    lines: list[list[str]]
    """Of each the first is its name."""
    curves: Curves
    axes: Mapping[str, Any] = field(default_factory=dict)
    """Of `draw_curves`."""


@dataclass(frozen=True)
class Study:
    """What is trained, by the names in its table."""

    runs: dict[str, Run] = field(default_factory=dict)
    has_prompts: bool = False
    """Whether each of the paper's settings of the prompt is scored."""
    is_timed: bool = False
    """Whether the time of a step counts. Such runs are made anew, one after another: those of other
    studies may have run on a busier machine."""

    def __call__(self, out: Path, steps: int) -> Found:
        """Train and score each run in a folder of `out`."""
        annotator = find_annotator(CONDITION)
        held_out = scene_folder(out / "held-out", HELD_OUT, HELD_OUT_SCENES)
        curves, lines = {}, []
        for title, run in self.runs.items():
            folder = scene_folder(out / f"scenes-{run.scenes}", 0, run.scenes)
            # A run that two studies have is made once.
            named = ["timed"] * self.is_timed
            named += [run.make.__name__, f"{run.scenes}", f"{steps}", *run.options]
            place = out / "-".join(named)
            each = max(steps // VALIDATIONS, 1)
            arguments = [
                *("--condition", CONDITION, "--folder", f"{folder}", "--validation", f"{held_out}"),
                *("--steps", f"{steps}", "--validate-every", f"{each}", "--out", f"{place}"),
                *RECIPE,
                *run.options,
            ]
            start = time.monotonic()
            training = trained(arguments, run.make)
            print(f"{title}: {time.monotonic() - start:.0f} s", flush=True)
            # A run gone on with validates again.
            curves[title] = list(dict(read_curve(place)).items())
            cells = [title, f"{sum(p.numel() for p in training.control.parameters()) / 1e6:.2f}"]
            cells += [milliseconds(place)] if self.is_timed else []
            cells += [f"{score:.0f}" for _, score in curves[title]]
            if self.has_prompts:
                data = FolderExamples(with_maps(held_out, annotator, SIZE, place), annotator, SIZE)
                found = prompt_scores(training, data, annotator)
                cells += [f"{score:.0f}" for score in found.values()]
            lines.append(cells)
        head = ["", "weights, M", *["ms a step"] * self.is_timed]
        head += [f"step {step:,}" for step, _ in curves[title]]
        head += [f"prompt: {setting}" for setting in prompts([""])] if self.has_prompts else []
        return Found(head, lines, curves)


def milliseconds(out: Path) -> str:
    """Return the median time of a step in a run's log; "–" if it is too short to have one.

    That is from one line to the next, if no validation is between: the maps of the batches, both
    passes and the optimizer.
    """
    times = [
        (then["seconds"] - now["seconds"]) / (then["step"] - now["step"])
        for now, then in pairwise(read_log(out))
        if "seconds" in now and "seconds" in then
    ]
    return f"{1000 * median(times):.0f}" if times else "–"


def guidance(_out: Path, _steps: int) -> Found:
    """Draw held-out scenes with Diorama's ControlNet at each guidance scale, as the apps do."""
    store = Store()
    pipeline, defaults = Pipeline(store.load), store.registry.card(MODEL).defaults
    condition = Condition(CONDITION, CONDITION, "", find_annotator(CONDITION), CONDITION)
    scores: dict[float, list[float]] = {scale: [] for scale in GUIDANCE_SCALES}
    hits: dict[float, list[bool]] = {scale: [] for scale in GUIDANCE_SCALES}
    start = time.monotonic()
    for k in range(GUIDANCE_SCENES):
        scene = make_scene(HELD_OUT + k)
        truth = render([scene], int(defaults["image_resolution"]))
        for scale in GUIDANCE_SCALES:
            request = GenerationRequest.single(
                condition,
                truth.image[0].numpy(),
                prompt=scene.caption,
                seed=k,
                model=MODEL,
                **{**defaults, "guidance_scale": scale},
            )
            made = pipeline.generate(request)
            scores[scale].append(made.scores[0].headline)
            hits[scale] += colour_hits(scene, truth, 0, made.images[0])
        print(progress_line(k + 1, GUIDANCE_SCENES, start, "scenes"), end="\r", flush=True)
    print()
    curves = {
        "control score": [(scale, float(np.mean(scores[scale]))) for scale in GUIDANCE_SCALES],
        "named colours, %": [(scale, 100 * float(np.mean(hits[scale]))) for scale in hits],
    }
    head = ["Guidance scale", *(f"{scale:g}" for scale in GUIDANCE_SCALES)]
    lines = [[title, *(f"{value:.0f}" for _, value in curve)] for title, curve in curves.items()]
    axes = {"across": "guidance scale", "up": "of 100", "marks": GUIDANCE_SCALES}
    return Found(head, lines, curves, axes)


def gradient_memory(_out: Path, _steps: int) -> Found:
    """Count what rewarding a picture of Diorama keeps in memory, by the steps of its sampling."""
    curve = [(float(steps), kept_for_reward(steps, REWARDED_SIZE) / 1e6) for steps in SAMPLED_STEPS]
    head = ["Steps of sampling", *(f"{steps}" for steps in SAMPLED_STEPS)]
    lines = [["kept for the gradients, MB", *(f"{megabytes:.0f}" for _, megabytes in curve)]]
    axes = {"across": "steps of sampling", "up": "MB", "top": 100 * ceil(curve[-1][1] / 100)}
    return Found(head, lines, {"": curve}, {**axes, "marks": SAMPLED_STEPS})


STUDIES: dict[str, Callable[[Path, int], Found]] = {
    "sudden-convergence": Study({"diffusion loss": Run(), "and reward": Run(REWARD)}),
    "zero-convolution": Study(
        {
            "zero convolutions": Run(REWARD),
            "Gaussian weights": Run(REWARD, make_gaussian),
            "ControlNet-lite": Run(REWARD, make_lite),
        },
        has_prompts=True,
    ),
    "dataset-size": Study(
        {f"{count:,} scenes": Run(REWARD, scenes=count) for count in (100, 1000, 10_000)}
    ),
    "reward-threshold": Study(
        {
            "all timesteps": Run(REWARD),
            "timesteps up to 200": Run((*REWARD, "--reward-threshold", "200")),
        }
    ),
    "t2i-adapter": Study(
        {"ControlNet": Run(REWARD), "T2I-Adapter": Run(REWARD, make_adapter)}, is_timed=True
    ),
    "guidance": guidance,
    "gradient-memory": gradient_memory,
}
"""By name: what finds something with a folder for its runs, and so many steps for each."""


def scene_folder(folder: Path, first: int, count: int) -> Path:
    """Return a folder of pictures with captions, of the scenes of `count` seeds from `first` on."""
    done = folder.with_name(f"{folder.name}-done")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Rendering {count:,} scenes", flush=True)
        with get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
            jobs = ((folder / f"{k:05d}.png", first + k) for k in range(count))
            for _ in pool.imap_unordered(_render, jobs, chunksize=8):
                pass
        done.touch()
    return folder


def _render(job: tuple[Path, int]) -> None:
    """Write the picture of a scene's seed to a path, and its caption beside it."""
    path, seed = job
    if not path.with_suffix(".txt").exists():
        scene = make_scene(seed)
        Image.fromarray(render([scene], SIZE, "cpu").image[0].numpy()).save(path)
        path.with_suffix(".txt").write_text(scene.caption, encoding="utf-8")


def prompts(captions: list[str]) -> dict[str, list[str]]:
    """Return the prompts in each of the paper's settings, for pictures with these captions."""
    return {
        "none": [""] * len(captions),
        "insufficient": [INSUFFICIENT] * len(captions),
        "conflicting": [*captions[1:], captions[0]],
        "perfect": captions,
    }


def prompt_scores(
    training: Training, data: FolderExamples, annotator: Annotator
) -> dict[str, float]:
    """Return the mean score, 0 to 100, of what a ControlNet draws in each setting of the prompt."""
    extractor, scores = default_extractor(annotator), {}
    for setting, texts in prompts(data.captions).items():
        data.captions = texts
        made = training.validation_pictures(data)
        found = [
            extractor.reextract_and_score(picture, data.maps([row])[0])[1].headline
            for row, picture in enumerate(made)
        ]
        scores[setting] = float(np.mean(found))
    return scores


def study(name: str, out: Path, steps: int = STEPS) -> str:
    """Run a study; return its table, which is also written beside its figure."""
    found = STUDIES[name](out, steps)
    rows = [found.head, ["---"] * len(found.head), *found.lines]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    out.mkdir(parents=True, exist_ok=True)
    draw_curves(found.curves, **found.axes).save(out / f"{name}.png")
    (out / f"{name}.md").write_text(f"{table}\n", encoding="utf-8")
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of a run that trains")
    options = parser.parse_args(arguments)
    print(study(options.name, options.out, options.steps))


if __name__ == "__main__":
    main()
