"""Trains a ControlNet on a frozen base.

    python -m training.train_control --condition canny --minutes 30
    python -m training.train_control --condition canny --folder my_pictures --base path/to/base

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models": copied
encoder, zero convolutions, half the prompts emptied. Any `Examples` can be the data: a folder of
your own trains the same way as Diorama's scenes. `--start` and `--reward` fine-tune a trained
ControlNet as ControlNet++ does (`training.reward`):

    python -m training.train_control --condition seg --start models/diorama/controlnet/seg \
        --reward classes --minutes 8
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from annotators import find_annotator
from annotators._diorama import load_network
from core.condition import Annotator, ControlMap, RGBImage
from core.errors import BadInput, SuiteError
from core.images import NOTHING, PAPER, read_image, resize, resize_map
from core.picture_folder import read_folder
from training.diffusion import NoisyTarget, make_scheduler
from training.diorama.dataset import Pictures, PictureSource
from training.diorama.grounding import AttentionRecorder, Grounding
from training.diorama.maps import SceneExamples
from training.loop import add_run_options, run_config, train
from training.progress import progress_line
from training.reward import KINDS, Reward
from training.train_base import (
    GROUNDING_WEIGHT,
    cached_latents,
    contact_sheet,
    sample,
    sample_latents,
    tokens,
)
from training.weights import save_module

MAX_NAMED = 5  # bad rows of a folder that an error names
MAP_ENCODER_CHANNELS = (16, 16, 32, 64)  # of the encoder from the map to the latents' size
EMPTY_MAP_SAMPLE = 96  # maps that are drawn to estimate how many of a condition's are empty
MAX_EMPTY_MAPS = 0.1  # if more are empty, most rows are drawn from those with a map
ANY_ROW = 0.125  # the share that is drawn from all rows even then: empty maps must be learned too
REWARD_EVERY = 3  # one of so many examples is rewarded: decoding it costs more than all else
SAMPLE_STEPS, SAMPLE_GUIDANCE = 10, 2.0  # of --own: the app's guidance, half its steps
SAMPLE_BATCH = 24
EMPTY_PROMPTS = 0.5  # the paper's share: the network must learn to read the map without words


class Examples(PictureSource, Protocol):
    """What a ControlNet learns from: pictures with captions, and a control map for each."""

    captions: list[str]

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        ...


class FolderExamples:
    """A user's own pictures with their control maps (core/picture_folder.py).

    Pictures and maps are read as the app reads them, centre-cropped to a square and resized to
    `size`, maps with their annotator's interpolation.

    Raises:
        BadInput: a picture or its map is missing or cannot be read; the first few are named.
    """

    def __init__(self, folder: Path, annotator: Annotator, size: int) -> None:
        found = read_folder(folder)
        for row in found.rows:
            if row.control_map is None:
                found.bad[row.name] = (
                    f"It has no control map: run `python -m annotators {annotator.name}` first, or "
                    "name it in prompt.json."
                )
        if found.bad:
            named = list(found.bad.items())[:MAX_NAMED]
            more = f" and {len(found.bad) - MAX_NAMED} more" if len(found.bad) > MAX_NAMED else ""
            reasons = "; ".join(f"{name}: {reason}" for name, reason in named)
            raise BadInput(f"{folder} cannot be trained on as it is. {reasons}{more}")
        self._pairs = [(row.picture, row.control_map or row.picture) for row in found.rows]
        self._annotator = annotator
        self.size = size
        self.captions = [row.caption for row in found.rows]
        stats = [(str(file), file.stat()) for pair in self._pairs for file in pair]
        facts = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()[:8]

    def __len__(self) -> int:
        return len(self._pairs)

    def check(self) -> None:
        """Decode every map, so that a broken one ends the run before its first step.

        Raises:
            BadInput: one cannot be read.
        """
        for _, control_map in self._pairs:
            _read(control_map, NOTHING)

    def _square(self, path: Path, ground: int = PAPER) -> np.ndarray:
        picture = _read(path, ground)
        height, width = picture.shape[:2]
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        return picture[top : top + side, left : left + side]

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures, (N, size, size, 3) uint8."""
        size = (self.size, self.size)
        return np.stack([resize(self._square(self._pairs[r][0]), size) for r in rows])

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        size, interpolation = (self.size, self.size), self._annotator.interpolation
        return np.stack(
            [
                resize_map(self._square(self._pairs[r][1], NOTHING), size, interpolation)
                for r in rows
            ]
        )


