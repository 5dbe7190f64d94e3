"""Trains a ControlNet on a frozen base.

    python -m training.train_control --condition canny --minutes 30
    python -m training.train_control --condition canny --folder my_pictures --base path/to/base

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models": copied
encoder, zero convolutions, half the prompts emptied. Data, loss and loop are apart: any `Examples`
will do for data, so a user's own folder trains the same way as Diorama's scenes. A trained
ControlNet is tuned as ControlNet++ does it, `training.reward`, with `--start` and `--reward`:

    python -m training.train_control --condition seg --start models/diorama/controlnet/seg \
        --reward classes --minutes 8
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from annotators import find_annotator
from annotators._diorama import load_network
from core.condition import Annotator, ControlMap
from core.images import resize, resize_map
from training.diffusion import NoisyTarget, make_scheduler
from training.diorama.dataset import Pictures, PictureSource
from training.diorama.grounding import Grounding, WatchedAttention
from training.diorama.maps import DrawnExamples
from training.loop import add_run_options, run_from, train
from training.progress import clock
from training.reward import KINDS, Reward
from training.train_base import (
    GROUNDING,
    cached_latents,
    contact_sheet,
    sample,
    sample_latents,
    tokens,
)
from training.weights import save_module

HINT_CHANNELS = (16, 16, 32, 64)  # of the encoder that brings the map to the latents' size
MAPS_TRIED = 96  # to see whether many of a condition's maps are empty
OFTEN_EMPTY = 0.1  # from this share on, the rows with a map are sought and chosen
ANY_MAP = 0.125  # of the examples are chosen from all rows all the same: empty maps must be known
REWARDED = 3  # of so many examples one is decoded and looked at: that costs more than all else
OWN_STEPS, OWN_GUIDANCE = 10, 2.0  # of own pictures: the app's guidance, half its steps
OWN_BATCH = 24
EMPTY_PROMPTS = 0.5  # the paper's share: the network must learn to read the map without words


class Examples(PictureSource, Protocol):
    """What a ControlNet learns from: pictures with captions, and a control map for each."""

    captions: list[str]

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        ...


class FolderExamples:
    """A user's own data in ControlNet's training layout.

    `prompt.json` holds one JSON object a line: `source` (the map) and `target` (the picture), paths
    from the folder, and `prompt`. Pictures are cut to a centred square and scaled to `size`, the
    maps in the way their annotator asks for.
    """

    def __init__(self, folder: Path, annotator: Annotator, size: int) -> None:
        lines = (folder / "prompt.json").read_text(encoding="utf-8").splitlines()
        self._rows = [json.loads(line) for line in lines if line.strip()]
        self._folder = folder
        self._annotator = annotator
        self.size = size
        self.captions = [row["prompt"] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def _square(self, name: str) -> np.ndarray:
        with Image.open(self._folder / name) as image:
            picture = image.convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        return np.asarray(picture.crop((left, top, left + side, top + side)))

    def batch(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures, (N, size, size, 3) uint8."""
        size = (self.size, self.size)
        return np.stack([resize(self._square(self._rows[r]["target"]), size) for r in rows])

    def maps(self, rows: Sequence[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        size, way = (self.size, self.size), self._annotator.interpolation
        return np.stack(
            [resize_map(self._square(self._rows[r]["source"]), size, way) for r in rows]
        )


def mapped_rows(data: Examples, is_empty: Callable[[ControlMap], bool], batch: int) -> Tensor:
    """Return the rows whose maps show something, as int64 indices; all where few are empty.

    From an empty map nothing is learned, and people stand in a fifth of the scenes.
    """

    def shows(rows: Sequence[int]) -> list[bool]:
        parts = [rows[k : k + batch] for k in range(0, len(rows), batch)]
        return [not is_empty(one) for part in parts for one in data.maps(part)]

    tried = np.random.default_rng(0).permutation(len(data))[:MAPS_TRIED].tolist()
    if np.mean(shows(tried)) > 1 - OFTEN_EMPTY:
        return torch.arange(len(data))
    mapped = torch.tensor(shows(range(len(data)))).nonzero()[:, 0]
    print(f"{len(mapped)} of {len(data)} maps show something", flush=True)
    return mapped if len(mapped) else torch.arange(len(data))


def hint(maps: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 maps → (B, 3, H, W) in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps)).to(device).permute(0, 3, 1, 2)
    return tensor.float().div(255).contiguous(memory_format=torch.channels_last)


def own_pictures(file: Path, rows: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """What the ControlNet, as it starts, draws of the maps of rows (N,): latents (N, 4, h, w).

    From a scene's own picture, however noisy, the network sees what is asked for. From these it
    must bring that about where it has taken it for something else, as it must in the app.
    They are kept in a file, for a run that is taken up again.
    """
    if file.exists():
        kept: Tensor = torch.load(file, weights_only=True)
        return kept
    parts, found, began = torch.split(rows, OWN_BATCH), [], time.monotonic()
    for k, part in enumerate(parts):
        found.append(draw(part))
        print(clock(k + 1, len(parts), began, "batches of own pictures"), flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.cat(found), file)
    return torch.cat(found)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "", steps=40_000, learning_rate=5e-4)
    parser.set_defaults(out=None)
    parser.add_argument("--condition", default="canny")
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument(
        "--folder", type=Path, default=None, help="your own pictures, maps and prompt.json instead"
    )
    parser.add_argument("--base", type=Path, default=Path("models/diorama"))
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        help="of the pictures; default: what the base was trained at",
    )
    parser.add_argument("--start", type=Path, default=None, help="an earlier --save to go on from")
    parser.add_argument(
        "--reward",
        nargs="+",
        default=[],
        choices=KINDS,
        help="what the annotator must see again, to tune a trained ControlNet",
    )
    parser.add_argument("--reward-weight", type=float, default=0.5, help="beside the diffusion's")
    parser.add_argument(
        "--own",
        type=int,
        default=0,
        help="of so many pictures that the ControlNet itself draws first, the reward is sought",
    )
    parser.add_argument(
        "--save", type=Path, default=None, help="folder to write the finished ControlNet to"
    )
    options = parser.parse_args(arguments)
    options.out = options.out or Path(f"runs/control-{options.condition}")
    return options


