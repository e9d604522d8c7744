"""Frozen layers as a CPU computes them best. torch lays every convolution's weights out anew at each call, forward and
backward: where the weights are large and the picture small (a UNet's inner levels), that takes longer than the sums,
and one matrix product over the picture's patches is up to four times faster; where the picture is large, see
`bases.convolutions`. And a base that the recipe wants in bf16 is kept in bf16 on a CPU that cannot compute in it: each
layer widens its own weights while it runs, forward and backward, so that the memory holds half of what a base in fp32
takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad

from lora_foundry.families._shared.convolutions import convolve_large, is_large, is_plain

_conv2d_input: Any = grad.conv2d_input  # untyped in the library
_WIDE = 8_000_000  # weights of a convolution from which their layout costs more than the patches
_FEW = 256  # places of all pictures of a batch up to which it does
_NARROW = 16  # columns below which the product with the transposed weights is far the slower one


class _Scratch(threading.local):
    """Where weights are widened, layer after layer: fresh memory for each would cost more than the widening."""

    room: Tensor | None = None


_scratch = _Scratch()


def widened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`: itself, or on a CPU a copy that holds until the next call in this thread."""
    if weight.dtype == dtype or weight.device.type != "cpu":
        return weight.to(dtype)
    room, count = _scratch.room, weight.numel()
    if room is None or room.dtype != dtype or room.numel() < count:
        room = _scratch.room = torch.empty(count, dtype=dtype)
    return room[:count].view(weight.shape).copy_(weight)


class FrozenConvolution(torch.autograd.Function):
    """y = conv(x, W) + b, W and b frozen: x (n, in, h, w), W (out, in, k, k) in any float type. Nothing of x is kept
    for the way back."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        context.save_for_backward(weight)
        context.layer, context.shape = layer, x.shape
        wide = widened(weight, x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        if is_plain(layer) and is_large(x, wide):
            return convolve_large(x, wide, bias)
        if not _by_patches(layer, x.shape):
            return functional.conv2d(x, wide, bias, layer.stride, layer.padding, layer.dilation)
        patches = _side_by_side(functional.unfold(x, 3, padding=1, stride=layer.stride))
        result = wide.flatten(1) @ patches
        if bias is not None:
            result += bias[:, None]
        return _one_by_one(result, len(x)).reshape(len(x), -1, *_size(layer, x.shape))

    @staticmethod
    @once_differentiable
    def backward(context: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        if not context.needs_input_grad[0]:
            return None, None, None, None
        (weight,) = context.saved_tensors
        layer, shape = context.layer, context.shape
        wide = widened(weight, above.dtype)
        if is_plain(layer) and is_large(above, wide):
            # The way back is the same convolution with the kernels turned by half a circle.
            return convolve_large(above, wide.flip(2, 3).transpose(0, 1), None), None, None, None
        if _by_patches(layer, shape):
            flat, columns = wide.flatten(1), _side_by_side(above.flatten(2))
            narrow = columns.shape[1] < _NARROW
            patches = (columns.T @ flat).T if narrow else flat.T @ columns
            patches = _one_by_one(patches, len(above))
            below = functional.fold(patches, shape[2:], 3, padding=1, stride=layer.stride)
            return below, None, None, None
        below = _conv2d_input(shape, wide, above, layer.stride, layer.padding, layer.dilation)
        return below, None, None, None


class FrozenLinear(torch.autograd.Function):
    """y = x W^T + b, W and b frozen: x (..., in), W (out, in) in any float type."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return functional.linear(x, widened(weight, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = context.saved_tensors
        return (above @ widened(weight, above.dtype) if context.needs_input_grad[0] else None), None, None


# Untyped in the library.
_convolve: Any = FrozenConvolution.apply
_multiply: Any = FrozenLinear.apply


def use_cpu_layers(network: nn.Module) -> None:
    """Gives the frozen linear layers and convolutions of `network` the forms above, in whatever type their weights are;
    all other weights become fp32, in which the network then computes. What a subclass changed is left alone."""
    for layer in network.modules():
        frozen = not any(weight.requires_grad for weight in layer.parameters())
        if frozen and type(layer) is nn.Conv2d and layer.groups == 1:
            compute_by(layer, partial(_convolution, layer))
        elif frozen and type(layer) is nn.Linear:
            if layer.weight.dtype != torch.float32:
                compute_by(layer, partial(_linear, layer))
        else:
            for weight in layer.parameters(recurse=False):
                if (
                    weight.is_floating_point()
                ):  # the codes of a quantised matrix are no numbers to compute with
                    weight.data = weight.data.float()


def compute_by(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
    """Has one layer compute by `forward`."""
    layer.forward = forward


def _convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    result: Tensor = _convolve(x, layer.weight, layer.bias, layer)
    return result


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    result: Tensor = _multiply(x, layer.weight, layer.bias)
    return result


def _side_by_side(columns: Tensor) -> Tensor:
    """(n, rows, columns) as (rows, n * columns): one large product is faster than n small ones."""
    return columns.transpose(0, 1).flatten(1)


def _one_by_one(columns: Tensor, count: int) -> Tensor:
    """(rows, n * columns) as (n, rows, columns)."""
    return columns.reshape(len(columns), count, -1).transpose(0, 1)


def _by_patches(layer: nn.Conv2d, shape: torch.Size) -> bool:
    """Whether one product over the patches is the faster way; see above."""
    usual = layer.kernel_size == (3, 3) and layer.padding == (1, 1) and layer.dilation == (1, 1)
    height, width = _size(layer, shape)
    return usual and layer.weight.numel() > _WIDE and shape[0] * height * width <= _FEW


def _size(layer: nn.Conv2d, shape: torch.Size) -> tuple[int, int]:
    """The result's height and width, of a 3x3 convolution with a margin of 1."""
    down, across = layer.stride
    return (shape[2] - 1) // down + 1, (shape[3] - 1) // across + 1
