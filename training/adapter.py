"""T2I-Adapters in training, where a ControlNet may stand.

Source: Mou et al. 2023, arXiv 2302.08453. An adapter sees the map alone, neither latents nor text
nor timestep. It makes a picture of features for each level of the UNet's own encoder.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import T2IAdapter
from torch import Tensor

from core.errors import BadInput
from models.checkpoints import loading
from models.checkpoints.adapters import inspect_adapter, is_adapter
from training.base import Base


def make_adapter(base: Base, unet: Any, start: Path | None) -> Any:
    """Return the T2I-Adapter to train, in float32: from `start`, or a new one as published.

    Raises:
        BadInput: `start` is a ControlNet.
        WeightsMissing, WeightsMismatch: `start` cannot be read, or is for another base.
    """
    if start is None:
        return T2IAdapter(
            channels=list(unet.config.block_out_channels), downscale_factor=base.downscale
        )
    if not is_adapter(start):
        raise BadInput(f"{start} is no T2I-Adapter: leave --adapter out, or start from another.")
    inspect_adapter(start, dict(unet.config))
    return loading.build_control(start, unet).float()


def predict(
    unet: Any, control: Any, noisy: Tensor, timesteps: Tensor, text: Tensor, maps: Tensor
) -> Tensor:
    """Return a UNet's output (B, C, h, w), with what a ControlNet or a T2I-Adapter adds to it.

    `noisy` (B, C, h, w) are latents, `timesteps` (B,) or one for all, `text` (B, 77, D) the encoded
    prompts, `maps` (B, 3, H, W) in [0, 1].
    """
    if not isinstance(control, T2IAdapter):
        down, middle = control(noisy, timesteps, text, maps, return_dict=False)
        output: Tensor = unet(
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return output
    is_grey = control.config.in_channels == 1
    with _added(unet, control(maps.mean(1, keepdim=True) if is_grey else maps)):
        output = unet(noisy, timesteps, text).sample
    return output


@contextmanager
def _added(unet: Any, features: Sequence[Tensor]) -> Iterator[None]:
    """Add features to what comes out of the last layer of each level of the UNet's encoder.

    diffusers' down_intrablock_additional_residuals do so only in levels with attention; in one
    without they come after the downsampling, where they do not fit. Diorama's first is such a one.
    Gradient checkpointing may run a layer again when the hooks are gone, and is right all the same:
    they act after the layer, and the gradient of a sum needs none of its terms.
    """
    with ExitStack() as stack:
        for level, own in zip(unet.down_blocks, features, strict=True):
            last = (getattr(level, "attentions", None) or level.resnets)[-1]
            stack.callback(last.register_forward_hook(partial(_add, own)).remove)
        yield


def _add(features: Tensor, _layer: Any, _inputs: Any, output: Any) -> Any:
    """Add features to a layer's output, which transformers give as a tuple of one."""
    return (output[0] + features,) if isinstance(output, tuple) else output + features
