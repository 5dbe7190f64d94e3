r"""Trains Diorama's text encoder and latent UNet together, from captioned pictures.

    python -m training.train_base --size 128 --minutes 24 --out runs/base-128 \
        --save runs/base-128/saved
    python -m training.train_base --size 256 --minutes 18 --start runs/base-128/saved \
        --save models/diorama

Small pictures first: a step costs a quarter there, enough to learn the words; the second run learns
the full size. Needs the pictures of `training.dataset` and the autoencoder of
`training.train_autoencoder`; trains the tokenizer, and caches the latents in `--data`.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.networks import encode
from training.adapter import predict
from training.diffusion import NoisyTarget, make_scheduler
from training.diorama.dataset import Pictures, PictureSource
from training.diorama.grounding import AttentionRecorder, Grounding
from training.loop import add_run_options, run_config, train
from training.train_autoencoder import pixels
from training.weights import save_module

TEXT_WIDTH = 192
GROUNDING_WEIGHT = 0.1  # of the attention loss, relative to the diffusion loss
EMPTY_PROMPTS = 0.1  # share of captions replaced by "", for classifier-free guidance


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from captions; every byte has a token."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    model = json.loads(learner.to_str())["model"]
    words = list(
        dict.fromkeys([*alphabet, *(a + "</w>" for a in alphabet), *model["vocab"], start, end])
    )
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(
        vocab={w: k for k, w in enumerate(words)}, merges=merges, model_max_length=77
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: two layers, 192 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_unet(size: int) -> UNet2DConditionModel:
    """The untrained UNet for latents `size` wide: Stable Diffusion's architecture, 1/100 as big."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def cached_latents(folder: Path, data: PictureSource, vae: nn.Module, device: str) -> list[Tensor]:
    """The latents (C, h, w) of each picture, on the CPU, cached in `folder`.

    The file's name contains a hash of the encoder's weights and the pictures' fingerprint. For an
    AutoencoderKL the channels are those of the mean and then of the standard deviation, from which
    `drawn_latents` draws.
    """
    tiny = isinstance(vae, AutoencoderTiny)
    encoder: Any = vae.encoder
    weights = b"".join(p.detach().half().cpu().numpy().tobytes() for p in encoder.parameters())
    names = (data.size, hashlib.sha256(weights).hexdigest()[:8], data.fingerprint)
    path = folder / f"latents-{'-'.join(str(name) for name in names if name)}.pt"
    if path.exists():
        cached = list(torch.load(path, weights_only=True, mmap=True))
        if len(cached) == len(data):
            return cached
    encoded: list[Tensor] = []
    # One by one where a batch may have several sizes, and where one picture is work enough.
    chunk = 16 if tiny and isinstance(data, Pictures) else 1
    with torch.autocast(device, torch.bfloat16, enabled=tiny):
        for k in range(0, len(data), chunk):
            pictures = data.batch(range(k, min(k + chunk, len(data))))
            found = encode(vae, pixels(pictures, device), torch.float32)
            mean, std = found.mean, found.std
            encoded += (mean.half() if std is None else torch.cat([mean, std], 1)).cpu()
            if k % 1600 == 0:
                print(f"latents {k}/{len(data)}", flush=True)
    torch.save(encoded, path)
    return encoded


