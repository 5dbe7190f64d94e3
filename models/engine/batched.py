"""Predictions for several requests at once: one pass through the UNet, one through each ControlNet.

The requests may have other prompts, maps, strengths and ControlNets; they share the UNet, the
timestep, the size and the number of prompts. Their images lie behind one another in a batch, for
every prompt again: (T, B1 + B2 + ..., C, h, w). What each adds to its own rows is what it would add
alone, in the same order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.networks import ControlInput, PredictCall
from models.engine.layers import convolve
from models.engine.unet import Forward, StepCache, _decode, _encode, channels_last


@dataclass(frozen=True, eq=False)
class _Rows:
    """A request's call, and which images of a batch are its own."""

    forward: Forward
    call: PredictCall
    first: int
    last: int

    def of(self, batch: Tensor, texts: int) -> Tensor:
        """Return a view of its rows, (T or 1, B, ...), of a batch with rows for every image."""
        return batch.reshape(texts, -1, *batch.shape[1:])[:, self.first : self.last]


def predict(calls: Sequence[tuple[Forward, PredictCall]]) -> list[Tensor]:
    """Return each call's prediction, (T * B, C, h, w), up to rounding as its own Forward gives."""
    rows = _laid_out(calls)
    first, images = rows[0], rows[-1].last
    texts, unet = len(first.call.texts), first.forward._unet
    start = torch.cat([convolve(unet.conv_in, channels_last(one.call.latents)) for one in rows])
    skips, x = _encode(unet, start, _joint_cache(unet, rows))
    targets = (*skips, x)
    for network, acting in _by_network(rows).items():
        with first.forward.using(network, start):
            _add_control(network, acting, targets, images)
    for one in rows:
        for target, residual in zip(targets, one.call.residuals, strict=False):
            mine = one.of(target, len(target) // images)
            mine.add_(residual.reshape(mine.shape))
    found = _decode(unet, skips, x, _joint_cache(unet, rows))
    return [one.of(found, texts).flatten(0, 1) for one in rows]


def _laid_out(calls: Iterable[tuple[Forward, PredictCall]]) -> list[_Rows]:
    rows: list[_Rows] = []
    for forward, call in calls:
        first = rows[-1].last if rows else 0
        rows.append(_Rows(forward, call, first, first + len(call.latents)))
    return rows


def _joint_cache(network: nn.Module, rows: Sequence[_Rows]) -> StepCache:
    """Return the calls' caches of a network as one, keys and values in the batch's order."""
    each = [one.forward._known(network, one.call) for one in rows]
    text = {}
    for layer in each[0].text:
        by_image = [
            [t.reshape(len(one.call.texts), -1, *t.shape[1:]) for t in cache.text[layer]]
            for one, cache in zip(rows, each, strict=True)
        ]
        keys, values = (torch.cat(same, 1).flatten(0, 1) for same in zip(*by_image, strict=True))
        text[layer] = keys, values
    return StepCache(text, each[0].times)


def _by_network(rows: Sequence[_Rows]) -> dict[nn.Module, list[tuple[_Rows, ControlInput]]]:
    """Return who uses which ControlNet, and how; a request may use one twice."""
    found: dict[nn.Module, list[tuple[_Rows, ControlInput]]] = {}
    for one in rows:
        for control in one.call.active_controls:
            network = one.forward._controlnets[control.name]
            found.setdefault(network, []).append((one, control))
    return found


def _add_control(
    network: Any,
    acting: Sequence[tuple[_Rows, ControlInput]],
    targets: Sequence[Tensor],
    images: int,
) -> None:
    """Run a ControlNet for all who use it; add to each one's rows of the targets, by its scales."""
    places = _laid_out((one.forward, one.call) for one, _ in acting)
    latents = [channels_last(one.call.latents) for one in places]
    hints = [one.forward._hint(control, one.call.latents) for one, control in acting]
    start = torch.cat(
        [
            convolve(network.conv_in, pixels) + hint
            for pixels, hint in zip(latents, hints, strict=True)
        ]
    )
    found, middle = _encode(network, start, _joint_cache(network, places))
    zeros = (*network.controlnet_down_blocks, network.controlnet_mid_block)
    for depth, (source, zero) in enumerate(zip((*found, middle), zeros, strict=True)):
        residual = convolve(zero, source)
        for (one, control), place in zip(acting, places, strict=True):
            mine = one.of(targets[depth], len(targets[depth]) // images)
            theirs = place.of(residual, len(residual) // places[-1].last)
            mine.add_(theirs, alpha=control.scales[depth])
