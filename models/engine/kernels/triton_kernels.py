"""Triton kernels for GPUs: one or two passes over memory where torch needs several.

- Group normalisation with SiLU. torch's own converts a channels-last picture to the other memory
  format and back, and SiLU is another pass.
- The gate of a feed-forward layer: GELU and the product with the other half of a tensor, which
  torch reads in strides.
- A sum with a multiple, whose factor is in the GPU's memory, with one rounding.

All compute in float32 and round once. With TRITON_INTERPRET=1, set before the import, they run on a
CPU, for tests.
"""
# ruff: noqa: N803, PLR0913, PLR0917 - kernels have many arguments, and constants in capitals
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"
# Kernels are in Triton's language, and Triton gives their arguments their types.

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE = 2**15
"""Largest group (in elements) that one program holds at once; larger ones take two kernels."""
COLUMNS = 128
"""About how many channels of each pixel a program of the two kernels reads."""
TILE = 2**13
"""Elements that such a program holds at once."""
PROGRAMS = 1024
"""About how many programs a large tensor gets: several per multiprocessor."""
MOST_CHUNKS = 256
"""Per picture: every program of the second kernel reads the first one's sums of each chunk."""
BLOCK = 1024
"""Elements per program in elementwise kernels."""


# Group normalisation. In a program rows are some pixels of a picture (B, h, w, C), columns the
# channels of some groups. A group of 10 takes 16 columns, 6 of them masked: Triton's blocks are
# powers of two.


