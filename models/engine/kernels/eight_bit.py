"""Weights in 8 bits: whole numbers from -127 to 127 times a scale, half the memory of bfloat16.

Each output channel has a scale for every block of input channels, which is as large as the
kernels' blocks (matmul.cpp, winograd.cpp). Only storage is in 8 bits: products are those of the
kernels, so that nothing but the weights is rounded.
"""

import torch
from torch import Tensor
from torch.nn import functional

LARGEST = 127


def in_blocks(weight: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the whole numbers (N, in, K, columns) of a weight, and their scales.

    The weight (N, in, K, columns) has a column for each output channel. The scales (N, blocks,
    columns), float32, are those of blocks of `depth` input channels: the largest number becomes
    LARGEST. A block with infinite numbers or NaN stays one: its scale is NaN.
    """
    blocks = _blocks(weight.float(), depth)
    scales = blocks.abs().amax(dim=(2, 3)) / LARGEST
    numbers = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None, None]).round()
    whole = numbers.nan_to_num(0, 0, 0).to(torch.int8)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    return whole.flatten(1, 2)[:, : weight.shape[1]].contiguous(), scales.contiguous()


def out_of_blocks(numbers: Tensor, scales: Tensor, depth: int) -> Tensor:
    """Return the weight (N, in, K, columns) of in_blocks, in bfloat16."""
    found = _blocks(numbers.float(), depth) * scales[:, :, None, None]
    return found.flatten(1, 2)[:, : numbers.shape[1]].to(torch.bfloat16)


def _blocks(weight: Tensor, depth: int) -> Tensor:
    """(N, in, K, columns) -> (N, blocks, depth, K, columns), zeros at the end."""
    padded = functional.pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % depth))
    return padded.reshape(len(weight), -1, depth, *weight.shape[2:])
