"""A LoRA module in as few passes over its activations as there can be. Layer by layer, peft multiplies, scales and adds:
three results of full size forward and as many back. Here the up product is added onto the frozen layer's result while
it is computed (beta = 1 of the matrix product), so that only the narrow tensor between down and up is new, and the same
backward; the gradients are added where `lora.flatten` keeps them, in the same product. The sums are the same; only
their rounding differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_foundry.families._shared.cpu_layers import compute_by
from lora_foundry.families._shared.quantised import QuantisedLinear, Unpack, stored_tensors, unpacker


class FusedLora(torch.autograd.Function):
    """y = x W^T + b + scale (x A^T) B^T with W and b frozen, in any float type; x (n, in), A (r, in), B (out, r). W is what
    `unpack` makes of `stored`, the tensors that a frozen layer keeps it in, forward and again backward. The gradients of A
    and B are not returned but added to those that the two have when it is called."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes everything by place
        context: Any,
        x: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        unpack: Unpack,
        *stored: Tensor,
    ) -> Tensor:
        low, high = down.to(x.dtype), up.to(x.dtype)
        narrow = x @ low.T
        result = functional.linear(x, unpack(stored, x.dtype), None if bias is None else bias.to(x.dtype))
        result.addmm_(narrow, high.T, alpha=scale)
        context.save_for_backward(x, low, high, narrow, *stored)
        context.scale, context.gradients, context.unpack = scale, (down.grad, up.grad), unpack
        return result

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, high, narrow, *stored = context.saved_tensors
        back = grad @ high
        to_input = None
        if context.needs_input_grad[0]:
            to_input = (grad @ context.unpack(stored, grad.dtype)).addmm_(back, low, alpha=context.scale)
        to_down, to_up = context.gradients
        _add_product(to_down, back.T, x, context.scale)
        _add_product(to_up, grad.T, narrow, context.scale)
        return to_input, *(None,) * (5 + len(stored))


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """total += scale * left @ right, in `total`'s own type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total.add_(left @ right, alpha=scale)


_apply: Any = FusedLora.apply  # untyped in the library


def fuse(network: nn.Module, name: str, twins: Mapping[nn.Parameter, nn.Parameter] | None = None) -> int:
    """Gives every plain LoRA on a linear layer of `network` (peft's adapter `name`) the fused form; returns how many
    there were. Others (DoRA, convolutions, dropout) stay as they are. `twins` are the weights in the type that the
    network computes in, where it is another (`lora.HalfCopies`)."""
    from peft.tuners.lora import Linear

    count = 0
    for layer in network.modules():
        if not isinstance(layer, Linear) or layer.use_dora.get(name, False):
            continue
        base = layer.get_base_layer()
        plain = type(base) in {nn.Linear, QuantisedLinear} and isinstance(
            layer.lora_dropout[name], nn.Identity
        )
        if plain and list(layer.active_adapters) == [name]:
            compute_by(layer, _Forward(layer, base, name, twins or {}))
            count += 1
    return count


class _Forward:
    """What stands in for peft's forward of one layer."""

    def __init__(self, layer: Any, base: Any, name: str, twins: Mapping[nn.Parameter, nn.Parameter]) -> None:
        self._base, self._scale, self._unpack = base, float(layer.scaling[name]), unpacker(base)
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        self._weights = {down.dtype: (down, up)}
        if down in twins:
            self._weights[twins[down].dtype] = twins[down], twins[up]
        self._dtype = down.dtype

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down, up = self._weights.get(x.dtype) or self._weights[self._dtype]
        # Read at each call: a block that is streamed has other tensors each time.
        stored = stored_tensors(self._base)
        result: Tensor = _apply(flat, self._base.bias, down, up, self._scale, self._unpack, *stored)
        return result.view(*x.shape[:-1], -1)
