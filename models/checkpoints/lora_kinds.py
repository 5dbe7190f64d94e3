"""What each kind of LoRA adds to a weight, by its authors' formula.

All are for a weight W (out, in) or (out, in, kernel, kernel), in float32; a difference of another
shape, but with as many rows and numbers, is reshaped to W's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
"""The tensors of one layer by part, as lora_names names them."""


@dataclass(frozen=True)
class Kind:
    """A parametrization of the difference between two weights."""

    name: str
    needed: tuple[frozenset[str], ...]
    """Parts that identify it; any one of these sets."""
    optional: frozenset[str]
    delta: Callable[[Parts, Tensor], Tensor | None]
    """(parts, W) -> the difference before scaling by alpha / rank, or None."""
    rank: Callable[[Parts, Tensor], int | None]
    """The divisor of alpha; None if neither applies."""

    def fits(self, parts: Parts) -> bool:
        """Tell whether these are the parts of this kind."""
        return any(
            needed <= parts.keys() <= needed | self.optional | ALWAYS_OPTIONAL
            for needed in self.needed
        )


BIASES = frozenset({"up_bias", "diff_b", "b_norm"})
"""Parts that are added to a layer's bias."""
ALWAYS_OPTIONAL = frozenset({"alpha", "dora_scale", "lora_magnitude_vector"})


@dataclass(frozen=True, eq=False)
class Change:
    """One LoRA's change of one layer."""

    kind: Kind
    parts: Parts
    scale: float
    """alpha / rank."""
    strength: float
    """The tag's strength for this layer; 0 leaves the weight unchanged."""

    def added(self, weight: Tensor) -> Tensor | None:
        """Return the difference in float32, in the shape and on the device of `weight`, or None.

        Raises:
            IndexError, RuntimeError: the parts have other shapes.
        """
        whole = weight.float()
        parts = {name: part.to(weight.device, torch.float32) for name, part in self.parts.items()}
        delta = self.kind.delta(parts, whole) if self.strength else None
        if delta is None:
            return None
        delta = self.scale * in_shape_of(whole, delta)
        return self.strength * decomposed(parts, whole, delta)

    def added_bias(self, bias: Tensor) -> Tensor | None:
        """Return the bias's difference in float32, or None."""
        for name in BIASES & self.parts.keys():
            if self.strength:
                part = self.parts[name].to(bias.device, torch.float32)
                scale = self.scale if name == "up_bias" else 1.0
                return self.strength * scale * part.reshape(bias.shape)
        return None


def in_shape_of(weight: Tensor, delta: Tensor) -> Tensor:
    """Return the difference in the weight's shape.

    Raises:
        RuntimeError: the number of rows or of elements differs.
    """
    if delta.shape[0] != weight.shape[0]:
        raise RuntimeError(f"{delta.shape[0]} rows for {weight.shape[0]}")
    return delta.reshape(weight.shape)


def decomposed(parts: Parts, weight: Tensor, delta: Tensor) -> Tensor:
    """Return a DoRA's difference, m * (W + d) / |W + d| - W; d itself for other kinds.

    PEFT's magnitude m has one number per output. LyCORIS's and OneTrainer's dora_scale has one per
    output, (out, 1), or per input, (1, in). As in AUTOMATIC1111 and ComfyUI the strength multiplies
    the whole difference, so that 0 changes nothing; in PEFT and LyCORIS it is inside, which is the
    same at 1.

    Source: Liu et al. 2024, "DoRA".
    """
    scale, axis = parts.get("lora_magnitude_vector"), 0
    if scale is None:
        scale = parts.get("dora_scale")
        if scale is None:
            return delta
        axis = int(scale.shape[0] != weight.shape[0])
    sides = [1] * weight.ndim
    sides[axis] = weight.shape[axis]
    others = [side for side in range(weight.ndim) if side != axis]
    changed = weight + delta
    norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
    direction: Tensor = changed / norm.clamp_min(torch.finfo(torch.float32).eps)
    return scale.reshape(sides) * direction - weight


