"""Trains a ControlNet, or a T2I-Adapter, on a frozen base.

    python -m training.train_control --condition canny --minutes 30
    python -m training.train_control --condition canny --folder my_pictures --base sd15

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models": copied
encoder, zero convolutions, half the prompts emptied. The data are Diorama's scenes or a folder of
your own (`training.examples`), the base is Diorama or any Stable Diffusion 1.x (`training.base`).
`--start` and `--reward` fine-tune a trained ControlNet as ControlNet++ does (`training.reward`):

    python -m training.train_control --condition seg --start models/diorama/controlnet/seg \
        --reward classes --minutes 8
"""

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, T2IAdapter
from torch import Tensor, nn

from annotators import find_annotator
from annotators._diorama import load_network
from core.condition import Annotator, RGBImage
from core.errors import BadInput, SuiteError
from core.images import to_images
from core.memory import return_large_blocks
from core.request import DEFAULTS
from models.checkpoints import folders, loading
from models.checkpoints.adapters import is_adapter
from models.networks import decode
from models.registry import DEFAULT_MODEL
from training import processes
from training.adapter import make_adapter, predict
from training.base import Base
from training.decoder import decoder_of, keep_to_middle, save_model
from training.diffusion import NoisyTarget
from training.diorama.dataset import Pictures
from training.diorama.grounding import AttentionRecorder, Grounding
from training.diorama.maps import SceneExamples
from training.examples import (
    Examples,
    FolderExamples,
    check_folder,
    default_extractor,
    map_tensor,
    rows_with_maps,
    with_maps,
)
from training.loop import add_run_options, run_config, train
from training.model_card import write_card
from training.photo_annotators import PHOTO_ANNOTATORS, THRESHOLD
from training.preference import DIORAMA, PUBLISHED, Errors, preference_loss
from training.progress import progress_line
from training.reward import KINDS, OVERLAP, PhotoReward, Reward
from training.train_base import (
    GROUNDING_WEIGHT,
    cached_latents,
    contact_sheet,
    drawn_latents,
    sample_latents,
    tokens,
)
from training.validation import Validation
from training.weights import read_metadata, save_module

