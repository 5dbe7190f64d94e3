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

from annotators._network import SceneAnnotator
from training.train_annotator import Targets
from training.train_autoencoder import pixels

KINDS = ("edges", "depth", "normal", "classes", "joints", "offset")  # what `Targets.losses` names


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
                wanted = Targets.from_seen(self._annotator(pixels(pictures, device)))
            found = self._annotator(self._decoder(latents).clamp(-1, 1))
        losses = wanted.losses(found)
        return torch.stack([losses[kind] for kind in self._kinds]).sum()
