"""What both ways of measuring control share: the round trip, the contact sheet, and going on."""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from core.condition import RGBImage
from core.errors import SuiteError
from core.images import to_images, to_tensor
from core.networks import Networks

SHOWN_ROWS = 12  # of a contact sheet


def round_trip(networks: Networks, image: RGBImage) -> RGBImage:
    """The picture as the autoencoder gives it back."""
    vae = networks.vae  # type: ignore[attr-defined]
    pixels = (to_tensor(image) * 2 - 1).to(networks.device, networks.dtype)
    with torch.no_grad():
        encoded = vae.encode(pixels)
        latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mean
        return to_images(vae.decode(latents).sample.float())[0]


def psnr(a: RGBImage, b: RGBImage) -> float:
    """Peak signal to noise ratio in dB, of 8-bit pictures."""
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def save_sheet(rows: Sequence[Sequence[RGBImage]], sheet: Path, name: str) -> None:
    """Saves the first rows of pictures of one size as one, beside `sheet` and with `name`."""
    sheet.parent.mkdir(parents=True, exist_ok=True)
    whole = np.concatenate([np.concatenate(row, 1) for row in rows[:SHOWN_ROWS]], 0)
    Image.fromarray(whole).save(sheet.with_stem(f"{sheet.stem}-{name}"))


@contextmanager
def spared(name: str, failed: dict[str, str], only: type[Exception] = Exception) -> Iterator[None]:
    """Notes a failure in `failed` and on stderr: hours of measuring are not lost to one condition.

    What is no plain mistake is a bug, and where it rose is printed too.
    """
    try:
        yield
    except only as error:
        failed[name] = str(error)
        if not isinstance(error, SuiteError):
            traceback.print_exception(error)
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{name}: {failed[name]}", file=sys.stderr, flush=True)