SMALL_MAP_ENCODER = (16, 16, 32, 64)  # channels of the encoder from the map to the latents' size
MAP_ENCODER = (16, 32, 96, 256)  # the original's
ANY_ROW = 0.125  # the share that is drawn from all rows even where many maps are empty
REWARD_EVERY = 3  # one of so many examples is rewarded: decoding it costs more than all else
SAMPLE_STEPS, SAMPLE_GUIDANCE = 10, 2.0  # of --own: the app's guidance, half its steps
SAMPLE_BATCH = 24
REWARD, UNCERTAINTY, CPO = METHODS = ("reward", "uncertainty", "cpo")
UNCERTAIN_STEPS = 1  # timesteps between the two estimates of --method uncertainty, as published
PREFERENCE_SAMPLES = 240
SHEET_PICTURES, SHEET_STEPS, SHEET_GUIDANCE = 8, 20, 3.0
DECODER = "decoder"  # of the UNet, where it is trained too
CONTROLS = "controlnet"  # the folder of the ControlNets in a model's
BEST = "best"  # the run's folder of the weights with the best score
EMPTY_PROMPTS = 0.5  # the paper's share: the network must learn to read the map without words
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def own_samples(file: Path, rows: Tensor, sample_rows: Callable[[Tensor], Tensor]) -> Tensor:
    """Latents (N, 4, h, w) that the initial ControlNet samples for the maps of rows (N,).

    A scene's own latents, however noisy, still show what the map asks for. These may show something
    else, which the network must learn to correct, as it must in the app. They are cached in a file
    for a resumed run.
    """
    if file.exists():
        cached: Tensor = torch.load(file, weights_only=True)
        return cached
    parts, samples, start = torch.split(rows, SAMPLE_BATCH), [], time.monotonic()
    for k, part in enumerate(parts):
        samples.append(sample_rows(part))
        print(progress_line(k + 1, len(parts), start, "batches of own samples"), flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.cat(samples), file)
    return torch.cat(samples)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "", steps=40_000, learning_rate=None)
    parser.set_defaults(out=None)
    parser.add_argument("--condition", default="canny")
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="instead: your pictures and captions; maps are drawn where it has none",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only read every row of --folder, name those that cannot be used, save check.png",
    )
    parser.add_argument(
        "--validation",
        type=Path,
        default=None,
        help="folder like --folder: pictures are generated from its maps and scored, and the best "
        "weights kept",
    )
    parser.add_argument("--validate-every", type=int, default=500, help="so many steps")
    parser.add_argument(
        "--base",
        default="diorama",
        help="diorama, sd15, or the path of a Stable Diffusion 1.x folder or checkpoint",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        help="side of the pictures; default: the base's training size",
    )
    parser.add_argument(
        "--enable-bucket",
        action="store_true",
        help="keep the shapes of a folder's pictures (aspect-ratio buckets), not centre squares",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="train a T2I-Adapter, a smaller network that looks at the map alone, instead of a "
        "ControlNet",
    )
    parser.add_argument(
        "--only-mid-control",
        action="store_true",
        help="connect the ControlNet to the UNet's middle alone, for a first look on a slow "
        "machine; go on without this, with --start",
    )
    parser.add_argument(
        "--unlock-decoder",
        action="store_true",
        help="train the UNet's decoder too, for much data; the learning rate is then 2e-6, and "
        "--save writes a whole model",
    )
    parser.add_argument("--start", type=Path, default=None, help="continue from an earlier --save")
    parser.add_argument(
        "--mixed-precision",
        choices=PRECISIONS,
        default="bf16",
        help="number format of the frozen networks and of the products of the trained one",
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute activations twice instead of keeping them: less memory, more time",
    )
    parser.add_argument(
        "--reward",
        nargs="+",
        default=[],
        choices=(*KINDS, *PHOTO_ANNOTATORS),
        help="learn also from these losses of the annotator's predictions: a trained ControlNet is "
        f"tuned by them, and a new one learns sooner; for photographs: {_photo_names()}",
    )
    parser.add_argument(
        "--reward-threshold",
        type=int,
        default=None,
        help="the last timestep at which a sample is rewarded, 0 to 999; default: all, and for "
        f"photographs {THRESHOLD} as in ControlNet++",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="reward: as ControlNet++; uncertainty: --reward counts less where two estimates "
        "disagree, as Ctrl-U; cpo: prefer a picture's own map to one of a picture drawn for it, "
        "without --reward",
    )
    parser.add_argument(
        "--reward-weight",
        type=float,
        default=0.5,
        help="of --reward or the preference, relative to the diffusion loss",
    )
    parser.add_argument(
        "--own",
        type=int,
        default=None,
        help="reward so many samples that the ControlNet draws before training, not scenes; for "
        f"--method cpo, which takes its losing maps from them, {PREFERENCE_SAMPLES} by default",
    )
    parser.add_argument(
        "--save", type=Path, default=None, help="folder to write the trained ControlNet to"
    )
    options = parser.parse_args(arguments)
    options.out = options.out or Path("runs", _run_name(options))
    if options.own is None:
        options.own = PREFERENCE_SAMPLES if options.method == CPO else 0
    if options.reward_threshold is None and PHOTO_ANNOTATORS.keys() & options.reward:
        options.reward_threshold = THRESHOLD
    return options


def _photo_names() -> str:
    """Return the names of what --reward takes for photographs, each with its condition."""
    return ", ".join(f"{name} ({one.condition})" for name, one in PHOTO_ANNOTATORS.items())


def _run_name(options: argparse.Namespace) -> str:
    """Return the name of a run's folder: another one for each base and folder of pictures."""
    own = [str(options.folder.resolve())] if options.folder else []
    own += [options.base] if options.base != "diorama" else []
    names = [Path(one).name for one in own]
    if own:
        names.append(hashlib.sha256(repr(own).encode()).hexdigest()[:8])
    kind = "adapter" if options.adapter else "control"
    kind += "-middle" * options.only_mid_control + "-decoder" * options.unlock_decoder
    return "-".join([kind, options.condition, *names])


def _examples(
    options: argparse.Namespace, annotator: Annotator, base: Base
) -> tuple[Examples, Path]:
    """The examples, and the folder that caches their latents."""
    if options.folder:
        examples = _folder_examples(options, annotator, base, options.folder)
        return examples, examples.folder
    return SceneExamples(options.data, annotator, options.size), options.data


