"""OpenVINO as a peer: networks converted for the shapes they are first called with, on a CPU.

Its own backend for torch.compile fails in torch 2.11 (Dynamo cannot name a symbol of its graphs),
so each network is converted whole, which is also what OpenVINO recommends.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


def converted(network: Any) -> Any:
    """Return a network that answers as the given one does, through OpenVINO.

    It is converted at its first call, and takes that call's shapes and other arguments ever after.
    """
    stand_in = copy.copy(network)
    stand_in.forward = _Converted(network)
    return stand_in


class _Flat(nn.Module):
    """A network whose arguments and results are lists of float32 tensors, as OpenVINO has them."""

    result: TreeSpec

    def __init__(self, network: Any, leaves: list[Any], spec: TreeSpec) -> None:
        super().__init__()
        self._network, self._leaves, self._spec = network, leaves, spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = iter(tensors)
        # The arguments that are no tensors stay what they were.
        leaves = [
            next(left).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves
        ]
        args, kwargs = tree_unflatten(leaves, self._spec)
        found, self.result = tree_flatten(
            type(self._network).forward(self._network, *args, **kwargs)
        )
        return tuple(one.float() for one in found)


class _Converted:
    def __init__(self, network: Any) -> None:
        self._network = network
        self._compiled: Any = None
        self._flat: Any = None

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [one for one in leaves if isinstance(one, Tensor)]
        inputs = [one.float().contiguous() for one in tensors]
        if self._compiled is None:
            self._flat = _Flat(self._network, leaves, spec).eval()
            self._compiled = _compiled(self._flat, inputs, tensors[0].dtype)
        found = self._compiled([one.numpy() for one in inputs])
        results = [torch.from_numpy(found[k]).to(tensors[0].dtype) for k in range(len(found))]
        return tree_unflatten(results, self._flat.result)


def _compiled(flat: _Flat, inputs: list[Tensor], dtype: torch.dtype) -> Any:
    import openvino  # noqa: PLC0415 - an optional peer

    model = openvino.convert_model(flat, example_input=tuple(inputs))
    model.reshape({k: list(one.shape) for k, one in enumerate(inputs)})
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    return openvino.Core().compile_model(model, "CPU", how)