def _read(path: Path, ground: int) -> RGBImage:
    try:
        return read_image(path, ground)[0]
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def rows_with_maps(data: Examples, is_empty: Callable[[ControlMap], bool], batch: int) -> Tensor:
    """Return the rows with a non-empty map, as int64 indices; all rows if few maps are empty.

    An empty map teaches nothing, and only a fifth of the scenes have people.
    """

    def has_map(rows: Sequence[int]) -> list[bool]:
        parts = [rows[k : k + batch] for k in range(0, len(rows), batch)]
        return [not is_empty(m) for part in parts for m in data.maps(part)]

    sampled = np.random.default_rng(0).permutation(len(data))[:EMPTY_MAP_SAMPLE].tolist()
    if np.mean(has_map(sampled)) > 1 - MAX_EMPTY_MAPS:
        return torch.arange(len(data))
    rows = torch.tensor(has_map(range(len(data)))).nonzero()[:, 0]
    print(f"{len(rows)} of {len(data)} maps are not empty", flush=True)
    return rows if len(rows) else torch.arange(len(data))


def map_tensor(maps: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 maps → (B, 3, H, W) in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps)).to(device).permute(0, 3, 1, 2)
    return tensor.float().div(255).contiguous(memory_format=torch.channels_last)


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
    add_run_options(parser, "", steps=40_000, learning_rate=5e-4)
    parser.set_defaults(out=None)
    parser.add_argument("--condition", default="canny")
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument(
        "--folder", type=Path, default=None, help="instead: your pictures, maps and prompt.json"
    )
    parser.add_argument("--base", type=Path, default=Path("models/diorama"))
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        help="side of the pictures; default: the base's training size",
    )
    parser.add_argument("--start", type=Path, default=None, help="continue from an earlier --save")
    parser.add_argument(
        "--reward",
        nargs="+",
        default=[],
        choices=KINDS,
        help="fine-tune a trained ControlNet by these losses of the annotator's predictions",
    )
    parser.add_argument(
        "--reward-weight", type=float, default=0.5, help="relative to the diffusion loss"
    )
    parser.add_argument(
        "--own",
        type=int,
        default=0,
        help="reward so many samples that the ControlNet draws before training, not scenes",
    )
    parser.add_argument(
        "--save", type=Path, default=None, help="folder to write the trained ControlNet to"
    )
    options = parser.parse_args(arguments)
    options.out = options.out or Path("runs", _run_name(options.condition, options.folder))
    return options


def _run_name(condition: str, folder: Path | None) -> str:
    """Return the name of a run's folder: another one for each folder of pictures."""
    if folder is None:
        return f"control-{condition}"
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return f"control-{condition}-{folder.resolve().name}-{place}"


def _examples(options: argparse.Namespace, size: int) -> tuple[Examples, Path]:
    """The examples, and the folder that caches their latents."""
    annotator = find_annotator(options.condition)
    if options.folder:
        examples = FolderExamples(options.folder, annotator, size)
        examples.check()
        return examples, options.folder
    return SceneExamples(options.data, annotator, size), options.data


