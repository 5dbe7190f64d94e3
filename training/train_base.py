r"""Trains Diorama's text encoder and latent UNet together, from captions and pictures alone.

    python -m training.train_base --size 128 --minutes 24 --out runs/base-128 \
        --save runs/base-128/saved
    python -m training.train_base --size 256 --minutes 18 --start runs/base-128/saved \
        --save models/diorama

Small pictures first: a step costs a quarter, and what words mean is learned there; the second run
learns the full size. Needs the pictures of `training.dataset` and the autoencoder of
`training.train_autoencoder`; makes the tokenizer, and keeps the latents in `--data` so that they
are computed once.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.diffusion import NoisyTarget, make_scheduler
from training.diorama.dataset import Pictures, PictureSource
from training.diorama.grounding import Grounding, WatchedAttention
from training.loop import add_run_options, run_from, train
from training.train_autoencoder import pixels
from training.weights import save_module

TEXT_WIDTH = 192
GROUNDING = 0.1  # weight of the attention's loss beside the prediction's
DROPPED_CAPTIONS = 0.1  # share of empty captions, which classifier-free guidance needs


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learned from captions.

    Letters it never saw still have tokens.
    """
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
    """The untrained text encoder: two layers of 192."""
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
    """The untrained UNet for latents `size` wide.

    Stable Diffusion's plan at a hundredth of its size.
    """
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


def cached_latents(folder: Path, data: PictureSource, autoencoder: Path, device: str) -> Tensor:
    """(N, 4, h, w) float16 latents of all pictures, computed once and kept in `folder`.

    They belong to one encoder, so its weights are part of the name they are kept under.
    """
    vae = AutoencoderTiny.from_pretrained(autoencoder)
    weights = b"".join(p.detach().half().numpy().tobytes() for p in vae.encoder.parameters())
    path = folder / f"latents-{data.size}-{hashlib.sha256(weights).hexdigest()[:8]}.pt"
    if path.exists():
        kept: Tensor = torch.load(path, weights_only=True)
        if len(kept) == len(data):
            return kept
    encoder = vae.to(device, memory_format=torch.channels_last).encoder
    found = []
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        for k in range(0, len(data), 16):
            pictures = data.batch(range(k, min(k + 16, len(data))))
            found.append(encoder(pixels(pictures, device)).half().cpu())
            if k % 1600 == 0:
                print(f"latents {k}/{len(data)}", flush=True)
    latents = torch.cat(found)
    torch.save(latents, path)
    return latents


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(N, 77) token ids, cut or padded."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def sample_latents(  # noqa: PLR0913, PLR0917 - what a sampler needs
    unet: nn.Module,
    text: Tensor,
    empty: Tensor,
    noise: Tensor,
    steps: int = 20,
    guidance: float = 3.0,
    control: nn.Module | None = None,
    hint: Tensor | None = None,
) -> Tensor:
    """Latents (B, 4, h, w) drawn from noise; the application's own sampler is `core.pipeline`.

    `text` (B, 77, C) and `empty` (1, 77, C) are the encoded captions, `hint` (B, 3, H, W) in [0, 1]
    the control's maps.
    """
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    latents, both = noise, torch.cat([empty.expand_as(text), text])
    for t in scheduler.timesteps:
        with torch.autocast(noise.device.type, torch.bfloat16):
            doubled = torch.cat([latents, latents])
            more = {}
            if control is not None and hint is not None:
                down, middle = control(doubled, t, both, torch.cat([hint, hint]), return_dict=False)
                more = {
                    "down_block_additional_residuals": down,
                    "mid_block_additional_residual": middle,
                }
            low, high = unet(doubled, t, both, **more).sample.float().chunk(2)
        latents = scheduler.step(low + guidance * (high - low), t, latents).prev_sample
    return latents