def _examples(options: argparse.Namespace, size: int) -> tuple[Examples, Path]:
    """The examples the options ask for, and the folder that keeps their latents."""
    annotator = find_annotator(options.condition)
    if options.folder:
        return FolderExamples(options.folder, annotator, size), options.folder
    return DrawnExamples(options.data, annotator, size), options.data


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    options = _options(arguments)
    torch.manual_seed(options.seed)
    device = options.device
    unet = UNet2DConditionModel.from_pretrained(options.base / "unet", torch_dtype=torch.float32)
    data, cache = _examples(options, options.size or unet.config.sample_size * 8)
    vae = AutoencoderTiny.from_pretrained(options.base / "vae", torch_dtype=torch.float32)
    vae = vae.to(device)
    latents = cached_latents(cache, data, options.base / "vae", device)
    tokenizer = CLIPTokenizer.from_pretrained(options.base / "tokenizer")
    words_of = options.base / "text_encoder"
    text_encoder = CLIPTextModel.from_pretrained(words_of, dtype=torch.float32).to(device)
    unet = unet.to(device, memory_format=torch.channels_last).requires_grad_(False)
    if options.start:
        control = ControlNetModel.from_pretrained(options.start, torch_dtype=torch.float32)
    else:
        control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS)
    control = control.to(device, memory_format=torch.channels_last).requires_grad_(True)
    print(f"ControlNet {sum(p.numel() for p in control.parameters()) / 1e6:.1f} M", flush=True)
    ids, empty = tokens(tokenizer, data.captions), tokens(tokenizer, [""])
    text_encoder.requires_grad_(False)
    scheduler = make_scheduler()
    batch = options.batch or 48
    mapped = mapped_rows(data, find_annotator(options.condition).is_empty, batch)
    # Where the words of a caption belong is known of scenes, and not of a user's own pictures.
    grounding = Grounding(data, tokenizer, ids) if isinstance(data, Pictures) else None
    # Before its decoder the frozen network has not heard of the map and cannot be taught.
    attention = WatchedAttention(*([unet.up_blocks, control] if grounding else []))

    watched = options.reward
    reward = Reward(vae, load_network().to(device), watched) if watched else None

    def draw(rows: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(int(rows[0]))
        noise = torch.randn(len(rows), *latents.shape[1:], generator=rng).to(device)
        with torch.no_grad():
            text, none = (text_encoder(w.to(device)).last_hidden_state for w in (ids[rows], empty))
        maps = hint(data.maps(rows.tolist()), device)
        return sample_latents(unet, text, none, noise, OWN_STEPS, OWN_GUIDANCE, control, maps)

    some_rows = mapped[torch.randint(len(mapped), (options.own,))]
    own = own_pictures(options.out / "own.pt", some_rows, draw) if options.own else None

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        chosen = mapped[torch.randint(len(mapped), (batch,), generator=rng)]
        rows = torch.where(torch.rand(batch, generator=rng) < ANY_MAP, rows, chosen)
        targets = [NoisyTarget(scheduler, latents[rows].to(device).float(), rng)]
        if own is not None:  # half as many more, of which only what is seen counts
            few = torch.randint(len(own), (batch // 2,), generator=rng)
            targets.append(NoisyTarget(scheduler, own[few].to(device), rng))
            rows = torch.cat([rows, some_rows[few]])
        emptied = torch.rand(len(rows), 1, generator=rng) < EMPTY_PROMPTS
        words = torch.where(emptied, empty, ids[rows]).to(device)
        noisy = torch.cat([target.noisy for target in targets])
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        timesteps = torch.cat([target.timesteps for target in targets])
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(words).last_hidden_state
            maps = hint(data.maps(rows.tolist()), device)
            down, middle = control(noisy, timesteps, text, maps, return_dict=False)
            found = unet(
                noisy,
                timesteps,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        drawn = targets[0].loss(found[:batch])
        losses = {"loss": drawn, "drawn": drawn}
        if reward:
            # Of the scenes some at all noise levels: they are in order.
            some = (
                slice(batch, None) if own is not None else slice(step % REWARDED, batch, REWARDED)
            )
            clean = torch.cat(
                [t.clean(v) for t, v in zip(targets, found.split(batch), strict=True)]
            )
            losses["seen"] = reward.loss(clean[some], data.batch(rows[some].tolist()))
            losses["loss"] = losses["loss"] + options.reward_weight * losses["seen"]
        if grounding is None:
            return losses
        where = torch.where(emptied[..., None], 0, grounding.places[rows]).to(device)
        which = torch.where(emptied, 0, grounding.words[rows]).to(device)
        losses["bound"] = attention.loss(which, where)
        losses["loss"] = losses["loss"] + GROUNDING * losses["bound"]
        return losses

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        chosen = list(range(min(8, len(data))))
        maps = data.maps(chosen)
        with torch.no_grad():
            text = text_encoder(ids[chosen].to(device)).last_hidden_state
            none = text_encoder(empty.to(device)).last_hidden_state
        side, hints = latents.shape[-1], hint(maps, device)
        made = sample(unet, vae, text, none, side, control=control, hint=hints)
        # The same maps without words.
        mute = none.expand_as(text)
        plain = sample(unet, vae, mute, none, side, guidance=1.0, control=control, hint=hints)
        contact_sheet([data.batch(chosen), maps, made, plain]).save(path)

    modules = train(run_from(options), {"control": control}, loss_at, sheet)
    if options.save:
        save_module(modules["control"], options.save, vars(options))


if __name__ == "__main__":
    main()
