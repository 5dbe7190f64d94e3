"""Predictions for several requests at once: one pass through the UNet, one through each ControlNet.

The requests may have other prompts, maps, strengths and ControlNets; they share the UNet, the
timestep, the size and the number of prompts. Their images lie behind one another in a batch, for
every prompt again: (T, B1 + B2 + ..., C, h, w). What each adds to its own rows is what it would add
alone, in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.networks import ControlInput, Residuals
from models.engine.layers import convolve
from models.engine.unet import Forward, StepCache, _decode, _encode


@dataclass(frozen=True, eq=False)
class Part:
    """What one request asks; arguments as Forward's."""

    forward: Forward
    latents: Tensor
    texts: Tensor
    controls: Sequence[ControlInput]
    residuals: Residuals


@dataclass(frozen=True, eq=False)
class _Rows:
    """A part, and which images of a batch are its own."""

    part: Part
    first: int
    last: int

    def of(self, batch: Tensor, texts: int) -> Tensor:
        """Return a view of its rows, (T or 1, B, ...), of a batch with rows for every image."""
        return batch.reshape(texts, -1, *batch.shape[1:])[:, self.first : self.last]


def predict(parts: Sequence[Part], timestep: float) -> list[Tensor]:
    """Return each part's prediction, (T * B, C, h, w), up to rounding as its own Forward gives."""
    unet = parts[0].forward._unet
    texts, rows = len(parts[0].texts), _laid_out(parts)
    images = rows[-1].last
    start = torch.cat([convolve(unet.conv_in, _pixels(part)) for part in parts])
    skips, x = _encode(unet, start, _known(unet, parts, timestep))
    targets = (*skips, x)
    for network, acting in _by_network(rows).items():
        with parts[0].forward.using(network, start):
            _add_control(network, acting, timestep, targets, images)
    for one in rows:
        for target, residual in zip(targets, one.part.residuals, strict=False):
            mine = one.of(target, len(target) // images)
            mine.add_(residual.reshape(mine.shape))
    found = _decode(unet, skips, x, _known(unet, parts, timestep))
    return [one.of(found, texts).flatten(0, 1) for one in rows]


def _laid_out(parts: Sequence[Part]) -> list[_Rows]:
    rows: list[_Rows] = []
    for part in parts:
        first = rows[-1].last if rows else 0
        rows.append(_Rows(part, first, first + len(part.latents)))
    return rows


def _pixels(part: Part) -> Tensor:
    return part.latents.contiguous(memory_format=torch.channels_last)


def _known(network: nn.Module, parts: Sequence[Part], timestep: float) -> StepCache:
    """Return what the parts know of a network, their keys and values in the batch's order."""
    each = [p.forward._known(network, timestep, p.texts, len(p.latents)) for p in parts]
    text = {}
    for layer in each[0].text:
        by_image = [
            [t.reshape(len(p.texts), -1, *t.shape[1:]) for t in known.text[layer]]
            for p, known in zip(parts, each, strict=True)
        ]
        keys, values = (torch.cat(same, 1).flatten(0, 1) for same in zip(*by_image, strict=True))
        text[layer] = keys, values
    return StepCache(text, each[0].times)


def _by_network(rows: Sequence[_Rows]) -> dict[nn.Module, list[tuple[_Rows, ControlInput]]]:
    """Return who uses which ControlNet, and how; a request may use one twice."""
    found: dict[nn.Module, list[tuple[_Rows, ControlInput]]] = {}
    for one in rows:
        for control in one.part.controls:
            if any(control.scales):
                network = one.part.forward._controlnets[control.name]
                found.setdefault(network, []).append((one, control))
    return found


def _add_control(
    network: nn.Module,
    acting: Sequence[tuple[_Rows, ControlInput]],
    timestep: float,
    targets: Sequence[Tensor],
    images: int,
) -> None:
    """Run a ControlNet for all who use it; add to each one's rows of the targets, by its scales."""
    module: nn.Module = network
    parts = [one.part for one, _ in acting]
    start = torch.cat(
        [
            convolve(module.conv_in, _pixels(one.part))
            + one.part.forward._hint(control, one.part.latents)
            for one, control in acting
        ]
    )
    found, middle = _encode(module, start, _known(module, parts, timestep))
    zeros = (*module.controlnet_down_blocks, module.controlnet_mid_block)  # type: ignore[misc]
    places = _laid_out(parts)
    for depth, (source, zero) in enumerate(zip((*found, middle), zeros, strict=True)):
        residual = convolve(zero, source)
        for (one, control), place in zip(acting, places, strict=True):
            mine = one.of(targets[depth], len(targets[depth]) // images)
            theirs = place.of(residual, len(residual) // places[-1].last)
            mine.add_(theirs, alpha=control.scales[depth])
