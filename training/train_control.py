"""Trains a ControlNet on a frozen base: copied encoder, zero convolutions, half the prompts emptied.

    python -m training.train_control --condition canny --minutes 30
    python -m training.train_control --condition canny --folder my_pictures --base path/to/base

Source: Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". Data, loss and loop are apart:
any `Examples` will do for data, so a user's own folder trains the same way as Diorama's scenes.
"""

import argparse
import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from annotators import find_annotator
from core.condition import Annotator
from training.dataset import Pictures
from training.diffusion import NoisyTarget, make_scheduler
from training.loop import add_run_options, run_from, train
from training.train_base import cached_latents, contact_sheet, sample, tokens
from training.weights import save_module

HINT_CHANNELS = (16, 16, 32, 64)  # of the encoder that brings the map to the latents' size
EMPTY_PROMPTS = 0.5  # the paper's share: the network must learn to read the map without words


class Examples(Protocol):
    """What a ControlNet learns from: pictures and maps (N, H, W, 3) uint8 of one square size, and captions."""

    captions: list[str]
    size: int

    def __len__(self) -> int: ...

    def batch(self, rows: range | list[int]) -> np.ndarray: ...

    def maps(self, rows: list[int]) -> np.ndarray: ...


class DrawnExamples(Pictures):
    """Rendered scenes, with the map drawn by an annotator when it is asked for."""

    def __init__(self, folder: Path, annotator: Annotator, size: int) -> None:
        super().__init__(folder, size)
        self._annotator = annotator

    def maps(self, rows: list[int]) -> np.ndarray:
        """(N, H, W, 3) uint8, drawn by the annotator's first preprocessor at its default settings."""
        draw, settings = self._annotator.preprocessors[0].draw, self._annotator.params()
        return np.stack([draw(picture, settings) for picture in self.batch(rows)])


class FolderExamples:
    """A user's own data in ControlNet's training layout.

    `prompt.json` holds one JSON object a line: `source` (the map) and `target` (the picture), paths from the folder, and
    `prompt`. Pictures are cut to a centred square and scaled to `size`.
    """

    def __init__(self, folder: Path, size: int) -> None:
        lines = (folder / "prompt.json").read_text(encoding="utf-8").splitlines()
        self._rows = [json.loads(line) for line in lines if line.strip()]
        self._folder = folder
        self.size = size
        self.captions = [row["prompt"] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, name: str, resample: Image.Resampling) -> np.ndarray:
        with Image.open(self._folder / name) as image:
            picture = image.convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        return np.asarray(square.resize((self.size, self.size), resample))

    def batch(self, rows: range | list[int]) -> np.ndarray:
        """The pictures, (N, size, size, 3) uint8."""
        return np.stack([self._read(self._rows[r]["target"], Image.Resampling.LANCZOS) for r in rows])

    def maps(self, rows: list[int]) -> np.ndarray:
        """The control maps, (N, size, size, 3) uint8."""
        return np.stack([self._read(self._rows[r]["source"], Image.Resampling.NEAREST) for r in rows])


def hint(maps: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 maps → (B, 3, H, W) in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps)).to(device).permute(0, 3, 1, 2).float().div(255)
    return tensor.contiguous(memory_format=torch.channels_last)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "", steps=40_000, learning_rate=5e-4)
    parser.set_defaults(out=None)
    parser.add_argument("--condition", default="canny")
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument("--folder", type=Path, default=None, help="your own pictures, maps and prompt.json instead")
    parser.add_argument("--base", type=Path, default=Path("models/diorama"))
    parser.add_argument("--size", type=int, default=None, help="of the pictures; default: what the base was trained at")
    parser.add_argument("--start", type=Path, default=None, help="an earlier --save to go on from")
    parser.add_argument("--save", type=Path, default=None, help="folder to write the finished ControlNet to")
    options = parser.parse_args(arguments)
    options.out = options.out or Path(f"runs/control-{options.condition}")
    torch.manual_seed(options.seed)
    device = options.device
    data: Examples
    unet = UNet2DConditionModel.from_pretrained(options.base / "unet", torch_dtype=torch.float32)
    size = options.size or unet.config.sample_size * 8
    if options.folder:
        data, cache = FolderExamples(options.folder, size), options.folder
    else:
        data, cache = DrawnExamples(options.data, find_annotator(options.condition), size), options.data
    vae = AutoencoderTiny.from_pretrained(options.base / "vae", torch_dtype=torch.float32).to(device)
    latents = cached_latents(cache, data, options.base / "vae", device)
    tokenizer = CLIPTokenizer.from_pretrained(options.base / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(options.base / "text_encoder", dtype=torch.float32).to(device)
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

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        words = torch.where(torch.rand(batch, 1, generator=rng) < EMPTY_PROMPTS, empty, ids[rows]).to(device)
        target = NoisyTarget(scheduler, latents[rows].to(device).float(), rng)
        noisy = target.noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(words).last_hidden_state
            down, middle = control(noisy, target.timesteps, text, hint(data.maps(rows.tolist()), device),
                                   return_dict=False)  # fmt: skip
            found = unet(noisy, target.timesteps, text, down_block_additional_residuals=down,
                         mid_block_additional_residual=middle).sample  # fmt: skip
        return {"loss": target.loss(found)}

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        chosen = list(range(min(8, len(data))))
        maps = data.maps(chosen)
        with torch.no_grad():
            text = text_encoder(ids[chosen].to(device)).last_hidden_state
            none = text_encoder(empty.to(device)).last_hidden_state
        made = sample(unet, vae, text, none, latents.shape[-1], control=control, hint=hint(maps, device))
        plain = sample(unet, vae, none.expand_as(text), none, latents.shape[-1], guidance=1.0, control=control,
                       hint=hint(maps, device))  # fmt: skip
        contact_sheet([data.batch(chosen), maps, made, plain]).save(path)

    modules = train(run_from(options), {"control": control}, loss_at, sheet)
    if options.save:
        save_module(modules["control"], options.save, vars(options))


if __name__ == "__main__":
    main()