def _folder_examples(
    options: argparse.Namespace, annotator: Annotator, base: Base, folder: Path
) -> FolderExamples:
    """A folder's examples, every map decoded once, so that a broken one ends the run now."""
    folder = with_maps(folder, annotator, options.size, options.out)
    multiple = base.multiple if options.enable_bucket else None
    examples = FolderExamples(folder, annotator, options.size, multiple)
    examples.check()
    return examples


def make_control(base: Base, unet: Any, start: Path | None) -> Any:
    """Return the ControlNet to train, in float32: from `start`, or a copy of the UNet's encoder.

    Raises:
        BadInput: `start` is a T2I-Adapter.
        WeightsMissing, WeightsMismatch: `start` cannot be read, or is for another base.
    """
    if start is None:
        channels = MAP_ENCODER if base.is_sd1 else SMALL_MAP_ENCODER
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    if is_adapter(start):
        raise BadInput(f"{start} is a T2I-Adapter: add --adapter, or start from a ControlNet.")
    folders.inspect_control(start, dict(unet.config))
    return loading.build_control(start, unet).float()


Make = Callable[[Base, Any, Path | None], Any]
"""What `make_control` is: gives the network to train from the base, its UNet and --start."""


class Batches:
    """Draws the rows of each step, all of one size, and their latents."""

    def __init__(self, latents: list[Tensor], mapped: Tensor, batch: int) -> None:
        """Most rows are drawn from `mapped`, those whose map is not empty."""
        self._latents, self._mapped, self._batch = latents, mapped, batch
        self._buckets: dict[tuple[int, ...], Tensor] = {}
        sizes = [tuple(one.shape) for one in latents]
        for size in dict.fromkeys(sizes):
            self._buckets[size] = torch.tensor([k for k, one in enumerate(sizes) if one == size])

    def rows(self, rng: torch.Generator) -> Tensor:
        """Draw the rows of a batch, (B,)."""
        rows = torch.randint(len(self._latents), (self._batch,), generator=rng)
        mapped = self._mapped[torch.randint(len(self._mapped), (self._batch,), generator=rng)]
        rows = torch.where(torch.rand(self._batch, generator=rng) < ANY_ROW, rows, mapped)
        if len(self._buckets) > 1:  # the others are drawn from the bucket of the first
            same = self._buckets[tuple(self._latents[int(rows[0])].shape)]
            rows[1:] = same[torch.randint(len(same), (self._batch - 1,), generator=rng)]
        return rows

    def latents(self, rows: Tensor, channels: int, rng: torch.Generator) -> Tensor:
        """The rows' latents (B, channels, h, w) in float32, on the CPU."""
        stacked = torch.stack([self._latents[row] for row in rows.tolist()])
        return drawn_latents(stacked, channels, rng)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    options = _options(arguments)
    try:
        with processes.joined(options.device):
            if options.check:
                _check(options)
            else:
                _train(options)
    except SuiteError as error:
        sys.exit(f"{error}")


def trained(arguments: list[str], make: Make | None = None) -> "Training":
    """Train as the command line does, and return what was trained; `make` gives another network.

    Raises:
        SuiteError: as the command's sentences.
    """
    return _train(_options(arguments), make)


def _check(options: argparse.Namespace) -> None:
    """Read every row of the folder, and say what is wrong with it."""
    if not options.folder:
        raise BadInput("--check reads the pictures of --folder: name it.")
    annotator, size = find_annotator(options.condition), Base(options.base).size(options.size)
    if not check_folder(options.folder, annotator, size, options.out / "check.png"):
        raise BadInput("Mend or delete those named, then train.")


def _check_method(options: argparse.Namespace) -> None:
    """Refuse what does not go together, before any work."""
    if options.method == UNCERTAINTY and not options.reward:
        raise BadInput("--method uncertainty weighs a reward: name its losses with --reward.")
    if options.method == UNCERTAINTY and OVERLAP in options.reward:
        raise BadInput(
            "--method uncertainty weighs pixels, and --reward overlap has none: take classes."
        )
    if options.method == CPO and options.reward:
        raise BadInput("--method cpo has no use for --reward: leave it out.")
    photo = [name for name in options.reward if name in PHOTO_ANNOTATORS]
    if photo and len(photo) < len(options.reward):
        raise BadInput(
            f"--reward {photo[0]} is for photographs, the losses of Diorama's annotator are not: "
            "take either."
        )
    if any(PHOTO_ANNOTATORS[name].condition != options.condition for name in photo):
        raise BadInput(
            f"--reward {photo[0]} does not fit --condition {options.condition}: for photographs "
            f"there are {_photo_names()}."
        )
    if options.adapter and (options.only_mid_control or options.unlock_decoder):
        raise BadInput(
            "--only-mid-control and --unlock-decoder are for ControlNets, not --adapter."
        )
    if options.method == CPO and options.unlock_decoder:
        raise BadInput("--method cpo needs the base as it was: leave out --unlock-decoder.")
    if options.own and options.enable_bucket:
        raise BadInput("--own and --method cpo need squares: leave out --enable-bucket.")


