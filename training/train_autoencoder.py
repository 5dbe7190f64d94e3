"""Trains Diorama's autoencoder; its latents are an eighth of the picture's size.

    python -m training.train_autoencoder --minutes 20

The network is TAESD's (madebyollin/taesd), an `AutoencoderTiny`; the recipe is our own: random
crops; a pixel loss with a term on image gradients, which keeps edges sharp without an adversary;
noise on the latents; and a loss that pulls every latent channel to mean 0 and variance 1, so that
the diffusion model needs no scaling factor.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor, nn

from training.diorama.dataset import Pictures
from training.loop import add_run_options, run_config, train
from training.weights import save_module

CHANNELS = 48
LATENT_NOISE = 0.05


def make_autoencoder() -> AutoencoderTiny:
    """The untrained network: 48 channels, factor 8, 4 latent channels, scaling factor 1."""
    return AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 4,
        decoder_block_out_channels=(CHANNELS,) * 4,
        num_encoder_blocks=(0, 1, 2, 3),  # none at full size, where they cost most and help least
        num_decoder_blocks=(3, 3, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )


def pixels(pictures: np.ndarray, device: str) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [-1, 1], channels last."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2)
    return tensor.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + 5 MSE + 2 L1 of both image gradients; pictures (B, 3, H, W) in [-1, 1]."""
    error = output - target
    down = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    across = (error[:, :, :, 1:] - error[:, :, :, :-1]).abs().mean()
    return error.abs().mean() + 5 * error.square().mean() + 2 * (down + across)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "runs/autoencoder", steps=6000, learning_rate=2e-3)
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument(
        "--save", type=Path, default=None, help="folder to write the trained autoencoder to"
    )
    parser.add_argument("--start", type=Path, default=None, help="continue from an earlier --save")
    parser.add_argument(
        "--decoder-only",
        action="store_true",
        help="freeze the encoder: models trained on its latents stay valid",
    )
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    data = Pictures(options.data)
    vae = make_autoencoder()
    if options.start:
        vae.load_state_dict(AutoencoderTiny.from_pretrained(options.start).float().state_dict())
    vae = vae.to(options.device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(not options.decoder_only)
    batch = options.batch or 32

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((options.seed, step))
        rows = rng.integers(0, len(data), batch)
        target = pixels(data.crops(rows, options.crop, rng), options.device)
        with torch.autocast(options.device, torch.bfloat16):
            latents = vae.encoder(target)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
            output = vae.decoder(latents + LATENT_NOISE * noise.to(latents))
        channels = latents.float().transpose(0, 1).flatten(1)
        whitening = (channels.mean(1).square() + (channels.std(1) - 1).square()).mean()
        error = output.float() - target
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        return {
            "loss": reconstruction_loss(output.float(), target) + 0.05 * whitening,
            "psnr": psnr,
            "whitening": whitening,
        }

    def sheet(modules: dict[str, nn.Module], path: Path) -> None:
        target = pixels(data.batch(range(min(6, len(data)))), options.device)
        with torch.no_grad():
            output = vae.decoder(vae.encoder(target)).clamp(-1, 1)
        both = torch.cat([torch.cat(list(row), 2) for row in (target, output)], 1)
        Image.fromarray((both.permute(1, 2, 0) * 127.5 + 127.5).byte().cpu().numpy()).save(path)

    modules = train(run_config(options), {"vae": vae}, loss_at, sheet)
    if options.save:
        save_module(modules["vae"], options.save, vars(options))


if __name__ == "__main__":
    main()