def drawn_latents(cached: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Latents (B, channels, h, w) in float32 from cached ones, drawn if these have a deviation."""
    cached = cached.float()
    if cached.shape[1] == channels:
        return cached
    mean, std = cached.chunk(2, 1)
    return mean + std * torch.randn(mean.shape, generator=generator)


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(N, 77) token ids, truncated or padded."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def sample_latents(  # noqa: PLR0913, PLR0917 - a sampler's arguments
    unet: nn.Module,
    text: Tensor,
    empty: Tensor,
    noise: Tensor,
    steps: int = 20,
    guidance: float = 3.0,
    control: nn.Module | None = None,
    maps: Tensor | None = None,
    scheduler: DDIMScheduler | None = None,
    precision: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Sample latents (B, 4, h, w) with DDIM, for training; the apps' sampler is `core.pipeline`.

    `text` (B, 77, C) and `empty` (1, 77, C) are the encoded prompts, `maps` (B, 3, H, W) in [0, 1]
    the control maps. The schedule is Diorama's, if no other is given.
    """
    scheduler = scheduler or make_scheduler()
    scheduler.set_timesteps(steps)
    latents, both = noise, torch.cat([empty.expand_as(text), text])
    for t in scheduler.timesteps:
        with torch.autocast(noise.device.type, precision, enabled=precision != torch.float32):
            doubled = torch.cat([latents, latents])
            if control is None or maps is None:
                prediction = unet(doubled, t, both).sample
            else:
                prediction = predict(unet, control, doubled, t, both, torch.cat([maps, maps]))
            uncond, cond = prediction.float().chunk(2)
        latents = scheduler.step(uncond + guidance * (cond - uncond), t, latents).prev_sample
    return latents


@torch.no_grad()
def sample(
    unet: nn.Module, vae: AutoencoderTiny, text: Tensor, empty: Tensor, size: int, **settings: Any
) -> np.ndarray:
    """Sample a sheet's pictures (B, H, W, 3) uint8, latents `size` wide; `settings` as above."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(text), 4, size, size, generator=generator).to(text.device)
    decoded = vae.decoder(sample_latents(unet, text, empty, noise, **settings)).clamp(-1, 1)
    pictures: np.ndarray = (decoded.permute(0, 2, 3, 1) * 127.5 + 127.5).byte().cpu().numpy()
    return pictures


def contact_sheet(rows: list[np.ndarray]) -> Image.Image:
    """One picture of all rows (N, H, W, 3) uint8, stacked vertically."""
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "runs/base", steps=40_000, learning_rate=1e-3)
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--autoencoder", type=Path, default=Path("models/diorama/vae"))
    parser.add_argument(
        "--size", type=int, default=256, help="side that the pictures are reduced to, in pixels"
    )
    parser.add_argument("--start", type=Path, default=None, help="continue from an earlier --save")
    parser.add_argument(
        "--save",
        type=Path,
        default=None,
        help="folder to write unet/, text_encoder/, tokenizer/ and scheduler/ to",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    options = _options(arguments)
    torch.manual_seed(options.seed)
    device = options.device
    data = Pictures(options.data, options.size)
    vae = AutoencoderTiny.from_pretrained(options.autoencoder)
    vae = vae.to(device, memory_format=torch.channels_last)
    latents = torch.stack(cached_latents(options.data, data, vae, device))
    if options.start:
        tokenizer = CLIPTokenizer.from_pretrained(options.start / "tokenizer")
    else:
        tokenizer = make_tokenizer(data.captions)
    ids = tokens(tokenizer, data.captions)
    empty = tokens(tokenizer, [""])
    text_encoder, unet = make_text_encoder(tokenizer), make_unet(latents.shape[-1])
    if options.start:
        text_start = CLIPTextModel.from_pretrained(options.start / "text_encoder")
        unet_start = UNet2DConditionModel.from_pretrained(options.start / "unet")
        text_encoder.load_state_dict(text_start.state_dict())
        unet.load_state_dict(unet_start.state_dict())
    text_encoder, unet = text_encoder.to(device), unet.to(device, memory_format=torch.channels_last)
    print(f"UNet {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M", flush=True)
    scheduler = make_scheduler()
    batch = options.batch or 64
    grounding, attention = Grounding(data, tokenizer, ids), AttentionRecorder(unet)

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        emptied = torch.rand(batch, 1, generator=rng) < EMPTY_PROMPTS
        words = torch.where(emptied, empty, ids[rows]).to(device)
        clean = latents[rows].to(device).float().contiguous(memory_format=torch.channels_last)
        target = NoisyTarget.drawn(scheduler, clean, rng)
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(words).last_hidden_state
            prediction = unet(target.noisy, target.timesteps, text).sample
        diffusion = target.loss(prediction)
        # An empty caption names nothing, so its pixels belong to no phrase.
        pixel_phrases = torch.where(emptied[..., None], 0, grounding.pixel_phrases[rows])
        token_phrases = torch.where(emptied, 0, grounding.token_phrases[rows])
        bound = attention.loss(token_phrases.to(device), pixel_phrases.to(device))
        loss = diffusion + GROUNDING_WEIGHT * bound
        return {"loss": loss, "diffusion": diffusion, "grounding": bound}

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        count = min(8, len(data))
        with torch.no_grad():
            text = text_encoder(ids[:count].to(device)).last_hidden_state
            uncond = text_encoder(empty.to(device)).last_hidden_state
        samples = sample(unet, vae, text, uncond, latents.shape[-1])
        contact_sheet([data.batch(range(count)), samples]).save(path)

    modules = train(
        run_config(options), {"unet": unet, "text_encoder": text_encoder}, loss_at, sheet
    )
    if options.save:
        save_module(modules["unet"], options.save / "unet", vars(options))
        save_module(modules["text_encoder"], options.save / "text_encoder", vars(options))
        tokenizer.save_pretrained(options.save / "tokenizer")
        scheduler.save_pretrained(options.save / "scheduler")


if __name__ == "__main__":
    main()
