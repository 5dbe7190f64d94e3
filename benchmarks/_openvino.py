"""OpenVINO as a competitor on a CPU: networks converted for the shapes of their first call.

Its torch.compile backend fails in torch 2.11 (Dynamo cannot name a symbol of its graphs), so each
network is converted whole, which is also what OpenVINO recommends.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


def to_openvino(network: Any) -> Any:
    """Return a copy of a network that runs in OpenVINO.

    It is converted at its first call, and fixed to that call's shapes and non-tensor arguments.
    """
    wrapper = copy.copy(network)
    wrapper.forward = _OpenVINOForward(network)
    return wrapper


class _FlatNetwork(nn.Module):
    """A network with flat lists of float32 tensors as arguments and results, for OpenVINO."""

    result_spec: TreeSpec

    def __init__(self, network: Any, leaves: list[Any], spec: TreeSpec) -> None:
        super().__init__()
        self._network, self._leaves, self._spec = network, leaves, spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        # Non-tensor arguments keep their values.
        leaves = [
            next(remaining).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf
            for leaf in self._leaves
        ]
        args, kwargs = tree_unflatten(leaves, self._spec)
        results, self.result_spec = tree_flatten(
            type(self._network).forward(self._network, *args, **kwargs)
        )
        return tuple(result.float() for result in results)


class _OpenVINOForward:
    def __init__(self, network: Any) -> None:
        self._network = network
        self._compiled: Any = None
        self._flat: Any = None

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inputs = [tensor.float().contiguous() for tensor in tensors]
        if self._compiled is None:
            self._flat = _FlatNetwork(self._network, leaves, spec).eval()
            self._compiled = _compile(self._flat, inputs, tensors[0].dtype)
        outputs = self._compiled([tensor.numpy() for tensor in inputs])
        results = [torch.from_numpy(outputs[k]).to(tensors[0].dtype) for k in range(len(outputs))]
        return tree_unflatten(results, self._flat.result_spec)


def _compile(flat: _FlatNetwork, inputs: list[Tensor], dtype: torch.dtype) -> Any:
    import openvino  # noqa: PLC0415 - an optional competitor

    model = openvino.convert_model(flat, example_input=tuple(inputs))
    model.reshape({k: list(tensor.shape) for k, tensor in enumerate(inputs)})
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    return openvino.Core().compile_model(model, "CPU", options)
