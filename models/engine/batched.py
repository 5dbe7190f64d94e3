"""Predictions for several requests at once: one pass through the UNet, one through each ControlNet.

The calls may have other prompts, hints, scales and ControlNets; they share the UNet, the timestep,
the UNet's guidance scale, the size, and the number of texts and of their chunks. Their images are
concatenated, once for each text: (T, B1 + B2 + ..., C, h, w). What each adds to its own rows is
what it would add alone, in the same order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.networks import ControlInput, PredictCall, Residuals
from models.engine.layers import convolve
from models.engine.unet import (
    Forward,
    StepCache,
    channels_last,
    run_controlnet,
    run_down_and_mid,
    run_up,
)


@dataclass(frozen=True, eq=False)
class _Rows:
    """One request's call, and which images of a batch are its own: first to last, exclusive."""

    forward: Forward
    call: PredictCall
    first: int
    last: int

    def of(self, batch: Tensor, images: int) -> Tensor:
        """Return a view (T or 1, B, ...) of its rows in a batch of so many images."""
        return batch.reshape(-1, images, *batch.shape[1:])[:, self.first : self.last]


def predict(calls: Sequence[tuple[Forward, PredictCall]]) -> list[Tensor]:
    """Return each call's prediction (T * B, C, h, w), equal to its own Forward's up to rounding."""
    rows = _rows(calls)
    forward, images = rows[0].forward, rows[-1].last
    unet = forward.unet
    start = torch.cat([convolve(unet.conv_in, channels_last(one.call.latents)) for one in rows])
    skips, x = run_down_and_mid(unet, start, _joint_cache(unet, rows), _joint_features(rows))
    targets = (*skips, x)
    for one, depth, residual, scale in _controlnets(rows, start):
        one.of(targets[depth], images).add_(residual, alpha=scale)
    for one in rows:
        for target, residual in zip(targets, one.call.residuals, strict=False):
            view = one.of(target, images)
            view.add_(residual.reshape(view.shape))
    output = run_up(unet, skips, x, _joint_cache(unet, rows))
    return [one.of(output, images).flatten(0, 1) for one in rows]


def control_residuals(calls: Sequence[tuple[Forward, PredictCall]]) -> list[Residuals]:
    """Return each call's residuals, equal to its own Forward's up to rounding."""
    rows = _rows(calls)
    totals: dict[_Rows, dict[int, Tensor]] = {one: {} for one in rows}
    for one, depth, residual, scale in _controlnets(
        rows, torch.cat([r.call.latents for r in rows])
    ):
        scaled, total = residual.flatten(0, 1) * scale, totals[one].get(depth)
        totals[one][depth] = scaled if total is None else total.add_(scaled)
    return [tuple(total.values()) for total in totals.values()]


def _rows(calls: Iterable[tuple[Forward, PredictCall]]) -> list[_Rows]:
    rows: list[_Rows] = []
    for forward, call in calls:
        first = rows[-1].last if rows else 0
        rows.append(_Rows(forward, call, first, first + len(call.latents)))
    return rows


def _joint_cache(network: nn.Module, rows: Sequence[_Rows]) -> StepCache:
    """Return the calls' step caches of a network as one, keys and values in the batch's order."""
    caches = [one.forward.step_cache(network, one.call) for one in rows]
    joint = {}
    for layer in caches[0].keys_values:
        by_text = [
            [t.reshape(len(one.call.texts), -1, *t.shape[1:]) for t in cache.keys_values[layer]]
            for one, cache in zip(rows, caches, strict=True)
        ]
        keys, values = (torch.cat(same, 1).flatten(0, 1) for same in zip(*by_text, strict=True))
        joint[layer] = keys, values
    return StepCache(joint, caches[0].biases)


def _joint_features(rows: Sequence[_Rows]) -> list[Tensor]:
    """Return the calls' features of T2I-Adapters in the batch's order, 0 for a call without."""
    each = [one.forward.adapter_features(one.call) for one in rows]
    known = next(filter(None, each), [])
    return [
        torch.cat(
            [
                (found[depth] if found else torch.zeros_like(like)).expand(
                    one.last - one.first, -1, -1, -1
                )
                for one, found in zip(rows, each, strict=True)
            ]
        )
        for depth, like in enumerate(known)
    ]


def _controlnets(
    rows: Sequence[_Rows], latents: Tensor
) -> Iterator[tuple[_Rows, int, Tensor, float]]:
    """Run each ControlNet once for all its uses; yield each use's residuals by depth, unscaled.

    Yields the rows, the depth, the residual (T or 1, B, C, h, w) and its scale. `latents` are all
    images' (see Forward.on_device).
    """
    for network, uses in _by_controlnet(rows).items():
        own = _rows((one.forward, one.call) for one, _ in uses)
        with rows[0].forward.on_device(network, latents):
            start = torch.cat(
                [
                    convolve(network.conv_in, channels_last(one.call.latents))
                    + one.forward.encoded_hint(control, one.call.latents)
                    for one, control in uses
                ]
            )
            residuals = run_controlnet(network, start, _joint_cache(network, own))
            for depth, residual in enumerate(residuals):
                for (one, control), source in zip(uses, own, strict=True):
                    part = source.of(residual, own[-1].last)
                    yield one, depth, part, control.scales[depth]


def _by_controlnet(rows: Sequence[_Rows]) -> dict[Any, list[tuple[_Rows, ControlInput]]]:
    """Return each ControlNet's uses; a request may use one twice."""
    uses: dict[Any, list[tuple[_Rows, ControlInput]]] = {}
    for one in rows:
        for control in one.call.active_controls:
            network = one.forward.controlnets[control.name]
            uses.setdefault(network, []).append((one, control))
    return uses