def _check_folders(options: argparse.Namespace, base: Base) -> None:
    """Refuse folders that hold a whole model where a ControlNet is meant, or the other way."""
    start, save = options.start, options.save
    if start and (start / "unet").is_dir():
        raise BadInput(
            f"{start} is a whole model: give --base {start} and "
            f"--start {start / CONTROLS / options.condition}."
        )
    if options.unlock_decoder and base.card.name == DEFAULT_MODEL:
        raise BadInput(
            "--unlock-decoder is for Stable Diffusion: train Diorama's base with "
            "training.train_base."
        )
    if not save:
        return
    is_model, is_ours = (save / "unet").is_dir(), bool(read_metadata(save / "unet"))
    if (save / "config.json").is_file() if options.unlock_decoder else is_model:
        raise BadInput(f"--save {save} holds a model of another kind: name a new folder.")
    if is_model and not is_ours:
        raise BadInput(f"--save {save} holds a model that was not trained here: name a new folder.")


def _train(options: argparse.Namespace, make: Make | None = None) -> "Training":
    _check_method(options)
    make = make or (make_adapter if options.adapter else make_control)
    base, annotator = Base(options.base), find_annotator(options.condition)
    options.batch = options.batch or (4 if base.is_sd1 else 48)
    usual = (2e-6 if options.unlock_decoder else 1e-5) if base.is_sd1 else 5e-4
    options.learning_rate = options.learning_rate or usual
    options.size = base.size(options.size)
    _check_folders(options, base)
    base.find()  # before maps are drawn in vain, as are the reward's networks
    for name in PHOTO_ANNOTATORS.keys() & options.reward:
        PHOTO_ANNOTATORS[name].load()
    torch.manual_seed(options.seed)
    validation_data = None
    with processes.first_alone():  # it draws maps and encodes pictures; the others find them
        data, cache_folder = _examples(options, annotator, base)
        if options.validation:
            validation_data = _folder_examples(options, annotator, base, options.validation)
        training = Training(options, base, data, cache_folder, annotator, make)
    validate = None
    if validation_data:
        validate = Validation(
            validation_data,
            default_extractor(annotator),
            training.validation_pictures,
            training.save_best,
            options.out,
        )
    run = replace(
        run_config(options),
        validate_every=options.validate_every,
        scale_gradients=options.mixed_precision == "fp16",
    )
    train(run, training.modules, training.loss_at, training.sheet, validate)
    if options.save and not processes.rank():
        _save(options, base, data, training)
    return training


def _save(options: argparse.Namespace, base: Base, data: Examples, training: "Training") -> None:
    """Write the best weights, or the last if none were validated, and their model card."""
    best = options.out / BEST
    if options.validation and best.is_dir():
        shutil.copytree(best, options.save, dirs_exist_ok=True)
    else:
        training.save(options.save, vars(options))
    if options.folder:
        state = torch.load(options.out / "checkpoint.pt", weights_only=True, mmap=True)
        write_card(options.save, base.card, vars(options), state["step"], data.captions)
    print(f"Saved: python -m models check {options.save}", flush=True)


@dataclass(frozen=True)
class Batch:
    """Samples with noise, and what networks are given for them."""

    rows: Tensor
    """(B,), of the examples."""
    emptied: Tensor
    """(B, 1), whether a prompt was left out."""
    target: NoisyTarget
    text: Tensor
    """Embeddings (B, 77, D)."""
    maps: Tensor
    """(B, 3, H, W) in [0, 1]."""

    def later(self, picked: Tensor, steps: int) -> Self:
        """Return these samples, by index, with the same noise so many timesteps later."""
        parts = (self.rows, self.emptied, self.text, self.maps)
        rows, emptied, text, maps = (part[picked] for part in parts)
        return type(self)(rows, emptied, self.target.later(picked, steps), text, maps)


