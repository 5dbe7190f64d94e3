"""A layer's convolution or product, with packed weights on the CPU and fused with what follows it.

torch hands oneDNN plain weights, which oneDNN reorders at every call: in SD 1.5's deepest blocks,
where weights are large and pictures small, that takes longer than the convolution. Here a layer's
weight is packed at its first use, for oneDNN or for a kernel of ours (winograd.py, matmul.py), and
stays packed while the same kernel runs. There is no second copy: the plain weight's memory goes
back to the system, and other code that reads the weight gets a plain tensor, made at each access.
Layers that share a weight, as a base and its version with LoRAs do, share the packed one too,
whichever of them runs first.

Weights are packed in bfloat16 only; otherwise torch's own functions run, on a GPU with fewer kernel
launches. On a CPU without instructions for bfloat16, where torch's and oneDNN's take 3 to 5 times
as long as in float32, ours run for all layers: other convolutions as products of gathered pixels.
What diffusers and transformers run themselves is float32 there (`to_be_run`). models/README.md has
a table of which kernel runs for which layer.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from core.memory import release_cached_memory
from models.engine.kernels import matmul, winograd
from models.engine.kernels.build import cpu_has_bfloat16, kernel, on_gpu
from models.engine.kernels.groupnorm import group_norm, lie_alike

ONEDNN: Any = torch.ops.mkldnn
NO_ACTIVATION: tuple[Any, ...] = ("none", [], "")
RELU: tuple[Any, ...] = ("relu", [], "")
"""oneDNN's arguments for what is applied to the result."""
ROW_OF = ((1, 1), (0, 1), (1, 0), (0, 0))
"""For each row of a 4x4 kernel: which of the two output rows, and of its two input rows, it
connects."""

RELEASE_BYTES = 64 * 2**20
"""Bytes of freed plain weights after which their memory is returned to the system. glibc keeps it,
in pieces that the next weight just misses: of Stable Diffusion's 2.4 GB it would keep 1.6."""

_doubling = WeakTensorKeyDictionary()
"""By a layer's weight: the packed 4x4 weight of convolve_doubled."""
_packings = WeakTensorKeyDictionary()
"""By a weight, plain or packed: what it is packed as so far, a dict from Packing to TensorWeakRef
that all forms of the weight have in common."""
_freed = 0
"""Bytes of plain weights freed since the last release; threads may race on it, a guess will do."""


@dataclass(frozen=True)
class Packing:
    """An order of a weight's numbers in memory, in one tensor or several, and the way back."""

    pack: Callable[[Tensor], tuple[Tensor, ...]]
    unpack: Callable[[tuple[Tensor, ...], int], Tensor]
    """(packed parts, rows of the weight) -> the weight, of any shape."""
    needs_onednn: bool = False
    light: "Packing | None" = None
    """The same order with the numbers in 8 bits (eight_bit.py), for the same kernel."""


class PackedWeight(Tensor):
    """A weight packed for the kernel that runs it.

    Every other operation gets a plain copy; changing it in place is an error.
    """

    parts: tuple[Tensor, ...]
    packing: Packing

    @staticmethod
    def __new__(
        cls, parts: tuple[Tensor, ...], packing: Packing, shape: torch.Size
    ) -> "PackedWeight":
        """Wrap packed parts; `shape` is the plain weight's."""
        make: Any = torch.Tensor._make_wrapper_subclass
        weight: PackedWeight = make(cls, shape, dtype=torch.bfloat16, device=parts[0].device)
        weight.parts, weight.packing = parts, packing
        return weight

    def plain(self) -> Tensor:
        """Return a plain copy, channels-last for a convolution."""
        whole = self.packing.unpack(self.parts, self.shape[0]).reshape(self.shape)
        return whole.contiguous(memory_format=torch.channels_last) if whole.ndim == 4 else whole

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Return a plain copy, which can be converted to another number format."""
        memo[id(self)] = copied = nn.Parameter(self.plain(), requires_grad=False)
        return copied

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own says no more than Callable
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run any operation on the plain weight."""
        if func is torch.ops.aten.detach.default:  # nn.Parameter calls it
            return PackedWeight(args[0].parts, args[0].packing, args[0].shape)
        if func._schema.is_mutable and isinstance(args[0], PackedWeight):
            raise RuntimeError("This weight is packed for a kernel: it cannot be changed in place.")
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
    """Return a convolution layer's result, with the `bias` (C,) instead of its own if given.

    x (B, C, h, w) and the result are channels-last. `kept`, of the result's shape, is added to it;
    with `relu` the result is the ReLU of the sum.
    """
    bias = layer.bias if bias is None else bias
    is_product = layer.kernel_size == layer.stride == (1, 1) and not relu
    if is_product and (x.is_cuda or _may_pack(layer.weight, x)):
        # A product of matrices. cuDNN's convolution would add the bias in a pass of its own;
        # oneDNN's with a packed weight takes 2 to 50 times as long, most with small pictures.
        found = multiply(layer, x.permute(0, 2, 3, 1), bias).permute(0, 3, 1, 2)
        return found if kept is None else found.add_(kept)
    light = is_light(layer.weight)
    if winograd.suits(layer, x, bias, kept, light=light) and (parts := _packed(layer, x, WINOGRAD)):
        return winograd.convolve(x, parts, bias, layer.out_channels, kept=kept, relu=relu)
    if parts := _packed(layer, x, CONVOLUTION):
        activation = RELU if relu and kept is None else NO_ACTIVATION
        how = (layer.padding, layer.stride, [1, 1], 1, *activation)
        found = ONEDNN._convolution_pointwise.default(x, *parts, bias, *how)
    elif _may_be_product(layer, x, bias) and (parts := _packed(layer, x, GATHERED)):
        found = matmul.multiply(_gathered(layer, x), parts, bias, layer.out_channels)
        found = found.permute(0, 3, 1, 2)
        found = found.relu_() if relu and kept is None else found
    else:
        found = functional.conv2d(x, layer.weight, bias, layer.stride, layer.padding)
        found = functional.relu(found) if relu and kept is None else found
    if kept is not None:
        found = found.add_(kept)
        found = found.relu_() if relu else found
    return found


