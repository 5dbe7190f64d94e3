"""How good pictures are, beside how well they follow their maps: FID and CLIP score.

As ControlNet++'s evaluation has them: FID between the source pictures and each of the four groups
of generated ones, of which the mean counts, resized and in the network of clean-fid; and the cosine
to the caption in CLIP ViT-B/16. Neither network is fetched: put it into models/annotators.

Source: Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"
(clean-fid); Hessel et al. 2021, "CLIPScore".
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from annotators import _pretrained
from core.condition import RGBImage
from core.errors import BadInput, SuiteError, WeightsMissing
from core.images import read_image
from models.catalog.paths import shown

INCEPTION, INCEPTION_SIDE = "inception-2015-12-05.pt", 299
CLIP = "clip-vit-base-patch16"
FEWEST = 2
"""Pictures that have a covariance. Published values are of 5,000: of few, FID is far larger."""
AT_ONCE = 8


class Inception(nn.Module):
    """NVIDIA's conversion of the Inception network that FID is defined by."""

    num_features = 2048

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.layers = torch.jit.load(str(file)).eval().layers  # type: ignore[no-untyped-call]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features (N, 2048) of pixels (N, 3, 299, 299), 0 to 255."""
        features: Tensor = self.layers((pixels - 128) / 128)
        return features.flatten(1)


def fid(real: Sequence[Path], groups: Sequence[Sequence[Path]], device: torch.device) -> float:
    """The mean FID of groups of picture files to the real ones; lower is better.

    Raises:
        WeightsMissing: Inception's weights are not here.
        SuiteError: torchmetrics is not installed.
        BadInput: There are too few pictures.
    """
    network = _inception(_pretrained.FOLDER / INCEPTION, device)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SuiteError(
            "FID is not measured: it needs torchmetrics, so run `pip install torchmetrics`."
        ) from error
    if len(real) < FEWEST:
        raise BadInput(f"FID is not measured: it needs at least {FEWEST} pictures.")
    metric = FrechetInceptionDistance(network, reset_real_features=False, normalize=True).to(device)

    def update(files: Sequence[Path], is_real: bool) -> None:
        for k in range(0, len(files), AT_ONCE):
            pixels = np.stack([_resized(read_image(file)[0]) for file in files[k : k + AT_ONCE]])
            metric.update(torch.from_numpy(pixels).to(device), real=is_real)

    update(real, is_real=True)
    values = []
    for group in groups:
        metric.reset()
        update(group, is_real=False)
        values.append(float(metric.compute()))
    return float(np.mean(values))


def _resized(picture: RGBImage) -> np.ndarray:
    """As clean-fid resizes: (3, 299, 299) float32, 0 to 255, never rounded."""
    channels = [Image.fromarray(picture[:, :, k].astype(np.float32)) for k in range(3)]
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    resized = [np.asarray(one.resize(side, Image.Resampling.BICUBIC)) for one in channels]
    return np.stack(resized).clip(0, 255)


@cache
def _inception(file: Path, device: torch.device) -> nn.Module:
    if not file.is_file():
        raise WeightsMissing(
            f"FID is not measured: it needs NVIDIA's {file.name} in {shown(file.parent)}."
        )
    return Inception(file).to(device)


def clip_score(
    files: Sequence[Path], captions: Sequence[str], device: torch.device
) -> float | None:
    """The mean of 100 times the cosine of each picture to its caption; None without captions.

    Raises:
        WeightsMissing: CLIP is not here.
    """
    network, processor = _clip(_pretrained.FOLDER / CLIP, device)
    pairs = [pair for pair in zip(files, captions, strict=True) if pair[1].strip()]
    scores = [_cosine(network, processor, read_image(file)[0], text) for file, text in pairs]
    return 100 * float(np.mean(scores)) if scores else None


@cache
def _clip(folder: Path, device: torch.device) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise WeightsMissing(
            f"CLIP score is not measured: it needs the files of huggingface.co/openai/{CLIP} in "
            f"{shown(folder)}."
        )
    from transformers import CLIPModel, CLIPProcessor  # noqa: PLC0415 - it takes seconds

    network = CLIPModel.from_pretrained(folder).to(device).eval()
    return network, CLIPProcessor.from_pretrained(folder)


def _cosine(network: Any, processor: Any, picture: RGBImage, text: str) -> float:
    inputs = processor(text=[text], images=[picture], return_tensors="pt", truncation=True)
    with torch.no_grad():
        found = network(**inputs.to(network.device))
    return float((found.image_embeds * found.text_embeds).sum())