@torch.no_grad()
def sample(
    unet: nn.Module, vae: AutoencoderTiny, text: Tensor, empty: Tensor, size: int, **settings: Any
) -> np.ndarray:
    """A sheet's pictures, (B, H, W, 3) uint8, of latents of this size; `settings` as above."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(text), 4, size, size, generator=generator).to(text.device)
    found = vae.decoder(sample_latents(unet, text, empty, noise, **settings)).clamp(-1, 1)
    pictures: np.ndarray = (found.permute(0, 2, 3, 1) * 127.5 + 127.5).byte().cpu().numpy()
    return pictures


def contact_sheet(rows: list[np.ndarray]) -> Image.Image:
    """Rows of pictures (N, H, W, 3) uint8, one above the other."""
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "runs/base", steps=40_000, learning_rate=1e-3)
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--autoencoder", type=Path, default=Path("models/diorama/vae"))
    parser.add_argument(
        "--size", type=int, default=256, help="of the pictures; smaller ones are averaged from them"
    )
    parser.add_argument(
        "--start", type=Path, default=None, help="folder of an earlier --save to go on from"
    )
    parser.add_argument(
        "--save",
        type=Path,
        default=None,
        help="folder that gets unet/, text_encoder/, tokenizer/ …",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    options = _options(arguments)
    torch.manual_seed(options.seed)
    device = options.device
    data = Pictures(options.data, options.size)
    vae = AutoencoderTiny.from_pretrained(options.autoencoder).to(device)
    latents = cached_latents(options.data, data, options.autoencoder, device)
    if options.start:
        tokenizer = CLIPTokenizer.from_pretrained(options.start / "tokenizer")
    else:
        tokenizer = make_tokenizer(data.captions)
    ids = tokens(tokenizer, data.captions)
    empty = tokens(tokenizer, [""])
    text_encoder, unet = make_text_encoder(tokenizer), make_unet(latents.shape[-1])
    if options.start:
        words_of, unet_of = options.start / "text_encoder", options.start / "unet"
        text_encoder.load_state_dict(CLIPTextModel.from_pretrained(words_of).state_dict())
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(unet_of).state_dict())
    text_encoder, unet = text_encoder.to(device), unet.to(device, memory_format=torch.channels_last)
    print(f"UNet {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M", flush=True)
    scheduler = make_scheduler()
    batch = options.batch or 64
    grounding, attention = Grounding(data, tokenizer, ids), WatchedAttention(unet)

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        dropped = torch.rand(batch, 1, generator=rng) < DROPPED_CAPTIONS
        words = torch.where(dropped, empty, ids[rows]).to(device)
        clean = latents[rows].to(device).float().contiguous(memory_format=torch.channels_last)
        target = NoisyTarget(scheduler, clean, rng)
        with torch.autocast(device, torch.bfloat16):
            text = text_encoder(words).last_hidden_state
            found = unet(target.noisy, target.timesteps, text).sample
        drawn = target.loss(found)
        # An empty caption has no words to listen to, so its things count as the rest.
        where = torch.where(dropped[..., None], 0, grounding.places[rows]).to(device)
        which = torch.where(dropped, 0, grounding.words[rows]).to(device)
        bound = attention.loss(which, where)
        return {"loss": drawn + GROUNDING * bound, "drawn": drawn, "bound": bound}

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        count = min(8, len(data))
        with torch.no_grad():
            text = text_encoder(ids[:count].to(device)).last_hidden_state
            none = text_encoder(empty.to(device)).last_hidden_state
        made = sample(unet, vae, text, none, latents.shape[-1])
        contact_sheet([data.batch(range(count)), made]).save(path)

    modules = train(run_from(options), {"unet": unet, "text_encoder": text_encoder}, loss_at, sheet)
    if options.save:
        save_module(modules["unet"], options.save / "unet", vars(options))
        save_module(modules["text_encoder"], options.save / "text_encoder", vars(options))
        tokenizer.save_pretrained(options.save / "tokenizer")
        scheduler.save_pretrained(options.save / "scheduler")


if __name__ == "__main__":
    main()