def _may_be_product(layer: Any, x: Tensor, bias: Tensor | None) -> bool:
    """Tell whether a convolution of x is best as a product of gathered pixels.

    It is with few pixels, few input channels, or a stride, where oneDNN is slow in bfloat16, or
    where the weight is light.
    """
    light = is_light(layer.weight)
    return (
        layer.kernel_size == (3, 3)
        and x.shape[1] == layer.in_channels
        and (light or not cpu_has_bfloat16())
        and matmul.takes(9 * layer.in_channels, layer.out_channels, x, bias, light=light)
    )


def _gathered(layer: Any, x: Tensor) -> Tensor:
    """Return what a 3x3 convolution sees of x (B, C, h, w) for each result, (B, h', w', 9 * C)."""
    down, right = layer.padding
    pixels = functional.pad(x.permute(0, 2, 3, 1), (0, 0, right, right, down, down))
    windows = pixels.unfold(1, 3, layer.stride[0]).unfold(2, 3, layer.stride[1])
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).contiguous()


def to_be_run(module: nn.Module) -> nn.Module:
    """Return a module that diffusers or transformers run themselves, in the faster format.

    Itself, or where torch is slow in bfloat16 a copy in float32, which is made in a moment.
    """
    weight = next(module.parameters())
    is_slow = _may_pack(weight, weight) and not cpu_has_bfloat16()
    return in_float32(module) if is_slow else module


def as_it_is(module: nn.Module, x: Tensor) -> Tensor:
    """Return the result of a module for `to_be_run`, in x's format."""
    faster = to_be_run(module)
    found: Tensor = faster(x.to(next(faster.parameters()).dtype))
    return found.to(x.dtype)


def in_float32(part: nn.Module) -> nn.Module:
    """Return a copy in CPU memory, without making one in the first format."""
    weights = {
        id(one): nn.Parameter(one.to("cpu", torch.float32), requires_grad=False)
        for one in part.parameters()
    }
    return copy.deepcopy(part, weights)


def convolve_doubled(layer: Any, x: Tensor) -> Tensor:
    """Return a 3x3 convolution of x (B, C, h, w) enlarged twice, (B, C, 2 * h, 2 * w).

    Enlarged by nearest neighbours, an output row sees two rows of x, one of them through two rows
    of the weight. With these summed beforehand it is a transposed 4x4 convolution of stride 2, with
    16 products for each pixel of x instead of 36: measured twice as fast. The kernel of winograd.py
    needs 9, and nothing is summed.
    """
    light = is_light(layer.weight)
    suits = winograd.suits(layer, x, layer.bias, None, doubled=True, light=light)
    if suits and (parts := _packed(layer, x, WINOGRAD)):
        return winograd.convolve(x, parts, layer.bias, layer.out_channels, doubled=True)
    weight = layer.weight  # another thread may replace it meanwhile
    if light or not _may_pack(weight, x) or not _has_onednn() or layer.kernel_size != (3, 3):
        return convolve(layer, functional.interpolate(x, scale_factor=2.0))
    if weight not in _doubling:
        _doubling[weight] = _doubled(weight)
    found: Tensor = ONEDNN._convolution_transpose_pointwise.default(
        x, _doubling[weight], layer.bias, [1, 1], [0, 0], [2, 2], [1, 1], 1, *NO_ACTIVATION
    )
    return found