@triton.jit
def _norm_whole(
    x,
    y,
    weight,
    bias,
    before,
    eps,
    pixels,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SILU: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """Normalise one group of one picture: read once, written once."""
    width: tl.constexpr = CHANNELS // GROUPS
    picture, group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLS)[None, :]
    inside = (row < pixels) & (column < width)
    channel = group * width + column
    place = picture.to(tl.int64) * pixels * CHANNELS + row * CHANNELS + channel
    value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    if BEFORE:
        more = tl.load(before + channel, mask=column < width, other=0).to(tl.float32)
        value = tl.where(inside, value + more, 0.0)
    count = pixels * width
    mean = tl.sum(tl.sum(value, 1), 0) / count
    off = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(tl.sum(off * off, 1), 0) / count
    factor = tl.load(weight + channel, mask=column < width, other=0).to(tl.float32)
    shift = tl.load(bias + channel, mask=column < width, other=0).to(tl.float32)
    found = off * (factor * tl.rsqrt(variance + eps)) + shift
    if SILU:
        found = found / (1 + tl.exp(-found))
    tl.store(y + place, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _norm_sums(
    x,
    sums,
    before,
    pixels,
    chunks,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    SOME: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """Sum some groups, and their squares, in a chunk of a picture's pixels.

    The group's first number in the picture is subtracted: with a mean far from zero, the difference
    of two large sums would lose the variance's digits.
    """
    width: tl.constexpr = CHANNELS // GROUPS
    chunk, picture = tl.program_id(0), tl.program_id(2)
    column = tl.arange(0, SOME * WIDE)
    group = tl.program_id(1) * SOME + column // WIDE
    channel = group * width + column % WIDE
    real = (column % WIDE < width) & (group < GROUPS)
    start = picture.to(tl.int64) * pixels * CHANNELS
    first = tl.load(x + start + group * width, mask=group < GROUPS, other=0).to(tl.float32)
    lead = tl.zeros((SOME * WIDE,), tl.float32) - first
    if BEFORE:
        lead += tl.load(before + channel, mask=real, other=0).to(tl.float32)
    total = tl.zeros((SOME * WIDE,), tl.float32)
    squares = tl.zeros((SOME * WIDE,), tl.float32)
    for step in range(STEPS):
        row = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < pixels)[:, None] & real[None, :]
        place = start + row[:, None] * CHANNELS + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        off = tl.where(inside, value + lead[None, :], 0.0)
        total += tl.sum(off, 0)
        squares += tl.sum(off * off, 0)
    at = tl.program_id(1) * SOME + tl.arange(0, SOME)
    into = sums + ((picture * chunks + chunk) * GROUPS + at) * 2
    tl.store(into, tl.sum(tl.reshape(total, (SOME, WIDE)), 1), mask=at < GROUPS)
    tl.store(into + 1, tl.sum(tl.reshape(squares, (SOME, WIDE)), 1), mask=at < GROUPS)


@triton.jit
def _norm_apply(
    x,
    y,
    sums,
    weight,
    bias,
    before,
    eps,
    pixels,
    chunks,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    SOME: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    SILU: tl.constexpr,
    BEFORE: tl.constexpr,
):
    """Normalise a chunk by the sums of all chunks, always added in the same order."""
    width: tl.constexpr = CHANNELS // GROUPS
    chunk, picture = tl.program_id(0), tl.program_id(2)
    at = tl.program_id(1) * SOME + tl.arange(0, SOME)
    each = tl.arange(0, CHUNKS)
    source = sums + ((picture * chunks + each[:, None]) * GROUPS + at[None, :]) * 2
    there = (at < GROUPS)[None, :] & (each < chunks)[:, None]
    count = pixels * width
    beyond = tl.sum(tl.load(source, mask=there, other=0.0), 0) / count
    square = tl.sum(tl.load(source + 1, mask=there, other=0.0), 0) / count
    spread = tl.maximum(square - beyond * beyond, 0.0)
    scale = tl.rsqrt(spread + eps)
    # Mean and scale of a group, repeated for each of its columns.
    column = tl.arange(0, SOME * WIDE)
    group = tl.program_id(1) * SOME + column // WIDE
    channel = group * width + column % WIDE
    real = (column % WIDE < width) & (group < GROUPS)
    start = picture.to(tl.int64) * pixels * CHANNELS
    first = tl.load(x + start + group * width, mask=group < GROUPS, other=0).to(tl.float32)
    mean = first + tl.reshape(tl.broadcast_to(beyond[:, None], (SOME, WIDE)), (SOME * WIDE,))
    factor = tl.load(weight + channel, mask=real, other=0).to(tl.float32)
    factor *= tl.reshape(tl.broadcast_to(scale[:, None], (SOME, WIDE)), (SOME * WIDE,))
    shift = tl.load(bias + channel, mask=real, other=0).to(tl.float32)
    if BEFORE:
        mean -= tl.load(before + channel, mask=real, other=0).to(tl.float32)
    for step in range(STEPS):
        row = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < pixels)[:, None] & real[None, :]
        place = start + row[:, None] * CHANNELS + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        found = (value - mean[None, :]) * factor[None, :] + shift[None, :]
        if SILU:
            found = found / (1 + tl.exp(-found))
        tl.store(y + place, found.to(y.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    before: Tensor | None = None,
) -> Tensor:
    """Return the group-normalised x (B, C, h, w), both channels-last; with `silu` its SiLU.

    `before` (C,) is added to x first.
    """
    pictures, channels, height, across = x.shape
    pixels, width = height * across, channels // groups
    found = torch.empty_like(x)
    adds = before is not None
    parameters = (weight, bias, weight if before is None else before)
    wide, high = triton.next_power_of_2(width), triton.next_power_of_2(pixels)
    with torch.cuda.device_of(x):
        if wide * high <= WHOLE:
            _norm_whole[(pictures * groups,)](
                *(x, found, *parameters, eps, pixels, channels, groups, high, wide, silu, adds),
                num_warps=_warps(wide * high),
            )
            return found
        some = max(1, min(COLUMNS // wide, triton.next_power_of_2(groups)))
        rows = max(1, TILE // (some * wide))
        beside, tiles = triton.cdiv(groups, some), triton.cdiv(pixels, rows)
        chunks = min(MOST_CHUNKS, triton.cdiv(PROGRAMS, pictures * beside))
        steps = triton.next_power_of_2(triton.cdiv(tiles, chunks))
        chunks = triton.cdiv(tiles, steps)
        sums = torch.empty(pictures, chunks, groups, 2, dtype=torch.float32, device=x.device)
        grid = (chunks, beside, pictures)
        shape = (channels, groups, some, wide, rows, steps)
        _norm_sums[grid](x, sums, parameters[2], pixels, chunks, *shape, adds, num_warps=8)
        _norm_apply[grid](
            *(x, found, sums, *parameters, eps, pixels, chunks, *shape),
            *(triton.next_power_of_2(chunks), silu, adds),
            num_warps=8,
        )
    return found


def _warps(numbers: int) -> int:
    """Return how many warps share so many elements, at most 64 per thread."""
    return max(1, min(16, numbers // 1024))


# What is done to each number


@triton.jit
def _gated(
    x,
    y,
    count,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the first half of x (rows, 2 * WIDTH) times the GELU of the second into y."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    source = x + place // WIDTH * (2 * WIDTH) + place % WIDTH
    value = tl.load(source, mask=inside, other=0).to(tl.float32)
    gate = tl.load(source + WIDTH, mask=inside, other=0).to(tl.float32)
    found = value * gate * 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + place, found.to(y.dtype.element_ty), mask=inside)


def gated(both: Tensor) -> Tensor:
    """Return (..., C) of (..., 2 * C): the first half times the exact GELU of the second."""
    both = both.contiguous()
    width = both.shape[-1] // 2
    found = both.new_empty(*both.shape[:-1], width)
    with torch.cuda.device_of(both):
        _gated[(triton.cdiv(found.numel(), BLOCK),)](both, found, found.numel(), width, BLOCK)
    return found


@triton.jit
def _add_scaled(
    target,
    addend,
    scale,
    count,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    before = tl.load(target + place, mask=inside, other=0).to(tl.float32)
    more = tl.load(addend + place, mask=inside, other=0).to(tl.float32)
    found = before + tl.load(scale) * more
    tl.store(target + place, found.to(target.dtype.element_ty), mask=inside)


def add_scaled(target: Tensor, addend: Tensor, scale: Tensor) -> Tensor:
    """Add scale * addend to the target in place, and return it; scale is one float32 number.

    Both have one shape and lie alike in memory, without gaps.
    """
    with torch.cuda.device_of(target):
        _add_scaled[(triton.cdiv(target.numel(), BLOCK),)](
            target, addend, scale, target.numel(), BLOCK
        )
    return target


@triton.jit
def _add_with_bias(target, addend, bias, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    found = tl.load(target + place, mask=inside, other=0).to(tl.float32)
    found += tl.load(bias + place % CHANNELS, mask=inside, other=0).to(tl.float32)
    found += tl.load(addend + place, mask=inside, other=0).to(tl.float32)
    tl.store(target + place, found.to(target.dtype.element_ty), mask=inside)


def add_with_bias(target: Tensor, addend: Tensor, bias: Tensor) -> Tensor:
    """Add a tensor and a bias (C,) to the target (B, C, h, w) in place, and return it.

    Both lie in channels-last memory, without gaps.
    """
    with torch.cuda.device_of(target):
        _add_with_bias[(triton.cdiv(target.numel(), BLOCK),)](
            target, addend, bias, target.numel(), target.shape[1], BLOCK
        )
    return target


@triton.jit
def _add_and_norm(
    target,
    addend,
    found,
    weight,
    bias,
    eps,
    WIDTH: tl.constexpr,
    COLS: tl.constexpr,
):
    """Write the sum of one row of (rows, WIDTH) into the target, its LayerNorm into `found`."""
    column = tl.arange(0, COLS)
    inside = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    total = tl.load(target + place, mask=inside, other=0).to(tl.float32)
    total += tl.load(addend + place, mask=inside, other=0).to(tl.float32)
    rounded = total.to(target.dtype.element_ty)
    tl.store(target + place, rounded, mask=inside)
    # Of what is kept, as if it had been read again.
    total = rounded.to(tl.float32)
    off = tl.where(inside, total - tl.sum(total, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(off * off, 0) / WIDTH + eps)
    factor = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0).to(tl.float32)
    tl.store(found + place, (off * scale * factor + shift).to(found.dtype.element_ty), mask=inside)


def add_and_norm(
    target: Tensor, addend: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Add a tensor to the target (..., C) in place; return the LayerNorm of the sum.

    Both lie in dense memory, the last axis innermost.
    """
    found = torch.empty_like(target)
    width = target.shape[-1]
    columns = triton.next_power_of_2(width)
    with torch.cuda.device_of(target):
        _add_and_norm[(target.numel() // width,)](
            *(target, addend, found, weight, bias, eps, width, columns),
            num_warps=max(1, min(8, columns // 256)),
        )
    return found
