"""Convolutions and products with weights that lie in memory as what runs them wants it, on the CPU.

torch hands oneDNN plain weights, which it lays out anew for every call: in SD 1.5's deepest blocks,
where weights are large and pictures small, that takes longer than the convolution. Here a layer's
weight is laid out at its first use, for oneDNN or for a kernel of ours (winograd.py, matmul.py),
and stays so as long as that is what runs; there is no second copy of it, and the memory of the
plain one goes back to the system. It says the same as before: whoever else looks at it sees a plain
tensor, made for that look.

That is for bfloat16, and where torch has oneDNN with it; elsewhere torch's own functions run, on a
GPU in fewer pieces.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from core.memory import release_cached_memory
from models.engine.kernels import matmul, winograd
from models.engine.kernels.build import on_gpu
from models.engine.kernels.groupnorm import group_norm, lie_alike

ONEDNN: Any = torch.ops.mkldnn
PLAIN: tuple[Any, ...] = ("none", [], "")
RELU: tuple[Any, ...] = ("relu", [], "")
"""oneDNN's names for what is done to the result."""
ROW_OF = ((1, 1), (0, 1), (1, 0), (0, 0))
"""Which of two output rows, and of its two input rows, each row of a 4x4 kernel serves."""

GIVEN_BACK = 64 * 2**20
"""Bytes of plain weights after which what they held is given back. glibc keeps it, in pieces that
the next weight just misses: of Stable Diffusion's 2.4 GB it would keep 1.6."""

_doubling = WeakTensorKeyDictionary()
"""The weights of convolutions behind an enlargement, summed and laid out, by the layer's."""
_freed = 0
"""Bytes of weights that were freed since they were given back last; a guess will do."""


@dataclass(frozen=True)
class Layout:
    """One way to lay a weight out, in one part or several, and the way back."""

    lay_out: Callable[[Tensor], tuple[Tensor, ...]]
    plain: Callable[[tuple[Tensor, ...], int], Tensor]
    """(the parts, its rows) -> the weight, of any shape."""


