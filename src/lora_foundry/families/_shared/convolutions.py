"""Large 3x3 convolutions of frozen networks on a CPU, in a third to two thirds of the time: torch brings NNPACK, which
multiplies the picture's 8x8 tiles in a transformed space (Lavin & Gray, Fast Algorithms for Convolutional Neural
Networks, 2015: F(6x6, 3x3), 64 products where 324 are asked for), but uses it on phones only. A VAE is little else than
such layers. Off by some 1e-5 of the largest value; where torch has no NNPACK (Windows, old processors) its own way is
taken."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_PLACES = 64 * 64  # of a picture, from which the transformed products win; one thread alone needs a quarter
_CHANNELS = 128  # on either side, from which they do
_TILE = 6  # rows and columns of the result that one tile gives
_ROOM = 128 << 20  # bytes of transformed tiles at once; NNPACK keeps what it once took
_TILE_BYTES = 8 * 8 * 4  # of a transformed tile, a channel

_nnpack: Any = getattr(torch, "_nnpack_spatial_convolution", None)  # not part of the documented interface


@cache
def _available() -> bool:
    """Whether torch has NNPACK for this processor; the question is what starts it."""
    return _nnpack is not None and bool(torch._nnpack_available())


def is_large(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve_large` takes a convolution of x (n, in, h, w) with weight (out, in, 3, 3), stride and margin 1:
    large enough to win by it, fp32, on a CPU."""
    return (
        x.shape[2] * x.shape[3] >= (_PLACES if torch.get_num_threads() > 1 else _PLACES // 4)
        and min(weight.shape[:2]) >= _CHANNELS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _available()
    )


@torch.no_grad()
def convolve_large(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(x, weight) + bias with stride and margin 1, without a gradient: x (n, in, h, w), weight (out, in, 3, 3), both
    fp32 on the CPU. Picture after picture, in strips whose tiles fit in `_ROOM`."""
    count, (inside, outside) = len(x), (weight.shape[1], weight.shape[0])
    height, width = x.shape[2:]
    row = -(-width // _TILE) * _TILE_BYTES * (inside + outside)
    strip = max(1, _ROOM // row) * _TILE
    weight = weight.contiguous()
    if strip >= height:
        pictures = [_convolve(x[place : place + 1], weight, bias, 1) for place in range(count)]
        return pictures[0] if count == 1 else torch.cat(pictures)
    padded = functional.pad(x, (1, 1, 1, 1))
    result = x.new_empty(count, outside, height, width)
    for place in range(count):
        for top in range(0, height, strip):
            part = padded[place : place + 1, :, top : top + strip + 2]
            result[place : place + 1, :, top : top + strip] = _convolve(part, weight, bias, 0)
    return result


def _convolve(picture: Tensor, weight: Tensor, bias: Tensor | None, margin: int) -> Tensor:
    """One picture, or a strip of it; torch's own way where NNPACK refuses, as it does for want of memory."""
    try:
        result: Tensor = _nnpack(picture.contiguous(), weight, bias, margin, 1)
    except RuntimeError:
        result = functional.conv2d(picture, weight, bias, padding=margin)
    return result


def use_fast_convolutions(network: nn.Module) -> None:
    """Has the 3x3 convolutions of a frozen network compute as above wherever that wins and no gradient is asked for."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and is_plain(layer):
            layer.__class__ = _QuickConvolution


def is_plain(layer: nn.Conv2d) -> bool:
    """Whether a convolution is 3x3 with stride and margin 1."""
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and layer.groups == 1 and layer.padding_mode == "zeros"


class _QuickConvolution(nn.Conv2d):
    # A class and not a forward of the layer's own, which would hold the layer, and its memory, in a circle.
    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and is_large(input, self.weight):
            return convolve_large(input, self.weight, self.bias)
        return super().forward(input)