def _require_tiny_autoencoder(base: Path) -> None:
    """Refuse a base that is not built as Diorama is, before hours are spent on wrong targets.

    Raises:
        BadInput: its autoencoder is another network.
    """
    file = base / "vae" / "config.json"
    kind = json.loads(file.read_text(encoding="utf-8"))["_class_name"] if file.is_file() else ""
    if kind != "AutoencoderTiny":
        raise BadInput(
            f"The base {base} has the autoencoder {kind or 'of no known class'}: only a base like "
            "Diorama, with an AutoencoderTiny, can be trained on so far."
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    try:
        _train(_options(arguments))
    except SuiteError as error:
        sys.exit(f"{error}")


def _train(options: argparse.Namespace) -> None:
    _require_tiny_autoencoder(options.base)
    torch.manual_seed(options.seed)
    device = options.device
    unet = UNet2DConditionModel.from_pretrained(options.base / "unet", torch_dtype=torch.float32)
    data, cache_folder = _examples(options, options.size or unet.config.sample_size * 8)
    vae = AutoencoderTiny.from_pretrained(options.base / "vae", torch_dtype=torch.float32)
    vae = vae.to(device)
    latents = cached_latents(cache_folder, data, options.base / "vae", device)
    tokenizer = CLIPTokenizer.from_pretrained(options.base / "tokenizer")
    text_folder = options.base / "text_encoder"
    text_encoder = CLIPTextModel.from_pretrained(text_folder, dtype=torch.float32).to(device)
    unet = unet.to(device, memory_format=torch.channels_last).requires_grad_(False)
    if options.start:
        control = ControlNetModel.from_pretrained(options.start, torch_dtype=torch.float32)
    else:
        control = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=MAP_ENCODER_CHANNELS
        )
    control = control.to(device, memory_format=torch.channels_last).requires_grad_(True)
    print(f"ControlNet {sum(p.numel() for p in control.parameters()) / 1e6:.1f} M", flush=True)
    ids, empty = tokens(tokenizer, data.captions), tokens(tokenizer, [""])
    text_encoder.requires_grad_(False)
    scheduler = make_scheduler()
    batch = options.batch or 48
    nonempty_rows = rows_with_maps(data, find_annotator(options.condition).is_empty, batch)
    # Which pixels a word names is known for scenes, but not for a user's pictures.
    grounding = Grounding(data, tokenizer, ids) if isinstance(data, Pictures) else None
    # The frozen UNet's encoder does not depend on the ControlNet, so it gets no loss.
    attention = AttentionRecorder(*([unet.up_blocks, control] if grounding else []))

    reward = Reward(vae, load_network().to(device), options.reward) if options.reward else None

    def sample_own(rows: Tensor) -> Tensor:
        """Sample latents with the ControlNet as it is now, for the maps of rows."""
        rng = torch.Generator().manual_seed(int(rows[0]))
        noise = torch.randn(len(rows), *latents.shape[1:], generator=rng).to(device)
        with torch.no_grad():
            text, uncond = (
                text_encoder(words.to(device)).last_hidden_state for words in (ids[rows], empty)
            )
        maps = map_tensor(data.maps(rows.tolist()), device)
        return sample_latents(
            unet, text, uncond, noise, SAMPLE_STEPS, SAMPLE_GUIDANCE, control, maps
        )

    own_rows = nonempty_rows[torch.randint(len(nonempty_rows), (options.own,))]
    own_latents = None
    if options.own:
        own_latents = own_samples(options.out / "own.pt", own_rows, sample_own)

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        nonempty = nonempty_rows[torch.randint(len(nonempty_rows), (batch,), generator=rng)]
        rows = torch.where(torch.rand(batch, generator=rng) < ANY_ROW, rows, nonempty)
        targets = [NoisyTarget(scheduler, latents[rows].to(device).float(), rng)]
        if own_latents is not None:  # half as many again, with the reward as their only loss
            picked = torch.randint(len(own_latents), (batch // 2,), generator=rng)
            targets.append(NoisyTarget(scheduler, own_latents[picked].to(device), rng))
            rows = torch.cat([rows, own_rows[picked]])
        emptied = torch.rand(len(rows), 1, generator=rng) < EMPTY_PROMPTS
        words = torch.where(emptied, empty, ids[rows]).to(device)
        noisy = torch.cat([target.noisy for target in targets])
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        timesteps = torch.cat([target.timesteps for target in targets])
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(words).last_hidden_state
            maps = map_tensor(data.maps(rows.tolist()), device)
            down, middle = control(noisy, timesteps, text, maps, return_dict=False)
            prediction = unet(
                noisy,
                timesteps,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        diffusion = targets[0].loss(prediction[:batch])
        losses = {"loss": diffusion, "diffusion": diffusion}
        if reward:
            # Timesteps are in ascending order, so a stride covers all noise levels.
            rewarded = (
                slice(batch, None)
                if own_latents is not None
                else slice(step % REWARD_EVERY, batch, REWARD_EVERY)
            )
            clean = torch.cat(
                [t.clean(v) for t, v in zip(targets, prediction.split(batch), strict=True)]
            )
            pictures = data.batch(rows[rewarded].tolist())
            losses["reward"] = reward.loss(clean[rewarded], pictures)
            losses["loss"] = losses["loss"] + options.reward_weight * losses["reward"]
        if grounding is None:
            return losses
        pixel_phrases = torch.where(emptied[..., None], 0, grounding.pixel_phrases[rows])
        token_phrases = torch.where(emptied, 0, grounding.token_phrases[rows])
        losses["grounding"] = attention.loss(token_phrases.to(device), pixel_phrases.to(device))
        losses["loss"] = losses["loss"] + GROUNDING_WEIGHT * losses["grounding"]
        return losses

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        rows = list(range(min(8, len(data))))
        drawn = data.maps(rows)
        with torch.no_grad():
            text = text_encoder(ids[rows].to(device)).last_hidden_state
            uncond = text_encoder(empty.to(device)).last_hidden_state
        side = latents.shape[-1]
        controlled = {"control": control, "maps": map_tensor(drawn, device)}
        prompted = sample(unet, vae, text, uncond, side, **controlled)
        empty_text = uncond.expand_as(text)
        unprompted = sample(unet, vae, empty_text, uncond, side, guidance=1.0, **controlled)
        contact_sheet([data.batch(rows), drawn, prompted, unprompted]).save(path)

    modules = train(run_config(options), {"control": control}, loss_at, sheet)
    if options.save:
        save_module(modules["control"], options.save, vars(options))


if __name__ == "__main__":
    main()
