"""ControlNet++'s reward: in the picture must be seen what is seen in the one its map came from.

From noisy latents the clean picture is foretold in one step, decoded, and looked at by Diorama's
annotator; the disagreement is a loss beside the diffusion's own. Source: Li et al. 2024,
"ControlNet++" (arXiv 2404.07987). They do so where noise is low, t <= 200 of 1000, and let frozen
networks of several tasks judge one each. Here all noise counts: the layout is settled early, and
Diorama's annotator tells classes apart in what is foretold from t = 950 already.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from annotators._diorama import SceneAnnotator
from annotators.seg import SMALLEST
from training.train_annotator import Targets
from training.train_autoencoder import pixels

# What `Targets.losses` names, and the overlap of classes.
KINDS = ("edges", "depth", "normal", "classes", "joints", "offset", "overlap")


def settled(logits: Tensor) -> Tensor:
    """The likeliest classes (B, h, w) of logits (B, C, h, w), of those that cover enough."""
    covered = functional.one_hot(logits.argmax(1), logits.shape[1]).float().mean((1, 2))
    return logits.masked_fill((covered < SMALLEST)[:, :, None, None], -torch.inf).argmax(1)


def overlap_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """One less the mean intersection over union of logits (B, C, h, w) with classes (B, h, w).

    As the score of segments has it, the mean is over the classes in either: a few pixels of a class
    that should not be there cost as much as one that is missed, of which cross-entropy says little.
    """
    likely = logits.softmax(1)
    asked = functional.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2).float()
    both = (likely * asked).mean((2, 3))
    either = (likely + asked - likely * asked).mean((2, 3))
    found = functional.one_hot(logits.argmax(1), logits.shape[1]).permute(0, 3, 1, 2)
    stray = (likely * found).mean((2, 3))
    present = asked.amax((2, 3))
    counted = present + (1 - present) * stray / (stray + SMALLEST)
    return 1 - ((present * both / either).sum(1) / counted.sum(1)).mean()


class Reward:
    """Compares pictures by what a frozen annotator sees in them, of the KINDS asked for."""

    def __init__(
        self, vae: AutoencoderTiny, annotator: SceneAnnotator, kinds: Sequence[str]
    ) -> None:
        self._decoder = vae.decoder.requires_grad_(False)
        self._annotator = annotator.requires_grad_(False)
        self._kinds = kinds

    def loss(self, latents: Tensor, pictures: np.ndarray) -> Tensor:
        """Disagreement of clean latents (B, 4, h, w) with pictures (B, 8h, 8w, 3) uint8.

        Each kind is around one for a picture that shows something else, and they are added.
        """
        device = latents.device.type
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                seen = self._annotator(pixels(pictures, device))
                wanted = Targets.from_seen(seen)
            found = self._annotator(self._decoder(latents).clamp(-1, 1))
        losses = wanted.losses(found)
        losses["overlap"] = overlap_loss(found.classes, settled(seen.classes))
        return torch.stack([losses[kind] for kind in self._kinds]).sum()