class Training:
    """A ControlNet or a T2I-Adapter, the frozen networks beside it, and what it learns from."""

    def __init__(
        self,
        options: argparse.Namespace,
        base: Base,
        data: Examples,
        cache_folder: Path,
        annotator: Annotator,
        make: Make,
    ) -> None:
        """Load the networks, and encode the pictures unless `cache_folder` has their latents."""
        self._options, self._data, self._device = options, data, options.device
        self._base = base
        self._scheduler, device = base.scheduler, self._device
        self._downscale = base.downscale
        self._app_guidance = float({**DEFAULTS, **base.card.defaults}["guidance_scale"])
        networks = base.load()
        self._vae: Any = networks.vae
        control = make(base, networks.unet, options.start)
        control = control.to(device, memory_format=torch.channels_last)
        self.control: Any = control.requires_grad_(True)
        if options.only_mid_control:
            keep_to_middle(self.control)
        self.modules: dict[str, nn.Module] = {"control": self.control}
        """What learns, by name."""
        if options.unlock_decoder:
            self.modules[DECODER] = decoder_of(networks.unet)
        count = sum(p.numel() for p in control.parameters())
        print(f"{type(control).__name__} {count / 1e6:.1f} M", flush=True)
        self._precision = PRECISIONS[options.mixed_precision]
        networks.place(device, self._precision, self.modules.get(DECODER))
        self._unet: Any = networks.unet
        self._text_encoder = networks.text_encoder
        if options.gradient_checkpointing:
            self._checkpoint_gradients()
        self._channels = int(self._unet.config.in_channels)
        self._latents = cached_latents(cache_folder, data, self._vae, device)
        self._tokenizer = networks.tokenizer
        self._ids = tokens(self._tokenizer, data.captions)
        self._empty = tokens(self._tokenizer, [""])
        at_once = 1 if options.enable_bucket else options.batch
        self._mapped = rows_with_maps(data, annotator.is_empty, at_once)
        self._batches = Batches(self._latents, self._mapped, options.batch)
        # Which pixels a word names is known for scenes, but not for a user's pictures.
        self._grounding = None
        if isinstance(data, Pictures):
            self._grounding = Grounding(data, self._tokenizer, self._ids)
            # The frozen UNet's encoder depends on a T2I-Adapter; on a ControlNet it does not, so it
            # gets no loss.
            alone = isinstance(control, T2IAdapter)
            learning = (self._unet,) if alone else (self._unet.up_blocks, control)
            self._attention = AttentionRecorder(*learning)
        self._reward: Reward | PhotoReward | None = None
        if PHOTO_ANNOTATORS.keys() & options.reward:
            self._reward = PhotoReward(self._vae, options.reward, device, self._precision)
        elif options.reward:
            self._reward = Reward(self._vae, load_network().to(device), options.reward)
        self._own_rows = self._mapped[torch.randint(len(self._mapped), (options.own,))]
        self._own_latents = None
        if options.own:
            self._own_latents = own_samples(options.out / "own.pt", self._own_rows, self._own)
        self._reference = None
        if options.method == CPO:
            self._reference = deepcopy(self.control).requires_grad_(False)
            self._preference = PUBLISHED if base.is_sd1 else DIORAMA
            self._losing_maps = self._maps_of_own()

    def _checkpoint_gradients(self) -> None:
        if isinstance(self._data, Pictures):
            raise BadInput("--gradient-checkpointing is for --folder: leave it out.")
        return_large_blocks()
        kept = [self._unet, self._vae]  # the reward goes back through both
        kept += [] if isinstance(self.control, T2IAdapter) else [self.control]  # it is small
        for one in kept:
            one.enable_gradient_checkpointing()

    def _maps_of_own(self) -> np.ndarray:
        """The maps (N, H, W, 3) uint8 of the ControlNet's own samples."""
        assert self._own_latents is not None
        found = []
        for latents, rows in zip(
            *(torch.split(one, SAMPLE_BATCH) for one in (self._own_latents, self._own_rows)),
            strict=True,
        ):
            drawn = to_images(decode(self._vae, latents.to(self._device), torch.float32))
            found.append(self._data.maps_of(drawn, rows.tolist()))
        return np.concatenate(found)

    def _own(self, rows: Tensor) -> Tensor:
        maps, seed = self._data.maps(rows.tolist()), int(rows[0])
        return self._sample(maps, self._ids[rows], SAMPLE_STEPS, SAMPLE_GUIDANCE, seed)

    def _autocast(self) -> torch.autocast:
        enabled = self._precision != torch.float32
        return torch.autocast(self._device, self._precision, enabled=enabled)

    def _text(self, words: Tensor) -> Tensor:
        """The embeddings (B, 77, D) of token ids (B, 77)."""
        with torch.no_grad(), self._autocast():
            found: Tensor = self._text_encoder(words.to(self._device)).last_hidden_state
            return found

    def _sample(
        self, maps: np.ndarray, words: Tensor, steps: int, guidance: float, seed: int
    ) -> Tensor:
        """Sample latents with the ControlNet as it is now, for maps (B, H, W, 3) uint8."""
        rng = torch.Generator().manual_seed(seed)
        height, width = (side // self._downscale for side in maps.shape[1:3])
        shape = (len(maps), self._channels, height, width)
        noise = torch.randn(shape, generator=rng).to(self._device)
        return sample_latents(
            self._unet,
            self._text(words),
            self._text(self._empty),
            noise,
            steps,
            guidance,
            self.control,
            map_tensor(maps, self._device),
            DDIMScheduler.from_config(self._scheduler.config),
            self._precision,
        )

    def loss_at(self, step: int) -> dict[str, Tensor]:
        """Return a batch's losses by name; "loss" is their sum. All is drawn by the step's seed."""
        rng = torch.Generator().manual_seed(self._options.seed * 1_000_003 + step)
        weight = self._options.reward_weight
        batch = rewarded = self._batch(self._batches.rows(rng), rng)
        prediction = self._predict(self.control, batch)
        diffusion = batch.target.loss(prediction)
        losses = {"loss": diffusion, "diffusion": diffusion}
        if self._reward:
            if self._own_latents is not None:  # half as many again, with the reward alone
                own = self._drawn_own(rng)
                rewarded = self._batch(self._own_rows[own], rng, self._own_latents[own])
                prediction = self._predict(self.control, rewarded)
            losses["reward"] = self._reward_loss(self._reward, rewarded, prediction, step)
            losses["loss"] = losses["loss"] + weight * losses["reward"]
        if self._reference is not None:
            losses["preference"] = self._preference_loss(self._reference, rng)
            losses["loss"] = losses["loss"] + weight * losses["preference"]
        if self._grounding:
            pixel_phrases = torch.where(
                batch.emptied[..., None], 0, self._grounding.pixel_phrases[batch.rows]
            )
            token_phrases = torch.where(batch.emptied, 0, self._grounding.token_phrases[batch.rows])
            losses["grounding"] = self._attention.loss(
                token_phrases.to(self._device), pixel_phrases.to(self._device)
            )
            losses["loss"] = losses["loss"] + GROUNDING_WEIGHT * losses["grounding"]
        return losses

    def _batch(self, rows: Tensor, rng: torch.Generator, latents: Tensor | None = None) -> Batch:
        """Noise the latents of rows (B,), or the given ones, and empty half the prompts."""
        if latents is None:
            latents = self._batches.latents(rows, self._channels, rng)
        target = NoisyTarget.drawn(self._scheduler, latents.to(self._device), rng)
        emptied = torch.rand(len(rows), 1, generator=rng) < EMPTY_PROMPTS
        text = self._text(torch.where(emptied, self._empty, self._ids[rows]))
        maps = map_tensor(self._data.maps(rows.tolist()), self._device)
        return Batch(rows, emptied, target, text, maps)

    def _drawn_own(self, rng: torch.Generator) -> Tensor:
        """Draw half a batch of the own samples, by index."""
        return torch.randint(len(self._own_rows), (-(-self._options.batch // 2),), generator=rng)

    def _reward_loss(
        self, reward: Reward | PhotoReward, batch: Batch, prediction: Tensor, step: int
    ) -> Tensor:
        """Return the reward's loss of those samples of a batch that are rewarded."""
        picked = self._rewarded(batch.target.timesteps, step)
        if not len(picked):
            return prediction.new_zeros(())
        estimates = batch.target.clean(prediction)[picked]
        pictures = self._data.batch(batch.rows[picked].tolist())
        if self._options.method != UNCERTAINTY:
            return reward.loss(estimates, pictures)
        later = batch.later(picked, UNCERTAIN_STEPS)
        again = later.target.clean(self._predict(self.control, later))
        return reward.uncertain_loss(estimates, again, pictures)

    def _rewarded(self, timesteps: Tensor, step: int) -> Tensor:
        """Return which samples get the reward, by index."""
        threshold, picked = self._options.reward_threshold, torch.arange(len(timesteps))
        if self._own_latents is None and threshold is None:
            # Timesteps are in ascending order, so a stride covers all noise levels.
            return picked[step % REWARD_EVERY :: REWARD_EVERY]
        return picked if threshold is None else picked[timesteps.cpu() <= threshold]

    def _preference_loss(self, reference: nn.Module, rng: torch.Generator) -> Tensor:
        """Return the loss of preferring pictures' own maps to those of samples drawn for them."""
        own = self._drawn_own(rng)
        winning = self._batch(self._own_rows[own], rng)
        losing = replace(winning, maps=map_tensor(self._losing_maps[own.numpy()], self._device))

        def errors(control: nn.Module) -> Errors:
            predictions = (self._predict(control, batch) for batch in (winning, losing))
            return Errors(*(winning.target.errors(one) for one in predictions))

        with torch.no_grad():
            before = errors(reference)
        return preference_loss(errors(self.control), before, self._preference)

    def _predict(self, control: nn.Module, batch: Batch) -> Tensor:
        """The UNet's prediction with a control's help, as in diffusers' training."""
        noisy = batch.target.noisy.contiguous(memory_format=torch.channels_last)
        timesteps = batch.target.timesteps
        with self._autocast():
            return predict(self._unet, control, noisy, timesteps, batch.text, batch.maps)

    def _pictures(
        self, maps: np.ndarray, words: Tensor, guidance: float, seed: int = 1
    ) -> list[RGBImage]:
        """Generate a picture for each map (N, H, W, 3) uint8, a batch at a time."""
        made: list[RGBImage] = []
        for k in range(0, len(maps), self._options.batch):
            part = slice(k, k + self._options.batch)
            latents = self._sample(maps[part], words[part], SHEET_STEPS, guidance, seed + k)
            made += to_images(decode(self._vae, latents, torch.float32))
        return made

    def pictures(self, maps: np.ndarray, captions: list[str]) -> list[RGBImage]:
        """Generate a picture for each map (N, H, W, 3) uint8, with the guidance of the app."""
        return self._pictures(maps, tokens(self._tokenizer, captions), self._app_guidance)

    def validation_pictures(self, data: FolderExamples) -> list[RGBImage]:
        """Generate a picture for each row, with its caption and the guidance of the app."""
        words = tokens(self._tokenizer, data.captions)
        made: list[RGBImage] = []
        for row in range(len(data)):  # one by one: they may have several sizes
            made += self._pictures(data.maps([row]), words[[row]], self._app_guidance, row)
        return made

    def save_best(self, step: int, score: float) -> None:
        """Keep the weights of the moment as the best so far."""
        recipe = {**vars(self._options), "best_step": step, "score": round(score, 2)}
        self.save(self._options.out / BEST, recipe)

    def save(self, folder: Path, recipe: dict[str, Any]) -> None:
        """Write what was trained: the network, or the whole model if its decoder learned too."""
        decoder, place = self.modules.get(DECODER), folder
        if decoder:
            save_model(self._base, decoder, folder, recipe)
            place = folder / CONTROLS / self._options.condition
        save_module(self.control, place, recipe)

    def sheet(self, _: dict[str, nn.Module], path: Path) -> None:
        """Save pictures, their maps, and what is generated from these with and without words."""
        alike = [k for k, one in enumerate(self._latents) if one.shape == self._latents[0].shape]
        rows = alike[:SHEET_PICTURES]
        maps = self._data.maps(rows)
        prompted = self._pictures(maps, self._ids[rows], SHEET_GUIDANCE)
        unprompted = self._pictures(maps, self._empty.expand(len(rows), -1), guidance=1.0)
        generated = [np.stack(prompted), np.stack(unprompted)]
        contact_sheet([self._data.batch(rows), maps, *generated]).save(path)


if __name__ == "__main__":
    main()