class PackedWeight(Tensor):
    """A weight laid out for what runs it.

    Every other operation sees it plain; to change it in place is an error.
    """

    parts: tuple[Tensor, ...]
    way: Layout

    @staticmethod
    def __new__(cls, parts: tuple[Tensor, ...], way: Layout, shape: torch.Size) -> "PackedWeight":
        """Take what is laid out already; `shape` is the plain weight's."""
        make: Any = torch.Tensor._make_wrapper_subclass
        made: PackedWeight = make(cls, shape, dtype=parts[0].dtype, device=parts[0].device)
        made.parts, made.way = parts, way
        return made

    def plain(self) -> Tensor:
        """Return a plain copy, channels-last where it is a convolution's."""
        whole = self.way.plain(self.parts, self.shape[0]).reshape(self.shape)
        return whole.contiguous(memory_format=torch.channels_last) if whole.ndim == 4 else whole

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Return a plain copy, which may be turned into another format."""
        memo[id(self)] = copied = nn.Parameter(self.plain(), requires_grad=False)
        return copied

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own says no more than Callable
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run any operation on the plain weight."""
        if func is torch.ops.aten.detach.default:  # what makes it a parameter
            return PackedWeight(args[0].parts, args[0].way, args[0].shape)
        if func._schema.is_mutable and isinstance(args[0], PackedWeight):
            raise RuntimeError("This weight is laid out for a kernel: it cannot be written on.")
        args, kwargs = tree_map_only(PackedWeight, PackedWeight.plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def convolve(
    layer: Any,
    x: Tensor,
    bias: Tensor | None = None,
    *,
    kept: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return a convolution layer's result, with another bias (C,) if one is given.

    x (B, C, h, w) in channels-last memory, and so is the result. What is kept (like the result) is
    added to it; with `relu` what ReLU makes of the sum.
    """
    bias = layer.bias if bias is None else bias
    is_product = layer.kernel_size == layer.stride == (1, 1) and not relu
    if is_product and (x.is_cuda or _suits(layer.weight, x)):
        # A product of matrices. cuDNN's convolution would leave the bias to a pass of its own;
        # oneDNN's with a weight laid out takes 2 to 50 times as long, most at small pictures.
        found = multiply(layer, x.permute(0, 2, 3, 1), bias).permute(0, 3, 1, 2)
        return found if kept is None else found.add_(kept)
    if winograd.suits(layer, x, bias, kept) and (parts := _laid_out(layer, x, PANELS)):
        return winograd.convolve(x, parts, bias, layer.out_channels, kept=kept, relu=relu)
    if parts := _laid_out(layer, x, CONVOLUTION):
        how = (layer.padding, layer.stride, [1, 1], 1, *(RELU if relu and kept is None else PLAIN))
        found = ONEDNN._convolution_pointwise.default(x, *parts, bias, *how)
    else:
        found = functional.conv2d(x, layer.weight, bias, layer.stride, layer.padding)
        found = functional.relu(found) if relu and kept is None else found
    if kept is not None:
        found = found.add_(kept)
        found = found.relu_() if relu else found
    return found


def convolve_doubled(layer: Any, x: Tensor) -> Tensor:
    """Return a 3x3 convolution of x (B, C, h, w) enlarged twice, (B, C, 2 * h, 2 * w).

    An output row sees two rows of x, one of them twice. With the two weights summed beforehand it
    is a transposed convolution 4x4 of stride 2, with 16 products for each pixel of x in place of
    36: measured twice as fast. The kernel of winograd.py takes 9, and nothing is summed.
    """
    suits = winograd.suits(layer, x, layer.bias, None, doubled=True)
    if suits and (parts := _laid_out(layer, x, PANELS)):
        return winograd.convolve(x, parts, layer.bias, layer.out_channels, doubled=True)
    weight = layer.weight  # which another thread may lay out meanwhile
    if not _suits(weight, x) or layer.kernel_size != (3, 3):
        return convolve(layer, functional.interpolate(x, scale_factor=2.0))
    if weight not in _doubling:
        _doubling[weight] = _doubled(weight)
    found: Tensor = ONEDNN._convolution_transpose_pointwise.default(
        x, _doubling[weight], layer.bias, [1, 1], [0, 0], [2, 2], [1, 1], 1, *PLAIN
    )
    return found


def multiply(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a linear layer's result (..., out), or that of a 1x1 convolution in its place.

    x (..., in); with another bias (out,) if one is given.
    """
    bias = layer.bias if bias is None else bias
    if matmul.suits(layer.weight, x, bias) and (parts := _laid_out(layer, x, PAIRS)):
        return matmul.multiply(x, parts[0], bias, layer.weight.shape[0])
    if parts := _laid_out(layer, x, PRODUCT):
        found: Tensor = ONEDNN._linear_pointwise.default(x, *parts, bias, *PLAIN)
        return found
    return functional.linear(x, layer.weight.flatten(1), bias)


def multiply_gated(layer: Any, x: Tensor) -> Tensor:
    """Return the first half of a linear layer's result times the GELU of its second half.

    x (..., in); the result is (..., out / 2). Function and factor are applied to what a product has
    in hand: no pass over the largest tensors, and one rounding in place of three (with oneDNN, in
    which both halves are products of their own, two).
    """
    gate_suits = matmul.suits(layer.weight, x, layer.bias, gated=True)
    if gate_suits and (parts := _laid_out(layer, x, GATED_PAIRS)):
        return matmul.multiply(x, parts[0], layer.bias, layer.weight.shape[0] // 2, gated=True)
    parts = _laid_out(layer, x, GATED)
    if not parts:
        both = functional.linear(x, layer.weight, layer.bias)
        if both.is_cuda and not both.requires_grad:
            fused: Tensor | None = on_gpu("gated", both)
            if fused is not None:
                return fused
        value, gate = both.chunk(2, dim=-1)
        return functional.gelu(gate).mul_(value)
    value_bias, gate_bias = layer.bias.chunk(2)
    value_part, gate_part = parts
    gate = ONEDNN._linear_pointwise.default(x, gate_part, gate_bias, "gelu", [], "none")
    found: Tensor = ONEDNN._linear_pointwise.binary(x, gate, value_part, value_bias, "mul")
    return found


def convolve_and_norm(convolution: Any, norm: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what a GroupNorm and SiLU make of a convolution of x, with another bias if given.

    For a GPU torch adds the bias in a pass of its own, which the normalisation does on its way.
    """
    if x.is_cuda:
        bias = convolution.bias if bias is None else bias
        found = _without_bias(convolution, x)
    else:
        found, bias = convolve(convolution, x, bias), None
    del x  # which nobody else may need any more, and memory peaks here
    return group_norm(norm, found, silu=True, bias=bias)


def convolve_onto(convolution: Any, x: Tensor, kept: Tensor) -> Tensor:
    """Return the sum of a convolution of x and a tensor like it; on a GPU with the bias at once."""
    if x.is_cuda and not x.requires_grad and not convolution.weight.requires_grad:
        found = _without_bias(convolution, x)
        suits = lie_alike(found, kept)
        if suits and on_gpu("add_with_bias", found, kept, convolution.bias) is not None:
            return found
        return found.add_(convolution.bias[:, None, None]).add_(kept)
    return convolve(convolution, x, kept=kept)


def add_and_norm(norm: Any, found: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of two tensors (B, N, C), and what a LayerNorm makes of it.

    The first is not to be used again. On a GPU both are one pass.
    """
    alike = found.is_contiguous() and kept.is_contiguous() and found.shape == kept.shape
    if found.is_cuda and alike and not found.requires_grad and not norm.weight.requires_grad:
        fused = on_gpu("add_and_norm", found, kept, norm.weight, norm.bias, norm.eps)
        if fused is not None:
            return found, fused
    total = found.add_(kept)
    return total, norm(total)


def _without_bias(convolution: Any, x: Tensor) -> Tensor:
    weight, stride, padding = convolution.weight, convolution.stride, convolution.padding
    return functional.conv2d(x, weight, None, stride, padding)


# The layout


def _laid_out(layer: Any, x: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Return the parts of the layer's weight, laid out now where it was not yet; none if it cannot.

    One that was laid out in another way, for pictures of another size, changes. The parts are the
    caller's: another thread may change it again meanwhile.
    """
    weight = layer.weight
    if isinstance(weight, PackedWeight) and weight.way is layout:
        return weight.parts
    if not _suits(weight, x):
        return ()
    # Ordinary tensors, also where this is first used in inference mode: they outlive it.
    with torch.inference_mode(False), torch.no_grad():
        parts = layout.lay_out(weight.plain() if isinstance(weight, PackedWeight) else weight)
        packed = PackedWeight(parts, layout, weight.shape)
        layer.weight = nn.Parameter(packed, requires_grad=False)
    _count_freed(weight.nbytes)
    return parts


def _count_freed(size: int) -> None:
    global _freed  # noqa: PLW0603 - the allocator it looks after is the process's own as well
    _freed += size
    if _freed >= GIVEN_BACK:
        _freed = 0
        release_cached_memory()


def _suits(weight: Tensor, x: Tensor) -> bool:
    """A weight that is still trained will change, and must stay where it is."""
    return (
        weight.dtype == x.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and not weight.requires_grad
        and not x.requires_grad
        and _available()
    )


@functools.cache
def _available() -> bool:
    """These operations are torch's own affair: what torch.compile makes its results of."""
    names = (
        *("_reorder_convolution_weight", "_convolution_pointwise"),
        *("_reorder_convolution_transpose_weight", "_convolution_transpose_pointwise"),
        *("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"),
    )
    return (
        bool(torch._C._has_mkldnn)
        and all(hasattr(ONEDNN, name) for name in names)
        and bool(ONEDNN._is_mkldnn_bf16_supported())
    )


def _for_convolution(weight: Tensor) -> tuple[Tensor, ...]:
    return (ONEDNN._reorder_convolution_weight(weight, [0, 0], [1, 1], [1, 1], 1, None),)


def _for_product(weight: Tensor) -> tuple[Tensor, ...]:
    return (ONEDNN._reorder_linear_weight(weight.flatten(1).contiguous(), None),)


def _for_gate(weight: Tensor) -> tuple[Tensor, ...]:
    halves = weight.chunk(2)
    return tuple(ONEDNN._reorder_linear_weight(half.contiguous(), None) for half in halves)


def _from_onednn(parts: tuple[Tensor, ...], _: int) -> Tensor:
    return torch.cat([part.to_dense() for part in parts])


CONVOLUTION = Layout(_for_convolution, _from_onednn)
PRODUCT = Layout(_for_product, _from_onednn)
GATED = Layout(_for_gate, _from_onednn)
PANELS = Layout(winograd.to_panels, winograd.from_panels)
PAIRS = Layout(
    lambda weight: (matmul.pack_vnni(weight.flatten(1)),),
    lambda parts, rows: matmul.from_pairs(parts[0], rows),
)
GATED_PAIRS = Layout(
    lambda weight: (matmul.to_gated_pairs(weight),),
    lambda parts, rows: matmul.from_gated_pairs(parts[0], rows),
)


def _doubled(weight: Tensor) -> Tensor:
    """Return the 4x4 weights (in, out, 4, 4) of a 3x3 convolution behind an enlargement."""
    with torch.inference_mode(False), torch.no_grad():
        # Output row 0 sees the input row above through the kernel's first row, and its own through
        # the sum of the others; output row 1 the other way round. So do columns.
        sums = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float32)
        rows = torch.stack([sums[output, input_] for output, input_ in ROW_OF])
        kernel = torch.einsum("oiyx,ay,bx->ioab", weight.float(), rows, rows).to(weight.dtype)
        packed: Tensor = ONEDNN._reorder_convolution_transpose_weight(
            kernel.contiguous(), [1, 1], [0, 0], [2, 2], [1, 1], 1, None
        )
        return packed