def _lora(parts: Parts, _: Tensor) -> Tensor:
    """Product of two factors, or a Tucker decomposition of three (Hu et al. 2021; LyCORIS)."""
    up, down = parts["up"].flatten(1), parts["down"].flatten(1)
    if "mid" in parts:
        return torch.einsum("or,rskl,si->oikl", up, parts["mid"], down)
    return up @ down


def _loha(parts: Parts, _: Tensor) -> Tensor:
    """Elementwise product of two products (Hyeon-Woo et al. 2021, "FedPara"; LyCORIS)."""
    return _half(parts, "hada_w1", "hada_t1") * _half(parts, "hada_w2", "hada_t2")


def _lokr(parts: Parts, _: Tensor) -> Tensor:
    """Kronecker product of a small and a large matrix, each whole or factored (LyCORIS)."""
    small, large = (
        parts[name] if name in parts else _half(parts, name, "lokr_t2" if name[-1] == "2" else "")
        for name in ("lokr_w1", "lokr_w2")
    )
    return torch.kron(small, large.flatten(1).contiguous())


def _half(parts: Parts, name: str, middle: str) -> Tensor:
    """Return a @ b; with a middle factor (r, s, kernel, kernel) a is (r, out) and b (s, in)."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if middle in parts:
        return torch.einsum("rskl,ro,si->oikl", parts[middle], a, b)
    return a @ b.flatten(1)


def _glora(parts: Parts, weight: Tensor) -> Tensor:
    """W @ a1 @ a2 + b1 @ b2; in files before LyCORIS 2.0 each pair is swapped.

    Source: Chavan et al. 2023, "One-for-All: Generalized LoRA"; LyCORIS (modules/glora.py).
    """
    a1, a2, b1, b2 = (parts[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if _is_old_glora(parts, weight):
        a1, a2, b1, b2 = a2, a1, b2, b1
    turned = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return turned + in_shape_of(weight, b1 @ b2)


def _is_old_glora(parts: Parts, weight: Tensor) -> bool:
    return parts["a1"].shape[0] != weight.shape[1]


def _glora_rank(parts: Parts, weight: Tensor) -> int:
    return parts["a1"].shape[0 if _is_old_glora(parts, weight) else 1]


def _lokr_rank(parts: Parts, _: Tensor) -> int | None:
    factor = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
    return None if factor is None else factor.shape[0]


LORA = Kind(
    "LoRA",
    (frozenset({"up", "down"}),),
    frozenset({"mid", "up_bias"}),
    _lora,
    lambda parts, weight: parts["down"].shape[0],
)
KINDS = (
    LORA,
    Kind(
        "LoHa",
        (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
        frozenset({"hada_t1", "hada_t2"}),
        _loha,
        lambda parts, weight: parts["hada_w1_b"].shape[0],
    ),
    Kind(
        "LoKr",
        tuple(
            frozenset(first | second)
            for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
            for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
        ),
        frozenset({"lokr_t2"}),
        _lokr,
        _lokr_rank,
    ),
    Kind(
        "GLoRA",
        (frozenset({"a1", "a2", "b1", "b2"}),),
        frozenset(),
        _glora,
        _glora_rank,
    ),
    Kind(
        "full difference",
        (frozenset({"diff"}), frozenset({"diff_b"})),
        frozenset({"diff_b"}),
        lambda parts, weight: parts.get("diff"),
        lambda parts, weight: None,
    ),
    Kind(
        "norm",
        (frozenset({"w_norm"}), frozenset({"b_norm"})),
        frozenset({"b_norm"}),
        lambda parts, weight: parts.get("w_norm"),
        lambda parts, weight: None,
    ),
)


def first_ranks(kind: Kind, parts: Parts, count: int | None) -> Parts:
    """Return the parts of a plain LoRA truncated to `count` ranks; other kinds unchanged."""
    if count is None or kind is not LORA:
        return parts
    kept = {"up": parts["up"][:, :count], "down": parts["down"][:count]}
    if "mid" in parts:
        kept["mid"] = parts["mid"][:count, :count]
    return {**parts, **kept}