def multiply(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a linear layer's result (..., out), or a 1x1 convolution's on the last axis.

    x (..., in); the `bias` (out,) replaces the layer's own if given.
    """
    bias = layer.bias if bias is None else bias
    light = is_light(layer.weight)
    if matmul.suits(layer.weight, x, bias, light=light) and (parts := _packed(layer, x, VNNI)):
        return matmul.multiply(x, parts, bias, layer.weight.shape[0])
    if parts := _packed(layer, x, PRODUCT):
        found: Tensor = ONEDNN._linear_pointwise.default(x, *parts, bias, *NO_ACTIVATION)
        return found
    return functional.linear(x, layer.weight.flatten(1), bias)


def multiply_gated(layer: Any, x: Tensor) -> Tensor:
    """Return the first half of a linear layer's result times the GELU of its second half.

    x (..., in); the result is (..., out / 2). GELU and factor are applied while the products are in
    registers: without a pass over the largest tensors, and with one rounding instead of three (two
    with oneDNN, for which the halves are two products).
    """
    light = is_light(layer.weight)
    gate_suits = matmul.suits(layer.weight, x, layer.bias, gated=True, light=light)
    if gate_suits and (parts := _packed(layer, x, GATED_VNNI)):
        return matmul.multiply(x, parts, layer.bias, layer.weight.shape[0] // 2, gated=True)
    parts = _packed(layer, x, GATED)
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
    """Return SiLU(GroupNorm(convolution of x)), with the `bias` instead of its own if given.

    On a GPU torch would add the bias in a pass of its own; here the normalisation adds it.
    """
    if x.is_cuda:
        bias = convolution.bias if bias is None else bias
        found = _without_bias(convolution, x)
    else:
        found, bias = convolve(convolution, x, bias), None
    del x  # perhaps its last reference, and memory peaks here
    return group_norm(norm, found, silu=True, bias=bias)


def convolve_onto(convolution: Any, x: Tensor, kept: Tensor) -> Tensor:
    """Return a convolution of x plus `kept`; on a GPU bias and sum are one pass."""
    if x.is_cuda and not x.requires_grad and not convolution.weight.requires_grad:
        found = _without_bias(convolution, x)
        suits = lie_alike(found, kept)
        if suits and on_gpu("add_with_bias", found, kept, convolution.bias) is not None:
            return found
        return found.add_(convolution.bias[:, None, None]).add_(kept)
    return convolve(convolution, x, kept=kept)


def add_and_norm(norm: Any, found: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of two tensors (B, N, C) and its LayerNorm; `found` is overwritten.

    On a GPU both are one pass.
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


# Packing


def _packed(layer: Any, x: Tensor, packing: Packing) -> tuple[Tensor, ...]:
    """Return the parts of the layer's weight in a packing; () if it cannot be packed so.

    A weight in another packing, for pictures of another size, is packed anew. The parts are
    returned, and not looked up again, since another thread may do the same meanwhile.
    """
    weight = layer.weight
    if isinstance(weight, PackedWeight):
        if weight.packing in (packing, packing.light):
            return weight.parts
        if is_light(weight):
            return ()
    if not _may_pack(weight, x) or (packing.needs_onednn and not _has_onednn()):
        return ()
    if weight not in _packings:
        _packings[weight] = {}
    forms = _packings[weight]
    shared: Any = forms[packing]() if packing in forms else None
    if shared is None:
        # Ordinary tensors, even if first used in inference mode: they outlive it.
        with torch.inference_mode(False), torch.no_grad():
            parts = packing.pack(weight.plain() if isinstance(weight, PackedWeight) else weight)
            packed = PackedWeight(parts, packing, weight.shape)
            shared = nn.Parameter(packed, requires_grad=False)
        forms[packing] = TensorWeakRef(shared)
        _packings[shared] = forms
    layer.weight = shared
    _count_freed(weight.nbytes)
    found: tuple[Tensor, ...] = shared.parts
    return found


def is_light(weight: Tensor) -> bool:
    """Tell whether a weight's numbers are in 8 bits."""
    return isinstance(weight, PackedWeight) and weight.packing in LIGHT


def held_bytes(weight: Tensor) -> int:
    """Return the bytes of memory that a weight takes."""
    parts = weight.parts if isinstance(weight, PackedWeight) else (weight,)
    return sum(part.numel() * part.element_size() for part in parts)


def can_be_light(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernels for light weights run here, in this number format."""
    kernels = (kernel(name) is not None for name in ("matmul", "winograd"))
    return device.type == "cpu" and dtype == torch.bfloat16 and all(kernels)


def lighten(network: nn.Module) -> None:
    """Store the weights of a network's large layers in 8 bits, which halves their memory.

    One after the other, so that memory never holds both forms of more than one. For a network that
    runs in bfloat16, where can_be_light. A light weight has one kernel; small or odd layers, and
    embeddings and norms, stay as they are.
    """
    gates = {id(one.proj) for one in network.modules() if type(one).__name__ == "GEGLU"}
    layer: Any
    for layer in network.modules():
        packing = _light_packing(layer, gated=id(layer) in gates)
        if packing is None or is_light(layer.weight):
            continue
        weight = layer.weight
        with torch.inference_mode(False), torch.no_grad():
            plain = weight.plain() if isinstance(weight, PackedWeight) else weight.detach()
            parts = packing.pack(plain.to(torch.bfloat16))
            packed = PackedWeight(parts, packing, weight.shape)
            layer.weight = nn.Parameter(packed, requires_grad=False)
        del plain
        _count_freed(weight.nbytes)


def _light_packing(layer: Any, *, gated: bool) -> Packing | None:
    """Return what a layer's weight becomes in 8 bits; None if no kernel takes it so."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    lanes = _lanes()
    outputs, inputs, *_ = layer.weight.shape
    if outputs % (2 * lanes if gated else lanes) or inputs % 2:
        return None
    if isinstance(layer, nn.Linear):
        return GATED_VNNI.light if gated else VNNI.light
    alone = layer.groups == 1 and layer.dilation == (1, 1)
    how = (layer.kernel_size, layer.stride, layer.padding) if alone else ()
    if how == ((1, 1), (1, 1), (0, 0)):
        return VNNI.light
    if how == ((3, 3), (1, 1), (1, 1)):
        return WINOGRAD.light if inputs % lanes == 0 else None
    return GATHERED.light if how and layer.kernel_size == (3, 3) else None


def _lanes() -> int:
    library = kernel("matmul")
    assert library is not None
    lanes: int = library.lanes()
    return lanes


def _count_freed(size: int) -> None:
    global _freed  # noqa: PLW0603 - the allocator is the process's own as well
    _freed += size
    if _freed >= RELEASE_BYTES:
        _freed = 0
        release_cached_memory()


def _may_pack(weight: Tensor, x: Tensor) -> bool:
    """Tell whether a weight may be packed; one that is still trained will change, and must not."""
    return (
        weight.dtype == x.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and not weight.requires_grad
        and not x.requires_grad
    )


@functools.cache
def _has_onednn() -> bool:
    """Tell whether torch has oneDNN, fast in bfloat16, and the private operations used here.

    They are those that torch.compile emits.
    """
    names = (
        *("_reorder_convolution_weight", "_convolution_pointwise"),
        *("_reorder_convolution_transpose_weight", "_convolution_transpose_pointwise"),
        *("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"),
    )
    return (
        bool(torch._C._has_mkldnn)
        and all(hasattr(ONEDNN, name) for name in names)
        and bool(ONEDNN._is_mkldnn_bf16_supported())
        and cpu_has_bfloat16()
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


def _windows(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) -> (out, 9 * in), in the order of `_gathered`."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _kernels(windows: Tensor) -> Tensor:
    return windows.reshape(len(windows), 3, 3, -1).permute(0, 3, 1, 2)


CONVOLUTION = Packing(_for_convolution, _from_onednn, needs_onednn=True)
PRODUCT = Packing(_for_product, _from_onednn, needs_onednn=True)
GATED = Packing(_for_gate, _from_onednn, needs_onednn=True)
WINOGRAD = Packing(
    winograd.pack,
    winograd.unpack,
    light=Packing(winograd.pack_light, winograd.unpack_light),
)
VNNI = Packing(
    lambda weight: (matmul.pack(weight.flatten(1)),),
    lambda parts, rows: matmul.unpack(parts[0], rows),
    light=Packing(lambda weight: matmul.pack_light(weight.flatten(1)), matmul.unpack_light),
)
GATHERED = Packing(
    lambda weight: (matmul.pack(_windows(weight)),),
    lambda parts, rows: _kernels(matmul.unpack(parts[0], rows)),
    light=Packing(
        lambda weight: matmul.pack_light(_windows(weight)),
        lambda parts, rows: _kernels(matmul.unpack_light(parts, rows)),
    ),
)
GATED_VNNI = Packing(
    lambda weight: (matmul.pack_gated(weight),),
    lambda parts, rows: matmul.unpack_gated(parts[0], rows),
    light=Packing(matmul.pack_gated_light, matmul.unpack_gated_light),
)
LIGHT = {one.light for one in (WINOGRAD, VNNI, GATHERED, GATED_VNNI)}


def _doubled(weight: Tensor) -> Tensor:
    """Return the 4x4 weight (in, out, 4, 4) of a 3x3 convolution after an enlargement, packed."""
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
